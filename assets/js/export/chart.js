/* A chart of the page in a picture: title, legend and plot. */

import { find } from "../dom.js";
import { plotly } from "../charts/plotly.js";
import { BASELINE_AT, clean } from "./sheet.js";

/** @typedef {import("./sheet.js").Sheet} Sheet */

// Parts of an axis with Plotly's default sizes.
const AXIS_PARTS = [["ticklen", 5], ["tickwidth", 1], ["linewidth", 1], ["gridwidth", 1]];
const DRAWN_FOR = 11; // text size that matches the page's lines and keys, in talk mode too
const FINE = 3; // a heatmap consists of pixels: it is drawn larger by this factor, and scaled down

/** Turn "rgba(1, 2, 3, 0.5)" into ["#RRGGBB", 0.5]: programs for slides do not read rgba(). */
export function plainColor(css) {
  const [red, green, blue, alpha = 1] = (css.match(/[\d.]+/g) ?? [0, 0, 0]).map(Number);
  return [`#${[red, green, blue].map((part) => part.toString(16).padStart(2, "0")).join("")}`, alpha];
}

/** Multiply font sizes and margins of a layout by `k`. Parts may be shared: `seen` has those already done. */
function enlarge(layout, k, seen = new Set()) {
  for (const [key, value] of Object.entries(layout)) {
    if (value === null || typeof value !== "object" || seen.has(value)) continue;
    seen.add(value);
    if (/font$/i.test(key) && value.size) value.size *= k;
    if (key === "title" && value.standoff) value.standoff *= k;
    if (key === "margin") for (const side of Object.keys(value)) value[side] *= k;
    enlarge(value, k, seen);
  }
}

/** Copy a plot's data and layout for a picture with axis labels of `size`, with lines scaled to match. */
function enlarged(plot, size, unit, panel) {
  const { data, layout } = structuredClone({ data: plot.data, layout: plot.layout });
  const k = (unit * size) / DRAWN_FOR;
  const ofFonts = (unit * size) / (layout.xaxis?.tickfont?.size ?? layout.font?.size ?? DRAWN_FOR);
  enlarge(layout, ofFonts);
  Object.assign(layout, { paper_bgcolor: panel, plot_bgcolor: panel, autosize: false });
  for (const [name, axis] of Object.entries(layout)) {
    if (unit === 1 || !/^[xy]axis/.test(name)) continue; // setting them may add ticks
    for (const [part, usual] of AXIS_PARTS) axis[part] = (axis[part] ?? usual) * unit;
  }
  for (const trace of data) {
    const { line, marker, colorbar } = trace;
    for (const gap of ["xgap", "ygap"]) if (trace[gap]) trace[gap] *= k;
    for (const part of [line, marker?.line]) if (part?.width) part.width *= k;
    if (/px/.test(line?.dash)) line.dash = line.dash.replace(/[\d.]+/g, (length) => Number(length) * k);
    if (typeof marker?.size === "number") marker.size *= k;
    if (!colorbar) continue;
    enlarge(colorbar, ofFonts);
    for (const part of ["thickness", "xpad"]) if (colorbar[part]) colorbar[part] *= k;
  }
  return { data, layout };
}

const hasPoints = (plot) =>
  Boolean(plot.data?.some((trace) => (trace.type === "heatmap" ? trace.z?.[0]?.length : trace.x?.length)));

/** Put a plot's picture on the sheet; the plot on the page does not change. */
async function addPlot(sheet, plot, box, size) {
  if (!hasPoints(plot)) {
    const [x, y] = [box.x + box.width / 2, box.y + box.height / 2];
    sheet.text(x, y, "Nothing was measured here in this run.", { size, color: "muted", anchor: "middle" });
    return;
  }
  const unit = plot.data.some((trace) => trace.type === "heatmap") ? FINE : 1;
  const [width, height] = [Math.floor(box.width), Math.floor(box.height)];
  const options = { format: "svg", width: width * unit, height: height * unit, imageDataOnly: true };
  const text = await plotly().toImage(enlarged(plot, size, unit, sheet.under), options);
  const drawn = new DOMParser().parseFromString(clean(text), "image/svg+xml").documentElement;
  const place = { x: box.x, y: box.y, width, height, viewBox: `0 0 ${width * unit} ${height * unit}` };
  for (const [name, value] of Object.entries(place)) drawn.setAttribute(name, value);
  sheet.svg.append(document.importNode(drawn, true));
}

