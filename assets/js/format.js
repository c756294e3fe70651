/* Numbers and names as the page writes them. */

/** @type {Record<number, Intl.NumberFormat>} by number of decimals; creating one takes longer than using it */
const formats = {};

/**
 * A number with `digits` decimals and thousands separators; "–" for none.
 *
 * @param {number | null | undefined} value
 * @param {number} [digits]
 */
export function formatNumber(value, digits = 0) {
  if (value === null || value === undefined || !Number.isFinite(value)) return "–";
  const options = { minimumFractionDigits: digits, maximumFractionDigits: digits };
  return (formats[digits] ??= new Intl.NumberFormat("en-US", options)).format(value);
}

// READS_WELL_LOSS and SLIPS_LOSS of lora_drop/method/quality.py; its test compares them.
const LOSS_LIMITS = [0.15, 0.5];

/**
 * A loss in nats per token, with more decimals where rounding would put it on the other side of a limit; "–" for none.
 *
 * @param {number | null} loss
 */
export function formatLoss(loss) {
  const rounds = (digits) => LOSS_LIMITS.some((limit) => Number(loss?.toFixed(digits)) <= limit && Number(loss) > limit);
  let digits = 2;
  while (rounds(digits)) digits++;
  return formatNumber(loss, digits);
}

/**
 * The next number that is 1, 2 or 5 times a power of ten: a stride for an axis.
 *
 * @param {number} value above 0
 */
export function roundUp(value) {
  const power = 10 ** Math.floor(Math.log10(value));
  return [1, 2, 5, 10].map((n) => n * power).find((n) => n >= value) ?? value;
}

/**
 * Bytes in binary units.
 *
 * @param {number} bytes
 */
export function formatBytes(bytes) {
  const power = bytes >= 1 ? Math.min(3, Math.floor(Math.log2(bytes) / 10)) : 0;
  return `${formatNumber(bytes / 1024 ** power, power ? 2 : 0)} ${["B", "KiB", "MiB", "GiB"][power]}`;
}

/**
 * A share as a percentage; "–" for none.
 *
 * @param {number | null} share
 * @param {number} [digits]
 */
export const formatShare = (share, digits = 0) => (share === null ? "–" : `${formatNumber(100 * share, digits)}%`);

/**
 * The share of K/V memory that is saved; less than 1% is only the last guesses' entries, and no saving.
 *
 * @param {number | null} share
 */
export const formatSaved = (share) => (share !== null && Math.abs(share) < 0.01 ? "0%" : formatShare(share, 1));

/** @param {string} id of a model */
export const modelName = (id) => id.replace(/^bundled:/, "");

/**
 * Name of a decoder, such as "native decoder (q4_1/q8_0 blocks)".
 *
 * @param {string} [decoder]
 */
export function decoderName(decoder = "") {
  const [, name, weights] = /^(\w+)(.*)$/.exec(decoder) ?? [null, decoder, ""];
  return `${name} decoder${weights}`;
}

/**
 * A model and its device, such as "SmolLM2-135M-Instruct, bfloat16, native decoder, on AMD EPYC".
 *
 * @param {{id: string, dtype: string}} model
 * @param {{name: string, decoder: string}} device
 */
export const placeName = ({ id, dtype }, { name, decoder }) => `${modelName(id)}, ${dtype}, ${decoderName(decoder)}, on ${name}`;
