/* Links to a run: an address that restores every setting, with hashes of the run's texts. */

import { find } from "../dom.js";

/** @typedef {import("../records.js").Setting} Setting */
/** @typedef {import("../run.js").Run} Run */

/**
 * The link in the page's address.
 *
 * @typedef {object} Link
 * @property {URLSearchParams} query
 * @property {string[] | null} texts "lane:hash" of each text
 * @property {string | null} model "id@revision"
 * @property {string[]} unknown parameters that are no settings of this version
 */

/** @typedef {Pick<Run, "header" | "summary">} Linked the parts of a run in a link */

const UNCHANGED = { __type__: "update" }; // Gradio's word for "leave this control alone"
const MAX_PROMPT = 20000; // longest prompt in a link, in characters
const HASH = 12; // hex digits of a text's sha256 in a link
const TEXTS = /^[a-z0-9_]{1,32}:[0-9a-f]{12}(\.[a-z0-9_]{1,32}:[0-9a-f]{12}){0,3}$/;
const OTHERS = ["texts", "model", "on", "talk"]; // parameters that are no settings; Gradio's begin with __
const LANE_NAMES = new Map([["baseline", "baseline"], ["lora_drop", "LoRA-Drop"], ["third", "third"]]);

/* How a link's text becomes a control's value, by the kind of its setting (lora_drop/method/kinds.py); undefined where
 * it cannot. What fits the form but not the model, the run says. */
/** @type {Record<string, (text: string, setting: Setting) => any>} */
const READERS = {
  whole: (text, setting) => within(/^\d{1,19}$/.test(text) ? Number(text) : NaN, setting),
  // As people and the server write numbers; Number would also take "0x10", which the server does not.
  number: (text, setting) => within(/^\d{1,30}(\.\d{1,30})?(e[-+]?\d{1,3})?$/.test(text) ? Number(text) : NaN, setting),
  text: (text) => readPrompt(text),
  choice: (text, { words }) => (words?.includes(text) ? text : undefined),
  flag: (text) => (text === "true" ? true : text === "false" ? false : undefined),
  list: (text) => (/^\d{1,4}(,\d{1,4}){0,999}$/.test(text) ? text : undefined),
  range(text) {
    const match = /^(\d{1,4})-(\d{1,4})$/.exec(text);
    const [low, high] = match ? match.slice(1).map(Number) : [0, 0];
    return low >= 1 && low <= high ? [low, high] : undefined;
  },
};

/**
 * @param {number} value
 * @param {Setting} setting
 */
const within = (value, { low = 0, high = Infinity, above }) =>
  value <= high && (above ? value > low : value >= low) ? value : undefined;

/**
 * @param {string} text
 * @param {Setting} setting
 */
function read(text, setting) {
  if (setting.off && setting.kind !== "range" && text === "") return "";
  const value = READERS[setting.kind](text, setting);
  // An optional number has a text field: an empty number field would be 0.
  return setting.off && setting.kind === "number" && value !== undefined ? text : value;
}

/** @param {string} text */
const readPrompt = (text) => (text.trim() && text.length <= MAX_PROMPT ? text : undefined);

/**
 * A run's settings as a link's parameters.
 *
 * @param {Linked} run
 * @param {Setting[]} table
 * @returns {Record<string, string>}
 */
function parameters(run, table) {
  const { header } = run;
  const lane = header.lanes.find(({ id }) => id === "lora_drop") ?? header.lanes[header.lanes.length - 1];
  /** @type {Record<string, any>} */
  const values = { ...header.sampling, ...lane.config, seed: header.seed };
  const written = table
    .filter(({ name, kind }) => name in values && !(kind === "range" && !values[name]))
    .map(({ name, kind }) => {
      const value = values[name];
      return [name, Array.isArray(value) ? value.join(kind === "range" ? "-" : ",") : String(value ?? "")];
    });
  return { prompt: header.prompt, ...Object.fromEntries(written) };
}

/**
 * "lane:hash" of each text of a finished run, with the first digits of its sha256.
 *
 * @param {NonNullable<Run["summary"]>} summary
 */
const textHashes = (summary) =>
  Object.entries(summary.lanes).map(([id, lane]) => `${id}:${(lane.text_sha256 ?? "").slice(0, HASH)}`);

/** @param {Linked} run */
const modelOf = ({ header }) => `${header.model.id}@${header.model.revision}`;

/**
 * Decoder, number type and device of a run: others round differently, so a word may differ.
 *
 * @param {Linked} run
 */
const arithmeticOf = ({ header: { device, model } }) => `${device.decoder}, ${model.dtype}, ${device.name}`;

/**
 * The address that restores a run.
 *
 * @param {Linked} run
 * @param {Setting[]} table
 * @param {string} [page] the address without parameters
 */
