/* Layers by steps: which layers run, refresh or are skipped. */

import { cellKind, skips, stepWords, triggerWords } from "../kinds.js";
import { isAdaptive, writesKv } from "../schedule.js";
import { Heatmap } from "./heatmap.js";
import { color } from "./layout.js";

/** A cell's value is the index of its kind here; the colours have these names. */
const KINDS = ["full", "refresh", "early", "dropped"];
/** Words on a layer that runs, by its kind. */
const WORDS = {
  full: "runs",
  refresh: "runs, and renews what is reused",
  early: "runs, and renews what is reused, early: ",
};

export class ActivityChart extends Heatmap {
  unit = "layer";
  /** @type {Set<number>} */
  dropped = new Set();

  setUp() {
    const layers = this.run.focus.schedule.numLayers;
    this.drawn = 0;
    this.z = Array.from({ length: layers }, () => []);
    this.tips = Array.from({ length: layers }, () => []);
    this.dropped = new Set(this.run.focus.schedule.dropped);
    this.figure.dataset.adaptive = String(isAdaptive(this.run.focus.schedule));
    const hovertemplate = "step %{x}, layer %{y}<extra></extra>";
    this.setTrace({ zmin: -0.5, zmax: KINDS.length - 0.5, showscale: false, hovertemplate });
  }

  paint() {
    const bands = KINDS.flatMap((kind, i) => [
      [i / KINDS.length, color(kind)],
      [(i + 1) / KINDS.length, color(kind)],
    ]);
    this.traces[0].colorscale = bands;
  }

  extend() {
    const { steps, schedule } = this.run.focus;
    if (this.drawn === steps.length) return;
    /** @type {Record<string, string>} */
    const words = { ...WORDS, dropped: `skipped, ${writesKv(schedule) ? "" : "no "}K/V written` };
    for (; this.drawn < steps.length; this.drawn++) {
      const { kind: stepKind, trigger } = steps[this.drawn];
      for (let layer = 0; layer < this.z.length; layer++) {
        /** @type {string} */
        let kind = cellKind(skips(stepKind), stepKind === "draft" || this.dropped.has(layer));
        if (trigger && kind === "refresh") kind = "early";
        this.z[layer].push(KINDS.indexOf(kind));
        this.tips[layer].push(kind === "early" ? words.early + triggerWords[trigger ?? ""] : words[kind]);
      }
    }
    this.isDue = true;
  }

  finish() {
    Object.assign(this.traces[0], {
      text: this.tips,
      hovertemplate: "step %{x}, layer %{y}<br>%{text}<extra></extra>",
    });
  }

  columns() {
    const { steps, schedule } = this.run.focus;
    const x = (this.z[0] ?? []).map((_, i) => this.traces[0].x0 + i);
    const skipped = x.map((_, i) => this.z.flatMap((row, layer) => (row[i] === KINDS.indexOf("dropped") ? [layer] : [])));
    return [
      { name: "step", x, y: x.map((step) => stepWords[steps[step].kind]) },
      { name: "layers that run", x, y: skipped.map((layers) => schedule.numLayers - layers.length) },
      { name: "skipped layers", x, y: skipped.map((layers) => layers.join(", ") || "none") },
    ];
  }
}
