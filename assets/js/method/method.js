/* The Method tab: the build-up; folded under it the real schedule drawn and played, a pattern for each reuse rule, and the
 * paper's table. */

import { find, makeHead, makeRow, makeSvg } from "../dom.js";
import { formatNumber, formatShare } from "../format.js";
import { mountBuildUp } from "./build_up.js";
import { Drawing } from "./drawing.js";

/** @typedef {import("../records.js").Model} Model */

const [SIZE, GAP, TOP, FLOOR] = [16, 42, 26, 62]; // of a rule's pattern, in pixels

/**
 * Mount the tab. The server sends its text, method_words.html, and the paper's rows.
 *
 * @param {HTMLElement} element
 * @param {{method_words: () => Promise<{words: string, label: string, ours: string, paper: Record<string, any>[]}>}} server
 * @param {import("../store.js").Store} store
 * @param {(...rest: any[]) => Promise<void>} pays draws where it pays; a failure is shown in its place
 */
export async function mountMethod(element, server, store, pays) {
  const { words, label, ours, paper } = await server.method_words();
  const { body } = new DOMParser().parseFromString(words, "text/html");
  find(element, ".ld-method").replaceChildren(...body.childNodes);
  mountBuildUp(find(element, ".ld-build-up"));
  pays(find(element, ".ld-pays"), server, store);
  for (const rule of element.querySelectorAll(".ld-rule")) {
    /** @type {SVGElement | null} */
    const svg = rule.querySelector(".ld-rule-svg");
    if (svg) drawRule(svg, /** @type {HTMLElement} */ (rule).dataset.rule ?? "");
  }
  find(element, ".ld-paper-label").textContent = label;
  find(element, ".ld-ours").textContent = ours;
  find(element, ".ld-paper tbody").replaceChildren(...paper.map(paperRow));
  const { state } = store;
  const drawing = new Drawing(element, () => ({ model: /** @type {Model} */ (state.model), settings: state.settings }));
  store.subscribe(["model"], () => drawing.build());
}

/** A row of the paper's table. */
function paperRow(row) {
  const change = `${row.accuracy_change < 0 ? "−" : "+"}${formatNumber(Math.abs(row.accuracy_change), 1)}`;
  const cells = [
    formatNumber(row.drop_ratio, 2),
    row.k,
    `${formatNumber(row.accuracy_full, 1)} → ${formatNumber(row.accuracy, 1)}`,
    change,
    `${formatNumber(row.speedup, 2)}×`,
    row.bounds.map((bound) => `${formatNumber(bound, 2)}×`).join(" / "),
    `about ${formatShare(row.kv_saved)}`,
    row.kv_limits.map((limit) => formatShare(limit)).join(" / "),
  ];
  return makeRow(makeHead(row.model, "row"), ...cells);
}

/**
 * Draw a reuse rule as a pattern: a skipped layer over five steps, full at both ends, and the source of its output.
 *
 * @param {SVGElement} svg
 * @param {string} rule
 */
function drawRule(svg, rule) {
  const parts = [0, 1, 2, 3, 4].flatMap((column) => {
    const kind = isLora(column) ? "dropped" : "refresh";
    const cell = makeSvg("rect", { x: left(column), y: TOP, width: SIZE, height: SIZE, rx: 3, class: `ld-cell-${kind}` });
    return [...ownInput(column, rule), ...reused(column, rule), cell];
  });
  svg.setAttribute("viewBox", `0 0 ${left(4) + SIZE + 10} 66`);
  svg.replaceChildren(...parts);
}

const left = (column) => 10 + column * GAP;

const isLora = (column) => column % 4 !== 0;

/** A line from the token's stream, if the layer's output includes it. */
function ownInput(column, rule) {
  if (isLora(column) && rule !== "residual" && rule !== "skip") return [];
  const centre = left(column) + SIZE / 2;
  return [makeSvg("line", { x1: centre, x2: centre, y1: FLOOR, y2: TOP + SIZE + 3, class: "ld-rule-own" })];
}

/** An arrow from the state that is reused. */
function reused(column, rule) {
  if (!isLora(column) || rule === "skip") return [];
  if (rule === "state") {
    const [from, to, middle] = [left(column - 1) + SIZE, left(column), TOP + SIZE / 2];
    return [
      makeSvg("line", { x1: from, x2: to - 3, y1: middle, y2: middle, class: "ld-rule-reuse" }),
      makeSvg("path", { d: `M${to - 5} ${middle - 3}v6l5 -3z`, class: "ld-rule-head" }),
    ];
  }
  const [start, centre] = [left(0) + SIZE / 2, left(column) + SIZE / 2];
  const bend = TOP - 8 - column * 7;
  const way = `M${start} ${TOP}C${start} ${bend} ${centre} ${bend} ${centre} ${TOP - 2}`;
  return [
    makeSvg("path", { d: way, class: "ld-rule-reuse" }),
    makeSvg("path", { d: `M${centre - 3} ${TOP - 5}h6l-3 5z`, class: "ld-rule-head" }),
  ];
}
