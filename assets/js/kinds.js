/* Kinds of steps and of layers, in the words of the trace and of the style sheets. */

import { writesKv } from "./schedule.js";

/** Words for a step, by its kind. */
export const stepWords = { prefill: "prefill, full", refresh: "full step", lora: "LoRA step" };

/**
 * Reason for an early refresh, by its trigger.
 *
 * @type {Record<string, string>}
 */
export const triggerWords = {
  entropy: "the last token's entropy was high",
  norm: "the last corrections were large",
};

/**
 * Kind of a layer in a step; "refresh" is a full step of a layer that LoRA steps skip.
 *
 * @param {boolean} isLora
 * @param {boolean} isDropped
 * @param {import("./records.js").Schedule} schedule
 * @returns {"full" | "refresh" | "dropped" | "dropped-kv"}
 */
export function cellKind(isLora, isDropped, schedule) {
  if (!isDropped) return "full";
  if (!isLora) return "refresh";
  return writesKv(schedule) ? "dropped-kv" : "dropped";
}
