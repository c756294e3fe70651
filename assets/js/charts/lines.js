/* One line for each lane, of a value of each step: milliseconds, or KL to the full model. */

import { isBaseline } from "../schedule.js";
import { Chart, valuesAt } from "./chart.js";
import { laneColor } from "./layout.js";

/** @typedef {import("../run.js").Lane} Lane */

class LinesChart extends Chart {
  /** @param {HTMLElement} figure */
  constructor(figure) {
    super(figure);
    /** @type {Lane[]} lanes with a line */
    this.lanes = [];
    /** @type {number[]} number of drawn steps of each */
    this.drawn = [];
  }

  /**
   * True if a lane has a line.
   *
   * @param {Lane} _lane
   */
  shows(_lane) {
    return true;
  }

  /**
   * True if a step has arrived.
   *
   * @param {Lane} lane
   * @param {number} step
   */
  isThere(lane, step) {
    return step < lane.steps.length;
  }

  /**
   * A lane's traces, without points.
   *
   * @param {Lane} _lane
   * @param {string} _name
   * @returns {any[]}
   */
  tracesOf(_lane, _name) {
    return [];
  }

  /**
   * Add a lane's point of a step to its traces, which start at index `_at`.
   *
   * @param {Lane} _lane
   * @param {number} _step
   * @param {{x: number[], y: number[]}[]} _add
   * @param {number} _at
   */
  point(_lane, _step, _add, _at) {}

  setUp() {
    this.lanes = this.run.lanes.filter((lane) => this.shows(lane));
    this.drawn = this.lanes.map(() => 1); // the first decode step
    this.traces = this.lanes.flatMap((lane) => this.tracesOf(lane, this.run.plainLabels[lane.index]));
    this.paint();
  }

  extend() {
    const perLane = this.traces.length / Math.max(1, this.lanes.length);
    const add = this.noPoints();
    this.lanes.forEach((lane, i) => {
      for (; this.isThere(lane, this.drawn[i]); this.drawn[i]++) this.point(lane, this.drawn[i], add, i * perLane);
    });
    this.grow(add);
  }
}

/** Milliseconds of each step. */
export class TimeChart extends LinesChart {
  unit = "ms";

  /**
   * @param {Lane} lane
   * @param {string} name
   */
  tracesOf(lane, name) {
    const hovertemplate = `step %{x}: %{y:.2f} ms<extra>${name}</extra>`;
    return [{ type: "scatter", mode: "lines", x: [], y: [], hovertemplate }];
  }

  /**
   * @param {Lane} lane
   * @param {number} step
   * @param {{x: number[], y: number[]}[]} add
   * @param {number} at
   */
  point(lane, step, add, at) {
    add[at].x.push(step);
    add[at].y.push(lane.steps[step].ms);
  }

  paint() {
    this.lanes.forEach((lane, i) => (this.traces[i].line = { width: 1.25, color: laneColor(lane.index) }));
  }

  /** @param {number} step */
  at(step) {
    return step === 0 ? [] : valuesAt(this.run, step, ({ ms }) => ms);
  }

  columns() {
    const { plainLabels } = this.run;
    return this.lanes.map((lane, i) => ({ name: `${plainLabels[lane.index]}, ms`, x: this.traces[i].x, y: this.traces[i].y, digits: 2 }));
  }
}

/** KL to the full model at each audited step, with a mark where the next token differs. */
export class KlChart extends LinesChart {
  unit = "nats";

  /** @param {Lane} lane */
  shows(lane) {
    return !isBaseline(lane.schedule);
  }

  /**
   * @param {Lane} lane
   * @param {number} step
   */
  isThere(lane, step) {
    return lane.audits.has(step);
  }

  /**
   * @param {Lane} lane
   * @param {string} name
   */
  tracesOf(lane, name) {
    const hovertemplate = `step %{x}: %{y:.3f} nats<extra>${name}</extra>`;
    const both = { type: "scatter", x: [], y: [], hovertemplate };
    return [
      { ...both, mode: "lines" },
      { ...both, mode: "markers" },
    ];
  }

  /**
   * @param {Lane} lane
   * @param {number} step
   * @param {{x: number[], y: number[]}[]} add
   * @param {number} at
   */
  point(lane, step, add, at) {
    const audit = lane.audits.get(step);
    if (!audit || audit.kl === null) return;
    for (const trace of audit.agrees ? [at] : [at, at + 1]) {
      add[trace].x.push(step);
      add[trace].y.push(audit.kl);
    }
  }

  paint() {
    this.lanes.forEach((lane, i) => {
      this.traces[2 * i].line = { width: 1.25, color: laneColor(lane.index) };
      this.traces[2 * i + 1].marker = { size: 7, symbol: "x-thin", line: { width: 1.5, color: laneColor(lane.index) } };
    });
  }

  /** @param {number} step */
  at(step) {
    return valuesAt(this.run, step, (_, lane) => lane.audits.get(step)?.kl ?? null);
  }

  columns() {
    return this.lanes.flatMap((lane, i) => {
      const name = this.run.plainLabels[lane.index];
      const { x } = this.traces[2 * i + 1];
      return [
        { name: `${name}, nats`, x: this.traces[2 * i].x, y: this.traces[2 * i].y, digits: 3 },
        { name: `${name}, next token`, x, y: Array.from(x, () => "another one") },
      ];
    });
  }
}
