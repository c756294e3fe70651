/* Settings as the controls hold them: checked as far as the page can, matched with banks and presets, and compared with
 * those of a run. */

import { droppedLayers, isBaseline } from "./schedule.js";
import { formatNumber } from "./format.js";

/** @typedef {import("./records.js").Model} Model */
/** @typedef {import("./records.js").Schedule} Schedule */
/** @typedef {import("./records.js").Setting} Setting */
/** @typedef {import("./records.js").Settings} Settings */
/** @typedef {import("./store.js").State} State */

const MAX_NEW_TOKENS = 100000;
const MAX_REPAIR = 64; // longest period with refresh repair

/**
 * Names of the settings that a preset sets, in the order of their controls.
 *
 * @param {Setting[]} table
 */
export const rulesOf = (table) => table.filter(({ of }) => of === "schedule").map(({ name }) => name);

/**
 * Parse "4,6,8" as ascending layer numbers; null for an empty text, undefined for an invalid one.
 *
 * @param {string} text
 */
function parseList(text) {
  const parts = text.split(",").map((part) => part.trim());
  if (text.trim() === "") return null;
  if (!parts.every((part) => /^\d+$/.test(part))) return undefined;
  return parts.map(Number).sort((a, b) => a - b);
}

/**
 * Parse "2.5" as a threshold; null for an empty text, undefined for an invalid one.
 *
 * @param {string | undefined} text
 */
function parseThreshold(text) {
  if ((text ?? "").trim() === "") return null;
  const value = Number(text);
  return Number.isFinite(value) && value >= 0 ? value : undefined;
}

/**
 * The schedule of the settings on a model, or a sentence that says what is wrong with them.
 *
 * @param {Settings} settings
 * @param {number} numLayers
 * @returns {Schedule | string}
 */
export function scheduleOf(settings, numLayers) {
  const last = numLayers - 1;
  const { period, drop_ratio: ratio, layers, max_new_tokens: tokens } = settings;
  if (!Number.isInteger(period) || period < 1) return "The period must be a whole number of at least 1.";
  if (typeof ratio !== "number" || !(ratio >= 0 && ratio <= 1)) return "The drop ratio must be between 0 and 1.";
  if (!Number.isInteger(tokens) || tokens < 1 || tokens > MAX_NEW_TOKENS) {
    return `New tokens must be a whole number from 1 to ${formatNumber(MAX_NEW_TOKENS)}.`;
  }
  const listed = parseList(settings.drop_layers ?? "");
  if (listed === undefined) return "Exact layers must be numbers with commas between them, such as 4,6,8.";
  if (listed && (listed[0] < 1 || listed[listed.length - 1] > last || new Set(listed).size < listed.length)) {
    return `Exact layers must be different numbers from 1 to ${last}: layer 0 always runs.`;
  }
  const threshold = parseThreshold(settings.refresh_entropy);
  if (threshold === undefined) {
    return "The threshold of early refreshes must be a number from 0 upwards; leave it empty for none.";
  }
  const every = parseThreshold(settings.refresh_position);
  if (every === undefined || (every !== null && (every < 2 || !Number.isInteger(every)))) {
    return "The position of refreshes must be a whole number of at least 2; leave it empty for none.";
  }
  const refused = refusedExactness(settings, every);
  if (refused) return refused;
  const dropped = listed ?? droppedLayers(layers[0], layers[1], ratio);
  const { reuse, part, kv, refresh, accept, head } = settings;
  const rules = { reuse, part, kv, refresh, accept, head, refresh_position: every };
  return { period, numLayers, dropped, ...rules, mayBeEarly: threshold !== null };
}

/**
 * Error about `refresh`, `refresh_position`, `accept` and `own_repeats`, in the words of LoraDropConfig; empty if they fit.
 *
 * @param {Settings} settings
 * @param {number | null} every the `refresh_position`
 */
function refusedExactness({ refresh, accept, kv, period, own_repeats }, every) {
  if (typeof accept !== "number" || !(accept >= 0 && accept <= 1)) return "Accept must be between 0 and 1.";
  if (refresh === "repair" && period > MAX_REPAIR) {
    return `with refresh repair the period is at most ${MAX_REPAIR}, got ${period}: shorten it, or take refresh single.`;
  }
  if (every && (refresh !== "single" || period % every)) {
    const needs = `refresh_position ${every} needs refresh single and a period that is a multiple of ${every}`;
    return `${needs}, got refresh ${refresh} and period ${period}: change these, or leave refresh_position out.`;
  }
  if (accept && !(refresh === "repair" && kv === "write")) {
    return `accept ${accept} needs exact full steps to verify by: set refresh repair and kv write, or accept 0.`;
  }
  if (own_repeats && !accept) {
    return "own_repeats has no effect with accept 0, which keeps every draft: raise accept.";
  }
  return "";
}

