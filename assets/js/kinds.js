/* Kinds of steps and of layers, in the words of the trace and of the style sheets. */

/** Words for a step, by its kind. */
export const stepWords = { prefill: "prefill, full", refresh: "full step", lora: "LoRA step", draft: "draft without a pass" };

/** True for the kinds of steps that skip layers. @param {string} kind */
export const skips = (kind) => kind === "lora" || kind === "draft";

/**
 * Reason for an early refresh, by its trigger.
 *
 * @type {Record<string, string>}
 */
export const triggerWords = { entropy: "the last token's entropy was high" };

/**
 * Kind of a layer in a step; "refresh" is a full step of a layer that LoRA steps skip.
 *
 * @param {boolean} isLora
 * @param {boolean} isDropped
 * @returns {"full" | "refresh" | "dropped"}
 */
export function cellKind(isLora, isDropped) {
  if (!isDropped) return "full";
  return isLora ? "dropped" : "refresh";
}
