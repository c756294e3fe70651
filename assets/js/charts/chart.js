/* Base of the charts. Each keeps its plot for the life of the page: lines grow by Plotly.extendTraces, heatmaps change in
 * place, and the layout is set again only if its range or colours change, so a zoom stays. The scrubber's cursor is a line
 * with dots over the plot, and moving it redraws nothing. */

import { find, make } from "../dom.js";
import { baseLayout, laneColor } from "./layout.js";
import { plotly } from "./plotly.js";
import { byStep } from "./table.js";

/** @typedef {import("../run.js").Lane} Lane */
/** @typedef {import("../run.js").Run} Run */
/** @typedef {import("../run.js").Step} Step */

const FIRST_SPAN = 512; // steps of the x axis at first, unless fewer are planned: a longer axis is hard to read
const WINDOW = 1024; // latest steps drawn while a longer run streams; at its end all are drawn
const CONFIG = {
  responsive: false, // a ResizeObserver does it, also when a column changes and not the window
  displaylogo: false,
  modeBarButtonsToRemove: ["select2d", "lasso2d", "autoScale2d", "toImage"],
};

/**
 * A plot that is made once. Each kind of chart defines its traces for a run, how they grow, their colours and layout, and
 * its values at a step.
 */
export class Chart {
  /** @param {HTMLElement} figure */
  constructor(figure) {
    this.figure = figure;
    /** @type {import("./plotly.js").Plot} */
    this.plot = find(figure, ".ld-plot");
    this.from = 0; // the first step of the x axis
    this.span = 1;
    this.unit = ""; // of the y axis
    this.revision = 0;
    /** @type {any[]} lines and heatmaps that Plotly draws */
    this.traces = [];
    this.visible = false; // until it comes into view
    this.isDrawn = false;
    this.isDue = false; // Plotly must be given all data again
    this.isFinished = false;
    this.isListening = false;
    /** @type {number | null} */
    this.cursorStep = null;
    this.cursor = Object.assign(make("div", "ld-cursor"), { hidden: true });
    this.pointer = Object.assign(make("div", "ld-cursor ld-pointer"), { hidden: true }); // the reader's, in another chart
    this.plot.after(this.cursor, this.pointer);
    /** @type {[number, number] | null} the steps that the reader zoomed to, in any chart */
    this.zoom = null;
    /** @type {((step: number, point: any) => void) | null} called when the reader picks a step */
    this.onPick = null;
    /** @type {((zoom: [number, number] | null) => void) | null} called when the reader zooms */
    this.onZoom = null;
    /** @type {((step: number | null) => void) | null} called when the reader points at a step */
    this.onHover = null;
    /** @type {Run | null} */
    this.current = null;
    /** @type {{steps: number, rewinds: number}[]} counts of each lane when it was last drawn */
    this.seen = [];
  }

  /** The current run. @returns {Run} */
  get run() {
    if (!this.current) throw new Error("This chart has no run yet.");
    return this.current;
  }

  /** Make the traces of a run, without any step. */
  setUp() {}

  /** Add the steps that arrived since the last call. */
  extend() {}

  /** Give the traces the theme's colours. */
  paint() {}

  /** @returns {any} */
  layout() {
    return baseLayout(this, this.unit);
  }

  /**
   * Start a new run; the plot stays.
   *
   * @param {Run} run
   */
  begin(run) {
    this.current = run;
    this.span = Math.max(1, Math.min(run.planned, FIRST_SPAN));
    this.from = 0;
    this.zoom = null;
    this.isDrawn = this.isFinished = false;
    this.seen = run.lanes.map(({ rewinds }) => ({ steps: 0, rewinds: rewinds.length }));
    this.setUp();
    if (this.visible) this.apply();
  }

  /** Note how far each lane has come. @returns {boolean} whether steps were rejected that had been drawn */
  takeNote() {
    const { lanes } = this.run;
    const before = this.seen;
    this.seen = lanes.map(({ steps, rewinds }) => ({ steps: steps.length, rewinds: rewinds.length }));
    return lanes.some((lane, i) =>
      lane.rewinds.slice(before[i].rewinds).some(({ to }) => to + 1 < before[i].steps),
    );
  }

