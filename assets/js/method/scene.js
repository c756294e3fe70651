/* The schedule as shapes in the panel's pixels: cells of layers by steps, the caches' bars, the token. */

import { makeSvg, makeText } from "../dom.js";
import { cellKind } from "../kinds.js";
import { isBaseline, kind, kvLength } from "../schedule.js";
import { PROMPT } from "./words.js";

/** @typedef {import("../records.js").Schedule} Schedule */

const ROWS_HEIGHT = 300;
const [LEFT, TOP] = [34, 16];

export class Scene {
  /**
   * @param {SVGElement} svg
   * @param {Schedule} schedule
   * @param {number} steps decode steps in the drawing
   */
  constructor(svg, schedule, steps) {
    this.svg = svg;
    this.schedule = schedule;
    this.steps = steps;
    this.dropped = new Set(isBaseline(schedule) ? [] : schedule.dropped);
    const { numLayers } = schedule;
    this.width = Math.max(svg.clientWidth, 280);
    this.rowH = Math.max(3, Math.min(24, Math.floor(ROWS_HEIGHT / numLayers)));
    this.kvW = Math.round(this.width * 0.2);
    this.colW = (this.width - LEFT - this.kvW - 24) / (steps + 1);
    this.height = TOP + this.rowH * numLayers + 20;
    /** @type {SVGElement[][]} by step and layer */
    this.cells = Array.from({ length: steps + 1 }, (_, step) => this.columnOf(step));
    this.bars = Array.from({ length: numLayers }, (_, layer) => this.barOf(layer));
    this.links = makeSvg("g", { class: "ld-reuse-links" });
    this.token = makeSvg("circle", { r: Math.max(4, Math.min(8, this.rowH * 0.6)), class: "ld-travelling" });
    svg.setAttribute("viewBox", `0 0 ${this.width} ${this.height}`);
    svg.style.height = `${this.height}px`;
    svg.replaceChildren(...this.labels(), ...this.cells.flat(), ...this.bars, this.links, this.token);
    svg.setAttribute("aria-label", this.words());
    for (let layer = 0; layer < numLayers; layer++) this.setBar(layer, 0, false);
  }

  /** @param {number} step */
  x(step) {
    return LEFT + step * this.colW;
  }

  /** @param {number} layer */
  y(layer) {
    return TOP + (this.schedule.numLayers - 1 - layer) * this.rowH;
  }

  /** @param {number} step */
  isLora(step) {
    return kind(this.schedule, step, PROMPT) === "lora";
  }

  words() {
    const { schedule, dropped } = this;
    const too = schedule.refresh_position ? `, and at every ${schedule.refresh_position}th position` : "";
    const every = isBaseline(schedule) ? "every step is full" : `every ${schedule.period}th step is full${too}`;
    const which = [...dropped].join(", ") || "none";
    return `The schedule: ${schedule.numLayers} layers, skipped ${which}; ${every}. Columns are steps, rows layers.`;
  }

  labels() {
    const { numLayers } = this.schedule;
    const end = { "text-anchor": "end" };
    return [
      makeText("layer", { x: LEFT - 4, y: TOP - 6, ...end }),
      makeText(numLayers - 1, { x: LEFT - 5, y: this.y(numLayers - 1) + Math.min(this.rowH, 10), ...end }),
      makeText(0, { x: LEFT - 5, y: this.y(0) + this.rowH - 1, ...end }),
      makeText("KV cache", { x: this.width - this.kvW, y: TOP - 6 }),
      ...this.cells.map((_, step) => {
        const isFirst = step === 0;
        return makeText(this.stepLabel(step), {
          x: isFirst ? this.x(0) : this.x(step) + this.colW / 2,
          y: this.height - 6,
          "text-anchor": isFirst ? "start" : "middle",
          class: this.isLora(step) ? "" : "ld-step-full",
        });
      }),
    ];
  }

  /** Label of a step; a narrow column has no room for "prompt", or for two digits. */
  stepLabel(step) {
    if (step === 0) return this.colW < 42 ? "0" : "prompt";
    return this.colW < 18 && this.isLora(step) ? "" : step;
  }

  get cellHeight() {
    return this.rowH > 4 ? this.rowH - 1 : this.rowH;
  }

  /** @param {number} step */
  columnOf(step) {
    const isLora = this.isLora(step);
    return Array.from({ length: this.schedule.numLayers }, (_, layer) => {
      const isDropped = this.dropped.has(layer);
      return makeSvg("rect", {
        x: (this.x(step) + 1).toFixed(1),
        y: this.y(layer),
        width: Math.max(this.colW - 2, 1).toFixed(1),
        height: this.cellHeight,
        rx: Math.min(2, this.rowH / 4),
        class: `ld-cell ld-cell-${cellKind(isLora, isDropped)}`,
        "data-step": step,
        "data-layer": layer,
        "data-kind": kind(this.schedule, step, PROMPT),
        "data-active": Number(!isLora || !isDropped),
      });
    });
  }

  /** @param {number} layer */
  barOf(layer) {
    return makeSvg("rect", {
      x: this.width - this.kvW,
      y: this.y(layer),
      width: 0,
      height: this.cellHeight,
      class: `ld-kv-bar ${this.dropped.has(layer) ? "ld-kv-dropped" : ""}`,
    });
  }

  /**
   * Set the length of a layer's cache after a step, or before the step's token reaches it.
   *
   * @param {number} layer
   * @param {number} step
   * @param {boolean} isDone
   */
  setBar(layer, step, isDone) {
    const at = isDone ? step : step - 1;
    const tokens = at < 0 ? 0 : kvLength(this.schedule, this.dropped.has(layer), PROMPT, at);
    this.bars[layer].setAttribute("width", ((this.kvW * tokens) / (PROMPT + this.steps)).toFixed(1));
  }

  /**
   * Draw lines from the reused states to the skipped layers below the token.
   *
   * @param {number} step
   * @param {number} layers
   */
  setLinks(step, layers) {
    const from = this.isLora(step) ? this.sourceOf(step) : null;
    const passed = from === null ? [] : [...this.dropped].filter((layer) => layer < layers);
    const middle = (column) => this.x(column) + this.colW / 2;
    this.links.replaceChildren(
      ...passed.map((layer) => {
        const at = this.y(layer) + this.rowH / 2;
        const ends = { x1: middle(from), x2: middle(step), y1: at, y2: at };
        return makeSvg("line", { ...ends, "data-from": /** @type {number} */ (from) });
      }),
    );
  }

  /** The step whose state a skipped layer reuses at LoRA step `step`; null for none. */
  sourceOf(step) {
    const { reuse } = this.schedule;
    if (reuse === "skip") return null;
    let from = step - 1;
    while (reuse !== "state" && this.isLora(from)) from--;
    return from;
  }

  /**
   * Put the token at a height of its step, possibly between two layers.
   *
   * @param {number} step
   * @param {number} height
   */
  setToken(step, height) {
    const { numLayers } = this.schedule;
    const layer = Math.min(Math.floor(height), numLayers - 1);
    const hops = this.isLora(step) && this.dropped.has(layer) && height < numLayers;
    // It swings around a skipped layer.
    const aside = hops ? Math.sin(Math.PI * (height - layer)) * Math.min(this.colW * 0.42, 14) : 0;
    this.token.setAttribute("cx", (this.x(step) + this.colW / 2 + aside).toFixed(1));
    this.token.setAttribute("cy", (this.y(0) + this.rowH - height * this.rowH).toFixed(1));
    this.setLinks(step, height);
  }
}
