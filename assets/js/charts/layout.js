/* Colours and the layout that all charts share. */

/** Names of the lanes' colours and classes, in their order. */
export const LANES = ["baseline", "lora-drop", "third", "fourth"];

/**
 * A colour of the page by its name in lora_drop/run/exports/colors.py.
 *
 * @param {string} name
 */
export function color(name) {
  return getComputedStyle(document.body).getPropertyValue(`--ld-${name}`).trim();
}

/**
 * The colour of a lane.
 *
 * @param {number} index
 */
export const laneColor = (index) => color(LANES[index] ?? "muted");

/**
 * A colour with an opacity.
 *
 * @param {string} hex #RRGGBB
 * @param {number} opacity
 */
export function faded(hex, opacity) {
  const parts = [1, 3, 5].map((i) => parseInt(hex.slice(i, i + 2), 16));
  return `rgba(${parts.join(",")},${opacity})`;
}

export const isTalk = () => document.body.classList.contains("ld-talk");

/** Text size in talk mode, in pixels: 2.3% of the picture's height, readable from the back of a room. */
export const talkSize = () => 0.023 * Math.min(window.innerHeight, 0.5625 * window.innerWidth);

/**
 * The layout of a chart whose x axis is decode steps.
 *
 * @param {{run?: import("../run.js").Run | null, from: number, span: number, zoom?: [number, number] | null}} chart the
 *   axis' first step and its span, and the reader's zoom
 * @param {string} yTitle
 * @returns {any}
 */
export function baseLayout({ run, from, span, zoom }, yTitle) {
  const size = isTalk() ? talkSize() : 11;
  const axis = {
    gridcolor: color("grid"),
    linecolor: color("line"),
    zerolinecolor: color("line"),
    tickfont: { size, color: color("muted") },
    title: { font: { size, color: color("muted") }, standoff: 10 },
  };
  return {
    uirevision: run?.id ?? "",
    margin: isTalk() ? { l: 3.6 * size, r: 14, t: 6, b: 3 * size } : { l: 44, r: 8, t: 4, b: 38 },
    paper_bgcolor: "rgba(0,0,0,0)",
    plot_bgcolor: "rgba(0,0,0,0)",
    font: { family: getComputedStyle(document.body).fontFamily, size: 11, color: color("ink") },
    showlegend: false,
    hovermode: "closest",
    hoverlabel: {
      bgcolor: color("panel"),
      bordercolor: color("line"),
      font: { size: 12, color: color("ink") },
      align: "left",
    },
    dragmode: "zoom",
    modebar: { bgcolor: "rgba(0,0,0,0)", color: color("muted"), activecolor: color("ink") },
    xaxis: {
      ...axis,
      title: { ...axis.title, text: "step" },
      range: zoom ?? [from - 0.5, from + span + 0.5],
      showgrid: false,
      zeroline: false,
    },
    yaxis: { ...axis, title: { ...axis.title, text: yTitle }, rangemode: "tozero" },
  };
}
