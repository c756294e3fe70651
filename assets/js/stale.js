/* Does the run that is shown still fit the controls? */

/** @typedef {import("./records.js").Setting} Setting */
/** @typedef {import("./store.js").State} State */

/**
 * The settings of the shown run that the controls do not say any more, as "period 4 (now 6)".
 *
 * @param {State} state
 * @returns {string[]}
 */
export function differences({ run, table, settings, prompt, model }) {
  if (!run || !settings || run.isRecorded) return [];
  const { header } = run;
  /** @type {Record<string, any>} */
  const ran = { ...header.sampling, ...header.lanes[run.main.index].config, seed: header.seed };
  /** @type {Record<string, any>} */
  const now = settings;
  const found = table
    .filter(({ name }) => name in ran && name in now)
    .filter((setting) => isUsed(setting.name, ran) && !isSame(setting, ran[setting.name], now[setting.name]))
    .map((setting) => words(setting.name, said(setting, ran[setting.name]), said(setting, now[setting.name])));
  if (prompt !== null && prompt !== header.prompt) found.unshift("another prompt");
  if (model && model.id !== header.model.id) found.unshift("another model");
  return found;
}

/** Exact layers stand in for range and ratio. */
const isUsed = (name, ran) => !(ran.drop_layers && (name === "layers" || name === "drop_ratio"));

/**
 * @param {Setting} setting
 * @param {any} ran
 * @param {any} now
 */
function isSame(setting, ran, now) {
  if (setting.kind === "range" && !ran) return true; // the model's own range
  const [one, two] = [ran, now].map((value) => said(setting, value));
  return one === two || (one !== "" && two !== "" && Number(one) === Number(two));
}

/**
 * A value as a text; layers of a list are in order, however they were typed.
 *
 * @param {Setting} setting
 * @param {any} value
 */
function said({ kind }, value) {
  if (kind === "range") return Array.isArray(value) ? value.join("-") : "";
  if (kind !== "list") return String(value ?? "");
  const layers = Array.isArray(value) ? value : String(value ?? "").split(",").filter((part) => part.trim());
  return layers.map(Number).sort((a, b) => a - b).join(",");
}

const words = (name, ran, now) =>
  `${name === "compare" ? "third lane" : name.replaceAll("_", " ")} ${ran || "off"} (now ${now || "off"})`;
