/* The drawing of the real schedule, still or played. All its numbers come from schedule.js. */

import { find } from "../dom.js";
import { formatBytes, formatNumber, formatShare } from "../format.js";
import { baseline, isAdaptive, isBaseline, kvBytes, kvLength, speedBound } from "../schedule.js";
import { bankOf, scheduleOf, withBank } from "../settings.js";
import { endTime, positionAt, timeAt } from "./pace.js";
import { Scene } from "./scene.js";
import { PROMPT, sentencesOf } from "./words.js";

/** @typedef {import("../records.js").Model} Model */
/** @typedef {import("../records.js").Settings} Settings */

const MAX_STEPS = 16; // most decode steps drawn

/**
 * The paper's schedule and rule on a model.
 *
 * @param {number} numLayers
 * @returns {Settings}
 */
const paperSettings = (numLayers) => ({
  period: 4, drop_ratio: 0.5, layers: [Math.min(3, numLayers - 2), numLayers - 2], drop_layers: "",
  reuse: "state", part: "block", kv: "skip", refresh: "single", accept: 0, head: "full", corrections: true,
  adapters: "auto", max_new_tokens: MAX_STEPS,
});

export class Drawing {
  /**
   * @param {HTMLElement} element
   * @param {() => {model: Model, settings: Settings | null}} page returns the page's current model and settings
   */
  constructor(element, page) {
    this.element = element;
    this.page = page;
    this.panel = find(element, ".ld-drawing");
    /** @type {SVGElement} */
    this.svg = find(element, ".ld-drawing-svg");
    /** @type {HTMLSelectElement} */
    this.menu = find(element, ".ld-drawing-which");
    this.play = find(element, ".ld-play");
    this.cursor = { step: 0, layer: 0 }; // layers below `layer` of `step` are done
    this.time = 0;
    this.caption = ""; // step of the current caption, and the steps done
    this.drawnSettings = ""; // settings of the page when the drawing was made, as JSON
    this.isPlaying = !window.matchMedia("(prefers-reduced-motion: reduce)").matches;
    this.isVisible = false;
    /** @type {number | null} time of the last frame */
    this.last = null;
    /** @type {import("../records.js").Bank | null} */
    this.bank = null;
    this.isInvalid = false; // the page's settings cannot run, so the paper's are drawn
    this.scene = this.makeScene();
    this.listen();
    this.build();
    this.setPlaying(this.isPlaying);
  }

  listen() {
    this.play.addEventListener("click", () => this.setPlaying(!this.isPlaying));
    find(this.element, ".ld-next").addEventListener("click", () => {
      this.setPlaying(false);
      const { step, layer } = this.cursor;
      const { numLayers } = this.scene.schedule;
      const next = step === this.scene.steps ? 0 : step + 1;
      this.seek(layer < numLayers ? step : next, numLayers); // first finish the step
    });
    this.menu.addEventListener("change", () => this.build());
    let width = 0;
    new ResizeObserver(() => {
      this.isVisible = this.svg.clientWidth > 0;
      if (!this.isVisible) return; // its tab is closed
      const isChanged = this.menu.value === "page" && this.drawnSettings !== JSON.stringify(this.page().settings);
      if (isChanged || this.svg.clientWidth !== width) {
        width = this.svg.clientWidth;
        this.build();
      }
      this.askFrame();
    }).observe(this.svg);
  }

  /** Read the settings and draw anew. */
  build() {
    this.scene = this.makeScene();
    this.caption = "";
    const { schedule } = this.scene;
    const { model } = this.page();
    this.figure("bound", `${formatNumber(speedBound(model.shape, schedule, null, PROMPT, this.bank?.rank ?? 0), 2)}×`);
    for (const rule of this.element.querySelectorAll(".ld-rule")) {
      const { dataset } = /** @type {HTMLElement} */ (rule);
      dataset.current = String(dataset.rule === schedule.reuse);
    }
    if (this.isPlaying) this.seek(0, 0);
    else this.showAll();
  }

