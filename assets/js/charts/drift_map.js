/* Skipped layers by steps: the drift of each. */

import { Heatmap } from "./heatmap.js";
import { color, isTalk, laneColor, talkSize } from "./layout.js";

export class DriftMap extends Heatmap {
  unit = "skipped layer";

  setUp() {
    const { dropped } = this.run.focus.schedule;
    this.drawn = 1; // prefill has no audit
    this.z = dropped.map(() => [null]);
    this.tips = dropped.map((layer) => [layer]);
    const hovertemplate = "step %{x}, layer %{customdata}: %{z:.3f}<extra></extra>";
    const colorbar = { thickness: 8, len: 1, outlinewidth: 0, xpad: 4, ypad: 0 };
    this.setTrace({ customdata: this.tips, zmin: 0, hovertemplate, colorbar });
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
      schedule.dropped.forEach((layer, i) => this.tips[i].push(layer));
    }
    if (this.drawn > before) this.isDue = true;
  }

  columns() {
    const [{ x0 }] = this.traces;
    const columnOf = (layer, i) => ({ name: `layer ${layer}`, x: this.z[i].map((_, at) => x0 + at), y: this.z[i], digits: 3 });
    return this.run.focus.schedule.dropped.map(columnOf);
  }

  layout() {
    const { dropped } = this.run.focus.schedule;
    const layout = super.layout();
    const every = Math.ceil(dropped.length / 8);
    const ticks = dropped.map((_, i) => i).filter((i) => i % every === 0);
    Object.assign(layout.yaxis, { tickvals: ticks, ticktext: ticks.map((i) => String(dropped[i])) });
    return layout;
  }
}
