/* The Safe zone's map and the break-it dial. Python made every word, shade and decision of them (ui/safe_zone/views.py);
 * here a measure or a stop is chosen, and what is chosen to be run is handed on. */

import { find, make } from "./dom.js";

/** @typedef {import("./records.js").Props} Props */
/** @typedef {import("./records.js").Watch} Watch */
/** @typedef {import("./records.js").Trigger} Trigger */

const MARKS = { safe: "✓", frontier: "◆", paper: "P" };

/**
 * Mount the map: props.value is what map_of says, or a text. A map that is seen without one asks for it; a cell
 * that is pressed triggers `input`.
 *
 * @param {HTMLElement} element
 * @param {Props} props
 * @param {Watch} watch
 * @param {Trigger} trigger
 * @param {() => void} ask
 */
export function mountSafeMap(element, props, watch, trigger, ask) {
  const panel = find(element, ".ld-map");
  let shown = ""; // the measure; the visitor's choice stays from map to map

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
    const measure = value.measures.find(({ name }) => name === (shown || value.first));
    find(panel, ".ld-map-note").textContent = measure.note;
    find(panel, ".ld-map-source").textContent = value.note;
    find(panel, ".ld-map-paper").textContent = value.paper.length
      ? `The paper's own figures there (other models, second-hand): ${value.paper.join("; ")}.`
      : "";
    fillSwitch(find(panel, ".ld-map-switch"), value.measures, measure.name, (name) => {
      shown = name;
      draw();
    });
    fillTable(panel, value, measure.name, choose);
  }

  watch("value", draw);
  draw();
  // A panel gets its size whenever its tab is opened: where the answer did not come, that asks again.
  new ResizeObserver(() => {
    if (!props.value && panel.clientWidth) ask();
  }).observe(panel);
}

/** The switch of the measure; it is made once, so that the keyboard stays on it. */
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

function fillTable(panel, { ratios, cells }, measure, choose) {
  const at = [...panel.querySelectorAll(".ld-map-cell")].indexOf(document.activeElement);
  const head = make("tr");
  const scoped = (text, scope) => Object.assign(make("th", "", text), { scope });
  head.append(scoped("period", "col"), ...ratios.map((ratio) => scoped(`p ${ratio}`, "col")));
  find(panel, "thead").replaceChildren(head);
  const rows = cells.map((line) => {
    const row = make("tr");
    row.append(scoped(line[0].period, "row"), ...line.map((cell) => cellOf(cell, measure, choose)));
    return row;
  });
  find(panel, "tbody").replaceChildren(...rows);
  /** @type {HTMLElement[]} */
  const buttons = [...panel.querySelectorAll(".ld-map-cell")];
  buttons[at]?.focus();
}

function cellOf(cell, measure, choose) {
  const text = cell.texts[measure];
  const button = Object.assign(make("button", "ld-map-cell"), { type: "button", title: cell.words });
  button.setAttribute("aria-label", cell.words);
  button.dataset.ratio = cell.ratio;
  button.dataset.period = cell.period;
  button.dataset.marks = cell.marks.join(" ");
  button.dataset.measured = String(text !== null);
  button.style.setProperty("--shade", `${Math.round(50 * (cell.shades[measure] ?? 0))}%`);
  button.disabled = cell.setting === null;
  const marks = cell.marks.map((mark) => MARKS[mark] ?? "").join(" ");
  button.append(make("span", "", text ?? "not measured"), make("small", "", marks.trim()));
  button.addEventListener("click", () => choose(cell.setting));
  const place = make("td", cell.marks.includes("zone") ? "ld-map-zone" : "");
  place.append(button);
  return place;
}

/**
 * Mount the dial: props.value is what dial_of says, or a text, and null until it comes; its button triggers `input`.
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
    find(panel, ".ld-dial-prompt").textContent = `“${value.prompt}”`;
    find(panel, ".ld-dial-sample").textContent = stop.sample ?? "What it writes was not kept: run it to see.";
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