export function linkOf(run, table, page = location.origin + location.pathname) {
  const query = new URLSearchParams(parameters(run, table));
  if (run.summary) query.set("texts", textHashes(run.summary).join("."));
  query.set("model", modelOf(run));
  query.set("on", arithmeticOf(run));
  return `${page}?${query}`;
}

/**
 * Read an address: values for prompt, third lane, all controls, the model and the status line, and the link to compare a
 * run with; null without settings in the address.
 *
 * @param {string} search
 * @param {string[]} labels the models that can be chosen
 * @param {Setting[]} table
 * @returns {{values: any[], link: Link | null}}
 */
export function readLink(search, labels, table) {
  const query = new URLSearchParams(search);
  const names = ["prompt", ...table.map(({ name }) => name)];
  const isKnown = (name) => names.includes(name) || OTHERS.includes(name) || name.startsWith("__");
  const unknown = [...new Set(query.keys())].filter((name) => !isKnown(name));
  if (!names.some((name) => query.has(name)) && !unknown.length) {
    return { values: [...names, "model", "status"].map(() => UNCHANGED), link: null };
  }
  /** @type {Record<string, any>} */
  const values = {};
  const wrong = [];
  for (const name of names) {
    const text = query.get(name);
    if (text === null) continue;
    const setting = table.find((entry) => entry.name === name);
    const value = setting ? read(text, setting) : readPrompt(text);
    if (value === undefined) wrong.push(name);
    else values[name] = value;
  }
  const written = query.get("texts") ?? "";
  const texts = TEXTS.test(written) ? written.split(".") : null;
  const status = statusOf(wrong, unknown, texts !== null);
  const model = (query.get("model") ?? "").split("@")[0];
  const offered = labels.includes(model) ? model : UNCHANGED;
  return {
    values: [...names.map((name) => (name in values ? values[name] : UNCHANGED)), offered, status],
    link: { query, texts, model: query.get("model"), unknown },
  };
}

/** The status line: parameters that cannot be used, or that all settings are restored. */
function statusOf(wrong, unknown, hasTexts) {
  const strange = unknown.slice(0, 3).map((name) => `“${name.slice(0, 40)}”`).join(", ");
  const parts = [
    ...(wrong.length ? [`The link's ${wrong.join(", ")} cannot be used and stays as set here.`] : []),
    ...(unknown.length ? [`The link's ${strange} is no setting of this version and was ignored. Check the others, then press Run.`] : []),
  ];
  if (parts.length) return { kind: "error", text: parts.join(" ") };
  return { kind: "idle", text: `Settings restored from the link. Press Run${hasTexts ? " to see whether it reproduces" : ""}.` };
}

/**
 * Compare a finished run with the link's run; null if the link has no hashes.
 *
 * @param {Link | null} link
 * @param {Linked} run
 * @param {Setting[]} table
 * @returns {{state: "reproduced" | "differs" | "other" | "arithmetic", text: string} | null}
 */
export function compareWithLink(link, run, table) {
  if (!link?.texts || !run.summary) return null;
  const now = parameters(run, table);
  const other = Object.keys(now).filter((name) => link.query.has(name) && link.query.get(name) !== now[name]);
  if (other.length) return { state: "other", text: `Not the link's run: ${other.join(", ")} changed since.` };
  const here = textHashes(run.summary);
  const differs = link.texts.filter((text) => !here.includes(text)).map((text) => text.split(":")[0]);
  if (!differs.length) return { state: "reproduced", text: "Reproduced: the same texts as the link's, letter for letter." };
  if (link.unknown.length) {
    return { state: "other", text: "Not the link's run: it has settings that this version does not know." };
  }
  const on = link.query.get("on");
  if (link.model === modelOf(run) && on && on !== arithmeticOf(run)) {
    return {
      state: "arithmetic",
      text: `Same settings, other arithmetic: the link's run was computed by ${on}. Rounding differs between the two, so words may differ.`,
    };
  }
  const which = differs.map((id) => LANE_NAMES.get(id) ?? "another").join(" and ");
  const why =
    link.model && link.model !== modelOf(run) ? " The link was made with another model or other weights." : "";
  return { state: "differs", text: `Differs from the link: the text of ${which}.${why}` };
}

/**
 * Mount the note that says, after a run on a page opened by a link, whether it reproduced the link's run.
 *
 * @param {HTMLElement} root
 * @param {import("../store.js").Store} store
 */
export function mountLinkNote(root, store) {
  const note = find(root, ".ld-link-note");
  store.subscribe(["run", "revision", "isUnfolding"], ({ link, run, table, isUnfolding }) => {
    const result = run?.summary && !run.isRecorded && !isUnfolding ? compareWithLink(link, run, table) : null;
    note.hidden = !result;
    if (!result) return;
    note.dataset.state = result.state;
    note.textContent = result.text;
  });
}
