/* The race for slides, drawn from the run's records: as a picture, and as an animated GIF at the page's pace. */

import { TEXT, drawRace, tallFor } from "../charts/race_drawing.js";
import { find } from "../dom.js";
import { modelName } from "../format.js";
import { paceWords, readingPace } from "../pace.js";
import { decodeMs, lastStep } from "../position.js";
import { addLegend, plainColor } from "./chart.js";
import { Gif } from "./gif.js";
import { BASELINE_AT, Sheet, imageOf } from "./sheet.js";

/** @typedef {import("../run.js").Run} Run */
/** @typedef {import("../charts/race_drawing.js").Position} Position */

const FILM = { width: 1280, height: 720, side: 40, legend: 18, text: 20 }; // its last two: sizes of text
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

/**
 * Make an animated GIF of the race. Drawing a frame may take longer than its duration.
 *
 * @param {HTMLElement} figure the race on the page
 * @param {Run | null} run
 * @param {(words: string) => void} say reports the progress
 * @returns {Promise<Blob>}
 */
export async function raceFilm(figure, run, say) {
  if (!run?.lanes.some((lane) => lane.steps.length > 1)) throw new Error("There is no run to draw yet: start one first.");
  if (!run.isOver) throw new Error("The race can be saved once the run has ended.");
  const { rate } = readingPace(run);
  const duration = Math.max(...run.lanes.map((lane) => decodeMs(lane, Math.max(lastStep(lane), 0)))) / rate;
  const ms = Math.max(FRAME_MS, Math.ceil(duration / MOST_FRAMES / 10) * 10);
  const count = Math.max(1, Math.ceil(duration / ms));
  const canvas = Object.assign(document.createElement("canvas"), { width: FILM.width, height: FILM.height });
  const pen = canvas.getContext("2d", { alpha: false, willReadFrequently: true });
  if (!pen) throw new Error("The browser gives no canvas to draw on.");
  const film = await filmOf(pen, figure, run, rate);
  const gif = new Gif(FILM.width, FILM.height, [film.at((duration * rate) / 2), film.end()]);
  for (let at = 0; at < count; at++) {
    gif.add(film.at(at * ms * rate), ms);
    say(`Frame ${at + 1} of ${count} …`);
    await new Promise((done) => setTimeout(done)); // let the page respond
  }
  gif.add(film.end(), HELD_MS);
  return gif.end();
}

/**
 * The frames of a film: at a moment, and the last one.
 *
 * @param {CanvasRenderingContext2D} pen
 * @param {HTMLElement} figure
 * @param {Run} run
 * @param {number} rate speed of playing, 1 in real time
 */
async function filmOf(pen, figure, run, rate) {
  const { width, height, side, text } = FILM;
  const bottom = height - 24 - VERDICT.lines * 1.35 * VERDICT.size;
  const k = text / TEXT;
  const setting = async (words) => {
    const sheet = new Sheet(width, height);
    sheet.svg.setAttribute("width", String(width));
    sheet.svg.setAttribute("height", String(height));
    const top = addSetting(sheet, figure, run, rate);
    addVerdict(sheet, words, bottom);
    pen.setTransform(1, 0, 0, 1, 0, 0);
    pen.drawImage(await imageOf(sheet.svg), 0, 0);
    return { top, family: sheet.family, pixels: pen.getImageData(0, 0, width, height) };
  };
  const [playing, ended] = [await setting(""), await setting(run.report?.verdict?.text ?? "")];
  /** @param {typeof playing} behind @param {Position} position */
  const frame = ({ top, family, pixels }, position) => {
    pen.putImageData(pixels, 0, 0);
    pen.setTransform(k, 0, 0, k, side, top);
    drawRace(pen, run, position, { width: (width - 2 * side) / k, family, tall: tallFor(run, (bottom - top - 10) / k) });
    return pen.getImageData(0, 0, width, height);
  };
  return { at: (moment) => frame(playing, { ...WHOLE, step: 0, moment }), end: () => frame(ended, WHOLE) };
}

/**
 * Draw what is above the race in a film: prompt, model and pace, and the legend; returns the race's top.
 *
 * @param {Sheet} sheet
 * @param {HTMLElement} figure
 * @param {Run} run
 * @param {number} rate
 */
function addSetting(sheet, figure, { header }, rate) {
  const { side, legend } = FILM;
  const width = sheet.width - 2 * side;
  sheet.background("page");
  sheet.text(side, 62, header.prompt.replace(/\s+/g, " "), { size: 34, weight: 700, width });
  sheet.text(side, 100, `${modelName(header.model.id)}, shown at ${paceWords(rate)}`, { size: 22, color: "muted", width });
  return 116 + addLegend(sheet, figure, side, 116, width, legend) + 12;
}

/** Draw a verdict below the race of a film. @param {Sheet} sheet @param {string} words @param {number} top */
function addVerdict(sheet, words, top) {
  const { size, lines: most } = VERDICT;
  const width = sheet.width - 2 * FILM.side;
  const lines = sheet.wrap(words, width, size, most, 600).slice(0, most);
  lines.forEach(([from, to], row) => {
    const more = row === most - 1 && to < words.trimEnd().length ? "…" : "";
    sheet.text(FILM.side, top + (row + 1) * 1.35 * size, words.slice(from, to) + more, { size, weight: 600, width });
  });
}
