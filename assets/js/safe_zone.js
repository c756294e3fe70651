/* The Safe zone tab: its map, the break-it dial and its figures. Python makes every word, band of colour and figure
 * (lora_drop/ui/safe_zone/views.py); the scripts draw them, and hand on the setting that a visitor chooses to run. */

import { find, make, makeHead, makeRow } from "./dom.js";

/** @typedef {import("./records.js").Props} Props */
/** @typedef {import("./records.js").Watch} Watch */
/** @typedef {import("./records.js").Trigger} Trigger */

const MARKS = { safe: "✓", frontier: "◆", paper: "P" };
const NARROW = 700; // width below which a figure's parts are stacked, in pixels

/**
 * Mount the map: props.value is a result of map_of, or a text. A visible map without a value asks for it; pressing a cell
 * triggers `input`.
 *
 * @param {HTMLElement} element
 * @param {Props} props
 * @param {Watch} watch
 * @param {Trigger} trigger
 * @param {() => void} ask
 */
export function mountSafeMap(element, props, watch, trigger, ask) {
  const panel = find(element, ".ld-map");
  let chosen = ""; // the measure, which stays from map to map

  function choose(setting) {
    props.value = { ...props.value, chosen: setting };
    trigger("input");
  }

  function draw() {
    const { value } = props;
    if (!value) return;
    const isEmpty = typeof value === "string";
    panel.dataset.state = isEmpty ? "empty" : value.safe ? "safe" : "none";
    find(panel, ".ld-map-answer").textContent = isEmpty ? value : value.answer;
    if (isEmpty) return;
    const measure = value.measures.find(({ name }) => name === (chosen || value.first));
    find(panel, ".ld-map-note").textContent = measure.note;
    find(panel, ".ld-map-source").textContent = `${value.criterion} ${value.note}`;
    find(panel, ".ld-map-paper").textContent = value.paper.length
      ? `The paper's own figures there (other models, second-hand): ${value.paper.join("; ")}.`
      : "";
    fillSwitch(find(panel, ".ld-map-switch"), value.measures, measure.name, (name) => {
      chosen = name;
      draw();
    });
    find(panel, ".ld-map-scale").replaceChildren(...measure.scale.map((band) => dye(make("li", "", band.words), band)));
    fillTable(panel, value, measure, choose);
  }

  watch("value", draw);
  draw();
  // The panel gets its size whenever its tab is opened, which asks again if the answer did not arrive.
  new ResizeObserver(() => {
    if (!props.value && panel.clientWidth) ask();
  }).observe(panel);
}

/** Fill the switch of the measure. It is made once, so that it keeps the keyboard's focus. */
function fillSwitch(switch_, measures, name, choose) {
  if (!switch_.querySelector("input")) {
    for (const measure of measures) {
      const radio = Object.assign(make("input"), { type: "radio", name: "ld-map-measure", value: measure.name });
      radio.addEventListener("change", () => choose(measure.name));
      const label = make("label");
      label.append(radio, make("span", "", measure.label));
      switch_.append(label);
    }
  }
  for (const radio of switch_.querySelectorAll("input")) radio.checked = radio.value === name;
}

/** Give an element the colour of a band. */
function dye(element, { tone, strength }) {
  element.dataset.tone = tone;
  element.style.setProperty("--strength", String(strength));
  return element;
}

function fillTable(panel, { ratios, cells }, measure, choose) {
  const at = [...panel.querySelectorAll(".ld-map-cell")].indexOf(document.activeElement);
  const head = ["period", ...ratios.map((ratio) => `p ${ratio}`)];
  find(panel, "thead").replaceChildren(makeRow(...head.map((name) => makeHead(name))));
  const rows = cells.map((line) =>
    makeRow(makeHead(line[0].period, "row"), ...line.map((cell) => cellOf(cell, measure, choose))),
  );
  find(panel, "tbody").replaceChildren(...rows);
  /** @type {HTMLElement[]} */
  const buttons = [...panel.querySelectorAll(".ld-map-cell")];
  buttons[at]?.focus();
}

function cellOf(cell, { name, scale }, choose) {
  const text = cell.texts[name];
  const button = Object.assign(make("button", "ld-map-cell"), { type: "button", title: cell.words });
  button.setAttribute("aria-label", cell.words);
  button.dataset.ratio = cell.ratio;
  button.dataset.period = cell.period;
  button.dataset.marks = cell.marks.join(" ");
  button.dataset.measured = String(text !== null);
  if (text !== null) dye(button, scale[cell.bands[name]]);
  button.disabled = cell.setting === null;
  const marks = cell.marks.map((mark) => MARKS[mark] ?? "").join(" ");
  button.append(make("span", "", text ?? "not measured"), make("small", "", marks.trim()));
  button.addEventListener("click", () => choose(cell.setting));
  const place = make("td", cell.marks.includes("zone") ? "ld-map-zone" : "");
  place.append(button);
  return place;
}

