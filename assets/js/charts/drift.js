/* Drift from the full model: the mean over the skipped layers, least to most as a band, and a line at each refresh (dotted
 * if it came early). */

import { find, make } from "../dom.js";
import { stepWords, triggerWords } from "../kinds.js";
import { isAdaptive, isBaseline } from "../schedule.js";
import { Chart } from "./chart.js";
import { baseLayout, color, faded, laneColor } from "./layout.js";

// Indices of the traces.
const [REFRESHES, LEAST, MOST, MEAN, DOTS, EARLY, EARLY_DOTS, LAYER, OTHERS] = [0, 1, 2, 3, 4, 5, 6, 7, 8];

const isNumber = (value) => value !== null;
const meanOf = (values) => values.reduce((sum, value) => sum + value, 0) / values.length;

export class DriftChart extends Chart {
  drawn = 1; // steps; prefill has no audit
  /** @type {import("../run.js").Lane[]} other lanes that skip layers */
  others = [];
  /** @type {number[]} */
  othersDrawn = [];
  /** @type {number | null} layer whose drift is drawn beside the mean */
  layer = null;
  /** @type {number[]} by step */
  means = [];
  /** @type {Record<number, {x: (number | null)[], y: (number | null)[]}>} lines at refreshes, drawn at the end */
  refreshes = {};
  /** @type {HTMLButtonElement | null} */
  chip = null;
  /** @type {() => void} called when the reader wants the mean alone */
  onBack = () => {};

  setUp() {
    this.drawn = 1; // prefill has no audit
    const line = (more) => ({ type: "scatter", mode: "lines", x: [], y: [], hoverinfo: "skip", ...more });
    this.traces = [
      line({ yaxis: "y2", visible: false }),
      line({ line: { width: 0 } }),
      line({ line: { width: 0 }, fill: "tonexty" }),
      line({
        customdata: [],
        hoverinfo: "all",
        hovertemplate:
          "step %{x}: mean drift %{y:.3f}<br>least %{customdata[0]:.3f}, most %{customdata[1]:.3f}" +
          "<br>KL to the full model %{customdata[2]}%{customdata[3]}<extra></extra>",
      }),
      line({ mode: "markers" }),
      line({ yaxis: "y2", visible: false }),
      line({ mode: "markers" }),
      line({ hoverinfo: "all", hovertemplate: "step %{x}: %{y:.3f}<extra>this layer</extra>" }),
    ];
    this.others = this.run.lanes.filter((lane) => lane !== this.run.focus && !isBaseline(lane.schedule));
    this.othersDrawn = this.others.map(() => 1);
    for (const lane of this.others) {
      const name = this.run.plainLabels[lane.index];
      this.traces.push(line({ hoverinfo: "all", hovertemplate: `step %{x}: mean drift %{y:.3f}<extra>${name}</extra>` }));
    }
    this.means = [];
    this.refreshes = { [REFRESHES]: { x: [], y: [] }, [EARLY]: { x: [], y: [] } };
    this.figure.dataset.adaptive = String(isAdaptive(this.run.focus.schedule));
    this.drawChip();
    this.paint();
  }

  /** Index of `layer` among the skipped layers; -1 if it is not skipped. */
  get row() {
    return this.layer === null ? -1 : this.run.focus.schedule.dropped.indexOf(this.layer);
  }

  /**
   * Draw the drift of one layer beside the mean; null removes it.
   *
   * @param {number | null} layer
   */
  showLayer(layer) {
    this.layer = layer;
    this.drawChip();
    const { row } = this;
    /** @type {number[]} */
    const x = [];
    /** @type {(number | null)[]} */
    const y = [];
    for (const [step, { drift }] of this.run.focus.audits) {
      if (row < 0 || drift[row] === null) continue;
      x.push(step);
      y.push(drift[row]);
    }
    Object.assign(this.traces[LAYER], { x, y });
    this.apply();
  }

  /** Draw a button that names `layer` and, pressed, removes its line. */
  drawChip() {
    this.chip?.remove();
    if (this.layer === null) return;
    const drops = this.run.focus.schedule.dropped.includes(this.layer);
    this.chip = make("button", "ld-chip", drops ? `layer ${this.layer} ✕` : `layer ${this.layer} always runs ✕`);
    this.chip.type = "button";
    this.chip.setAttribute("aria-label", `Layer ${this.layer}: back to the mean alone`);
    this.chip.addEventListener("click", () => this.onBack());
    find(this.figure, "h3").after(this.chip);
  }

