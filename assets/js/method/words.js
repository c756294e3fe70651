/* One or two sentences about a step of the drawing. */

import { isBaseline, kind, repairs, writesKv } from "../schedule.js";

/** @typedef {import("../records.js").Schedule} Schedule */

/** Tokens of the drawn prompt: few, so that the caches visibly grow. */
export const PROMPT = 6;

/** @type {Record<string, string>} */
const REUSED = {
  state: "the previous token's output",
  anchor: "its output of the last full step",
  residual: "what it added at the last full step",
  skip: "nothing",
};

/**
 * @param {Schedule} schedule
 * @param {number} step
 * @param {boolean} hasBank
 */
export function sentencesOf(schedule, step, hasBank) {
  const n = schedule.dropped.length;
  const stepKind = kind(schedule, step, PROMPT);
  if (stepKind === "prefill") {
    return `The prompt (${PROMPT} tokens here) climbs every layer at once, and each layer to be skipped keeps its first anchor.`;
  }
  if (isBaseline(schedule)) return `Step ${step}: nothing is skipped, so this is the plain model.`;
  if (stepKind === "refresh") {
    if (repairs(schedule)) {
      return `Step ${step}, full: every layer runs for all tokens since the last full step, so that K/V and anchors are the full model's.`;
    }
    return `Step ${step}, full: every layer runs, the anchors are renewed, and the skipped layers write K/V again.`;
  }
  const part = schedule.part === "attention" ? "the attention of " : "";
  const correction = hasBank ? "adds its trained correction" : "has no trained correction to add";
  const kv = writesKv(schedule) ? " Their K/V is still written." : " They write no K/V.";
  const reused = schedule.reuse === "skip" ? "is passed by, and" : `reuses ${REUSED[schedule.reuse]} and`;
  return `Step ${step}, LoRA: ${part}${n} of ${schedule.numLayers} layers ${part ? "is" : "are"} skipped. Each ${reused} ${correction}.${kv}`;
}
