/* The run's headline figures, and the model and device that it ran on. */

import { find } from "../dom.js";
import { formatLoss, formatNumber, formatSaved, formatShare, placeName } from "../format.js";

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

/** Model, number type, decoder and device: the run's, or those of the next run. */
function drawPlace(figure, { model, run }) {
  if (run) figure("device", placeName(run.header.model, run.header.device));
  else if (model) figure("device", placeName(model, { name: model.device, decoder: model.decoder }));
}

function drawFigures(figure, { run }) {
  if (!run) return;
  const now = run.figures;
  const words = run.summary?.words.speedup;
  const measured = now.speedup ? `${formatNumber(now.speedup, 2)}×` : "–";
  const speedup = figure("speedup", words ?? measured);
  speedup.classList.toggle("ld-words", Boolean(words));
  const interval = run.summary?.speedup_interval?.map((value) => formatNumber(value, 2)).join(" to ");
  speedup.title = interval ? `${measured}; 95% interval ${interval}` : "";
  figure("bound", now.bound ? `${formatNumber(now.bound, 2)}×` : "–");
  figure("noise", now.by_chance && !words ? ", exceeded by timing noise" : "");
  figure("kv-saved", formatSaved(now.kv_saved));
  figure("agreement", formatShare(now.top1_agreement, 1));
  figure("quality", now.quality_loss === null ? "–" : `${formatLoss(now.quality_loss)} nats`);
  figure("accepted", now.accepted === null ? "" : `${formatShare(now.accepted)} of drafts accepted`);
  const differs = now.first_divergence;
  figure("divergence", differs === null ? (run.lanes.length > 1 ? "none" : "–") : `token ${differs + 1}`);
}
