/* The average refresh cycle of the drift chart: mean drift at the full step, at each LoRA step after it, and at the next
 * full step. The drift of every token is on demand. */

import { find, make, makeButton, makeSvg, makeText } from "../dom.js";
import { formatNumber } from "../format.js";
import { isBaseline } from "../schedule.js";
import { LANES } from "./layout.js";

/** @typedef {import("../run.js").Lane} Lane */

const WIDTH = 300;
const HEIGHT = 150;
const PAD = { left: 34, right: 14, top: 16, bottom: 34 };
const MOST = 16; // steps of a cycle that have room

/**
 * @param {HTMLElement} root
 * @param {import("../store.js").Store} store
 */
export function mountCycle(root, store) {
  const figure = find(root, "[data-chart='drift']");
  const box = make("div", "ld-cycle");
  const button = makeButton("Every token", () => show(figure.dataset.view === "all" ? "cycle" : "all"));
  button.className = "ld-cycle-switch";
  const show = (view) => {
    figure.dataset.view = view;
    button.textContent = view === "all" ? "Average cycle" : "Every token";
  };
  find(figure, ".ld-plot").after(box);
  box.before(button);
  button.hidden = true; // until there is a cycle
  show("cycle");
  store.subscribe(["run", "revision", "focus"], ({ run }) => {
    if (!run) return;
    /** @type {[Lane, number[]][]} */
    const cycles = run.lanes.filter(({ schedule }) => !isBaseline(schedule)).map((lane) => [lane, averageCycle(lane)]);
    const drawn = cycles.filter(([, means]) => means.length > 1);
    button.hidden = drawn.length === 0;
    box.replaceChildren(...(drawn.length ? [draw(drawn)] : []));
  });
}

/**
 * Mean drift over the skipped layers by the number of steps since a full step, from 0 on.
 *
 * @param {Lane} lane
 * @returns {number[]}
 */
function averageCycle({ steps, audits }) {
  /** @type {{sum: number, count: number}[]} */
  const totals = [];
  for (const [at, { drift }] of audits) {
    const step = steps[at];
    const values = /** @type {number[]} */ (drift.filter((value) => value !== null));
    if (!step || !values.length) continue;
    const since = step.step - step.lastRefresh;
    if (since > MOST) continue;
    const total = (totals[since] ??= { sum: 0, count: 0 });
    total.sum += values.reduce((sum, value) => sum + value, 0) / values.length;
    total.count += 1;
  }
  const means = [];
  for (let since = 0; totals[since]; since++) means.push(totals[since].sum / totals[since].count);
  return means;
}

/**
 * A line for each lane, back to the full step at its end.
 *
 * @param {[Lane, number[]][]} cycles
 */
function draw(cycles) {
  const svg = makeSvg("svg", { viewBox: `0 0 ${WIDTH} ${HEIGHT}`, role: "img" });
  const longest = Math.max(...cycles.map(([, means]) => means.length));
  const most = Math.max(...cycles.flatMap(([, means]) => means), 0.01);
  const x = (at) => PAD.left + (at / longest) * (WIDTH - PAD.left - PAD.right);
  const y = (value) => HEIGHT - PAD.bottom - (value / most) * (HEIGHT - PAD.top - PAD.bottom);
  const text = (words, at, height, anchor) => makeText(words, { x: at, y: height, "text-anchor": anchor });
  svg.append(makeSvg("line", { x1: x(0), x2: x(longest), y1: y(0), y2: y(0), class: "ld-cycle-axis" }));
  const words = [];
  for (const [lane, means] of cycles) {
    const points = [...means, means[0]].map((mean, at) => [x(at), y(mean)]);
    const name = LANES[lane.index] ?? "muted";
    svg.append(makeSvg("polyline", { points: points.join(" "), class: `ld-cycle-line ld-cycle-${name}` }));
    for (const [across, up] of points) svg.append(makeSvg("circle", { cx: across, cy: up, r: 3, class: `ld-cycle-${name}` }));
    const top = means.indexOf(Math.max(...means));
    const isHighest = cycles.every(([, others]) => (others[top] ?? 0) <= means[top]);
    svg.append(text(formatNumber(means[top], 2), x(top), y(means[top]) + (isHighest ? -6 : 14), "middle"));
    words.push(`${lane.label}: ${means.map((mean) => formatNumber(mean, 2)).join(", ")}`);
  }
  const every = Math.ceil(longest / 6);
  for (let at = 1; at < longest; at += every) svg.append(text(String(at), x(at), HEIGHT - 20, "middle"));
  svg.append(text("full step", x(0), HEIGHT - 20, "start"), text("full step", x(longest), HEIGHT - 20, "end"));
  svg.append(text("LoRA steps since the full step", (x(0) + x(longest)) / 2, HEIGHT - 6, "middle"));
  svg.setAttribute("aria-label", `Mean drift at the full step and after it. ${words.join("; ")}`);
  return svg;
}
