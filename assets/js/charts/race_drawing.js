/* Draws the race, on the page's canvas and in pictures: a bar of accepted tokens for each lane, all at one moment of the
 * lanes' clocks, and below it each token, whose width is its time. The pen is a canvas context, or an object with the same
 * calls. */

import { formatNumber, roundUp } from "../format.js";
import { outline } from "./canvas.js";
import { expectedMs, reached } from "../pace.js";
import { decodeMs, lastStep, tokensBy } from "../position.js";
import { isBaseline, verifies } from "../schedule.js";
import { color, faded, laneColor } from "./layout.js";

/** @typedef {import("../run.js").Lane} Lane */
/** @typedef {import("../run.js").Run} Run */
/** @typedef {import("../store.js").State} State */
/** @typedef {Pick<State, "step" | "moment" | "isUnfolding" | "hover">} Position */
/** @typedef {Pick<CanvasRenderingContext2D, "fillStyle" | "font" | "textAlign" | "textBaseline" | "fillRect" | "fillText"> &
 *   {measureText: (text: string) => {width: number}}} Pen */
/** @typedef {{x: number, width: number, span: number}} Scale place of `span` tokens or milliseconds, from 0 on */

export const TEXT = 12; // text size in pixels
const ROW = { bar: 18, strip: 16, gap: 4, between: 24, axis: 18 };
const NARROW = 640; // width of a view with short names, in pixels
const NAMES = { wide: 150, narrow: 74 }; // width of the lanes' names
const EDGE = 24; // right of the strip: half of the axis' last figure
const LATE = 0.3; // height of a thin bar, as a share of a bar's
const LEAST = 0.7; // pixels; shorter times are drawn together with the token that follows

/**
 * Height of the race in pixels.
 *
 * @param {number} lanes
 * @param {number} [tall] factor of the height of bars and strips
 */
export const raceHeight = (lanes, tall = 1) => lanes * ((ROW.bar + ROW.strip) * tall + 2 * ROW.gap) + ROW.between + ROW.axis;

/** Factor of the bars' height that fills a height. @param {Run} run @param {number} height */
export function tallFor({ lanes }, height) {
  const [single, double] = [raceHeight(lanes.length, 1), raceHeight(lanes.length, 2)];
  return Math.max(0.5, Math.min(4, 1 + (height - single) / (double - single)));
}

/** @param {number} ms */
const seconds = (ms) => `${formatNumber(ms / 1000, 2)} s`;

/** @param {number} count @param {number} ms */
const reachedWords = (count, ms) => `${formatNumber(count)} ${count === 1 ? "token" : "tokens"}, ${seconds(ms)}`;

/**
 * Number of tokens that the answers of the full model and the main lane are compared at: those of the shorter answer.
 * Another lane may stop earlier.
 *
 * @param {Run} run
 */
export const comparedTokens = (run) =>
  Math.min(...run.lanes.filter((lane) => isCompared(run, lane)).map((lane) => lane.steps.length));

const isCompared = (run, lane) => lane === run.main || lane.id === "baseline";

/**
 * The moment at the scrubber's position, in milliseconds of decoding on every lane's clock; infinite at a run's end.
 *
 * @param {Run} run
 * @param {Position} position
 */
function momentOf(run, { step, moment }) {
  if (moment !== null || step === null) return moment ?? reached(run, run.lanes);
  return decodeMs(run.focus, Math.max(0, Math.min(step, lastStep(run.focus))));
}

/**
 * A lane's tokens at a moment: those that the full model accepted or wrote, and drafts that it has not verified. Drafts that
 * it will reject count until then. In a lane that verifies nothing every token counts at once.
 *
 * @param {Lane} lane
 * @param {number} moment
 */
function progressOf(lane, moment) {
  const tokens = tokensBy(lane, moment);
  const ms = Math.min(moment, decodeMs(lane, Math.max(lastStep(lane), 0)));
  const isEnd = lane.isVerified && tokens === lane.steps.length;
  if (!tokens || isEnd || !verifies(lane.schedule)) return { accepted: tokens, drafts: 0, ms };
  const accepted = lane.steps[tokens - 1].lastRefresh + 1;
  const rejected = lane.rewinds.filter(({ to }) => to === tokens - 1).flatMap(({ clock }) => clock);
  return { accepted, drafts: tokens - accepted + rejected.filter((at) => at - lane.clock[0] <= ms).length, ms };
}

/**
 * Draw the race from (0, 0) with texts of `TEXT` pixels; returns the bars' words, and the places of the bars and, from `top`
 * on, of the strip.
 *
 * @param {Pen} pen
 * @param {Run} run
 * @param {Position} position
 * @param {{width: number, family: string, tall?: number}} size
 * @returns {{words: string[], bars: Scale, strip: Scale, top: number}}
 */
export function drawRace(pen, run, position, { width, family, tall = 1 }) {
  const size = { ...ROW, bar: ROW.bar * tall, strip: ROW.strip * tall };
  pen.font = `${TEXT}px ${family}`;
  pen.textBaseline = "middle";
  const x = width < NARROW ? NAMES.narrow : NAMES.wide;
  const longest = Math.max(...run.lanes.map((lane) => expectedMs(run, lane)), 1e-6);
  const tokens = Math.max(...run.lanes.map((lane) => (run.isOver ? lane.steps.length : run.planned + 1)), 1);
  const bars = { x, width: width - x - 16 - pen.measureText(reachedWords(tokens, longest)).width, span: tokens };
  const strip = { x, width: width - x - EDGE, span: longest };
  const moment = momentOf(run, position);
  const isEnded = run.isOver && !position.isUnfolding && position.step === null;
  const words = drawBars(pen, run, isEnded ? null : moment, bars, size);
  const top = run.lanes.length * (size.bar + size.gap);
  drawStrip(pen, run, moment, strip, top + size.between, size);
  const { hover } = position;
  const at = position.step === null ? hover && decodeMs(run.focus, Math.min(hover, lastStep(run.focus))) : moment;
  if (at !== null) drawCursor(pen, strip, at, top + size.between, size, run.lanes.length);
  return { words, bars, strip, top };
}

