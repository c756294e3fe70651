/* The race on the page: it is redrawn at most once a frame, and a click moves the scrubber. */

import { find } from "../dom.js";
import { formatNumber } from "../format.js";
import { decodeMs, lastStep, tokensBy } from "../position.js";
import { verifies } from "../schedule.js";
import { penOf, redraw } from "./canvas.js";
import { isTalk, talkSize } from "./layout.js";
import { TEXT, comparedTokens, drawRace, raceHeight, tallFor, timeWords } from "./race_drawing.js";
import { addRunTable } from "./table.js";

/** @typedef {import("../run.js").Run} Run */
/** @typedef {import("../store.js").State} State */
/** @typedef {Omit<ReturnType<typeof drawRace>, "words">} Places */

const SLIDE = 31; // height on a slide, in lines of its text

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
  /** @type {(keyof State)[]} */
  const keys = ["run", "revision", "step", "moment", "isUnfolding", "isTalk", "hover"];
  redraw(figure, canvas, store, keys, (run, state) => {
    figure.dataset.state = "running";
    figure.dataset.verifies = String(run.lanes.some((lane) => verifies(lane.schedule)));
    places = draw(canvas, run, state);
  });
  addRunTable(figure, store, () => tableOf(store.state));
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
  const tall = isTalk() ? tallFor(run, SLIDE * TEXT) : 1;
  const pen = penOf(canvas, raceHeight(run.lanes.length, tall) * scale, scale);
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
