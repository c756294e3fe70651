/* The small model of the build-up and its shapes. It has few layers, so that each is visible. Its counts come from
 * schedule.js, as in a run. */

import { makeSvg } from "../dom.js";
import { baseline, droppedLayers, kind, kvLength, kvTokens } from "../schedule.js";

/** @typedef {import("../records.js").Schedule} Schedule */

export const LAYERS = 10;
export const RANGE = /** @type {const} */ ([2, 8]); // layers that may be skipped
export const PERIOD = 4;
export const STEPS = 2 * PERIOD; // decode steps in the drawing
export const PROMPT = 3;
const DROPPED = droppedLayers(...RANGE, 0.5);

export const SIZE = { width: 340, height: 264 };
const [TOP, ROW] = [12, 23];

/** @param {number} layer */
export const y = (layer) => TOP + (LAYERS - 1 - layer) * ROW;
export const CELL = ROW - 4;

/** @type {Schedule} the paper's caches: a LoRA step's holes stay */
export const WITH_HOLES = {
  period: PERIOD, numLayers: LAYERS, dropped: DROPPED, reuse: "residual", part: "block", kv: "skip", refresh: "single",
};
/** @type {Schedule} */
export const REPAIRED = { ...WITH_HOLES, kv: "write", refresh: "repair" };

/**
 * Tokens in the caches of a layer that runs and of a skipped one, and the saved share of the full model's memory.
 *
 * @param {Schedule} schedule
 * @param {number} step
 */
export const heldAfter = (schedule, step) => ({
  running: kvLength(schedule, false, PROMPT, step),
  skipped: kvLength(schedule, true, PROMPT, step),
  saved: 1 - kvTokens(schedule, PROMPT, step) / kvTokens(baseline(LAYERS), PROMPT, step),
});

/**
 * A layer's cache entry for a step's token after step `now`: "exact", "approximate" or a "hole".
 *
 * @param {Schedule} schedule
 * @param {number} layer
 * @param {number} step 0 or less for the prompt
 * @param {number} now
 */
export function entryOf(schedule, layer, step, now) {
  if (step <= 0 || layer < schedule.dropped[0]) return "exact";
  const refresh = Math.floor(now / schedule.period) * schedule.period;
  if (schedule.refresh === "repair" && step <= refresh) return "exact";
  const isSkipped = schedule.dropped.includes(layer);
  if (kind(schedule, step) === "lora") return isSkipped ? "hole" : layer === schedule.dropped[0] ? "exact" : "approximate";
  return "exact";
}

/**
 * A cell of a layer.
 *
 * @param {number} x
 * @param {number} layer
 * @param {number} width
 * @param {string} name
 */
export const cell = (x, layer, width, name) =>
  makeSvg("rect", { x, y: y(layer), width, height: CELL, rx: 3, class: `ld-toy-${name}` });
