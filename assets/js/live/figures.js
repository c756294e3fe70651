/* The run's headline: its figures, and on what it ran. */

import { find } from "../dom.js";
import { formatNumber, formatShare } from "../format.js";
import { placeWords } from "./words.js";

/** @typedef {import("../store.js").State} State */

/**
 * @param {HTMLElement} root
 * @param {import("../store.js").Store} store
 */
export function mountFigures(root, store) {
  const figure = (name, text) => {
    const node = find(root, `.ld-summary [data-figure="${name}"]`);
    node.textContent = text;
    return node;
  };
  store.subscribe(["focus", "revision"], (state) => drawFigures(figure, state));
  store.subscribe(["model", "run"], (state) => drawPlace(figure, state));
  drawPlace(figure, store.state);
}

/** Where it runs: a run keeps the name of its own. */
function drawPlace(figure, { model, run }) {
  if (run) {
    const { model: ran, device } = run.header;
    figure("device", placeWords(ran.id, ran.dtype, device.decoder, device.name));
  } else if (model) {
    figure("device", placeWords(model.id, model.dtype, model.decoder, model.device));
  }
}

function drawFigures(figure, { run }) {
  if (!run) return;
  const now = run.figures;
  const words = run.summary?.words.speedup;
  const measured = now.speedup ? `${formatNumber(now.speedup, 2)}×` : "–";
  const speedup = figure("speedup", words ?? measured);
  speedup.classList.toggle("ld-words", Boolean(words));
  const interval = run.summary?.speedup_interval?.map((value) => formatNumber(value, 2)).join(" to ");
  speedup.title = interval ? `${measured}, and 95% of resampled cycles within ${interval}` : "";
  figure("bound", now.bound ? `${formatNumber(now.bound, 2)}×` : "–");
  figure("noise", now.by_chance && !words ? ", passed by chance: a busy machine" : "");
  figure("kv-saved", formatShare(now.kv_saved, 1));
  figure("agreement", formatShare(now.top1_agreement, 1));
  figure("quality", now.quality_loss === null ? "–" : `${formatNumber(now.quality_loss, 2)} nats`);
  figure("accepted", now.accepted === null ? "" : `kept ${formatShare(now.accepted)} of drafts`);
  const differs = now.first_divergence;
  figure("divergence", differs === null ? (run.lanes.length > 1 ? "none" : "–") : `token ${differs + 1}`);
}
