/* The race on the page: it is redrawn at most once a frame, and a click moves the scrubber. */

import { find } from "../dom.js";
import { formatNumber } from "../format.js";
import { decodeMs, lastStep, tokensBy } from "../position.js";
import { verifies } from "../schedule.js";
import { isTalk, talkSize } from "./layout.js";
import { TEXT, comparedTokens, drawRace, raceHeight, timeWords } from "./race_drawing.js";
import { addRunTable } from "./table.js";

/** @typedef {import("../run.js").Run} Run */
/** @typedef {import("../store.js").State} State */
/** @typedef {Omit<ReturnType<typeof drawRace>, "words">} Places */

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
  /** @type {Places | null} */
  let places = null;
  let isAsked = false;
  const ask = () => {
    if (isAsked || !store.state.run) return;
    isAsked = true;
    requestAnimationFrame(() => {
      isAsked = false;
      const { run } = store.state;
      if (!run || !canvas.offsetWidth) return;
      figure.dataset.state = "running";
      figure.dataset.verifies = String(run.lanes.some((lane) => verifies(lane.schedule)));
      places = draw(canvas, run, store.state);
    });
  };
  store.subscribe(["run", "revision", "step", "moment", "isUnfolding", "isTalk", "hover"], ask);
  addRunTable(figure, store, () => tableOf(store.state));
  new ResizeObserver(ask).observe(figure);
  new MutationObserver(ask).observe(document.body, { attributes: true, attributeFilter: ["class"] });
  canvas.addEventListener("click", ({ offsetX, offsetY }) => {
    const { run } = store.state;
    if (!run || !places) return;
    const { bars, strip, top } = places;
    /** @param {import("./race_drawing.js").Scale} scale */
    const at = ({ x, width, span }) => ((offsetX - x) / width) * span;
    goTo(Math.max(0, offsetY < top ? Math.floor(at(bars)) : tokensBy(run.focus, at(strip)) - 1));
  });
}

/**
 * @param {HTMLCanvasElement} canvas
 * @param {Run} run
 * @param {State} state
 * @returns {Places} in the canvas' pixels
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
  const { words, bars, strip, top } = drawRace(pen, run, state, { width, tall, family: getComputedStyle(document.body).fontFamily });
  canvas.setAttribute("aria-label", `Tokens and time of each lane: ${words.join("; ")}`);
  const scaled = ({ x, width, span }) => ({ x: x * scale, width: width * scale, span });
  return { bars: scaled(bars), strip: scaled(strip), top: top * scale };
}

/**
 * The bars' figures; the time of each token is in the table of the time chart.
 *
 * @param {State} state
 * @returns {import("./table.js").Table}
 */
function tableOf({ run }) {
  if (!run) throw new Error("There is no run.");
  const equal = comparedTokens(run);
  const [first] = run.lanes;
  const rowOf = (lane) => [
    run.plainLabels[lane.index],
    equal && lane.steps.length >= equal ? timeWords(decodeMs(lane, equal - 1)) : "–",
    lane.steps.length,
    timeWords(decodeMs(lane, Math.max(lastStep(lane), 0))),
  ];
  return {
    caption: `Time for each answer, after the prompt was read once in ${timeWords(first.prefillMs)}`,
    head: ["answer", `time for ${formatNumber(equal)} tokens`, "tokens", "time for all of them"],
    rows: run.lanes.map(rowOf),
  };
}