const UNKNOWN = { rank: 64, tokens: null, head_rank: 0, head_best: 0 };

/**
 * The bank that a run takes on a model; null if none corrects a skipped layer.
 *
 * The sizes of adapters in a repository of the Hub are not known before the run: the forecast takes the shipped bank's.
 *
 * @param {Model} model
 * @param {Settings} settings
 * @param {Schedule} schedule
 */
export function bankOf(model, settings, schedule) {
  if (settings.adapters === "none" || isBaseline(schedule)) return null;
  const { reuse, part, refresh, kv, head } = schedule;
  const shipped = model.banks[[reuse, part, refresh, kv].join("/")];
  const named = { ...UNKNOWN, ...shipped, name: settings.adapters, corrected: schedule.dropped };
  const bank = settings.adapters === "auto" ? shipped : named;
  if (!bank) return null;
  const isOfUse = head === "screened" && bank.head_rank > 0;
  const corrects = settings.corrections && schedule.dropped.some((layer) => bank.corrected.includes(layer));
  return isOfUse || corrects ? bank : null;
}

/**
 * True if "Show me" has a third lane, LoRA-Drop's with the corrections off, or no model is known yet.
 *
 * @param {State} state
 */
export function hasThirdLane({ model, named, presets, settings: controls }) {
  if (!model || !presets || !controls) return true;
  const settings = { ...controls, ...named[presets.default] };
  const schedule = scheduleOf(settings, model.shape.num_layers);
  return typeof schedule !== "string" && settings.corrections && bankOf(model, settings, schedule) !== null;
}

/**
 * A schedule with its corrections, whose bytes the bound counts.
 *
 * @param {Model} model
 * @param {Settings} settings
 * @param {Schedule} schedule
 * @param {import("./records.js").Bank | null} bank
 * @returns {Schedule}
 */
export function withBank(model, settings, schedule, bank) {
  if (!bank) return schedule;
  const extras = { head_rank: bank.head_rank, head_best: bank.head_best, code_size: model.shape.code_size };
  return { ...schedule, corrected: settings.corrections ? bank.corrected : [], extras };
}

/**
 * Name of the preset with these settings, or "custom".
 *
 * @param {State} state
 */
export function presetName({ named, settings }) {
  const same = (name) =>
    Object.entries(named[name]).every(([key, value]) => String(settings?.[key]) === String(value));
  return Object.keys(named).find(same) ?? "custom";
}

/**
 * Facts of the chosen preset; null without one.
 *
 * @param {State} state
 */
export const chosenPreset = ({ presets, preset }) => presets?.presets.find(({ name }) => name === preset) ?? null;

/**
 * Settings of the current run that differ from the controls, such as "period 4 (now 6)".
 *
 * @param {State} state
 * @returns {string[]}
 */
export function differences({ run, table, settings, prompt, model }) {
  if (!run || !settings || run.isRecorded) return [];
  const { header } = run;
  /** @type {Record<string, any>} */
  const ran = { lanes: "both", ...header.sampling, ...header.lanes[run.main.index].config, seed: header.seed };
  /** @type {Record<string, any>} */
  const now = settings;
  const changed = table
    .filter(({ name }) => name in ran && name in now)
    .filter((setting) => isUsed(setting.name, ran) && !isSame(setting, ran[setting.name], now[setting.name]))
    .map((setting) => changeWords(setting.name, textOf(setting, ran[setting.name]), textOf(setting, now[setting.name])));
  if (prompt !== null && prompt !== header.prompt) changed.unshift("another prompt");
  if (model && model.id !== header.model.id) changed.unshift("another model");
  return changed;
}

/** Exact layers replace range and ratio. */
const isUsed = (name, ran) => !(ran.drop_layers && (name === "layers" || name === "drop_ratio"));

/**
 * @param {Setting} setting
 * @param {any} ran
 * @param {any} now
 */
function isSame(setting, ran, now) {
  if (setting.kind === "range" && !ran) return true; // the model's default range
  const [before, after] = [ran, now].map((value) => textOf(setting, value));
  return before === after || (before !== "" && after !== "" && Number(before) === Number(after));
}

/**
 * A value as a text, with the layers of a list in ascending order.
 *
 * @param {Setting} setting
 * @param {any} value
 */
function textOf({ kind }, value) {
  if (kind === "range") return Array.isArray(value) ? value.join("-") : "";
  if (kind !== "list") return String(value ?? "");
  const layers = Array.isArray(value) ? value : String(value ?? "").split(",").filter((part) => part.trim());
  return layers.map(Number).sort((a, b) => a - b).join(",");
}

const changeWords = (name, ran, now) =>
  `${name === "compare" ? "third lane" : name.replaceAll("_", " ")} ${ran || "off"} (now ${now || "off"})`;
