/* Shared by the drawings on a canvas: a pen of the screen's resolution, and at most one drawing a frame. */

import { withNextFrame } from "../dom.js";

/** @typedef {import("../run.js").Run} Run */
/** @typedef {import("../store.js").State} State */

/**
 * Draw a figure's canvas again when the state, its size, or the body's theme changes; nothing before a run.
 *
 * @param {HTMLElement} figure
 * @param {HTMLCanvasElement} canvas
 * @param {import("../store.js").Store} store
 * @param {(keyof State)[]} keys of the state
 * @param {(run: Run, state: State) => void} draw
 */
export function redraw(figure, canvas, store, keys, draw) {
  const ask = withNextFrame(() => {
    const { run } = store.state;
    if (run && canvas.offsetWidth) draw(run, store.state);
  });
  store.subscribe(keys, ask);
  new ResizeObserver(ask).observe(figure);
  new MutationObserver(ask).observe(document.body, { attributes: true, attributeFilter: ["class"] });
}

/**
 * Clear a canvas and return its pen.
 *
 * @param {HTMLCanvasElement} canvas
 * @param {number} height in pixels of the page
 * @param {number} [scale] pixels of the page in a unit of the pen
 */
export function penOf(canvas, height, scale = 1) {
  const ratio = window.devicePixelRatio || 1;
  canvas.style.height = `${height}px`;
  const [width, tall] = [Math.round(canvas.offsetWidth * ratio), Math.round(height * ratio)];
  if (canvas.width !== width) canvas.width = width;
  if (canvas.height !== tall) canvas.height = tall;
  const pen = canvas.getContext("2d");
  if (!pen) throw new Error("The browser gives no canvas to draw on.");
  pen.setTransform(1, 0, 0, 1, 0, 0);
  pen.clearRect(0, 0, width, tall);
  pen.setTransform(ratio * scale, 0, 0, ratio * scale, 0, 0);
  return pen;
}

/** Draw the outline of a box of canvas rectangles, with lines of a width. */
export function outline(pen, [x, y, width, height], tint, most) {
  const line = Math.min(most, width / 3);
  pen.fillStyle = tint;
  for (const edge of [y, y + height - line]) pen.fillRect(x, edge, width, line);
  for (const edge of [x, x + width - line]) pen.fillRect(edge, y, line, height);
}
