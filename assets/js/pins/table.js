/* Pinned runs as a table, and their curves over each other. All figures and words are the server's. */

import { addTable, byToken } from "../charts/table.js";
import { make, makeSvg } from "../dom.js";
import { formatNumber, formatShare } from "../format.js";

/**
 * `compared` in lora_drop/run/report/compare.py.
 *
 * @typedef {object} Compared
 * @property {{id: string, name: string, main: string, lanes: {id: string, label: string}[], words: string, verdict: string | null, figures: Record<string, number | null>}[]} runs
 * @property {{name: string, values: string[]}[]} settings
 * @property {Record<string, (number | null)[][]>} curves
 */

const [WIDTH, HEIGHT] = [560, 150];
const CURVES = { drift: "Mean drift of the skipped layers, by step", clock: "Milliseconds so far, by step" };

/**
 * @param {Compared} found
 * @param {(id: string) => void} forget
 */
export function comparison(found, forget) {
  const all = make("div", "ld-pins-found");
  all.append(table(found, forget), ...Object.entries(CURVES).map(([name, words]) => chart(words, found.curves[name])));
  return all;
}

function table({ runs, settings }, forget) {
  const node = make("table", "ld-pins-table");
  const head = make("tr");
  head.append(make("td"), ...runs.map((run, at) => headOf(run, at, forget)));
  const rows = [
    row("In words", runs.map(({ words }) => words)),
    row("Verdict", runs.map(({ verdict }) => verdict ?? "–")),
    row("Speedup", runs.map(({ figures }) => (figures.speedup ? `${formatNumber(figures.speedup, 2)}x` : "–"))),
    row("KV memory saved", runs.map(({ figures }) => formatShare(figures.kv_saved, 1))),
    row("First difference, token", runs.map(({ figures }) => formatNumber(figures.first_divergence))),
    ...settings.map(({ name, values }) => row(name, values)),
  ];
  node.append(make("caption", "", "What was set otherwise stands below the figures."), head, ...rows);
  return node;
}

function headOf({ id, name }, at, forget) {
  const cell = make("th", `ld-pin-${at}`, `${at + 1}. ${name.slice(0, 60)} `);
  cell.scope = "col";
  const button = make("button", "", "Unpin");
  button.type = "button";
  button.setAttribute("aria-label", `Unpin run ${at + 1}`);
  button.addEventListener("click", () => forget(id));
  cell.append(button);
  return cell;
}

function row(name, values) {
  const node = make("tr");
  const head = make("th", "", name);
  head.scope = "row";
  node.append(head, ...values.map((value) => make("td", "", value)));
  return node;
}

/** Lines over each other, each run's own; a gap where there is no value. */
function chart(words, curves) {
  const figure = make("figure", "ld-pins-chart");
  const values = curves.flat().filter((value) => value !== null);
  const top = Math.max(...values, 1e-9);
  const steps = Math.max(...curves.map((curve) => curve.length), 2);
  const svg = makeSvg("svg", { viewBox: `0 0 ${WIDTH} ${HEIGHT}`, role: "img", "aria-label": `${words}, 0 to ${formatNumber(top, 2)}` });
  curves.forEach((curve, at) => svg.append(makeSvg("path", { d: pathOf(curve, steps, top), class: `ld-pin-line ld-pin-${at}` })));
  figure.append(make("figcaption", "", `${words} (0 to ${formatNumber(top, 2)}; ${steps} steps)`), svg);
  addTable(figure, () => byToken(words, curves.map((curve, at) => ({ name: `run ${at + 1}`, x: curve.map((_, i) => i + 1), y: curve, digits: 2 }))));
  return figure;
}

function pathOf(curve, steps, top) {
  const points = curve.map((value, at) => (value === null ? null : `${((at * WIDTH) / (steps - 1)).toFixed(1)} ${(HEIGHT - 2 - ((HEIGHT - 4) * value) / top).toFixed(1)}`));
  return points.map((point, at) => point && `${points[at - 1] ? "L" : "M"}${point}`).filter(Boolean).join("");
}
