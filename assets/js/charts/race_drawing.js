/* Draws the race, on the page's canvas and in pictures: a bar for each lane in true proportion, and below it each token,
 * whose width is its time. The pen is a canvas context, or an object with the same calls. */

import { formatNumber } from "../format.js";
import { expectedMs } from "../pace.js";
import { decodeMs, lastStep, shownTokens, tokensBy } from "../position.js";
import { isBaseline } from "../schedule.js";
import { color, faded, laneColor } from "./layout.js";

/** @typedef {import("../run.js").Lane} Lane */
/** @typedef {import("../run.js").Run} Run */
/** @typedef {import("../store.js").State} State */
/** @typedef {Pick<State, "step" | "moment" | "isSameStep" | "isUnfolding" | "hover">} Position */
/** @typedef {Pick<CanvasRenderingContext2D, "fillStyle" | "font" | "textAlign" | "textBaseline" | "fillRect" | "fillText"> &
 *   {measureText: (text: string) => {width: number}}} Pen */

export const TEXT = 12; // text size in pixels
const ROW = { bar: 18, strip: 16, gap: 4, between: 24, axis: 18 };
const NARROW = 640; // width of a view with short labels, in pixels
const TOKEN = 6; // least average width of a token in the strip, in pixels

/**
 * Height of the race in pixels.
 *
 * @param {number} lanes
 * @param {number} [tall] factor of the height of bars and strips
 */
export const raceHeight = (lanes, tall = 1) => lanes * ((ROW.bar + ROW.strip) * tall + 2 * ROW.gap) + ROW.between + ROW.axis;

/** @typedef {{x: number, width: number, from: number, span: number}} Strip place of the milliseconds from `from` on */

/**
 * A lane's progress at the scrubber's position, in tokens and in milliseconds of decoding.
 *
 * @param {Position & {run: Run}} state
 * @param {Lane} lane
 */
function placeOf(state, lane) {
  const tokens = shownTokens(state, lane) ?? lane.steps.length;
  const ms = tokens ? decodeMs(lane, tokens - 1) : 0;
  const whole = decodeMs(lane, Math.max(lastStep(lane), 0));
  return { tokens, ms: state.moment === null ? ms : Math.min(Math.max(state.moment, ms), whole) };
}

/**
 * Draw the race from (0, 0) with texts of `TEXT` pixels; returns the bars' words and the place of the strip.
 *
 * @param {Pen} pen
 * @param {Run} run
 * @param {Position} position
 * @param {{width: number, family: string, tall?: number}} size
 * @returns {{words: string[], strip: Strip}}
 */
export function drawRace(pen, run, position, { width, family, tall = 1 }) {
  const state = { ...position, run };
  const row = { ...ROW, bar: ROW.bar * tall, strip: ROW.strip * tall };
  pen.font = `${TEXT}px ${family}`;
  pen.textBaseline = "middle";
  const isNarrow = width < NARROW;
  const [left, right] = isNarrow ? [74, 86] : [150, 150];
  const box = { x: left, width: width - left - right };
  const words = drawBars(pen, run, state, box, isNarrow, row);
  const strip = stripOf(run, state, box);
  drawStrip(pen, run, state, strip, run.lanes.length * (row.bar + row.gap) + row.between, row);
  return { words, strip };
}

/** Draw the bars on a scale that fits the whole run; returns their words. */
function drawBars(pen, run, state, box, isNarrow, size) {
  const [first] = run.lanes;
  const prefill = first.prefillMs;
  const longest = Math.max(...run.lanes.map((lane) => expectedMs(run, lane)), 1e-6);
  const unit = box.width / (prefill + longest);
  const equal = Math.min(...run.lanes.map((lane) => lane.steps.length));
  const isEnded = run.isOver && !state.isUnfolding && state.step === null;
  return run.lanes.map((lane, row) => {
    const y = row * (size.bar + size.gap);
    const { tokens, ms } = placeOf(state, lane);
    const solid = isEnded && equal > 1 ? decodeMs(lane, equal - 1) : ms;
    pen.fillStyle = color("grid");
    pen.fillRect(box.x, y, box.width, size.bar);
    pen.fillStyle = color("muted");
    pen.fillRect(box.x, y, lane.steps.length ? prefill * unit : 0, size.bar);
    pen.fillStyle = laneColor(lane.index);
    pen.fillRect(box.x + prefill * unit, y, solid * unit, size.bar);
    // A longer answer's time beyond the shortest answer is faded: no lane wins by writing less.
    pen.fillStyle = faded(laneColor(lane.index), 0.3);
    pen.fillRect(box.x + (prefill + solid) * unit, y, Math.max(ms - solid, 0) * unit, size.bar);
    const middle = y + size.bar / 2;
    label(pen, run.plainLabels[lane.index], box.x - 8, middle, "right", laneColor(lane.index), box.x - 10);
    const count = isEnded ? equal : tokens;
    const time = timeWords(isEnded ? solid : ms);
    const words = isNarrow ? time : `${time}, ${formatNumber(count)} tokens`;
    label(pen, words, box.x + box.width + 8, middle, "left", color("ink"));
    return `${run.plainLabels[lane.index]} ${time} for ${count} tokens`;
  });
}

