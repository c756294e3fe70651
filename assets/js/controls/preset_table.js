/* A choice of presets, each in a few words; the table of their measured results is folded below. */

import { find, make, makeHead, makeRow } from "../dom.js";
import { formatLoss, formatNumber, formatShare } from "../format.js";

/** @typedef {import("../records.js").Preset} Preset */
/** @typedef {import("../records.js").PresetFacts} PresetFacts */

const ASK_AGAIN_MS = 30_000; // while the machine is calibrated, which takes about that long

/** @type {Preset} */
const CUSTOM = { name: "custom", label: "Custom", note: "Your own settings.", short: "your own settings", measured: null };

/**
 * Mount the choice: props.value is the chosen name, props.facts the result of preset_facts; a choice triggers `input`.
 *
 * @param {HTMLElement} element
 * @param {import("../records.js").Props} props
 * @param {import("../records.js").Watch} watch
 * @param {import("../records.js").Trigger} trigger
 * @param {{calibrated_presets: () => Promise<PresetFacts | null>}} server
 * @param {import("../store.js").Store} store
 */
export function mountPresets(element, props, watch, trigger, server, store) {
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
    const all = [...facts.presets, CUSTOM];
    find(element, ".ld-presets-list").replaceChildren(...all.map((preset, i) => choiceOf(preset, radios[i])));
    body.replaceChildren(...facts.presets.map(rowOf), ...(facts.head ? [headRowOf(facts.head)] : []));
    find(element, "[data-column=reads]").title = facts.criterion;
    find(element, ".ld-presets-about").textContent = aboutWords(facts);
    find(element, ".ld-presets").dataset.state = facts.missing && !facts.is_calibrated ? "unmeasured" : "measured";
  }

  /** Ask for the speeds of this machine until they are there, or another model is shown. */
  async function ask() {
    if (!store.state.presets?.is_calibrating || store.state.presets !== props.facts) return;
    const presets = document.hidden ? null : await server.calibrated_presets().catch(() => null);
    if (presets && store.state.presets === props.facts) store.update({ presets });
    else setTimeout(ask, ASK_AGAIN_MS);
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
  ask();
}

/** @param {Preset} preset */
function radioOf({ name }) {
  return Object.assign(make("input"), { type: "radio", name: "ld-preset", value: name });
}

/** A label whose parentheses stay on one line. @param {string} label */
const plainLabel = (label) => label.replace(/ (?=[^(]*\))/g, "\u00a0");

/**
 * A preset to choose.
 *
 * @param {Preset} preset
 * @param {HTMLInputElement} radio
 */
function choiceOf({ label, note, short }, radio) {
  const choice = make("label");
  choice.append(radio, make("span", "", plainLabel(label)), make("small", "", short ?? ""));
  const item = make("li");
  item.title = note;
  item.append(choice);
  return item;
}

/**
 * A row of the table: a preset's measured results.
 *
 * @param {Preset} preset
 */
function rowOf(preset) {
  const note = Object.assign(make("td", "ld-presets-note", preset.note), { colSpan: 4 });
  const cells = preset.measured ? cellsOf(preset.measured, preset.reads) : [note];
  const row = makeRow(makeHead(plainLabel(preset.label), "row"), ...cells);
  row.title = preset.note;
  row.dataset.preset = preset.name;
  return row;
}

/** A speedup; "–" where none was measured on this machine. @param {number | null} speedup */
const timesOf = (speedup) => (speedup === null ? "–" : `${formatNumber(speedup, 2)}×`);

/** The row of the full model with the screened head: the part of the presets' speed that is not LoRA-Drop's. */
function headRowOf({ label, period, speedup }) {
  const row = makeRow(makeHead(label, "row"), make("td", "ld-good", "well"), "–", timesOf(speedup), "–");
  row.title = `Skips no layer: a screened head at all steps but every ${period}th, which checks every draft`;
  row.dataset.preset = "screened-head";
  return row;
}

/** Cells of a preset's measured results. */
function cellsOf(measured, reads) {
  const verdict = make("td", reads === "well" ? "ld-good" : "ld-bad", reads ?? "not measured");
  const { regret, speedup, kv_saved: saved } = measured;
  return [regret === null ? "–" : verdict, formatLoss(regret), timesOf(speedup), formatShare(saved)];
}

/**
 * Words about the measurement, or the reason for its absence.
 *
 * @param {PresetFacts} facts
 */
function aboutWords({ about, criterion, missing, ...facts }) {
  const speed = speedWords(facts);
  if (missing) return `Quality: ${missing.replace(/\.$/, "")}. ${speed}`;
  return (
    `Quality: the average over answers to ${formatNumber(about.prompts)} prompts, ${about.device}, ${about.dtype}, ` +
    `${about.date}; a single answer may read better or worse. ${criterion} ${speed}`
  );
}

/** Where the speeds are from. */
function speedWords({ is_calibrated: isCalibrated, is_calibrating: isCalibrating }) {
  if (isCalibrated) return "Speed measured on this machine.";
  const when = isCalibrating ? "the app does so while nobody runs" : "the calibrate command does so";
  return `Speed was not measured on this machine yet; ${when}.`;
}
