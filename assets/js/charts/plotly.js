/* The part of plotly.js that the page uses. It is loaded before the modules, as a classic script (components.py). */

/**
 * @typedef {object} PlotlyParts
 * @property {(plot: HTMLElement, data: any[], layout: any, config: any) => Promise<unknown>} react
 * @property {(plot: HTMLElement, update: Record<string, any[]>, indices: number[]) => Promise<unknown>} extendTraces
 * @property {(plot: HTMLElement) => void} purge
 * @property {(figure: {data: any[], layout: any}, options: Record<string, any>) => Promise<string>} toImage
 * @property {{resize: (plot: HTMLElement) => Promise<unknown>}} Plots
 */

/**
 * An element that plotly draws in, with plotly's properties.
 *
 * @typedef {HTMLElement & {data?: any[], layout?: any, _fullLayout?: any,
 *   on: (event: string, call: (event: any) => void) => void}} Plot
 */

// No chart may send data: plotly.js 4 has a "Share chart" button without these settings.
const AT_HOME = { showSendToCloud: false, plotlyServerURL: "" };

let isAtHome = false;

/** @returns {PlotlyParts} */
export function plotly() {
  const { Plotly } = /** @type {any} */ (window);
  if (!isAtHome) Plotly.setPlotConfig(AT_HOME);
  isAtHome = true;
  return Plotly;
}
