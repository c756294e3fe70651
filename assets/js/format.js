/* Numbers as the page writes them. */

/** @type {Record<number, Intl.NumberFormat>} by number of decimals: making one takes longer than using it */
const formats = {};

/**
 * A number with `digits` decimals and thousands marks; "–" for none.
 *
 * @param {number | null | undefined} value
 * @param {number} [digits]
 */
export function formatNumber(value, digits = 0) {
  if (value === null || value === undefined || !Number.isFinite(value)) return "–";
  const options = { minimumFractionDigits: digits, maximumFractionDigits: digits };
  return (formats[digits] ??= new Intl.NumberFormat("en-US", options)).format(value);
}

/**
 * Bytes in binary units, as human_bytes in schedule.py.
 *
 * @param {number} bytes
 */
export function formatBytes(bytes) {
  const power = bytes >= 1 ? Math.min(3, Math.floor(Math.log2(bytes) / 10)) : 0;
  return `${formatNumber(bytes / 1024 ** power, power ? 2 : 0)} ${["B", "KiB", "MiB", "GiB"][power]}`;
}

/**
 * A share as a percentage.
 *
 * @param {number | null} share
 * @param {number} [digits]
 */
export const formatShare = (share, digits = 0) => (share === null ? "–" : `${formatNumber(100 * share, digits)}%`);
