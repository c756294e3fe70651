/* A chart's data as a table, for readers who cannot see the chart or want its numbers. It is filled when it is unfolded,
 * and again when the run has ended: while a run streams it costs nothing. */

import { find, make, makeHead, makeRow, makeTable } from "../dom.js";
import { formatNumber } from "../format.js";

/**
 * @typedef {object} Table
 * @property {string} caption
 * @property {string[]} head names of the columns; cells of the first column name the rows
 * @property {(string | number)[][]} rows
 */

/**
 * @typedef {object} Column values by step
 * @property {string} name
 * @property {ArrayLike<number>} x steps
 * @property {ArrayLike<number | string | null>} y
 * @property {number} [digits]
 * @property {boolean} [isAhead] drawn for future steps, which get no row
 */

/**
 * A table of columns, with a row for each step.
 *
 * @param {string} caption
 * @param {Column[]} columns
 * @returns {Table}
 */
export function byStep(caption, columns) {
  const values = columns.map(({ x, y }) => new Map(Array.from(x, (step, i) => [step, y[i]])));
  const steps = [...new Set(columns.flatMap(({ x, isAhead }) => (isAhead ? [] : Array.from(x))))].sort((a, b) => a - b);
  const cell = (value, digits = 0) => (typeof value === "string" ? value : formatNumber(value, digits));
  return {
    caption,
    head: ["step", ...columns.map(({ name }) => name)],
    rows: steps.map((step) => [step, ...columns.map(({ digits }, i) => cell(values[i].get(step), digits))]),
  };
}

/**
 * Put a folded table at the end of a figure; returns a function that fills it again, if it is unfolded.
 *
 * @param {HTMLElement} figure
 * @param {() => Table} tableOf
 */
export function addTable(figure, tableOf) {
  const part = make("details", "ld-figure-table");
  const place = make("div", "ld-table-scroll");
  place.tabIndex = 0;
  place.setAttribute("role", "group");
  part.append(make("summary", "", "Data as a table"), place);
  figure.append(part);
  const fill = () => {
    if (!part.open) return place.replaceChildren();
    const table = tableOf();
    place.setAttribute("aria-label", table.caption);
    place.replaceChildren(drawn(table));
  };
  part.addEventListener("toggle", fill);
  return fill;
}

/**
 * A table of the current run; another run folds it.
 *
 * @param {HTMLElement} figure
 * @param {import("../store.js").Store} store
 * @param {() => Table} tableOf
 */
export function addRunTable(figure, store, tableOf) {
  const fill = addTable(figure, () => (store.state.run ? tableOf() : { caption: "No run yet", head: [], rows: [] }));
  store.subscribe(["run", "focus"], () => {
    /** @type {HTMLDetailsElement} */ (find(figure, ".ld-figure-table")).open = false;
  });
  store.subscribe(["revision", "isUnfolding"], ({ run }) => run?.isOver && fill());
}

/** @param {Table} table */
export function drawn({ caption, head, rows }) {
  const lines = rows.map(([name, ...cells]) => makeRow(makeHead(name, "row"), ...cells));
  return makeTable("ld-table", caption, head, lines);
}
