/* Pictures of a run for slides, as SVG or PNG, made in the browser from the run's data and charts. */

import { find } from "../dom.js";
import { addChart, addLegend } from "./chart.js";
import { addHeadline } from "./headline.js";
import { addPanes } from "./lanes.js";
import { addRace } from "./race_picture.js";
import { Sheet, fileOf, imageOf } from "./sheet.js";

/** @typedef {import("../run.js").Run} Run */

/**
 * @typedef {object} Options
 * @property {"png" | "svg"} format
 * @property {number} scale factor of its size
 * @property {boolean} transparent without a background
 */

const NO_RUN = "There is no run to draw yet: start one first.";
const CHARTS = ["activity", "drift", "kv"]; // of the whole figure

async function drawWhole(root, run, sheet) {
  const { width, height } = sheet;
  const [side, gap] = [32, 16];
  const inner = width - 2 * side;
  sheet.background("page");
  const top = addHeadline(sheet, run, { x: side, y: 24, width: inner });
  const rest = height - top - 20;
  const panes = Math.round(0.44 * rest);
  addPanes(sheet, run, { x: side, y: top, width: inner, height: panes });
  addLegend(sheet, find(root, ".ld-answers"), side, top + panes + 6, inner, 17);
  const charts = { y: top + panes + 40, height: rest - panes - 40 };
  const wide = (inner - gap * (CHARTS.length - 1)) / CHARTS.length;
  for (const [index, name] of CHARTS.entries()) {
    const x = side + index * (wide + gap);
    sheet.panel(x, charts.y, wide, charts.height);
    const box = { x: x + 14, y: charts.y + 6, width: wide - 28, height: charts.height - 14 };
    await addChart(sheet, find(root, `[data-chart="${name}"]`), box, 17);
  }
}

async function drawChart(figure, run, sheet) {
  const box = { x: 40, y: 24, width: sheet.width - 80, height: sheet.height - 48 };
  sheet.background("panel");
  if (figure.dataset.chart) await addChart(sheet, figure, box, 26);
  else addRace(sheet, figure, run, box, 22);
}

/**
 * The drawing as a file of the sheet's size, times `scale`.
 *
 * @param {Sheet} sheet
 * @param {Options} options
 * @returns {Promise<Blob>}
 */
async function file({ svg, width, height }, { format, scale, transparent }) {
  const [wide, tall] = [Math.round(width * scale), Math.round(height * scale)];
  svg.setAttribute("width", String(wide));
  svg.setAttribute("height", String(tall));
  if (format === "svg") return fileOf(svg);
  const picture = await imageOf(svg);
  const canvas = Object.assign(document.createElement("canvas"), { width: wide, height: tall });
  canvas.getContext("2d", { alpha: transparent })?.drawImage(picture, 0, 0, wide, tall);
  /** @type {Blob | null} */
  const png = await new Promise((done) => canvas.toBlob(done, "image/png"));
  if (!png) throw new Error(`${wide} x ${tall} pixels are too many for this browser.`);
  return png;
}

/**
 * A picture of one chart (a [data-chart] element), or of the race, with title and legend.
 *
 * @param {HTMLElement} figure
 * @param {Options} options
 * @param {Run | null} [run] the run of the race
 */
export async function chart(figure, options, run = null) {
  /** @type {import("../charts/plotly.js").Plot | null} */
  const plot = figure.querySelector(".ld-plot");
  if (plot ? !plot.data?.length : !run?.lanes.some((lane) => lane.steps.length)) throw new Error(NO_RUN);
  const sheet = new Sheet(1280, 720, options.transparent);
  await drawChart(figure, run, sheet);
  return file(sheet, options);
}

/**
 * A picture of the whole run in the view `root`.
 *
 * @param {HTMLElement} root
 * @param {Run | null | undefined} run
 * @param {Options} options
 */
export async function whole(root, run, options) {
  if (!run?.lanes.some((lane) => lane.steps.length)) throw new Error(NO_RUN);
  const sheet = new Sheet(1600, 900, options.transparent);
  await drawWhole(root, run, sheet);
  return file(sheet, options);
}

/**
 * Download a file.
 *
 * @param {Blob} blob
 * @param {string} name
 */
export function save(blob, name) {
  const link = document.createElement("a");
  const address = URL.createObjectURL(blob);
  link.href = address;
  link.download = name.replace(/[^A-Za-z0-9._-]+/g, "-").replace(/^[.-]+/, "").slice(0, 100) || "lora-drop";
  document.body.append(link);
  link.click();
  link.remove();
  setTimeout(() => URL.revokeObjectURL(address), 60000); // a download may start late
}