  /**
   * @param {number} step
   * @returns {[number, string][]}
   */
  at(step) {
    const { focus } = this.run;
    const ofLayer = focus.audits.get(step)?.drift[this.row] ?? null;
    /** @type {[number | null | undefined, string][]} */
    const all = [[this.means[step], laneColor(focus.index)], [ofLayer, color("ink")]];
    return all.flatMap(([value, tint]) => (typeof value === "number" ? [/** @type {[number, string]} */ ([value, tint])] : []));
  }

  paint() {
    const [ofLane, refresh, early] = [laneColor(this.run.focus.index), color("refresh"), color("early")];
    // The closer the lines, the fainter they are: every other step they would hide the plot.
    const density = Math.min(1, this.run.focus.schedule.period / 8);
    this.traces[REFRESHES].line = { width: 1, color: faded(refresh, 0.1 + 0.4 * density) };
    this.traces[MOST].fillcolor = faded(ofLane, 0.16);
    this.traces[MEAN].line = { width: 1.75, color: ofLane };
    this.traces[DOTS].marker = { size: 5, color: refresh };
    // The same for early refreshes, whose number nobody knows before the end.
    const crowd = Math.min(1, 25 / (1 + (this.refreshes[EARLY].x.length) / 3));
    this.traces[EARLY].line = { width: 1, dash: "dot", color: faded(early, 0.12 + 0.38 * crowd) };
    this.traces[EARLY_DOTS].marker = { size: 6, color: early, symbol: "diamond" };
    this.traces[LAYER].line = { width: 1.5, color: color("ink") };
    this.others.forEach((lane, i) => (this.traces[OTHERS + i].line = { width: 1.25, color: laneColor(lane.index) }));
  }

  extend() {
    const add = this.noPoints();
    const tips = this.extendFocus(add);
    this.others.forEach((lane, i) => this.extendOther(lane, i, add[OTHERS + i]));
    if (!this.grow(add)) return;
    this.traces[MEAN].customdata.push(...tips);
    this.figure.dataset.state = "running";
  }

  /** Add the new audits of the chart's lane; returns the data of their tips. */
  extendFocus(add) {
    const { audits, steps } = this.run.focus;
    const { row } = this;
    const tips = [];
    for (let audit; (audit = audits.get(this.drawn)); ) {
      const step = this.drawn++;
      const values = audit.drift.filter(isNumber);
      if (!values.length) continue;
      const [least, most, mean] = [Math.min(...values), Math.max(...values), meanOf(values)];
      this.means[step] = mean;
      const points = [[LEAST, least], [MOST, most], [MEAN, mean]];
      if (row >= 0 && audit.drift[row] !== null) points.push([LAYER, audit.drift[row]]);
      const { kind, trigger } = steps[step];
      if (kind === "refresh") {
        points.push([trigger ? EARLY_DOTS : DOTS, mean]);
        const lines = this.refreshes[trigger ? EARLY : REFRESHES];
        lines.x.push(step, step, null);
        lines.y.push(0, 1, null);
      }
      for (const [trace, y] of points) {
        add[trace].x.push(step);
        add[trace].y.push(y);
      }
      const why = trigger ? `<br>refreshed early: ${triggerWords[trigger]}` : "";
      tips.push([least, most, audit.kl === null ? "–" : audit.kl.toFixed(3), why]);
    }
    return tips;
  }

  /** Add the mean drift of another lane. */
  extendOther(lane, i, add) {
    for (let audit; (audit = lane.audits.get(this.othersDrawn[i])); this.othersDrawn[i]++) {
      const values = audit.drift.filter(isNumber);
      if (!values.length) continue;
      add.x.push(this.othersDrawn[i]);
      add.y.push(meanOf(values));
    }
  }

  finish() {
    for (const [trace, { x, y }] of Object.entries(this.refreshes)) {
      Object.assign(this.traces[trace], { x, y, visible: true });
    }
    this.paint();
  }

  columns() {
    const { focus, plainLabels } = this.run;
    const column = (name, trace, digits = 3) => ({ name, x: this.traces[trace].x, y: this.traces[trace].y, digits });
    const { x } = this.traces[MEAN];
    return [
      { name: "step", x, y: Array.from(x, (step) => stepWords[focus.steps[step].kind]) },
      ...[column("mean drift", MEAN), column("least", LEAST), column("most", MOST)],
      ...this.others.map((lane, i) => column(`${plainLabels[lane.index]}, mean drift`, OTHERS + i)),
    ];
  }

  layout() {
    const layout = baseLayout(this, "‖x̂ − x‖ / ‖x‖");
    layout.yaxis2 = { overlaying: "y", range: [0, 1], visible: false, fixedrange: true };
    return layout;
  }
}
