/* A drawing as SVG: rectangles, lines and texts with resolved colours. It loads nothing, and no text becomes markup. */

import { LANES } from "../charts/layout.js";
import { makeSvg } from "../dom.js";

const NAMES = [...LANES, "diverged", "refresh", "rejected", "ink", "muted", "line", "panel", "page"];

/** Distance of the baseline below the middle of a line, as a share of the text's size. */
export const BASELINE_AT = 0.36;

// Characters that XML 1.0 forbids, and lone surrogates.
// eslint-disable-next-line no-control-regex
const FORBIDDEN = /[\0-\x08\x0B\x0C\x0E-\x1F\uFFFE\uFFFF]|\p{Cs}/gu;
const graphemes = new Intl.Segmenter(undefined, { granularity: "grapheme" });

/**
 * A text without the characters that an SVG must not contain.
 *
 * @param {string} text
 */
export const clean = (text) => text.replace(FORBIDDEN, "\uFFFD");

/** A drawing in progress: the page's colours and font, a ruler for texts, and the SVG. */
export class Sheet {
  /**
   * @param {number} width
   * @param {number} height
   * @param {boolean} [isClear] without a background
   */
  constructor(width, height, isClear = false) {
    const style = getComputedStyle(document.body);
    this.colors = Object.fromEntries(NAMES.map((name) => [name, style.getPropertyValue(`--ld-${name}`).trim()]));
    this.family = style.fontFamily;
    this.ruler = /** @type {CanvasRenderingContext2D} */ (document.createElement("canvas").getContext("2d"));
    this.svg = makeSvg("svg", { viewBox: `0 0 ${width} ${height}`, "font-family": this.family });
    this.width = width;
    this.height = height;
    this.isClear = isClear;
  }

  /** The colour behind a plot. */
  get under() {
    return this.isClear ? "rgba(0,0,0,0)" : this.colors.panel;
  }

  /**
   * @param {string} name
   * @param {Record<string, string | number | undefined>} attributes
   * @param {(Node | string)[]} children
   */
  add(name, attributes, ...children) {
    this.svg.append(makeSvg(name, attributes, ...children));
  }

  /**
   * The width of a text.
   *
   * @param {string} text
   * @param {number} size
   * @param {number} [weight]
   */
  measure(text, size, weight = 400) {
    this.ruler.font = `${weight} ${size}px ${this.family}`;
    return this.ruler.measureText(text).width;
  }

  /**
   * Draw a line of text with its baseline at `y`, cut to `width`; returns the width that it takes.
   *
   * @param {number} x
   * @param {number} y
   * @param {string} string
   * @param {{size: number, weight?: number, color?: string, anchor?: string, width?: number}} style
   */
  text(x, y, string, { size, weight = 400, color = "ink", anchor = "start", width = Infinity }) {
    const fitted = this.cut(clean(string), width, size, weight);
    const style = { "font-size": size, "font-weight": weight, fill: this.colors[color], "text-anchor": anchor };
    this.add("text", { x, y, ...style }, fitted);
    return this.measure(fitted, size, weight);
  }

  /**
   * The text, or the part that fits with an ellipsis.
   *
   * @param {string} text
   * @param {number} width
   * @param {number} size
   * @param {number} weight
   * @param {string} [mark] text after the whole text
   */
  cut(text, width, size, weight, mark = "") {
    if (this.measure(text + mark, size, weight) <= width) return text + mark;
    const parts = [...graphemes.segment(text.slice(0, 2000))].map(({ segment }) => segment);
    while (parts.length && this.measure(`${parts.join("").trimEnd()}…`, size, weight) > width) parts.pop();
    return `${parts.join("").trimEnd()}…`;
  }

  /**
   * Start and end of each line of a text in a width, up to one line more than `most`.
   *
   * @param {string} text
   * @param {number} width
   * @param {number} size
   * @param {number} most
   * @param {number} [weight]
   * @returns {[number, number][]}
   */
  wrap(text, width, size, most, weight = 400) {
    const fits = (from, to) => this.measure(text.slice(from, to), size, weight) <= width;
    /** @type {[number, number][]} */
    const lines = [];
    let start = 0;
    const breakAt = (end, next) => {
      lines.push([start, start + text.slice(start, end).trimEnd().length]);
      start = next;
    };
    for (const { 0: part, index } of text.matchAll(/\n|[^\S\n\u00A0]+|[\S\u00A0]+/g)) {
      if (lines.length > most) return lines;
      if (part === "\n") {
        breakAt(index, index + 1);
      } else if (part.trim() && !fits(start, index + part.length)) {
        if (index > start) breakAt(index, index);
        if (fits(index, index + part.length)) continue;
        for (const { segment, index: at } of graphemes.segment(part)) {
          if (index + at > start && !fits(start, index + at + segment.length)) breakAt(index + at, index + at);
          if (lines.length > most) return lines;
        }
      }
    }
    breakAt(text.length, text.length);
    return lines;
  }

  /**
   * @param {number} x
   * @param {number} y
   * @param {number} width
   * @param {number} height
   */
  panel(x, y, width, height) {
    const { panel, line } = this.colors;
    this.add("rect", { x, y, width, height, rx: 10, fill: this.isClear ? "none" : panel, stroke: line, "stroke-width": 1.5 });
  }

  /** @param {string} name of a colour */
  background(name) {
    if (!this.isClear) this.add("rect", { width: this.width, height: this.height, fill: this.colors[name] });
  }
}

/**
 * A drawing as an image of its width and height.
 *
 * @param {Element} svg
 */
export async function imageOf(svg) {
  const address = URL.createObjectURL(fileOf(svg));
  try {
    const image = new Image();
    image.src = address;
    await image.decode();
    return image;
  } finally {
    URL.revokeObjectURL(address);
  }
}

/** A drawing as a file. @param {Element} svg */
export const fileOf = (svg) => new Blob([clean(new XMLSerializer().serializeToString(svg))], { type: "image/svg+xml" });
