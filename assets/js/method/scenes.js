/* The four ideas of the build-up: each has a drawing that its slider moves, and at most 40 words about it. */

import { makeSvg, makeText } from "../dom.js";
import { formatShare } from "../format.js";
import { droppedLayers, kind } from "../schedule.js";
import { CELL, LAYERS, PERIOD, PROMPT, RANGE, REPAIRED, SIZE, STEPS, WITH_HOLES } from "./toy.js";
import { cell, entryOf, heldAfter, y } from "./toy.js";

/** @typedef {import("../records.js").Schedule} Schedule */

/**
 * @typedef {object} Idea
 * @property {string} id
 * @property {string} title
 * @property {string} slider label of the slider
 * @property {number} max of the slider; its minimum is 0
 * @property {number} start its first value
 * @property {(at: number) => string} where its value in words
 * @property {(at: number) => string} words
 * @property {(at: number) => SVGElement[]} draw
 */

const FLOOR = y(0) + CELL; // under the lowest layer
const CLOSE = 22; // width of a column in the drawings of two columns
const middle = (layer) => y(layer) + CELL / 2;

/** Names of the first and last layer, on the left. */
const sides = () =>
  [0, LAYERS - 1].map((layer) =>
    makeText(`layer ${layer}`, { x: 0, y: middle(layer) + 4, class: "ld-toy-label" }),
  );

/** @type {Idea} */
const climb = {
  id: "climb",
  title: "1. One token’s way",
  slider: "Layers passed",
  max: LAYERS,
  start: 5,
  where: (at) => `${at} of ${LAYERS}`,
  words(at) {
    if (at === 0) {
      return "A model writes one token a step. The newest token, “sky”, starts at the bottom as a list of numbers, its stream, and climbs every layer.";
    }
    if (at === LAYERS) {
      return "At the top, the stream names the next token: “is”. All layers’ weights were read from memory for this one token: that reading is what takes the time.";
    }
    return `Layer ${at - 1} reads the stored keys and values (K/V) of earlier tokens, adds its result to the stream, and stores K/V of its own.`;
  },
  draw(at) {
    const [x, before] = [230, [70, 110, 150]];
    const now = at - 1;
    const shapes = before.flatMap((left) =>
      Array.from({ length: LAYERS }, (_, layer) => cell(left, layer, CLOSE, layer === now ? "read" : "stored")),
    );
    for (let layer = 0; layer < LAYERS; layer++) {
      shapes.push(cell(x, layer, CLOSE + 8, layer === now ? "now" : layer < now ? "runs" : "ahead"));
    }
    const looks = now < 0 ? [] : [arrow(before[2] + CLOSE, middle(now), x - 2, middle(now))];
    const height = at === 0 ? FLOOR + 8 : y(now) - 2;
    return [
      ...sides(),
      ...shapes,
      ...looks,
      makeSvg("line", { x1: x + 15, x2: x + 15, y1: FLOOR + 8, y2: height, class: "ld-toy-stream" }),
      makeSvg("circle", { cx: x + 15, cy: height, r: 6, class: "ld-toy-token" }),
      ...["Why", "is", "the"].map((word, i) => makeText(word, { x: before[i] + 11, y: FLOOR + 20, class: "ld-toy-word" })),
      makeText("sky", { x: x + 15, y: FLOOR + 22, class: "ld-toy-word ld-toy-strong" }),
      makeText(at === LAYERS ? "→ “is”" : "", { x: x + 42, y: y(LAYERS - 1) + 14, class: "ld-toy-label ld-toy-strong" }),
    ];
  },
};

