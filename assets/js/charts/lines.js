/* One line for each lane, of a value of each step: milliseconds, or KL to the full model. */

import { isBaseline } from "../schedule.js";
import { Chart, valuesAt } from "./chart.js";
import { laneColor } from "./layout.js";

/** @typedef {import("../run.js").Lane} Lane */
/** @typedef {{x: number[], y: number[]}} Points */

/** Milliseconds of each step. */
export class TimeChart extends Chart {
  unit = "ms";
  digits = 2; // of a value
  tracesPerLane = 1;
  /** @type {Lane[]} lanes with a line */
  lanes = [];
  /** @type {number[]} number of drawn steps of each */
  drawn = [];

  /**
   * True if a lane has a line.
   *
   * @param {Lane} _lane
   */
  hasLine(_lane) {
    return true;
  }

  /**
   * True if a step's value has arrived.
   *
   * @param {Lane} lane
   * @param {number} step
   */
  hasArrived(lane, step) {
    return step < lane.steps.length;
  }

  /**
   * @param {Lane} lane
   * @param {number} step
   * @returns {number | null}
   */
  valueOf(lane, step) {
    return lane.steps[step].ms;
  }

  /**
   * A lane's traces, without points.
   *
   * @param {string} name of the lane
   * @returns {any[]}
   */
  tracesOf(name) {
    const hovertemplate = `step %{x}: %{y:.${this.digits}f} ${this.unit}<extra>${name}</extra>`;
    return [{ type: "scatter", mode: "lines", x: [], y: [], hovertemplate }];
  }

  /**
   * Add a lane's point of a step to its traces.
   *
   * @param {Lane} lane
   * @param {number} step
   * @param {Points[]} traces
   */
  addPoint(lane, step, traces) {
    const value = this.valueOf(lane, step);
    if (value === null) return;
    traces[0].x.push(step);
    traces[0].y.push(value);
  }

  setUp() {
    this.lanes = this.run.lanes.filter((lane) => this.hasLine(lane));
    this.drawn = this.lanes.map(() => 1); // the first decode step
    this.traces = this.lanes.flatMap((lane) => this.tracesOf(this.run.plainLabels[lane.index]));
    this.paint();
  }

  extend() {
    const points = this.noPoints();
    this.lanes.forEach((lane, i) => {
      const ofLane = points.slice(i * this.tracesPerLane);
      for (; this.hasArrived(lane, this.drawn[i]); this.drawn[i]++) this.addPoint(lane, this.drawn[i], ofLane);
    });
    this.grow(points);
  }

  paint() {
    this.lanes.forEach((lane, i) => {
      this.traces[i * this.tracesPerLane].line = { width: 1.25, color: laneColor(lane.index) };
    });
  }

  /** @param {number} step */
  at(step) {
    return step === 0 ? [] : valuesAt(this.run, step, (_, lane) => this.valueOf(lane, step));
  }

  /** @returns {import("./table.js").Column[]} */
  columns() {
    return this.lanes.map((lane, i) => {
      const { x, y } = this.traces[i * this.tracesPerLane];
      return { name: `${this.run.plainLabels[lane.index]}, ${this.unit}`, x, y, digits: this.digits };
    });
  }
}

/** KL to the full model at each audited step, with a mark where the next token differs. */
export class KlChart extends TimeChart {
  unit = "nats";
  digits = 3;
  tracesPerLane = 2; // the line and the marks

  /** @param {Lane} lane */
  hasLine(lane) {
    return !isBaseline(lane.schedule);
  }

  /**
   * @param {Lane} lane
   * @param {number} step
   */
  hasArrived(lane, step) {
    return lane.audits.has(step);
  }

  /**
   * @param {Lane} lane
   * @param {number} step
   */
  valueOf(lane, step) {
    return lane.audits.get(step)?.kl ?? null;
  }

  /** @param {string} name */
  tracesOf(name) {
    const [line] = super.tracesOf(name);
    return [line, { ...line, mode: "markers", x: [], y: [] }];
  }

  /**
   * @param {Lane} lane
   * @param {number} step
   * @param {Points[]} traces
   */
  addPoint(lane, step, traces) {
    super.addPoint(lane, step, traces);
    if (!lane.audits.get(step)?.agrees) super.addPoint(lane, step, traces.slice(1));
  }

  paint() {
    super.paint();
    this.lanes.forEach((lane, i) => {
      const line = { width: 1.5, color: laneColor(lane.index) };
      this.traces[2 * i + 1].marker = { size: 7, symbol: "x-thin", line };
    });
  }

  columns() {
    return super.columns().flatMap((column, i) => {
      const { x } = this.traces[2 * i + 1];
      const name = `${this.run.plainLabels[this.lanes[i].index]}, next token`;
      return [column, { name, x, y: Array.from(x, () => "another one") }];
    });
  }
}
