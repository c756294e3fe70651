/* A lane's text in a picture, with the page's marks: full steps, the first difference, rejected drafts. */

import { makeSvg } from "../dom.js";
import { isBaseline } from "../schedule.js";
import { BASELINE_AT, clean } from "./sheet.js";

/** @typedef {import("../run.js").Lane} Lane */
/** @typedef {import("./sheet.js").Sheet} Sheet */

const XML = "http://www.w3.org/XML/1998/namespace";

/**
 * @typedef {object} LaneText
 * @property {string} text
 * @property {number[]} starts place of each token's first character
 * @property {{from: number, to: number, isMarked: boolean}[]} stretches written by full steps among LoRA steps, or by others
 * @property {number[]} replaced tokens before which drafts were rejected
 */

/** @typedef {[number, number]} Line start and end in the text */

/** @typedef {{x: number, y: number, width: number, height: number, most: number}} Box room for `most` lines */

/**
 * A lane's tokens as one text.
 *
 * @param {Lane} lane
 * @returns {LaneText}
 */
export function laneText(lane) {
  const starts = [0];
  /** @type {LaneText["stretches"]} */
  const stretches = [];
  let text = "";
  for (const step of lane.steps) {
    const [from, isMarked] = [text.length, step.kind === "refresh" && !isBaseline(lane.schedule) && !lane.looksUp];
    text += clean(step.text.replace(/\r\n?|[\u0085\u2028\u2029]/g, "\n").replace(/\t/g, "    "));
    starts.push(text.length);
    const last = stretches.at(-1);
    if (last?.isMarked === isMarked) last.to = text.length;
    else stretches.push({ from, to: text.length, isMarked });
  }
  const replaced = lane.rewinds.map(({ to }) => to + 1).filter((step) => step < lane.steps.length);
  return { text, starts, stretches, replaced };
}

/** Lines of a lane's text in a box of the sheet; they know the place of each character. */
class Lines {
  /**
   * @param {Sheet} sheet
   * @param {string} text
   * @param {Line[]} lines
   * @param {Box} box
   * @param {number} size
   */
  constructor(sheet, text, lines, box, size) {
    this.sheet = sheet;
    this.text = text;
    this.all = lines;
    this.box = box;
    this.size = size;
    this.height = Math.min(1.6 * size, box.height / box.most);
    this.isCut = lines.length > box.most;
    this.visible = this.isCut ? this.cut() : lines;
  }

  /** The lines that fit, the last one with room for an ellipsis. */
  cut() {
    const { sheet, text, box, size } = this;
    const visible = this.all.slice(0, box.most);
    // The ellipsis must follow words, not an empty line.
    while (visible.length > 1 && !text.slice(...visible[visible.length - 1]).trim()) visible.pop();
    const [start, end] = visible[visible.length - 1];
    const fitted = sheet.cut(text.slice(start, end), box.width, size, 400, " …").replace(/ ?…$/, "");
    visible[visible.length - 1] = [start, start + fitted.length];
    return visible;
  }

  /**
   * @param {Line} line
   * @param {number} index in the text
   */
  at([start], index) {
    return this.box.x + this.sheet.measure(this.text.slice(start, index), this.size);
  }

  /**
   * @param {number} row
   * @param {number} left
   * @param {number} right
   */
  boxAt(row, left, right) {
    return { x: left, y: this.box.y + (row + 0.06) * this.height, width: right - left, height: 0.88 * this.height, rx: 4 };
  }

  /**
   * @param {number} row
   * @param {number} left
   * @param {string} words
   */
  put(row, left, words) {
    const y = this.box.y + (row + 0.5) * this.height + BASELINE_AT * this.size;
    const made = makeSvg("text", { x: left, y }, words);
    made.setAttributeNS(XML, "xml:space", "preserve");
    return made;
  }
}

/**
 * Draw the lines of a lane's text that fit the box: lines under full steps, bars before tokens that replaced rejected
 * drafts, the text, then the mark of a difference.
 *
 * @param {Sheet} sheet
 * @param {LaneText} lane
 * @param {Line[]} lines
 * @param {number | null} differs the first token that differs
 * @param {Box} box
 * @param {number} size
 */
export function addText(sheet, { text, starts, stretches, replaced }, lines, differs, box, size) {
  const drawn = new Lines(sheet, text, lines, box, size);
  const group = makeSvg("g", { "font-size": size, fill: sheet.colors.ink });
  drawn.visible.forEach((line, row) => {
    for (const stretch of stretches) {
      const [from, to] = [Math.max(stretch.from, line[0]), Math.min(stretch.to, line[1])];
      if (from >= to) continue;
      const mark = drawn.boxAt(row, drawn.at(line, from), drawn.at(line, to));
      if (stretch.isMarked) group.append(makeSvg("rect", { ...under(mark, 0.12 * size), fill: sheet.colors.refresh }));
      // Each stretch is placed by itself, so that text and mark stay together in another font, and in programs that
      // collapse spaces.
      const words = text.slice(from, to);
      const left = () => drawn.at(line, from + words.length - words.trimStart().length);
      if (words.trim()) group.append(drawn.put(row, left(), words.trim()));
    }
    for (const first of replaced.map((step) => starts[step])) {
      if (first < line[0] || first >= line[1]) continue;
      const left = drawn.at(line, first);
      group.append(makeSvg("rect", { ...drawn.boxAt(row, left, left + 0.16 * size), rx: 0, fill: sheet.colors.rejected }));
    }
  });
  if (drawn.isCut) {
    const row = drawn.visible.length - 1;
    const line = drawn.visible[row];
    const gap = /[.…]$/.test(text.slice(...line)) ? 0.3 * size : 0; // keep a full stop apart from the ellipsis
    group.append(drawn.put(row, drawn.at(line, line[1]) + gap, "…"));
  }
  sheet.svg.append(group);
  if (differs !== null) addMark(sheet, drawn, starts[differs], starts[differs + 1]);
}

/** The lower edge of a box, as a line. */
const under = ({ x, y, width, height }, line) => ({ x, y: y + height - line, width, height: line });

/**
 * Draw a frame around a token, in each line that it spans.
 *
 * @param {Sheet} sheet
 * @param {Lines} drawn
 * @param {number} first start of the token
 * @param {number} last its end
 */
function addMark(sheet, drawn, first, last) {
  const { all, visible, isCut, size } = drawn;
  const begins = all.findLastIndex(([start]) => start <= first);
  if (begins >= visible.length || (isCut && first >= visible[visible.length - 1][1])) return;
  const marks = [];
  for (let row = begins; row < visible.length && (row === begins || visible[row][0] < last); row++) {
    const [start, end] = visible[row];
    const [left, right] = [Math.max(start, Math.min(first, end)), Math.min(last, end)];
    if (right > left) marks.push(drawn.boxAt(row, drawn.at(visible[row], left) - 2, drawn.at(visible[row], right) + 2));
  }
  // An invisible token, such as a line break, is marked at its place.
  const place = drawn.at(visible[begins], Math.min(first, visible[begins][1]));
  if (!marks.length) marks.push(drawn.boxAt(begins, place - 2, place + 0.4 * size));
  for (const mark of marks) {
    sheet.add("rect", { ...mark, fill: "none", stroke: sheet.colors.diverged, "stroke-width": 3 });
  }
}
