/* Skipped layers by steps: the drift of each. */

import { Chart } from "./chart.js";
import { baseLayout, color, isTalk, laneColor, talkSize } from "./layout.js";

export class DriftMap extends Chart {
  drawn = 1; // steps; prefill has no audit
  /** @type {(number | null)[][]} by skipped layer and step */
  z = [];

  setUp() {
    const { dropped } = this.run.focus.schedule;
    this.drawn = 1;
    this.z = dropped.map(() => [null]); // prefill has no audit
    const hovertemplate = "step %{x}, layer %{customdata}: %{z:.3f}<extra></extra>";
    this.traces = [
      {
        type: "heatmap",
        x0: 0,
        dx: 1,
        z: this.z,
        customdata: dropped.map((layer) => Array(1).fill(layer)),
        zmin: 0,
        hovertemplate,
        colorbar: { thickness: 8, len: 1, outlinewidth: 0, xpad: 4, ypad: 0 },
      },
    ];
    this.paint();
  }

  paint() {
    this.traces[0].colorscale = [
      [0, color("panel")],
      [1, laneColor(this.run.focus.index)],
    ];
    Object.assign(this.traces[0].colorbar, { tickfont: { size: isTalk() ? talkSize() : 10, color: color("muted") } });
  }

  extend() {
    const { audits, schedule } = this.run.focus;
    const before = this.drawn;
    for (let audit; (audit = audits.get(this.drawn)); this.drawn++) {
      const { drift } = audit;
      this.z.forEach((row, i) => row.push(drift[i]));
      schedule.dropped.forEach((layer, i) => this.traces[0].customdata[i].push(layer));
    }
    if (this.drawn > before) this.isDue = true;
  }

  /** @param {number} step */
  forget(step) {
    const [trace] = this.traces;
    const gone = step - trace.x0;
    for (const row of [...this.z, ...trace.customdata]) row.splice(0, gone);
    trace.x0 = step;
  }

  columns() {
    const [{ x0 }] = this.traces;
    const columnOf = (layer, i) => ({ name: `layer ${layer}`, x: this.z[i].map((_, at) => x0 + at), y: this.z[i], digits: 3 });
    return this.run.focus.schedule.dropped.map(columnOf);
  }

  layout() {
    const { dropped } = this.run.focus.schedule;
    const layout = baseLayout(this, "skipped layer");
    const every = Math.ceil(dropped.length / 8);
    const ticks = dropped.map((_, i) => i).filter((i) => i % every === 0);
    Object.assign(layout.yaxis, {
      range: [-0.5, Math.max(dropped.length, 1) - 0.5],
      tickvals: ticks,
      ticktext: ticks.map((i) => String(dropped[i])),
      showgrid: false,
      zeroline: false,
    });
    return layout;
  }
}
