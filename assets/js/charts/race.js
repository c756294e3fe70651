/* The race on the page: it is redrawn at most once a frame, and a click moves the scrubber. */

import { find } from "../dom.js";
import { formatNumber } from "../format.js";
import { decodeMs, lastStep, tokensBy } from "../position.js";
import { isTalk, talkSize } from "./layout.js";
import { TEXT, drawRace, raceHeight, timeWords } from "./race_drawing.js";
import { addRunTable } from "./table.js";

/** @typedef {import("../run.js").Run} Run */
/** @typedef {import("../store.js").State} State */

const TALL = 1.6; // factor of the bars' height on a slide

/**
 * @param {HTMLElement} root
 * @param {import("../store.js").Store} store
 * @param {(step: number) => void} goTo put the scrubber at a step
 */
export function mountRace(root, store, goTo) {
  const figure = find(root, ".ld-race");
  /** @type {HTMLCanvasElement} */
  const canvas = find(figure, ".ld-race-canvas");
  /** @type {import("./race_drawing.js").Strip | null} */
  let strip = null;
  let isAsked = false;
  const ask = () => {
    if (isAsked || !store.state.run) return;
    isAsked = true;
    requestAnimationFrame(() => {
      isAsked = false;
      const { run } = store.state;
      if (!run || !canvas.offsetWidth) return;
      figure.dataset.state = "running";
      strip = draw(canvas, run, store.state);
    });
  };
  store.subscribe(["run", "revision", "step", "moment", "isUnfolding", "isTalk", "hover"], ask);
  addRunTable(figure, store, () => tableOf(store.state));
  new ResizeObserver(ask).observe(figure);
  new MutationObserver(ask).observe(document.body, { attributes: true, attributeFilter: ["class"] });
  canvas.addEventListener("click", ({ offsetX }) => {
    const { run } = store.state;
    if (!run || !strip) return;
    const moment = strip.from + ((offsetX - strip.x) / strip.width) * strip.span;
    goTo(Math.max(0, tokensBy(run.focus, moment) - 1));
  });
}

/**
 * @param {HTMLCanvasElement} canvas
 * @param {Run} run
 * @param {State} state
 * @returns {import("./race_drawing.js").Strip}
 */
function draw(canvas, run, state) {
  const scale = isTalk() ? talkSize() / TEXT : 1;
  const width = canvas.offsetWidth / scale;
  const tall = isTalk() ? TALL : 1;
  const height = raceHeight(run.lanes.length, tall);
  const ratio = (window.devicePixelRatio || 1) * scale;
  canvas.style.height = `${height * scale}px`;
  if (canvas.width !== Math.round(width * ratio)) canvas.width = Math.round(width * ratio);
  if (canvas.height !== Math.round(height * ratio)) canvas.height = Math.round(height * ratio);
  const pen = canvas.getContext("2d");
  if (!pen) throw new Error("The browser gives no canvas to draw on.");
  pen.setTransform(ratio, 0, 0, ratio, 0, 0);
  pen.clearRect(0, 0, width, height);
  const { words, strip } = drawRace(pen, run, state, { width, tall, family: getComputedStyle(document.body).fontFamily });
  canvas.setAttribute("aria-label", `Time of each lane: ${words.join("; ")}`);
  return { ...strip, x: strip.x * scale, width: strip.width * scale };
}

/**
 * The bars' figures; the time of each token is in the table of the time chart.
 *
 * @param {State} state
 * @returns {import("./table.js").Table}
 */
function tableOf({ run }) {
  if (!run) throw new Error("There is no run.");
  const equal = Math.min(...run.lanes.map((lane) => lane.steps.length));
  const [first] = run.lanes;
  const rowOf = (lane) => [
    run.plainLabels[lane.index],
    equal ? timeWords(decodeMs(lane, equal - 1)) : "–",
    lane.steps.length,
    timeWords(decodeMs(lane, Math.max(lastStep(lane), 0))),
  ];
  return {
    caption: `Time for each answer, after the prompt was read once in ${timeWords(first.prefillMs)}`,
    head: ["answer", `time for ${formatNumber(equal)} tokens`, "tokens", "time for all of them"],
    rows: run.lanes.map(rowOf),
  };
}