/** Draw the bars at a moment, or those of the ended run if it is null; returns their words. */
function drawBars(pen, run, moment, bars, size) {
  const equal = comparedTokens(run);
  const ends = run.lanes.filter((lane) => isCompared(run, lane)).map((lane) => decodeMs(lane, Math.max(equal - 1, 0)));
  const finish = equal > 1 ? Math.min(...ends) : Infinity; // of the first lane
  const unit = bars.width / bars.span;
  return run.lanes.map((lane, row) => {
    const y = row * (size.bar + size.gap);
    const { accepted, drafts, ms } = progressOf(lane, moment ?? Infinity);
    const tint = laneColor(lane.index);
    const solid = moment === null ? Math.min(tokensBy(lane, finish), accepted) : accepted;
    pen.fillStyle = color("grid");
    pen.fillRect(bars.x, y, bars.width, size.bar);
    pen.fillStyle = tint;
    pen.fillRect(bars.x, y, solid * unit, size.bar);
    // At the end, tokens written after the first lane had finished are a thin bar.
    pen.fillRect(bars.x + solid * unit, y + size.bar * (0.5 - LATE / 2), (accepted - solid) * unit, size.bar * LATE);
    if (drafts) outline(pen, [bars.x + accepted * unit, y, drafts * unit, size.bar], tint, 1.5);
    const middle = y + size.bar / 2;
    const name = run.plainLabels[lane.index];
    label(pen, name, bars.x - 8, middle, "right", tint, bars.x - 10);
    const isEqual = moment === null && equal > 0 && isCompared(run, lane);
    const words = isEqual ? reachedWords(equal, decodeMs(lane, equal - 1)) : reachedWords(accepted, ms);
    label(pen, words, bars.x + bars.width + 8, middle, "left", color("ink"));
    return `${name} ${words}${drafts ? `, ${drafts} not yet checked` : ""}`;
  });
}

/** @param {number} ms */
export const timeWords = (ms) => (ms >= 1000 ? seconds(ms) : `${formatNumber(ms)} ms`);

/** Draw a text, cut to the room. */
function label(pen, text, x, y, align, tint, room = Infinity) {
  pen.fillStyle = tint;
  pen.textAlign = align;
  let words = text;
  while (words.length > 2 && pen.measureText(words).width > room) words = `${words.replace(/…$/, "").slice(0, -1)}…`;
  pen.fillText(words, x, y);
}

/** Draw each lane's tokens up to a moment, all on one scale of milliseconds from the end of the prompt. */
function drawStrip(pen, run, moment, strip, top, size) {
  label(pen, "Each token’s width is its time", strip.x, top - 10, "left", color("muted"), strip.width);
  for (const [row, lane] of run.lanes.entries()) {
    const y = top + row * (size.strip + size.gap);
    drawTokens(pen, lane, tokensBy(lane, moment), strip, y, size.strip);
  }
  drawAxis(pen, strip, top + run.lanes.length * (size.strip + size.gap));
}

/** Draw a lane's first tokens, one after the other; the time of rejected drafts comes before the token that replaced them. */
function drawTokens(pen, lane, tokens, strip, y, height) {
  const tint = laneColor(lane.index);
  const tints = { lora: faded(tint, 0.35), draft: faded(tint, 0.35), refresh: color("refresh"), prefill: color("muted") };
  if (isBaseline(lane.schedule)) tints.refresh = faded(tint, 0.6);
  const [rejected, replaced] = [color("rejected"), new Set(lane.rewinds.map(({ to }) => to + 1))];
  const unit = strip.width / strip.span;
  let from = 0;
  const drawTo = (ms, fill) => {
    const width = (ms - from) * unit;
    if (width < LEAST) return;
    pen.fillStyle = fill;
    pen.fillRect(strip.x + from * unit, y, width - Math.min(1, width / 5), height);
    from = ms;
  };
  for (let step = 1; step < tokens; step++) {
    const to = decodeMs(lane, step);
    if (replaced.has(step)) drawTo(to - lane.steps[step].ms, rejected);
    drawTo(to, tints[lane.steps[step].kind]);
  }
}

function drawAxis(pen, strip, y) {
  const stride = roundUp((strip.span * 90) / strip.width);
  for (let ms = 0; ms <= strip.span; ms += stride) {
    const x = strip.x + (ms / strip.span) * strip.width;
    pen.fillStyle = color("line");
    pen.fillRect(x, y - ROW.gap, 1, 4);
    const last = ms + stride > strip.span;
    label(pen, `${formatNumber(ms, stride < 1 ? 1 : 0)}${last ? " ms" : ""}`, x, y + 8, "center", color("muted"));
  }
}

function drawCursor(pen, strip, ms, top, size, lanes) {
  if (ms > strip.span) return;
  pen.fillStyle = color("ink");
  pen.fillRect(strip.x + (ms / strip.span) * strip.width - 0.75, top - 2, 1.5, lanes * (size.strip + size.gap));
}
