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
  const figure = (name, text) => (find(root, `.ld-summary [data-figure="${name}"]`).textContent = text);
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
  figure("speedup", now.speedup ? `${formatNumber(now.speedup, 2)}×` : "–");
  figure("bound", now.bound ? `${formatNumber(now.bound, 2)}×` : "–");
  figure("noise", now.by_chance ? ", passed by chance: a busy machine" : "");
  figure("kv-saved", formatShare(now.kv_saved, 1));
  figure("agreement", formatShare(now.top1_agreement, 1));
  const differs = now.first_divergence;
  figure("divergence", differs === null ? (run.lanes.length > 1 ? "none" : "–") : `token ${differs + 1}`);
}
