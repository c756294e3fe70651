/* The charts of a view. Each frame draws one of them, so that they do not block the text. */

import { find } from "../dom.js";
import { ActivityChart } from "./activity.js";
import { DriftChart } from "./drift.js";
import { DriftMap } from "./drift_map.js";
import { KlChart, TimeChart } from "./lines.js";
import { MemoryChart } from "./memory.js";
import { isTalk } from "./layout.js";
import { plotly } from "./plotly.js";
import { addRunTable } from "./table.js";

/** @typedef {import("./chart.js").Chart} Chart */
/** @typedef {import("../run.js").Run} Run */
/** @typedef {import("../store.js").Store} Store */

const SHORTEST_PAUSE = 250; // milliseconds between two rounds of redraws: on a CPU they slow decoding
const SHARE = 0.12; // most of the page's time that redraws may take

export class Charts {
  /**
   * @param {HTMLElement} root
   * @param {Store} store
   * @param {(step: number) => void} goTo put the scrubber at a step
   */
  constructor(root, store, goTo) {
    const figure = (name) => find(root, `[data-chart="${name}"]`);
    this.root = root;
    this.store = store;
    this.activity = new ActivityChart(figure("activity"));
    this.drift = new DriftChart(figure("drift"));
    this.map = new DriftMap(figure("drift-map"));
    const others = [new TimeChart(figure("time")), new KlChart(figure("kl"))];
    /** @type {Chart[]} in the page's order */
    this.all = [this.activity, this.drift, new MemoryChart(figure("kv")), this.map, ...others];
    /** @type {(() => void)[]} */
    this.queue = [];
    this.last = 0; // when the last round of redraws began
    this.cost = 0; // milliseconds that the round took
    this.timer = 0; // timer of the next round
    this.drawing = false;
    this.listen(goTo);
    this.observe();
    this.later(() => this.activity.prepare()); // the first plot of a page is the slowest
    for (const chart of this.all) {
      addRunTable(chart.figure, store, () => {
        this.complete(chart.figure);
        return chart.table();
      });
    }
    store.subscribe(["run", "focus"], ({ run }) => run && this.begin(run));
    store.subscribe(["focus", "revision"], ({ run }) => run && this.update(run));
    store.subscribe(["step"], ({ step }) => {
      for (const chart of this.all) if (chart.current) chart.moveCursor(step);
    });
    store.subscribe(["layer"], ({ layer }) => {
      if (this.drift.current && layer !== this.drift.layer) this.drift.showLayer(layer);
    });
  }

  /** Handle the reader's actions in the charts. */
  listen(goTo) {
    const { store } = this;
    for (const chart of this.all) {
      chart.onPick = goTo;
      chart.onHover = (hover) => hover !== store.state.hover && store.update({ hover });
      // The charts share their x axis: a zoom applies to all of them.
      chart.onZoom = (zoom) => {
        for (const other of this.all) if (other !== chart && other.current) this.later(() => other.zoomTo(zoom));
      };
    }
    store.subscribe(["hover"], ({ hover }) => {
      for (const chart of this.all) if (chart.current) chart.place(chart.pointer, hover);
    });
    this.activity.onPick = (step, { y }) => {
      goTo(step);
      store.update({ layer: y });
    };
    this.map.onPick = (step, { y }) => {
      goTo(step);
      store.update({ layer: this.map.run.focus.schedule.dropped[y] });
    };
    this.drift.onBack = () => store.update({ layer: null });
  }

  /** Follow size, visibility, print and theme. */
  observe() {
    for (const chart of this.all) {
      new ResizeObserver(() => {
        if (!chart.plot.data || !chart.plot.offsetWidth) return;
        plotly().Plots.resize(chart.plot).then(() => chart.moveCursor(chart.cursorStep));
      }).observe(chart.plot);
      // A chart is drawn, and catches up, when it comes into view.
      new IntersectionObserver((entries) => {
        chart.visible = entries[entries.length - 1].isIntersecting;
        if (chart.visible) this.later(() => (chart.current ? chart.update() : chart.prepare()));
      }).observe(chart.figure);
    }
    window.addEventListener("beforeprint", () => {
      if (this.store.state.run) for (const chart of this.all) this.complete(chart.figure);
    });
    const repaint = () => this.all.forEach((chart) => this.later(() => chart.repaint()));
    new MutationObserver(repaint).observe(document.body, { attributes: true, attributeFilter: ["class"] });
    window.addEventListener("resize", () => isTalk() && repaint()); // the talk mode's text size follows the window
  }

  /**
   * Draw all of a chart's data, visible or not, for a picture.
   *
   * @param {HTMLElement} figure
   */
  complete(figure) {
    const chart = this.all.find((other) => other.figure === figure);
    if (!chart) return;
    // Finish the waiting work first: a new run may not have started in all charts.
    for (let piece; (piece = this.queue.shift()); ) piece();
    const { visible } = chart;
    chart.visible = true;
    chart.update();
    chart.visible = visible;
  }

  /** @param {Run} run */
  begin(run) {
    for (const key of this.root.querySelectorAll(".ld-key-third")) key.textContent = run.lanes[2]?.label ?? "";
    for (const chart of this.all) this.later(() => chart.begin(run));
  }

  /**
   * Ask for a redraw. The charts take at most a share of the page's time, on a slow machine too.
   *
   * @param {Run} run
   */
  update(run) {
    if (this.timer && !run.summary) return; // a run's end is drawn at once
    clearTimeout(this.timer);
    const next = this.last + Math.max(SHORTEST_PAUSE, this.cost / SHARE);
    this.timer = setTimeout(() => {
      this.timer = 0;
      this.last = performance.now();
      this.cost = 0;
      for (const chart of this.all) this.later(() => chart.update());
    }, run.summary ? 0 : Math.max(0, next - performance.now()));
  }

  /**
   * Do one piece of work a frame.
   *
   * @param {() => void} work
   */
  later(work) {
    this.queue.push(work);
    if (this.drawing) return;
    this.drawing = true;
    const next = () => {
      const piece = this.queue.shift();
      this.drawing = this.queue.length > 0;
      if (this.drawing) requestAnimationFrame(next);
      const started = performance.now();
      piece?.();
      this.cost += performance.now() - started;
    };
    requestAnimationFrame(next);
  }
}
