/* A reuse rule as a pattern: a skipped layer over five steps, full at both ends, and where its output comes from. */

import { makeSvg } from "../dom.js";

const [SIZE, GAP, TOP, FLOOR] = [16, 42, 26, 62];

const left = (column) => 10 + column * GAP;

/**
 * @param {SVGElement} svg
 * @param {string} rule
 */
export function drawRule(svg, rule) {
  const parts = [0, 1, 2, 3, 4].flatMap((column) => {
    const kind = isLora(column) ? "dropped" : "refresh";
    const cell = makeSvg("rect", { x: left(column), y: TOP, width: SIZE, height: SIZE, rx: 3, class: `ld-cell-${kind}` });
    return [...ownInput(column, rule), ...reused(column, rule), cell];
  });
  svg.setAttribute("viewBox", `0 0 ${left(4) + SIZE + 10} 66`);
  svg.replaceChildren(...parts);
}

const isLora = (column) => column % 4 !== 0;

/** The token's own stream, where the layer's output has it. */
function ownInput(column, rule) {
  if (isLora(column) && rule !== "residual" && rule !== "skip") return [];
  const centre = left(column) + SIZE / 2;
  return [makeSvg("line", { x1: centre, x2: centre, y1: FLOOR, y2: TOP + SIZE + 3, class: "ld-rule-own" })];
}

/** What is reused, with an arrow's head. */
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
