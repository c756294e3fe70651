/* The Safe zone tab's figures: Python drew them, here they get the page's theme and width. Texts of a figure go through
 * plotly, and Python has escaped them. */

import { plotly } from "./charts/plotly.js";
import { find, make } from "./dom.js";

const NARROW = 700; // pixels of a panel below which its maps stand one below the other
const CONFIG = {
  displaylogo: false,
  modeBarButtons: [["toImage", "zoom2d", "pan2d", "resetScale2d"]], // none of those that ask another host
  toImageButtonOptions: { width: 1600, height: 900, scale: 2 },
};

const theme = () => (document.body.classList.contains("dark") ? "dark" : "light");

/**
 * Mount a figure: props.value is {title, note, columns, rows, wide, narrow} with a plotly figure by theme in the last
 * two, or a text that says why there is none.
 *
 * @param {HTMLElement} element
 * @param {import("./records.js").Props} props
 * @param {import("./records.js").Watch} watch
 */
export function mountFigure(element, props, watch) {
  const frame = find(element, ".ld-figure");
  /** @type {import("./charts/plotly.js").Plot} */
  const plot = find(element, ".ld-figure-plot");
  let drawn = ""; // the shape and theme on the page

  /** Draw the figure that fits the panel, unless it is there already. */
  function draw(force) {
    const { value } = props;
    const width = plot.clientWidth;
    const shape = width < NARROW ? "narrow" : "wide";
    const wanted = `${shape} ${theme()}`;
    if (typeof value === "string" || !width) return;
    frame.dataset.shape = shape;
    if (!force && wanted === drawn) {
      plotly().Plots.resize(plot);
      return;
    }
    drawn = wanted;
    // Plotly writes into what it is given, and the value has to stay as it came for the other theme.
    const { data, layout } = structuredClone(value[shape][theme()]);
    plotly().react(plot, data, { ...layout, autosize: true }, CONFIG);
  }

  function take() {
    describe(element, props.value);
    if (typeof props.value !== "string") return draw(true);
    if (drawn) plotly().purge(plot);
    drawn = "";
  }

  watch("value", take);
  // A panel has no width until its tab is opened, and another one when the window changes.
  new ResizeObserver(() => draw(false)).observe(plot);
  new MutationObserver(() => draw(false)).observe(document.body, { attributes: true, attributeFilter: ["class"] });
  take();
}

/** A figure's words and its table, or why there is none. */
function describe(element, value) {
  const empty = typeof value === "string";
  find(element, ".ld-figure").dataset.state = empty ? "empty" : "drawn";
  find(element, ".ld-empty").textContent = empty ? value : "";
  find(element, "h3").textContent = empty ? "" : value.title;
  find(element, "figcaption small").textContent = empty ? "" : value.note;
  // A group, as plotly's buttons are in it; the table below has every number.
  const plot = find(element, ".ld-figure-plot");
  for (const [name, text] of Object.entries({ role: "group", "aria-label": `${value.title}. ${value.note}` })) {
    if (empty) plot.removeAttribute(name);
    else plot.setAttribute(name, text);
  }
  const head = make("tr");
  head.append(...(empty ? [] : value.columns).map((name) => Object.assign(make("th", "", name), { scope: "col" })));
  find(element, "thead").replaceChildren(head);
  const rows = (empty ? [] : value.rows).map((cells) => {
    const row = make("tr");
    row.append(...cells.map((cell) => make("td", "", cell)));
    return row;
  });
  find(element, "tbody").replaceChildren(...rows);
}
