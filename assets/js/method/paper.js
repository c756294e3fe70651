/* The paper's table, and what is said around it. */

import { find, make } from "../dom.js";
import { formatNumber, formatShare } from "../format.js";

/**
 * @param {HTMLElement} element
 * @param {{label: string, ours: string, paper: Record<string, any>[]}} found
 */
export function fillPaper(element, { label, ours, paper }) {
  find(element, ".ld-paper-label").textContent = label;
  find(element, ".ld-ours").textContent = ours;
  find(element, ".ld-paper tbody").replaceChildren(...paper.map(rowOf));
}

function rowOf(row) {
  const change = `${row.accuracy_change < 0 ? "−" : "+"}${formatNumber(Math.abs(row.accuracy_change), 1)}`;
  const cells = [
    formatNumber(row.drop_ratio, 2),
    row.k,
    `${formatNumber(row.accuracy_full, 1)} → ${formatNumber(row.accuracy, 1)}`,
    change,
    `${formatNumber(row.speedup, 2)}×`,
    `${formatNumber(row.bound, 2)}×`,
    `about ${formatShare(row.kv_saved)}`,
    formatShare(row.kv_limit),
  ];
  const line = make("tr");
  line.append(
    Object.assign(make("th", "", row.model), { scope: "row" }),
    ...cells.map((cell) => make("td", "", cell)),
  );
  return line;
}
