/* Pictures of a run for slides, as SVG or PNG, composed in the browser from the run's own data and charts. */

import { find } from "../dom.js";
import { addChart } from "./chart.js";
import { addHeadline } from "./headline.js";
import { addKey, addPanes } from "./lanes.js";
import { Sheet, clean } from "./sheet.js";

/** @typedef {import("../run.js").Run} Run */

/**
 * @typedef {object} Wanted
 * @property {"png" | "svg"} format
 * @property {number} scale how many times as large a PNG is
 * @property {number} width
 * @property {number} height
 */

const NO_RUN = "There is no run to draw yet: press Run first.";
const CHARTS = ["activity", "drift", "kv"]; // of the whole figure

async function drawWhole(root, run, width, height) {
  const sheet = new Sheet(width, height);
  const [side, gap] = [32, 16];
  const inner = width - 2 * side;
  sheet.background("page");
  const top = addHeadline(sheet, run, { x: side, y: 24, width: inner });
  const rest = height - top - 20;
  const panes = Math.round(0.44 * rest);
  addPanes(sheet, run, { x: side, y: top, width: inner, height: panes });
  addKey(sheet, side, top + panes + 8);
  const charts = { y: top + panes + 40, height: rest - panes - 40 };
  const wide = (inner - gap * (CHARTS.length - 1)) / CHARTS.length;
  for (const [index, name] of CHARTS.entries()) {
    const x = side + index * (wide + gap);
    sheet.panel(x, charts.y, wide, charts.height);
    const box = { x: x + 14, y: charts.y + 6, width: wide - 28, height: charts.height - 14 };
    await addChart(sheet, find(root, `[data-chart="${name}"]`), box, 17);
  }
  return sheet.svg;
}

async function drawChart(figure, width, height) {
  const sheet = new Sheet(width, height);
  sheet.background("panel");
  await addChart(sheet, figure, { x: 40, y: 24, width: width - 80, height: height - 48 }, 26);
  return sheet.svg;
}

/**
 * The drawing as a file of `width` x `height`, a PNG `scale` times as large.
 *
 * @param {Element} svg
 * @param {Wanted} wanted
 * @returns {Promise<Blob>}
 */
async function file(svg, { format, scale, width, height }) {
  const k = format === "png" ? scale : 1;
  svg.setAttribute("width", String(Math.round(width * k)));
  svg.setAttribute("height", String(Math.round(height * k)));
  const drawing = new Blob([clean(new XMLSerializer().serializeToString(svg))], { type: "image/svg+xml" });
  if (format === "svg") return drawing;
  const address = URL.createObjectURL(drawing);
  try {
    const picture = new Image();
    picture.src = address;
    await picture.decode();
    const canvas = document.createElement("canvas");
    [canvas.width, canvas.height] = [Math.round(width * k), Math.round(height * k)];
    canvas.getContext("2d", { alpha: false })?.drawImage(picture, 0, 0, canvas.width, canvas.height);
    /** @type {Blob | null} */
    const png = await new Promise((done) => canvas.toBlob(done, "image/png"));
    if (!png) throw new Error(`${canvas.width} x ${canvas.height} pixels are too many for this browser.`);
    return png;
  } finally {
    URL.revokeObjectURL(address);
  }
}

/**
 * Draw at `design` pixels across, so that every size keeps its place at any width.
 *
 * @param {(width: number, height: number) => Promise<Element>} draw
 * @param {number} design
 * @param {Wanted} wanted
 */
async function picture(draw, design, wanted) {
  const { format, scale, width, height } = wanted;
  if (format !== "svg" && format !== "png") throw new Error("A picture's format is svg or png.");
  if (![scale, width, height].every((value) => Number.isFinite(value) && value > 0)) {
    throw new Error("A picture's scale, width and height are numbers above 0.");
  }
  return file(await draw(design, Math.round((design * height) / width)), wanted);
}

/**
 * A picture of one chart (a [data-chart] element) with its title and legend.
 *
 * @param {HTMLElement} figure
 * @param {Partial<Wanted>} [wanted]
 */
export async function chart(figure, { format = "png", scale = 3, width = 1280, height = 720 } = {}) {
  /** @type {import("../charts/plotly.js").Plot} */
  const plot = find(figure, ".ld-plot");
  if (!plot.data?.length) throw new Error(NO_RUN);
  return picture((...size) => drawChart(figure, ...size), 1280, { format, scale, width, height });
}

/**
 * A picture of a run as the view `root` has it.
 *
 * @param {HTMLElement} root
 * @param {Run | null | undefined} run
 * @param {Partial<Wanted>} [wanted]
 */
export async function whole(root, run, { format = "png", scale = 3, width = 1600, height = 900 } = {}) {
  if (!run?.lanes.some((lane) => lane.steps.length)) throw new Error(NO_RUN);
  return picture((...size) => drawWhole(root, run, ...size), 1600, { format, scale, width, height });
}

/**
 * Hand a file to the reader as a download.
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
  setTimeout(() => URL.revokeObjectURL(address), 60000); // a download may begin late
}
