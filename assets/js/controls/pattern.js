/* The pattern of a schedule: layers x one cycle of steps, in the colours of the layer-activity chart. */

import { makeSvg } from "../dom.js";
import { cellKind } from "../kinds.js";
import { isAdaptive, isBaseline, kind } from "../schedule.js";

const HEIGHT = 84; // pixels, about

/**
 * @param {SVGElement} svg
 * @param {HTMLElement} caption
 * @param {import("../records.js").Schedule} schedule
 */
export function drawPattern(svg, caption, schedule) {
  const plain = isBaseline(schedule);
  const dropped = new Set(plain ? [] : schedule.dropped);
  // Whole pixels a layer, or the rows would differ.
  const [width, height] = [240, schedule.numLayers * Math.max(1, Math.round(HEIGHT / schedule.numLayers))];
  svg.setAttribute("viewBox", `0 0 ${width} ${height}`);
  svg.setAttribute("preserveAspectRatio", "none");
  svg.style.height = `${height}px`;
  svg.replaceChildren(...cells(schedule, dropped, width, height));
  const cycle = isAdaptive(schedule) ? "the longest cycle" : "one cycle";
  const what = plain ? "every step runs every layer" : `${schedule.period} steps, the last one full`;
  svg.setAttribute("aria-label", `Schedule pattern: ${what}; skipped layers ${[...dropped].join(", ") || "none"}`);
  caption.textContent = plain
    ? `${schedule.numLayers} layers, every step alike`
    : `${schedule.numLayers} layers (0 below) × ${cycle} of ${schedule.period} steps`;
}

/** A rectangle for each layer of each step. */
function cells(schedule, dropped, width, height) {
  const columns = isBaseline(schedule) ? 1 : Math.min(schedule.period, 64);
  const [cellW, cellH] = [width / columns, height / schedule.numLayers];
  const gap = cellH > 2 ? 1 : 0;
  const found = [];
  for (let column = 0; column < columns; column++) {
    const isLora = kind(schedule, column + 1) === "lora";
    for (let layer = 0; layer < schedule.numLayers; layer++) {
      found.push(
        makeSvg("rect", {
          x: (column * cellW + 0.5).toFixed(2),
          y: (height - (layer + 1) * cellH).toFixed(2),
          width: Math.max(cellW - 1, 0.5).toFixed(2),
          height: (cellH - gap).toFixed(2),
          class: `ld-cell ld-cell-${cellKind(isLora, dropped.has(layer), schedule)}`,
        }),
      );
    }
  }
  return found;
}
