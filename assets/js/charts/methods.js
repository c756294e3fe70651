/* The lanes of a run of methods as a table under the race: lane_table in lora_drop/run/report/table.py. */

import { find } from "../dom.js";
import { formatBytes, formatNumber, formatShare } from "../format.js";
import { drawn } from "./table.js";

/** @typedef {import("../records.js").LaneRow} LaneRow */

const HEAD = ["method", "tokens/s", "speed (95%)", "layer reads", "layer rows", "bytes", "accepted", "text", "K/V", "trained"];

/**
 * @param {HTMLElement} root
 * @param {import("../store.js").Store} store
 */
export function mountMethods(root, store) {
  const place = find(root, ".ld-methods");
  store.subscribe(["run", "revision", "isUnfolding"], ({ run, isUnfolding }) => {
    const rows = (run?.isOver && !isUnfolding && run.report?.table) || [];
    place.hidden = rows.length === 0;
    const table = { caption: "Every lane of this run on one clock; reads and rows of layers, and bytes, are a token's", head: HEAD, rows: rows.map(cellsOf) };
    place.replaceChildren(...(rows.length ? [drawn(table)] : []));
    place.querySelectorAll("tbody tr").forEach((line, i) => line.setAttribute("title", rows[i].note ?? ""));
  });
}

/** @param {LaneRow} row */
function cellsOf(row) {
  const optional = (value, words) => (value === null ? "–" : words(value));
  const times = (value) => `${formatNumber(value, 2)}×`;
  const spread = row.speedup_interval ? ` (${row.speedup_interval.map((end) => formatNumber(end, 2)).join(" to ")})` : "";
  return [
    row.label,
    optional(row.tokens_per_second, (value) => formatNumber(value, 1)),
    optional(row.speedup, (value) => times(value) + spread),
    optional(row.layer_runs, (value) => formatNumber(value, 1)),
    optional(row.layer_rows, (value) => formatNumber(value, 1)),
    optional(row.bytes, formatBytes),
    optional(row.accepted, (value) => `${formatShare(value)} of ${formatNumber(row.drafts)}`),
    row.text,
    formatBytes(row.kv_bytes),
    optional(row.is_trained, (value) => (value ? "yes" : "no")),
  ];
}
