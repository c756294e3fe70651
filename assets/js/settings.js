/* The settings of a run as the controls have them: read, checked as the page can, and named. */

import { droppedLayers, isBaseline } from "./schedule.js";
import { formatNumber } from "./format.js";

/** @typedef {import("./records.js").Model} Model */
/** @typedef {import("./records.js").Schedule} Schedule */
/** @typedef {import("./records.js").Setting} Setting */
/** @typedef {import("./records.js").Settings} Settings */
/** @typedef {import("./store.js").State} State */

const MAX_NEW_TOKENS = 100000;
const MAX_REPAIR = 64; // the longest period with repair

/**
 * The names of the settings that a preset sets, in the order of their controls.
 *
 * @param {Setting[]} table
 */
export const rulesOf = (table) => table.filter(({ of }) => of === "schedule").map(({ name }) => name);

/**
 * The thresholds of early refreshes, whose settings all begin with this word, as `wanted` has them.
 *
 * @param {Record<string, any>} wanted
 * @returns {any[]}
 */
const thresholdsOf = (wanted) =>
  Object.keys(wanted)
    .filter((name) => name.startsWith("refresh_"))
    .map((name) => wanted[name]);

/**
 * Whether a lane's recorded settings can make a step refresh before its time.
 *
 * @param {Record<string, any>} config
 */
export const hasTriggers = (config) => thresholdsOf(config).some((value) => value !== null && value !== undefined);

/**
 * "4,6,8" as ascending layer numbers; null for an empty text, undefined for one that is not a list.
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
 * "2.5" as a number; null for an empty text, undefined for one that is no threshold.
 *
 * @param {string | undefined} text
 */
function parseThreshold(text) {
  if ((text ?? "").trim() === "") return null;
  const value = Number(text);
  return Number.isFinite(value) && value >= 0 ? value : undefined;
}

/**
 * The schedule that page settings give on a model, or a string that says what is wrong with them.
 *
 * @param {Settings} settings
 * @param {number} numLayers
 * @returns {Schedule | string}
 */
export function scheduleOf(settings, numLayers) {
  const last = numLayers - 1;
  const { period, drop_ratio: ratio, layers, max_new_tokens: tokens } = settings;
  if (!Number.isInteger(period) || period < 1) return "The period is a whole number from 1 upwards.";
  if (typeof ratio !== "number" || !(ratio >= 0 && ratio <= 1)) return "The drop ratio lies between 0 and 1.";
  if (!Number.isInteger(tokens) || tokens < 1 || tokens > MAX_NEW_TOKENS) {
    return `New tokens is a whole number from 1 to ${formatNumber(MAX_NEW_TOKENS)}.`;
  }
  const listed = parseList(settings.drop_layers ?? "");
  if (listed === undefined) return "Exact layers are numbers with commas between them, such as 4,6,8.";
  if (listed && (listed[0] < 1 || listed[listed.length - 1] > last || new Set(listed).size < listed.length)) {
    return `Exact layers are different numbers from 1 to ${last}: layer 0 always runs.`;
  }
  const thresholds = thresholdsOf(settings).map(parseThreshold);
  if (thresholds.includes(undefined)) {
    return "A threshold of early refreshes is a number from 0 upwards; leave it empty for none.";
  }
  const refused = refusedExactness(settings);
  if (refused) return refused;
  const dropped = listed ?? droppedLayers(layers[0], layers[1], ratio);
  const { reuse, part, kv, refresh, accept, head } = settings;
  const hasTriggers = thresholds.some((value) => value !== null);
  return { period, numLayers, dropped, reuse, part, kv, refresh, accept, head, hasTriggers };
}

/**
 * What is wrong with `refresh` and `accept`, in the words of LoraDropConfig; an empty text for nothing.
 *
 * @param {Settings} settings
 */
function refusedExactness({ refresh, accept, kv, period }) {
  if (typeof accept !== "number" || !(accept >= 0 && accept <= 1)) return "Accept lies between 0 and 1.";
  if (refresh === "repair" && period > MAX_REPAIR) {
    return (
      `with refresh repair the period is at most ${MAX_REPAIR}, got ${period}: shorten it, or take ` + "refresh single."
    );
  }
  if (accept && !(refresh === "repair" && kv === "write")) {
    return `accept ${accept} needs exact full steps to judge by: set refresh repair and kv write, or accept 0.`;
  }
  return "";
}

/**
 * The bank that `auto` takes for these settings on a model; null for none, or one that corrects no skipped layer.
 *
 * @param {Model} model
 * @param {Settings} settings
 * @param {Schedule} schedule
 */
export function bankOf(model, settings, schedule) {
  if (settings.adapters === "none" || isBaseline(schedule)) return null;
  const { reuse, part, refresh, kv, head } = schedule;
  const bank = model.banks[[reuse, part, refresh, kv].join("/")];
  if (!bank) return null;
  const isOfUse = head === "screened" && bank.head_rank > 0;
  return isOfUse || schedule.dropped.some((layer) => bank.corrected.includes(layer)) ? bank : null;
}

/**
 * A schedule with what its corrections add to a LoRA step: the bound counts it.
 *
 * @param {Model} model
 * @param {Settings} settings
 * @param {Schedule} schedule
 * @param {import("./records.js").Bank | null} bank
 * @returns {Schedule}
 */
export function withBank(model, settings, schedule, bank) {
  if (!bank) return schedule;
  const has = (part) => settings.parts === "auto" || settings.parts.split("+").includes(part);
  const extras = {
    mlp: has("mlp") ? bank.mlp : 0,
    kept: has("kept") ? bank.kept : 0,
    head_rank: bank.head_rank,
    head_best: bank.head_best,
    code_size: model.shape.code_size,
  };
  return { ...schedule, corrected: bank.corrected, extras };
}

/**
 * The preset that the settings are, or "custom".
 *
 * @param {State} state
 */
export function presetName({ named, settings }) {
  const same = (name) =>
    Object.entries(named[name]).every(([key, value]) => String(settings?.[key]) === String(value));
  return Object.keys(named).find(same) ?? "custom";
}

/**
 * What is known of the chosen preset; null where none is chosen.
 *
 * @param {State} state
 */
export const chosenPreset = ({ presets, preset }) => presets?.presets.find(({ name }) => name === preset) ?? null;
