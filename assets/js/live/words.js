/* What a run says of itself, in words. */

/**
 * "native decoder (q4_1/q8_0 blocks)"
 *
 * @param {string} [decoder]
 */
export function decoderWords(decoder = "") {
  const [, name, weights] = /^(\w+)(.*)$/.exec(decoder) ?? [null, decoder, ""];
  return `${name} decoder${weights}`;
}

/** @param {string} id of a model */
export const modelName = (id) => id.replace(/^bundled:/, "");

/**
 * "SmolLM2-135M-Instruct, bfloat16, native decoder (q4_1/q8_0 blocks), on AMD EPYC"
 *
 * @param {string} model
 * @param {string} dtype
 * @param {string} decoder
 * @param {string} device
 */
export const placeWords = (model, dtype, decoder, device) =>
  `${modelName(model)}, ${dtype}, ${decoderWords(decoder)}, on ${device}`;
