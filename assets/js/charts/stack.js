/* A live stack of the layers: a column a token, a cell a layer, layer 0 at the bottom. It grows with the played position,
 * and a line says what the last step did. */

import { find } from "../dom.js";
import { skips } from "../kinds.js";
import { shownTokens } from "../position.js";
import { outline, penOf, redraw } from "./canvas.js";
import { color, faded, isTalk, talkSize } from "./layout.js";

/** @typedef {import("../run.js").Lane} Lane */
/** @typedef {import("../store.js").State} State */
/** @typedef {[number, number, number, number]} Box x, y, width, height */

const WIDEST = 12; // pixels of a column
const HEIGHT = { page: 72, short: 56 };
const SLIDE = { lines: 34, widest: 24 }; // height of the drawing in lines of text, and pixels of a column
const SHORT = "(height < 720px)"; // a laptop's window: see narrow.css
const LINE = 0.7;

/**
 * @param {HTMLElement} root
 * @param {import("../store.js").Store} store
 * @param {(step: number) => void} goTo put the scrubber at a step
 */
export function mountStack(root, store, goTo) {
  const figure = find(root, ".ld-stack");
  /** @type {HTMLCanvasElement} */
  const canvas = find(figure, "canvas");
  const words = find(figure, ".ld-stack-words");
  let column = 0; // width in pixels
  /** @type {(keyof State)[]} */
  const keys = ["run", "revision", "step", "moment", "isSameStep", "isTalk", "focus"];
  redraw(figure, canvas, store, keys, (run, state) => {
    const tokens = shownTokens(state, run.focus) ?? run.focus.steps.length;
    column = draw(canvas, run.focus, tokens, Math.max(run.isOver ? run.focus.steps.length : run.planned + 1, 1));
    words.textContent = wordsOf(run.focus, tokens);
  });
  canvas.addEventListener("click", ({ offsetX }) => {
    const steps = store.state.run?.focus.steps.length ?? 0;
    if (steps && column) goTo(Math.min(Math.floor(offsetX / column), steps - 1));
  });
}

/**
 * Draw the first tokens of a lane; returns the width of a column.
 *
 * @param {HTMLCanvasElement} canvas
 * @param {Lane} lane
 * @param {number} tokens
 * @param {number} planned tokens that must find room
 */
function draw(canvas, lane, tokens, planned) {
  const size = window.matchMedia(SHORT).matches ? "short" : "page";
  const [width, height] = [canvas.offsetWidth, isTalk() ? SLIDE.lines * talkSize() : HEIGHT[size]];
  const pen = penOf(canvas, height);
  const { numLayers, dropped, refresh } = lane.schedule;
  const [across, up] = [Math.min(isTalk() ? SLIDE.widest : WIDEST, width / planned), height / numLayers];
  const [full, again, skipped] = [color("full"), color("refresh"), color("dropped")];
  const isSkipped = new Set(dropped);
  const verified = lastFull(lane, tokens);
  const gap = [across > 3 ? 1 : 0, up > 2.4 ? 0.6 : 0];
  for (let step = 0; step < tokens; step++) {
    const { kind } = lane.steps[step];
    const isLora = skips(kind);
    for (let layer = 0; layer < numLayers; layer++) {
      /** @type {Box} */
      const box = [step * across, height - (layer + 1) * up, across - gap[0], up - gap[1]];
      const isOut = kind === "draft" || isSkipped.has(layer);
      if (!isOut) pen.fillStyle = full;
      else if (!isLora) pen.fillStyle = again;
      else pen.fillStyle = refresh === "repair" && step < verified ? faded(again, 0.45) : color("panel");
      pen.fillRect(box[0], box[1], box[2], box[3]);
      if (isLora && isOut) outline(pen, box, skipped, LINE);
    }
  }
  return across;
}

/** The last full step among the first tokens. */
function lastFull(lane, tokens) {
  return tokens ? lane.steps[tokens - 1].lastRefresh : 0;
}

/**
 * What the last step did.
 *
 * @param {Lane} lane
 * @param {number} tokens
 */
function wordsOf({ steps, schedule, rank, rewinds }, tokens) {
  const { numLayers, dropped, refresh, accept } = schedule;
  const step = steps[tokens - 1];
  if (!step || step.kind === "prefill") return `The prompt is read: all ${numLayers} layers run.`;
  if (step.kind === "draft") return `Token ${tokens}: a guess, copied from earlier text. No layer runs.`;
  if (skips(step.kind)) {
    const instead = rank ? "small corrections in their place" : "nothing in their place";
    return `Token ${tokens}: a guess. ${dropped.length} of ${numLayers} layers are skipped, ${instead}.`;
  }
  const guesses = step.step - 1 - steps[tokens - 2].lastRefresh;
  const lead = `Token ${tokens}: a full step (refresh). All ${numLayers} layers run`;
  if (refresh !== "repair") return `${lead}.`;
  if (accept && rewinds.some(({ to }) => to === step.step - 1)) {
    return `${lead} and check the guesses: ${guesses} accepted, the next rejected.`;
  }
  if (!guesses) return `${lead}.`;
  const last = guesses === 1 ? "the last guess" : `the last ${guesses} guesses`;
  return accept ? `${lead} and check ${last}: accepted.` : `${lead}, for ${last} too.`;
}
