/* The lanes side by side in a picture, each with name, figures and text. */

import { LANES } from "../charts/layout.js";
import { formatBytes, formatNumber } from "../format.js";
import { addText, laneText } from "./lane_text.js";

/** @typedef {import("../run.js").Lane} Lane */
/** @typedef {import("../run.js").Run} Run */
/** @typedef {import("./sheet.js").Sheet} Sheet */

const TEXT_SIZES = [25, 23, 21, 19]; // the largest that fits all texts is used
const CUT_SIZE = 21; // if none fits: a readable text is better than a complete one
const LINE_HEIGHT = 1.42;

/**
 * @param {Sheet} sheet
 * @param {Run} run
 * @param {{x: number, y: number, width: number, height: number}} box
 */
export function addPanes(sheet, run, { x, y, width, height }) {
  const gap = 16;
  const wide = (width - gap * (run.lanes.length - 1)) / run.lanes.length;
  const head = 48;
  const inner = { width: wide - 36, height: height - head - 14 };
  const texts = run.lanes.map(laneText);
  const mostOf = (size) => Math.max(1, Math.floor(inner.height / (LINE_HEIGHT * size)));
  const layOut = (size) => texts.map(({ text }) => sheet.wrap(text, inner.width, size, mostOf(size)));
  const showsAll = (size) => layOut(size).every((lines) => lines.length <= mostOf(size));
  const size = TEXT_SIZES.find(showsAll) ?? CUT_SIZE;
  const heads = run.lanes.map((lane, index) => {
    const { speed: rate } = run.lanes[index];
    const speed = rate ? `${formatNumber(rate, 1)} tokens/s` : "";
    const kv = lane.steps.length ? `${formatBytes(lane.steps[lane.steps.length - 1].kvBytes)} KV` : "";
    return [lane.label.split(":")[0], [speed, kv].filter(Boolean).join("  ·  ")];
  });
  const needed = heads.map(([name, figures]) => sheet.measure(name, 24, 700) + sheet.measure(figures, 20, 700) + 20);
  const k = Math.max(0.8, Math.min(1, inner.width / Math.max(...needed)));
  layOut(size).forEach((lines, index) => {
    const left = x + index * (wide + gap);
    const color = LANES[index] ?? "muted";
    sheet.panel(left, y, wide, height);
    sheet.add("rect", { x: left, y, width: wide, height: 5, rx: 2.5, fill: sheet.colors[color] });
    const [name, figures] = heads[index];
    const side = { size: 20 * k, weight: 700, anchor: "end", width: 0.7 * inner.width };
    const taken = sheet.text(left + wide - 18, y + 36, figures, side);
    sheet.text(left + 18, y + 36, name, { size: 24 * k, weight: 700, color, width: inner.width - taken - 16 });
    const box = { ...inner, x: left + 18, y: y + head, most: mostOf(size) };
    const { divergence } = index ? run.lanes[index] : run.main; // the first lane marks the main lane's first difference
    addText(sheet, texts[index], lines, divergence, box, size);
  });
}