/**
 * Mount the dial: props.value is a result of dial_of, a text, or null until it arrives; its button triggers `input`.
 *
 * @param {HTMLElement} element
 * @param {Props} props
 * @param {Watch} watch
 * @param {Trigger} trigger
 */
export function mountDial(element, props, watch, trigger) {
  const panel = find(element, ".ld-dial");
  /** @type {HTMLInputElement} */
  const slider = find(panel, "input");

  function draw() {
    const { value } = props;
    if (!value) return;
    const isEmpty = typeof value === "string";
    panel.dataset.state = isEmpty ? "empty" : "drawn";
    find(panel, ".ld-empty").textContent = isEmpty ? value : "";
    if (isEmpty) return;
    slider.max = String(value.stops.length - 1);
    const stop = value.stops[Math.min(Number(slider.value), value.stops.length - 1)];
    slider.setAttribute("aria-valuetext", stop.label);
    panel.dataset.well = String(stop.well);
    find(panel, ".ld-dial-label").textContent = stop.label;
    find(panel, ".ld-dial-words").textContent = stop.words;
    find(panel, ".ld-dial-words").title = value.criterion;
    find(panel, ".ld-dial-prompt").textContent = `One of its answers, to “${value.prompt}”`;
    find(panel, ".ld-dial-sample").textContent = stop.sample ?? "No answer is stored. Run it to see one.";
  }

  slider.addEventListener("input", draw);
  find(panel, "button").addEventListener("click", () => {
    const { value } = props;
    props.value = { ...value, chosen: value.stops[Number(slider.value)].setting };
    trigger("input");
  });
  watch("value", draw);
  draw();
}

const theme = () => (document.body.classList.contains("dark") ? "dark" : "light");

/**
 * Mount a figure: props.value is {title, note, columns, rows, wide, narrow}, the last two with an SVG for each theme,
 * or a text that says why there is none.
 *
 * @param {HTMLElement} element
 * @param {import("./records.js").Props} props
 * @param {import("./records.js").Watch} watch
 */
export function mountFigure(element, props, watch) {
  const frame = find(element, ".ld-figure");
  const plot = find(element, ".ld-figure-plot");
  let drawn = ""; // shape and theme of the current figure

  /** Draw the figure that fits the panel, unless it is drawn already. */
  function draw(force) {
    const { value } = props;
    const width = plot.clientWidth;
    const shape = width < NARROW ? "narrow" : "wide";
    const variant = `${shape} ${theme()}`;
    if (typeof value === "string" || !width || (!force && variant === drawn)) return;
    frame.dataset.shape = shape;
    drawn = variant;
    const { documentElement } = new DOMParser().parseFromString(value[shape][theme()], "image/svg+xml");
    plot.replaceChildren(document.importNode(documentElement, true));
  }

  function take() {
    describe(element, props.value);
    if (typeof props.value !== "string") return draw(true);
    plot.replaceChildren();
    drawn = "";
  }

  watch("value", take);
  // The panel has no width until its tab is opened, and its width changes with the window.
  new ResizeObserver(() => draw(false)).observe(plot);
  new MutationObserver(() => draw(false)).observe(document.body, { attributes: true, attributeFilter: ["class"] });
  take();
}

/** Fill a figure's words and its table, or the reason why it is empty. */
function describe(element, value) {
  const empty = typeof value === "string";
  find(element, ".ld-figure").dataset.state = empty ? "empty" : "drawn";
  find(element, ".ld-empty").textContent = empty ? value : "";
  find(element, "h3").textContent = empty ? "" : value.title;
  find(element, "figcaption small").textContent = empty ? "" : value.note;
  // The table below has every number.
  const plot = find(element, ".ld-figure-plot");
  Object.assign(plot, empty ? { role: null, ariaLabel: null } : { role: "group", ariaLabel: `${value.title}. ${value.note}` });
  find(element, "thead").replaceChildren(makeRow(...(empty ? [] : value.columns).map((name) => makeHead(name))));
  find(element, "tbody").replaceChildren(...(empty ? [] : value.rows).map((cells) => makeRow(...cells)));
}