  /** The shapes of the chosen schedule, or of the paper's if the page's settings are invalid. */
  makeScene() {
    const { model, settings: pageSettings } = this.page();
    const { num_layers: numLayers } = model.shape;
    this.drawnSettings = JSON.stringify(pageSettings);
    const paper = paperSettings(numLayers);
    let settings = this.menu.value === "page" && pageSettings ? { ...pageSettings, max_new_tokens: MAX_STEPS } : paper;
    let schedule = scheduleOf(settings, numLayers);
    this.isInvalid = typeof schedule === "string";
    if (typeof schedule === "string") {
      settings = paper;
      schedule = /** @type {import("../records.js").Schedule} */ (scheduleOf(settings, numLayers));
    }
    this.bank = bankOf(model, settings, schedule);
    const steps = isBaseline(schedule) ? 8 : Math.min(MAX_STEPS, 2 * schedule.period);
    return new Scene(this.svg, withBank(model, settings, schedule, this.bank), steps);
  }

  figure(name, text) {
    find(this.element, `[data-figure="${name}"]`).textContent = text;
  }

  /**
   * Show all layers below `layer` of `step` as done.
   *
   * @param {number} step
   * @param {number} layer
   */
  seek(step, layer) {
    this.light(step, layer);
    this.time = timeAt(this.scene, step, layer);
    this.move(step, layer);
  }

  /** Show the whole schedule as a still picture. */
  showAll() {
    const { scene } = this;
    const { numLayers } = scene.schedule;
    this.seek(scene.steps, numLayers);
    let step = scene.steps;
    while (step > 0 && !scene.isLora(step)) step--;
    scene.setLinks(step, numLayers);
  }

  /** Move the token, with its caption and figures. */
  move(step, height) {
    this.scene.setToken(step, height);
    this.say(step, height >= this.scene.schedule.numLayers ? step : step - 1);
  }

  /** Write the caption of a step, and the exact figures after `done` steps. */
  say(step, done) {
    const key = `${step} ${done}`;
    if (key === this.caption) return;
    this.caption = key;
    const { scene } = this;
    const { schedule } = scene;
    const early = isAdaptive(schedule) ? " Full steps may come earlier in a run: the drawing has the longest gaps." : "";
    const instead = this.isInvalid ? " (The Run tab's settings are invalid: this is the paper's schedule.)" : "";
    find(this.element, ".ld-drawing-caption").textContent = sentencesOf(schedule, step, this.bank !== null) + early + instead;
    const at = Math.max(done, 0);
    const { model } = this.page();
    const tokens = (isDropped) => `${kvLength(schedule, isDropped, PROMPT, at)} tokens`;
    const full = kvBytes(model.shape, baseline(schedule.numLayers), PROMPT, at, model.itemsize);
    this.figure("steps", `${at} of ${scene.steps}`);
    this.figure("kept", tokens(false));
    this.figure("held", isBaseline(schedule) ? "none skipped" : tokens(true));
    this.figure("kv-full", formatBytes(full));
    const held = kvBytes(model.shape, schedule, PROMPT, at, model.itemsize);
    this.figure("kv", `${formatBytes(held)}, ${formatShare(1 - held / full)} less`);
  }

  /** Play a frame. */
  frame(now) {
    if (!this.isPlaying || !this.isVisible) {
      this.last = null;
      return;
    }
    // A hidden tab gets no frames: playing goes on from the same place.
    this.time += Math.min(now - (this.last ?? now), 100);
    this.last = now;
    if (this.time >= endTime(this.scene)) this.seek(0, 0);
    const { step, height } = positionAt(this.scene, this.time);
    this.light(step, Math.floor(height));
    this.move(step, height);
    requestAnimationFrame((next) => this.frame(next));
  }

  /** Light the cells below the token's place, and set the caches' bars. */
  light(step, layer) {
    const { scene } = this;
    scene.cells.forEach((column, s) =>
      column.forEach((cell, i) => cell.classList.toggle("ld-on", s < step || (s === step && i < layer))),
    );
    scene.bars.forEach((_, i) => scene.setBar(i, step, i < layer));
    this.cursor = { step, layer };
  }

  /** @param {boolean} isPlaying */
  setPlaying(isPlaying) {
    this.isPlaying = isPlaying;
    this.play.textContent = isPlaying ? "Pause" : "Play";
    this.panel.dataset.playing = String(isPlaying);
    const { step, layer } = this.cursor;
    if (isPlaying && step === this.scene.steps && layer >= this.scene.schedule.numLayers) this.seek(0, 0);
    this.askFrame();
  }

  askFrame() {
    if (this.isPlaying && this.last === null) requestAnimationFrame((now) => this.frame(now));
  }
}
