/* Base of the charts of layers by steps: a row of cells for each layer. */

import { Chart } from "./chart.js";
import { baseLayout } from "./layout.js";

export class Heatmap extends Chart {
  drawn = 0; // steps
  /** @type {(number | null)[][]} by row and step */
  z = [];
  /** @type {any[][]} what a tip says about each cell, by row and step */
  tips = [];

  /** @param {Record<string, any>} more */
  setTrace(more) {
    this.traces = [{ type: "heatmap", x0: 0, dx: 1, z: this.z, ...more }];
    this.paint();
  }

  /** @param {number} step */
  forget(step) {
    const [trace] = this.traces;
    const gone = step - trace.x0;
    for (const row of [...this.z, ...this.tips]) row.splice(0, gone);
    trace.x0 = step;
  }

  layout() {
    const layout = baseLayout(this, this.unit);
    const range = [-0.5, Math.max(this.z.length, 1) - 0.5];
    Object.assign(layout.yaxis, { range, showgrid: false, zeroline: false });
    return layout;
  }
}