  /** Listen to the reader's actions in the plot, once it exists. */
  listen() {
    this.isListening = true;
    this.plot.on("plotly_relayout", (change) => {
      this.moveCursor(this.cursorStep);
      const [from, to] = [change["xaxis.range[0]"], change["xaxis.range[1]"]];
      if (change["xaxis.autorange"]) this.onZoom?.(null);
      else if (from !== undefined) this.onZoom?.([Number(from), Number(to)]);
    });
    // Plotly reports the pointer only near a line; the other charts follow it anywhere.
    this.plot.addEventListener("pointermove", ({ clientX }) => this.onHover?.(this.stepAt(clientX)));
    this.plot.addEventListener("pointerleave", () => this.onHover?.(null));
    this.plot.on("plotly_click", ({ points }) => this.onPick?.(Math.round(points[0].x), points[0]));
  }

  /**
   * Show the steps that the reader zoomed to in another chart; null shows all.
   *
   * @param {[number, number] | null} zoom
   */
  zoomTo(zoom) {
    this.zoom = zoom;
    if (this.isDrawn && this.visible) this.apply();
  }

  /**
   * Place of a step, in pixels of the figure; null if it is not visible.
   *
   * @param {number | null} step
   */
  placeOf(step) {
    const axes = this.plot._fullLayout;
    if (step === null || !this.isDrawn || !axes?.xaxis) return null;
    const x = axes.xaxis.l2p(step);
    return x < -1 || x > axes.xaxis._length + 1 ? null : this.plot.offsetLeft + axes.xaxis._offset + x;
  }

  /**
   * The step at a place of the window; null beside the plot.
   *
   * @param {number} clientX
   */
  stepAt(clientX) {
    const { xaxis } = this.plot._fullLayout;
    const x = clientX - this.plot.getBoundingClientRect().left - xaxis._offset;
    return x < 0 || x > xaxis._length ? null : Math.max(0, Math.round(xaxis.p2l(x)));
  }

  /**
   * Put a line, the cursor's or the pointer's, at a step; returns its place, or null if it is hidden.
   *
   * @param {HTMLElement} line
   * @param {number | null} step
   */
  place(line, step) {
    const left = this.placeOf(step);
    line.hidden = left === null;
    if (left === null) return null;
    const { yaxis } = this.plot._fullLayout;
    line.style.left = `${left}px`;
    line.style.top = `${this.plot.offsetTop + yaxis._offset}px`;
    line.style.height = `${yaxis._length}px`;
    return left;
  }

  /**
   * Put the cursor at a step, with a dot at each value; null hides it.
   *
   * @param {number | null} step
   */
  moveCursor(step) {
    this.cursorStep = step;
    const left = this.place(this.cursor, step);
    if (left === null || step === null) return;
    const { xaxis, yaxis } = this.plot._fullLayout;
    // While a run is played for the first time, the plot after the cursor is veiled, as are the answers.
    this.cursor.style.setProperty("--ld-rest", `${this.plot.offsetLeft + xaxis._offset + xaxis._length - left}px`);
    const dots = this.at(step).map(([y, tint]) => {
      const dot = make("i");
      dot.style.top = `${yaxis.l2p(y)}px`;
      dot.style.background = tint;
      return dot;
    });
    this.cursor.replaceChildren(...dots);
  }

  /**
   * Drop the points before a step: the window has moved on.
   *
   * @param {number} step
   */
  forget(step) {
    for (const trace of this.traces) {
      if (!trace.x?.length || trace.isAhead) continue;
      const gone = trace.x.findIndex((x) => x >= step);
      const count = gone < 0 ? trace.x.length : gone;
      for (const key of ["x", "y", "customdata"]) if (Array.isArray(trace[key])) trace[key] = trace[key].slice(count);
    }
  }

  /** Add details that are too slow to draw while a run streams. */
  finish() {}

  /** Draw an empty plot before any run: the first plot is the slowest, and nobody waits for it yet. */
  prepare() {
    if (this.current) return;
    plotly().react(this.plot, [], baseLayout({ from: 0, span: 1 }, ""), CONFIG);
  }

