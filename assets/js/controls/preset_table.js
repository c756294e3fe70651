/* The presets with what they were measured to do, to choose one. */

import { find, make } from "../dom.js";
import { formatNumber, formatShare } from "../format.js";

/** @typedef {import("../records.js").Preset} Preset */
/** @typedef {import("../records.js").PresetFacts} PresetFacts */

/** @type {Preset} */
const CUSTOM = { name: "custom", label: "Custom", note: "Your own settings.", measured: null };

/**
 * Mount the table: props.value is the chosen name, props.facts what preset_facts says; a choice triggers `input`.
 *
 * @param {HTMLElement} element
 * @param {import("../records.js").Props} props
 * @param {import("../records.js").Watch} watch
 * @param {import("../records.js").Trigger} trigger
 * @param {import("../store.js").Store} store
 */
export function mountPresets(element, props, watch, trigger, store) {
  const body = find(element, "tbody");
  /** @type {HTMLInputElement[]} */
  let radios = [];

  /** @param {PresetFacts} facts */
  function fill(facts) {
    radios = [...facts.presets, CUSTOM].map((preset) => {
      const radio = radioOf(preset);
      radio.addEventListener("change", () => {
        props.value = preset.name;
        store.update({ preset: preset.name });
        trigger("input");
      });
      return radio;
    });
    body.replaceChildren(...[...facts.presets, CUSTOM].map((preset, i) => rowOf(preset, radios[i])));
    find(element, "[data-column=reads]").title =
      `“well” where the quality loss is at most ${facts.limit} nats per token, and the text does not go in circles`;
    find(element, ".ld-presets-about").textContent = aboutWords(facts);
    find(element, ".ld-presets").dataset.state = facts.missing ? "unmeasured" : "measured";
  }

  const draw = () => {
    for (const radio of radios) radio.checked = radio.value === props.value;
  };

  store.subscribe(["presets"], ({ presets }) => {
    if (presets) fill(presets);
    draw();
  });
  store.update({ presets: store.state.presets ?? props.facts, preset: props.value });
  watch("value", () => {
    draw();
    store.update({ preset: props.value });
  });
}

/** @param {Preset} preset */
function radioOf({ name }) {
  return Object.assign(make("input"), { type: "radio", name: "ld-preset", value: name });
}

/**
 * A preset's row, with the button that chooses it.
 *
 * @param {Preset} preset
 * @param {HTMLInputElement} radio
 */
function rowOf(preset, radio) {
  const label = make("label");
  // What is in parentheses stays on one line.
  label.append(radio, make("span", "", preset.label.replace(/ (?=[^(]*\))/g, "\u00a0")));
  const name = make("th");
  name.scope = "row";
  name.append(label);
  const row = make("tr");
  row.title = preset.note;
  row.dataset.preset = preset.name;
  row.append(name);
  if (preset.measured) {
    row.append(...cellsOf(preset.measured, preset.reads_well));
  } else {
    const note = make("td", "ld-presets-note", preset.note);
    note.colSpan = 4;
    row.append(note);
  }
  row.addEventListener("click", (event) => {
    if (!(/** @type {Element} */ (event.target).closest("label"))) radio.click();
  });
  return row;
}

/** What a preset was measured to do, and whether its text reads well. */
function cellsOf(measured, readsWell) {
  const verdict = make("td", readsWell ? "ld-good" : "ld-bad", readsWell ? "well" : "not well");
  return [
    verdict,
    make("td", "", formatNumber(measured.loss, 2)),
    make("td", "", `${formatNumber(measured.speedup, 2)}×`),
    make("td", "", formatShare(measured.kv_saved)),
  ];
}

/**
 * On what the figures were measured, or why there are none.
 *
 * @param {PresetFacts} facts
 */
function aboutWords({ about, limit, missing }) {
  if (missing) return `${missing.charAt(0).toUpperCase()}${missing.slice(1).replace(/\.$/, "")}.`;
  return (
    `Measured on answers to ${formatNumber(about.prompts)} prompts, ${about.device}, ${about.dtype}, ${about.date}. ` +
    `Quality loss in nats per token, of all steps: up to ${limit} reads well.`
  );
}
