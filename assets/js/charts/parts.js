/* Two aligned bars that explain the speed: a token of the full model, with the time that skipping saves, and a token of
 * LoRA-Drop, with what repairs and rejected drafts cost. Both begin with the time of what either lane computes. */

import { find, make } from "../dom.js";
import { formatNumber, roundUp } from "../format.js";

/** @typedef {import("../records.js").Part} Part */

const ROOM = 0.84; // share of the width for the longer bar; its total comes after it

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
function drawParts(box, { parts, total, outside, bound }) {
  const full = parts.find(({ id }) => id === "full")?.ms ?? 0;
  const changes = parts.filter(({ id }) => id !== "full" && id !== "outside");
  const saved = changes.filter(({ ms }) => ms < 0);
  const costs = changes.filter(({ ms }) => ms > 0);
  const both = saved.reduce((sum, { ms }) => sum + ms, full - (outside?.full ?? 0)); // what either lane computes
  const rest = (lane) => (outside ? [["outside", outside[lane]]] : []);
  const whole = Math.max(full, total, bound ?? 0, 1e-9) / ROOM;
  const percent = (ms) => `${(100 * Math.max(ms, 0)) / whole}%`;
  const barOf = (name, lane, pieces, sum) => {
    const row = make("div", "ld-parts-row");
    const bar = make("div", "ld-parts-bar");
    for (const [id, ms] of [[`both ld-part-${lane}`, both], ...pieces]) {
      const node = make("span", `ld-part ld-part-${id}`);
      node.style.width = percent(ms);
      bar.append(node);
    }
    bar.append(make("b", "ld-parts-total", `${formatNumber(sum, 2)} ms`));
    row.append(make("span", "ld-parts-name", name), bar);
    return row;
  };
  const mark = make("i", "ld-part-bound");
  mark.style.left = percent(bound ?? 0);
  mark.hidden = bound === null;
  const skipping = barOf("LoRA-Drop", "own", [...costs.map(({ id, ms }) => [id, ms]), ...rest("own")], total);
  find(skipping, ".ld-parts-bar").append(mark);
  const bars = find(box, ".ld-parts-bars");
  bars.replaceChildren(
    barOf("Full model", "full", [...saved.map(({ id, ms }) => [`${id} ld-part-saved`, -ms]), ...rest("full")], full),
    skipping,
    axisOf(whole, percent),
  );
  const items = [
    ...changes.map(({ id, label, ms }) => itemOf(id, label, ms, ms < 0)),
    ...(outside ? parts.filter(({ id }) => id === "outside").map(({ id, label }) => outsideItem(id, label, outside)) : []),
    ...(bound === null ? [] : [itemOf("bound", "bound, an estimate from memory traffic", bound, false)]),
  ];
  find(box, ".ld-parts-list").replaceChildren(...items);
  const totals = `Full model ${formatNumber(full, 2)} ms, LoRA-Drop ${formatNumber(total, 2)} ms a token`;
  bars.setAttribute("aria-label", [totals, ...items.map((item) => item.textContent)].join("; "));
}

/**
 * An axis of milliseconds, with about five marks.
 *
 * @param {number} whole milliseconds of its length
 * @param {(ms: number) => string} percent
 */
function axisOf(whole, percent) {
  const axis = make("div", "ld-parts-axis");
  const stride = roundUp(whole / 5);
  for (let ms = 0; ms <= whole * ROOM; ms += stride) {
    const mark = make("span", "", ms === 0 ? "0 ms" : formatNumber(ms, Math.max(0, -Math.floor(Math.log10(stride)))));
    mark.style.left = percent(ms);
    axis.append(mark);
  }
  return axis;
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

/** The time outside the kernels, of both lanes. */
function outsideItem(id, label, { own, full }) {
  const item = itemOf(id, label, own, false);
  item.append(` (full model ${formatNumber(full, 2)} ms)`);
  return item;
}