  /**
   * The chart's values at a step, with their colours; a heatmap has none.
   *
   * @param {number} _step
   * @returns {[number, string][]}
   */
  at(_step) {
    return [];
  }

  /**
   * The data as a table.
   *
   * @returns {import("./table.js").Table}
   */
  table() {
    return byStep(find(this.figure, "h3").textContent ?? "", this.columns());
  }

  /** @returns {import("./table.js").Column[]} columns of the table */
  columns() {
    return [];
  }

  /** Draw the new steps, if the chart is visible. */
  update() {
    if (!this.visible) return;
    const last = Math.max(...this.run.lanes.map((lane) => lane.steps.length - 1), 1);
    const isOver = Boolean(this.run.summary) && !this.isFinished;
    const [span, from] = [this.span, this.from];
    if (this.run.summary) [this.span, this.from] = [last, 0];
    else if (last > WINDOW) [this.span, this.from] = [WINDOW, (Math.ceil((2 * last) / WINDOW) - 2) * (WINDOW / 2)];
    else this.span = spanFor(this.run, span, last);
    const moved = span !== this.span || from !== this.from;
    // Rejected steps go; at the end, the steps that left the window come back.
    const isAnew = this.takeNote() || (isOver && from > 0);
    if (isAnew) {
      this.setUp();
      this.isDrawn = false;
    } else if (moved && this.from > from) this.forget(this.from);
    this.isDue = !this.isDrawn || moved || isOver || isAnew;
    this.extend();
    if (isAnew && this.from > 0) this.forget(this.from);
    if (isOver) this.finish();
    this.isFinished ||= isOver;
    if (this.isDue) this.apply();
    else if (this.cursorStep !== null) this.moveCursor(this.cursorStep);
  }

  /** No new points, for each trace: see `grow`. @returns {{x: any[], y: any[]}[]} */
  noPoints() {
    return this.traces.map(() => ({ x: [], y: [] }));
  }

  /**
   * Add points to traces. Plotly draws only these, unless all data are due. Call it at most once a frame.
   *
   * @param {{x: any[], y: any[]}[]} fresh by trace
   * @returns {boolean} false if there are none
   */
  grow(fresh) {
    const indices = fresh.flatMap(({ x }, at) => (x.length ? [at] : []));
    if (this.isDue) {
      for (const at of indices) {
        const trace = this.traces[at];
        Object.assign(trace, { x: [...trace.x, ...fresh[at].x], y: [...trace.y, ...fresh[at].y] });
      }
    } else if (indices.length) {
      plotly().extendTraces(this.plot, { x: indices.map((at) => fresh[at].x), y: indices.map((at) => fresh[at].y) }, indices);
      this.traces = this.plot.data ?? [];
    }
    return indices.length > 0;
  }

  /** Give data and layout to Plotly, which keeps the zoom. */
  apply() {
    const layout = { ...this.layout(), datarevision: ++this.revision };
    plotly().react(this.plot, this.traces, layout, CONFIG);
    this.figure.dataset.state = "running"; // before it, the chart has no axes
    this.isDrawn = true;
    if (!this.isListening) this.listen();
    if (this.cursorStep !== null) this.moveCursor(this.cursorStep);
  }

  /** Draw in the colours of a new theme. */
  repaint() {
    if (!this.current) return;
    this.paint();
    if (this.isDrawn) this.apply();
  }
}

/**
 * Length of the x axis at step `last`: doubled whenever it is full.
 *
 * @param {Run} run
 * @param {number} span
 * @param {number} last
 */
function spanFor(run, span, last) {
  while (span < last) span = Math.min(2 * span, Math.max(run.planned, last));
  return span;
}

/**
 * A value of each lane that has reached a step, with the lane's colour.
 *
 * @param {Run} run
 * @param {number} step
 * @param {(step: Step, lane: Lane) => number | null} value
 * @returns {[number, string][]}
 */
export function valuesAt(run, step, value) {
  return run.lanes.flatMap((lane) => {
    const y = lane.steps[step] ? value(lane.steps[step], lane) : null;
    return y === null ? [] : [/** @type {[number, string]} */ ([y, laneColor(lane.index)])];
  });
}