/** @param {number} ms */
export const timeWords = (ms) => (ms >= 1000 ? `${formatNumber(ms / 1000, 2)} s` : `${formatNumber(ms)} ms`);

/** Draw a text, cut to the room. */
function label(pen, text, x, y, align, tint, room = Infinity) {
  pen.fillStyle = tint;
  pen.textAlign = align;
  let words = text;
  while (words.length > 2 && pen.measureText(words).width > room) words = `${words.replace(/…$/, "").slice(0, -1)}…`;
  pen.fillText(words, x, y);
}

/**
 * The time span of the strip: the whole run, or a span around the position in which tokens are wide enough.
 *
 * @param {Run} run
 * @param {Position & {run: Run}} state
 * @param {{x: number, width: number}} box
 * @returns {Strip}
 */
function stripOf(run, state, box) {
  const whole = Math.max(...run.lanes.map((lane) => expectedMs(run, lane)), 1e-6);
  const tokens = Math.max(...run.lanes.map((lane) => (run.isOver ? lane.steps.length : run.planned)), 1);
  const span = whole * Math.min(1, box.width / TOKEN / tokens);
  const at = state.step === null ? 0 : placeOf(state, run.focus).ms;
  return { ...box, span, from: Math.max(0, Math.min(at - span / 2, whole - span)) };
}

/** Draw each lane's tokens on a scale of milliseconds, up to the position. */
function drawStrip(pen, run, state, strip, top, size) {
  const unit = strip.width / strip.span;
  label(pen, "each token’s width is its time, from the end of the prompt", strip.x, top - 10, "left", color("muted"), strip.width + 80);
  for (const [row, lane] of run.lanes.entries()) {
    const y = top + row * (size.strip + size.gap);
    const { tokens } = placeOf(state, lane);
    const tints = { lora: faded(laneColor(lane.index), 0.35), refresh: color("refresh"), prefill: color("muted") };
    if (isBaseline(lane.schedule)) tints.refresh = faded(laneColor(lane.index), 0.6);
    const end = strip.from + strip.span;
    for (let step = Math.max(1, tokensBy(lane, strip.from)); step < tokens; step++) {
      const from = decodeMs(lane, step - 1);
      if (from > end) break;
      const to = Math.min(decodeMs(lane, step), end);
      const begin = Math.max(to - lane.steps[step].ms, from, strip.from); // rejected drafts come before it
      cell(pen, strip, unit, { y, height: size.strip }, Math.max(from, strip.from), begin, color("bad"));
      cell(pen, strip, unit, { y, height: size.strip }, begin, to, tints[lane.steps[step].kind]);
    }
  }
  const height = run.lanes.length * (size.strip + size.gap);
  drawAxis(pen, strip, unit, top + height);
  drawCursor(pen, run, state, strip, unit, { top, height });
}

function cell(pen, strip, unit, { y, height }, from, to, tint) {
  const width = (to - from) * unit;
  if (width < 0.3) return;
  pen.fillStyle = tint;
  pen.fillRect(strip.x + (from - strip.from) * unit, y, Math.max(width - (width > 3 ? 1 : 0), 0.5), height);
}

function drawAxis(pen, strip, unit, y) {
  const about = (strip.span * 90) / strip.width;
  const power = 10 ** Math.floor(Math.log10(about));
  const stride = [1, 2, 5, 10].map((n) => n * power).find((n) => n >= about) ?? about;
  for (let ms = Math.ceil(strip.from / stride) * stride; ms <= strip.from + strip.span; ms += stride) {
    const x = strip.x + (ms - strip.from) * unit;
    pen.fillStyle = color("line");
    pen.fillRect(x, y - ROW.gap, 1, 4);
    const last = ms + stride > strip.from + strip.span;
    label(pen, `${formatNumber(ms, stride < 1 ? 1 : 0)}${last ? " ms" : ""}`, x, y + 8, "center", color("muted"));
  }
}

function drawCursor(pen, run, state, strip, unit, { top, height }) {
  const step = state.step === null ? state.hover : null;
  if (state.step === null && step === null) return;
  const ms = step === null ? placeOf(state, run.focus).ms : decodeMs(run.focus, Math.min(step, lastStep(run.focus)));
  const x = strip.x + (ms - strip.from) * unit;
  if (x < strip.x - 1 || x > strip.x + strip.width + 1) return;
  pen.fillStyle = color("ink");
  pen.fillRect(x - 0.75, top - 2, 1.5, height);
}
