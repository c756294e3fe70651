/* Bytes of K/V, counted in each lane, and the formula as a dashed line ahead. If refreshes may come early or drafts may be
 * rejected, the formula is drawn for the refreshes so far. */

import { baseline, isBaseline, kvTokens, varies } from "../schedule.js";
import { Chart, valuesAt } from "./chart.js";
import { color, laneColor } from "./layout.js";

export class MemoryChart extends Chart {
  unit = "B";
  scale = 1; // bytes of a unit
  /** @type {number[]} drawn steps of each lane */
  drawn = [];

  setUp() {
    const { lanes, promptTokens, bytesPerToken } = this.run;
    const most = kvTokens(baseline(lanes[0].schedule.numLayers), promptTokens, this.run.planned) * bytesPerToken;
    const power = Math.max(0, Math.min(3, Math.floor(Math.log2(Math.max(most, 1)) / 10)));
    this.unit = ["B", "KiB", "MiB", "GiB"][power];
    this.scale = 1024 ** power;
    this.drawn = lanes.map(() => 0);
    // A repaired cache is behind by the drafts since the last full step: no line would show that.
    this.figure.dataset.equal = String(lanes.every(({ schedule }) => isBaseline(schedule) || schedule.kv === "write"));
    this.traces = [
      ...lanes.map((lane) => ({
        type: "scatter",
        mode: "lines",
        x: [],
        y: [],
        hovertemplate: `step %{x}: %{y:.2f} ${this.unit}<extra>${this.run.plainLabels[lane.index]}, counted</extra>`,
      })),
      ...lanes.map((lane) => this.formula(lane)), // above the counted lines, so that both are visible
    ];
    this.paint();
  }

  /**
   * The formula's bytes after a step, in the chart's unit.
   *
   * @param {import("../run.js").Lane} lane
   * @param {number} step
   * @param {number} [refreshes]
   * @param {number} [last]
   */
  formulaAt(lane, step, refreshes, last) {
    return (kvTokens(lane.schedule, this.run.promptTokens, step, refreshes, last) * this.run.bytesPerToken) / this.scale;
  }

  /** The trace of a lane's formula over the planned run, with at most about 600 points. */
  formula(lane) {
    if (varies(lane.schedule)) return { type: "scatter", mode: "lines", x: [], y: [], hoverinfo: "skip" };
    const x = [];
    const stride = Math.max(1, Math.floor(this.run.planned / 600));
    for (let step = 0; step <= this.run.planned; step += stride) x.push(step);
    const y = x.map((step) => this.formulaAt(lane, step));
    return { type: "scatter", mode: "lines", x, y, hoverinfo: "skip", isAhead: true };
  }

  paint() {
    const n = this.run.lanes.length;
    for (const { index } of this.run.lanes) {
      this.traces[index].line = { width: 3.5, color: laneColor(index) };
      this.traces[n + index].line = { width: 1, dash: "4px,4px", color: color("ink") };
    }
  }

  extend() {
    const { lanes } = this.run;
    const add = this.noPoints();
    const put = (trace, steps, bytes) => Object.assign(add[trace], { x: steps.map(({ step }) => step), y: steps.map(bytes) });
    for (const lane of lanes) {
      const fresh = lane.steps.slice(this.drawn[lane.index]);
      this.drawn[lane.index] = lane.steps.length;
      put(lane.index, fresh, (step) => step.kvBytes / this.scale);
      if (!varies(lane.schedule)) continue;
      const formula = ({ lastPass, refreshes, lastRefresh }) => this.formulaAt(lane, lastPass, refreshes, lastRefresh);
      put(lanes.length + lane.index, fresh, formula);
    }
    this.grow(add);
  }

  /** @param {number} step */
  at(step) {
    return valuesAt(this.run, step, ({ kvBytes }) => kvBytes / this.scale);
  }

  columns() {
    const { lanes, plainLabels } = this.run;
    return this.traces.map(({ x, y, isAhead }, i) => {
      const source = i < lanes.length ? "counted" : "formula";
      return { name: `${plainLabels[i % lanes.length]}, ${source}, ${this.unit}`, x, y, digits: 2, isAhead };
    });
  }
}
