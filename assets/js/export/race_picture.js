/* The race for slides, drawn from the run's records: as a picture, and as an animated GIF at the page's pace. */

import { color } from "../charts/layout.js";
import { TEXT, drawRace, raceHeight } from "../charts/race_drawing.js";
import { find } from "../dom.js";
import { modelName } from "../format.js";
import { paceWords, readingPace } from "../pace.js";
import { decodeMs, lastStep } from "../position.js";
import { addLegend, plainColor } from "./chart.js";
import { Gif } from "./gif.js";
import { BASELINE_AT, Sheet } from "./sheet.js";

/** @typedef {import("../run.js").Run} Run */
/** @typedef {import("../charts/race_drawing.js").Position} Position */

const FILM = { width: 1280, height: 720, side: 40 };
const FRAME_MS = 80;
const MOST_FRAMES = 250; // a longer run has longer frames
const HELD_MS = 2500; // duration of the last frame, which has the verdict
const VERDICT = { size: 24, lines: 4 };

/** @type {Position} the whole run, ended */
const WHOLE = { step: null, moment: null, isUnfolding: false, hover: null };

/** A canvas context's calls, drawn on a sheet. */
class SheetPen {
  fillStyle = "";
  font = "";
  /** @type {CanvasTextAlign} */
  textAlign = "left";
  /** @type {CanvasTextBaseline} */
  textBaseline = "middle";

  /**
   * @param {Sheet} sheet
   * @param {number} x place of (0, 0)
   * @param {number} y
   * @param {number} k factor of all sizes
   */
  constructor(sheet, x, y, k) {
    this.sheet = sheet;
    this.x = x;
    this.y = y;
    this.k = k;
  }

  fillRect(x, y, width, height) {
    const [fill, alpha] = this.fillStyle.startsWith("#") ? [this.fillStyle, undefined] : plainColor(this.fillStyle);
    const place = { x: this.x + this.k * x, y: this.y + this.k * y, width: this.k * width, height: this.k * height };
    if (width > 0) this.sheet.add("rect", { ...place, fill, "fill-opacity": alpha });
  }

  fillText(text, x, y) {
    const size = TEXT * this.k;
    const anchor = { left: "start", center: "middle", right: "end" }[this.textAlign];
    const place = { x: this.x + this.k * x, y: this.y + this.k * y + BASELINE_AT * size };
    this.sheet.add("text", { ...place, "font-size": size, fill: this.fillStyle, "text-anchor": anchor }, text);
  }

  measureText(text) {
    return { width: this.sheet.measure(text, TEXT) };
  }
}

/**
 * Draw the race with title and legend in a box.
 *
 * @param {Sheet} sheet
 * @param {HTMLElement} figure
 * @param {Run} run
 * @param {{x: number, y: number, width: number, height: number}} box
 * @param {number} size of its text
 */
export function addRace(sheet, figure, run, { x, y, width, height }, size) {
  const title = 1.3 * size;
  sheet.text(x, y + title, find(figure, "h3").textContent ?? "", { size: title, weight: 700, width });
  const top = y + 1.7 * title;
  const used = top + addLegend(sheet, figure, x, top, width, size) + size;
  const k = size / TEXT;
  const room = { width: width / k, family: sheet.family, tall: tallFor(run, (y + height - used) / k) };
  drawRace(/** @type {any} */ (new SheetPen(sheet, x, used, k)), run, WHOLE, room);
}

/** Factor of the bars' height that fills a height. */
const tallFor = (run, height) => {
  const [one, two] = [raceHeight(run.lanes.length, 1), raceHeight(run.lanes.length, 2)];
  return Math.max(0.5, Math.min(4, 1 + (height - one) / (two - one)));
};

/**
 * Make an animated GIF of the race. Drawing a frame may take longer than its duration.
 *
 * @param {Run | null} run
 * @param {(words: string) => void} say reports the progress
 * @returns {Promise<Blob>}
 */
export async function raceFilm(run, say) {
  if (!run?.lanes.some((lane) => lane.steps.length > 1)) throw new Error("There is no race to draw yet: press Run first.");
  if (!run.isOver) throw new Error("The race can be saved once the run has ended.");
  const { rate } = readingPace(run);
  const duration = Math.max(...run.lanes.map((lane) => decodeMs(lane, Math.max(lastStep(lane), 0)))) / rate;
  const ms = Math.max(FRAME_MS, Math.ceil(duration / MOST_FRAMES / 10) * 10);
  const count = Math.max(1, Math.ceil(duration / ms));
  const canvas = Object.assign(document.createElement("canvas"), { width: FILM.width, height: FILM.height });
  const pen = canvas.getContext("2d", { alpha: false, willReadFrequently: true });
  if (!pen) throw new Error("The browser gives no canvas to draw on.");
  /** @param {Position} position */
  const frame = (position) => {
    drawFrame(pen, run, position, rate);
    return pen.getImageData(0, 0, FILM.width, FILM.height);
  };
  const film = new Gif(FILM.width, FILM.height, [frame({ ...WHOLE, step: 0, moment: (duration * rate) / 2 }), frame(WHOLE)]);
  for (let at = 0; at < count; at++) {
    film.add(frame({ ...WHOLE, step: 0, moment: at * ms * rate }), ms);
    say(`Frame ${at + 1} of ${count} …`);
    await new Promise((done) => setTimeout(done)); // let the page respond
  }
  film.add(frame(WHOLE), HELD_MS);
  return film.end();
}

/**
 * @param {CanvasRenderingContext2D} pen
 * @param {Run} run
 * @param {Position} position
 * @param {number} rate speed of playing, 1 in real time
 */
function drawFrame(pen, run, position, rate) {
  const { width, height, side } = FILM;
  const ruler = new Sheet(width, height);
  const inner = width - 2 * side;
  pen.setTransform(1, 0, 0, 1, 0, 0);
  pen.fillStyle = color("page");
  pen.fillRect(0, 0, width, height);
  pen.textBaseline = "alphabetic";
  /** @param {string} words */
  const line = (words, y, size, weight, tint) => {
    pen.font = `${weight} ${size}px ${ruler.family}`;
    pen.textAlign = "left";
    pen.fillStyle = color(tint);
    pen.fillText(ruler.cut(words, inner, size, weight), side, y);
  };
  line(run.header.prompt.replace(/\s+/g, " "), 66, 34, 700, "ink");
  line(`${modelName(run.header.model.id)}, shown at ${paceWords(rate)}`, 106, 22, 400, "muted");
  const isEnd = position.step === null;
  const words = (isEnd && run.report?.verdict?.text) || "";
  const lines = ruler.wrap(words, inner, VERDICT.size, VERDICT.lines, 600).slice(0, VERDICT.lines);
  const bottom = height - 24 - VERDICT.lines * 1.35 * VERDICT.size;
  lines.forEach(([from, to], row) => {
    const more = row === VERDICT.lines - 1 && to < words.trimEnd().length ? "…" : "";
    line(words.slice(from, to) + more, bottom + (row + 1) * 1.35 * VERDICT.size, VERDICT.size, 600, "ink");
  });
  const k = 20 / TEXT;
  pen.setTransform(k, 0, 0, k, side, 140);
  drawRace(pen, run, position, { width: inner / k, family: ruler.family, tall: tallFor(run, (bottom - 140 - 10) / k) });
}