/** @type {Idea} */
const skip = {
  id: "skip",
  title: "2. Two steps",
  slider: "Layers skipped at the second step",
  max: RANGE[1] - RANGE[0] + 1,
  start: 4,
  where: (at) => `${at} of ${LAYERS}`,
  words(at) {
    if (at === 0) {
      return "Neighbouring tokens climb in similar ways: a layer adds much the same to both. If nothing is skipped, both steps read every layer.";
    }
    return `The second step skips ${at} of ${LAYERS} layers. Each reuses what it added at the full step (dashed), plus a small trained correction. ${formatShare(at / LAYERS)} of the layers’ weights are not read: that is the time saved.`;
  },
  draw(at) {
    const [left, right] = [90, 226];
    const skipped = new Set(droppedLayers(...RANGE, at / skip.max));
    const shapes = Array.from({ length: LAYERS }, (_, layer) => {
      const isSkipped = skipped.has(layer);
      return [
        cell(left, layer, 40, isSkipped ? "refresh" : "runs"),
        cell(right, layer, 40, isSkipped ? "skipped" : "runs"),
        ...(isSkipped ? [arrow(left + 40, middle(layer), right - 2, middle(layer))] : []),
        ...(isSkipped ? [makeText("+ d", { x: right + 48, y: middle(layer) + 4, class: "ld-toy-label" })] : []),
      ];
    });
    return [
      ...sides(),
      ...shapes.flat(),
      makeText("full step", { x: left + 20, y: FLOOR + 20, class: "ld-toy-word ld-toy-strong" }),
      makeText(at ? "LoRA step" : "the next step", { x: right + 20, y: FLOOR + 20, class: "ld-toy-word" }),
    ];
  },
};

/** @type {Idea} */
const holes = {
  id: "holes",
  title: "3. The cache gets holes",
  slider: "Steps done",
  max: STEPS,
  start: 7,
  where: (at) => `${at}`,
  words(at) {
    if (at === 0) return `Every layer stores K/V of the prompt’s ${PROMPT} tokens. Each step adds a column; every ${PERIOD}th step is full.`;
    const { running, skipped, saved } = heldAfter(WITH_HOLES, at);
    return `A skipped layer stores nothing (dashed): after ${at} ${at === 1 ? "step" : "steps"} it holds ${skipped} tokens, a running one ${running}. That saves ${formatShare(saved)} of the memory, but later tokens cannot look back at a hole.`;
  },
  draw: (at) => cacheOf(WITH_HOLES, at, false),
};

/** @type {Idea} */
const repair = {
  id: "repair",
  title: "4. The refresh repairs it",
  slider: "Steps done",
  max: STEPS,
  start: 7,
  where: (at) => `${at}`,
  words(at) {
    if (at === 0) return "The prompt’s K/V is exact. Move on: see what LoRA steps leave behind, and what the next full step does about it.";
    if (kind(REPAIRED, at) === "refresh") {
      return `Step ${at}, refresh: one pass runs every layer for the last ${PERIOD} tokens. Holes are filled, approximate K/V replaced: the cache is the full model’s again. The price: more to compute, no memory saved.`;
    }
    return `Step ${at}, LoRA: skipped layers leave holes, and layers above them store K/V of an approximate stream (orange). Later tokens would read these errors, step after step.`;
  },
  draw: (at) => cacheOf(REPAIRED, at, true),
};

/** @type {Idea[]} */
export const IDEAS = [climb, skip, holes, repair];

/**
 * The caches after a step: a row for each layer, a column for each token.
 *
 * @param {Schedule} schedule
 * @param {number} now
 * @param {boolean} showsErrors draw approximate entries in another colour
 */
function cacheOf(schedule, now, showsErrors) {
  const [left, width] = [56, 25];
  const columns = Array.from({ length: PROMPT + now }, (_, i) => i - PROMPT + 1);
  const cells = columns.flatMap((step, i) =>
    Array.from({ length: LAYERS }, (_, layer) => {
      const entry = entryOf(schedule, layer, step, now);
      const isFull = step > 0 && kind(schedule, step) === "refresh";
      const name = entry === "approximate" && !showsErrors ? "exact" : entry === "exact" && isFull ? "refresh" : entry;
      return cell(left + i * width, layer, width - 4, name);
    }),
  );
  const steps = columns.map((step, i) =>
    makeText(step > 0 ? String(step) : "", {
      x: left + i * width + 10,
      y: FLOOR + 20,
      class: `ld-toy-word ${step > 0 && kind(schedule, step) === "refresh" ? "ld-toy-strong" : ""}`,
    }),
  );
  const prompt = makeText("prompt", { x: left + (PROMPT * width) / 2 - 2, y: FLOOR + 20, class: "ld-toy-word" });
  return [...sides(), ...cells, prompt, ...steps];
}

/** A dashed arrow. */
function arrow(x1, y1, x2, y2) {
  const group = makeSvg("g", { class: "ld-toy-arrow" });
  group.append(
    makeSvg("line", { x1, y1, x2: x2 - 4, y2 }),
    makeSvg("path", { d: `M${x2 - 6} ${y2 - 4}v8l6 -4z` }),
  );
  return group;
}

export const VIEW = `0 0 ${SIZE.width} ${SIZE.height}`;
