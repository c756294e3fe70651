/* The token's pace in the drawing: through the layers of a step, and from step to step. */

/** @typedef {import("./scene.js").Scene} Scene */

const FULL_STEP_MS = 1500;
const REST_MS = 450; // between two steps
const END_MS = 2500; // pause at the end
const HOP = 0.15; // time of a skipped layer, as a share of a layer that runs; skipped attention saves about a fifth
const HOP_ATTENTION = 0.8;

/**
 * Milliseconds of one layer in a step.
 *
 * @param {Scene} scene
 * @param {number} step
 * @param {number} layer
 * @param {boolean} isLora
 */
function layerTime({ schedule, dropped }, step, layer, isLora) {
  const hop = schedule.part === "attention" ? HOP_ATTENTION : HOP;
  const unit = FULL_STEP_MS / schedule.numLayers;
  return isLora && dropped.has(layer) ? unit * hop : unit;
}

/**
 * Milliseconds of a step up to `layer`.
 *
 * @param {Scene} scene
 * @param {number} step
 * @param {number} layer
 */
function climbTime(scene, step, layer) {
  const isLora = scene.isLora(step);
  let total = 0;
  for (let i = 0; i < layer; i++) total += layerTime(scene, step, i, isLora);
  return total;
}

const stepTime = (scene, step) => climbTime(scene, step, scene.schedule.numLayers) + REST_MS;

/**
 * Time at which all layers below `layer` of `step` are done.
 *
 * @param {Scene} scene
 * @param {number} step
 * @param {number} layer
 */
export function timeAt(scene, step, layer) {
  let time = 0;
  for (let s = 0; s < step; s++) time += stepTime(scene, s);
  return time + climbTime(scene, step, Math.min(layer, scene.schedule.numLayers));
}

/**
 * Time at which the drawing starts again.
 *
 * @param {Scene} scene
 */
export const endTime = (scene) => timeAt(scene, scene.steps, scene.schedule.numLayers) + REST_MS + END_MS;

/**
 * Place of the token at a time: a step, and a height in layers.
 *
 * @param {Scene} scene
 * @param {number} time
 */
export function positionAt(scene, time) {
  const { numLayers } = scene.schedule;
  let step = 0;
  let rest = time;
  while (step < scene.steps && rest >= stepTime(scene, step)) rest -= stepTime(scene, step++);
  const isLora = scene.isLora(step);
  for (let layer = 0; layer < numLayers; layer++) {
    const takes = layerTime(scene, step, layer, isLora);
    if (rest < takes) return { step, height: layer + rest / takes };
    rest -= takes;
  }
  return { step, height: numLayers };
}
