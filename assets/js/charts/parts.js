/* A bar that explains the speed: a full step, the time that skipping saves, and the further cost of full steps. */

import { find, make } from "../dom.js";
import { formatNumber } from "../format.js";

/** @typedef {import("../records.js").Part} Part */

/**
 * @param {HTMLElement} root
 * @param {import("../store.js").Store} store
 */
export function mountParts(root, store) {
  const box = find(root, ".ld-parts");
  store.subscribe(["run", "revision", "isUnfolding"], ({ run, isUnfolding }) => {
    const parts = run?.isOver && !isUnfolding ? run.report?.parts : null;
    box.hidden = !parts;
    if (parts) drawParts(box, parts);
  });
}

/**
 * @param {HTMLElement} box
 * @param {NonNullable<import("../records.js").Report["parts"]>} parts
 */
function drawParts(box, { parts, total, bound }) {
  const full = parts.find(({ id }) => id === "full")?.ms ?? 0;
  const saved = parts.filter(({ ms }) => ms < 0);
  const costs = parts.filter(({ id, ms }) => id !== "full" && ms > 0);
  const left = saved.reduce((sum, { ms }) => sum + ms, full);
  const whole = Math.max(costs.reduce((sum, { ms }) => sum + ms, full), total, bound ?? 0, 1e-9);
  const bar = find(box, ".ld-parts-bar");
  const piece = (id, ms) => {
    const node = make("span", `ld-part ld-part-${id}`);
    node.style.width = `${(100 * Math.max(ms, 0)) / whole}%`;
    return node;
  };
  const mark = make("i", "ld-part-bound");
  mark.style.left = `${(100 * (bound ?? 0)) / whole}%`;
  mark.hidden = bound === null;
  const pieces = [piece("left", left), ...saved.map(({ id, ms }) => piece(`${id} ld-part-saved`, -ms))];
  bar.replaceChildren(...pieces, ...costs.map(({ id, ms }) => piece(id, ms)), mark);
  const items = [
    ...parts.map(({ id, label, ms }) => itemOf(id, label, ms, ms < 0)),
    itemOf("total", "a kept token", total, false),
    ...(bound === null ? [] : [itemOf("bound", "estimate from memory traffic", bound, false)]),
  ];
  find(box, ".ld-parts-list").replaceChildren(...items);
  bar.setAttribute("aria-label", items.map((item) => item.textContent).join("; "));
}

/**
 * @param {string} id
 * @param {string} label
 * @param {number} ms
 * @param {boolean} isSaved
 */
function itemOf(id, label, ms, isSaved) {
  const item = make("li", `ld-part-key ld-part-key-${id}`);
  item.append(`${label} `, make("b", "", `${isSaved ? "−" : ""}${formatNumber(Math.abs(ms), 2)} ms`));
  return item;
}