/**
 * Draw the chart's legend from (x, y) in lines of `width`; returns its height.
 *
 * @param {Sheet} sheet
 * @param {HTMLElement} figure
 * @param {number} x
 * @param {number} y
 * @param {number} width
 * @param {number} size
 */
export function addLegend(sheet, figure, x, y, width, size) {
  const height = 1.5 * size;
  let [left, middle] = [x, y + height / 2];
  const isShown = (li) => getComputedStyle(li).display !== "none";
  const items = [...figure.querySelectorAll(".ld-legend li")].filter(isShown);
  for (const li of items) {
    const name = li.textContent ?? "";
    const key = keyOf(sheet, li, size / DRAWN_FOR);
    const full = key.width + 0.45 * size + sheet.measure(name, size);
    if (left > x && left + full > x + width) [left, middle] = [x, middle + height];
    addKey(sheet, key, left, middle);
    sheet.text(left + key.width + 0.45 * size, middle + BASELINE_AT * size, name, { size, color: "muted" });
    left += full + 1.1 * size;
  }
  return items.length ? middle + height / 2 - y : 0;
}

/** The key of a legend's item, as in the page's style sheet, times `k`. */
function keyOf(sheet, li, k) {
  const style = getComputedStyle(li, "::before");
  const sign = /^"(.+)"$/.exec(style.content)?.[1];
  const signSize = parseFloat(style.fontSize) * k;
  const width = sign ? sheet.measure(sign, signSize) : parseFloat(style.width) * k;
  return { style, sign, signSize, width, height: parseFloat(style.height) * k, k };
}

/** Draw the key of an item: a sign, a dashed line, or a patch, which may be hollow. */
function addKey(sheet, { style, sign, signSize, width, height, k }, left, middle) {
  const line = parseFloat(style.borderTopWidth) * k;
  if (sign) {
    const [fill] = plainColor(style.color);
    sheet.add("text", { x: left, y: middle + BASELINE_AT * signSize, "font-size": signSize, fill }, sign);
  } else if (line && style.borderTopStyle === "dashed") {
    const [stroke] = plainColor(style.borderTopColor);
    const pattern = `${width / 3} ${width / 3}`; // starts and ends with a dash
    const place = { x1: left, x2: left + width, y1: middle, y2: middle, stroke, "stroke-width": line };
    sheet.add("line", { ...place, "stroke-dasharray": pattern });
  } else {
    const [fill, alpha] = plainColor(style.backgroundColor);
    const turned = style.transform === "none" ? undefined : `rotate(45 ${left + width / 2} ${middle})`;
    const round = style.borderTopLeftRadius;
    const rx = round.endsWith("%") ? width / 2 : Math.min(parseFloat(round) * k, height / 2);
    const shape = { x: left, y: middle - height / 2, width, height, rx, fill };
    const edge = line ? { stroke: plainColor(style.borderTopColor)[0], "stroke-width": line } : {};
    sheet.add("rect", { ...shape, ...edge, "fill-opacity": alpha * Number(style.opacity), transform: turned });
  }
}

/**
 * Draw a chart with title and legend in a box; `size` is the text size of its axes.
 *
 * @param {Sheet} sheet
 * @param {HTMLElement} figure
 * @param {{x: number, y: number, width: number, height: number}} box
 * @param {number} size
 */
export async function addChart(sheet, figure, { x, y, width, height }, size) {
  const title = 1.3 * size;
  sheet.text(x, y + title, find(figure, "h3").textContent ?? "", { size: title, weight: 700, width });
  let top = y + 1.55 * title;
  if (figure.dataset.equal === "true") {
    const words = find(figure, ".ld-equal").textContent ?? "";
    const lines = sheet.wrap(words, 0.9 * width, size, 9);
    const first = (top + y + height) / 2 - 0.7 * size * (lines.length - 1);
    const style = { size, anchor: "middle" };
    lines.forEach(([from, to], row) => sheet.text(x + width / 2, first + 1.4 * size * row, words.slice(from, to), style));
    return;
  }
  top += addLegend(sheet, figure, x, top, width, size) + 0.4 * size;
  await addPlot(sheet, find(figure, ".ld-plot"), { x, y: top, width, height: y + height - top }, size);
}
