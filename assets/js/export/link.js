/* Links to a run: an address that restores every setting, and what it says of the texts that the run gave. */

/** @typedef {import("../run.js").Run} Run */

/**
 * What the page's address asks for.
 *
 * @typedef {object} Link
 * @property {URLSearchParams} query
 * @property {string[] | null} texts "lane:hash" of each text
 * @property {string | null} model "id@revision"
 */

/** @typedef {Pick<Run, "header" | "summary">} Told what a link tells of a run */

const UNCHANGED = { __type__: "update" }; // Gradio's word for "leave this control alone"
const MAX_PROMPT = 20000; // characters that a link may carry
const HASH = 12; // hex digits of a text's sha256 in a link
const TEXTS = /^[a-z_]{1,20}:[0-9a-f]{12}(\.[a-z_]{1,20}:[0-9a-f]{12}){0,3}$/;
const LANE_NAMES = new Map([["baseline", "baseline"], ["lora_drop", "LoRA-Drop"], ["third", "third"]]);

const isWhole = (low, high) => (text) => {
  const value = /^\d{1,19}$/.test(text) ? Number(text) : NaN;
  return value >= low && value <= high ? value : undefined;
};
// As people and the server write numbers; Number would also take "0x10", which the server does not.
const isNumber = (low, high) => (text) => {
  const value = /^\d{1,30}(\.\d{1,30})?(e[-+]?\d{1,3})?$/.test(text) ? Number(text) : NaN;
  return value >= low && value <= high ? value : undefined;
};
const isOne = (...words) => (text) => (words.includes(text) ? text : undefined);
const isFlag = (text) => (text === "true" ? true : text === "false" ? false : undefined);
const isList = (text) => (/^(\d{1,4}(,\d{1,4}){0,999})?$/.test(text) ? text : undefined);
const isThreshold = (text) => (text === "" || isNumber(0, 1e6)(text) !== undefined ? text : undefined);
const isRange = (text) => {
  const found = /^(\d{1,4})-(\d{1,4})$/.exec(text);
  const [low, high] = found ? found.slice(1).map(Number) : [0, 0];
  return low >= 1 && low <= high ? [low, high] : undefined;
};
/* A link's parameters in the order of the page's controls (layout.py), by the command line's names: how a text
 * becomes a control's value; undefined where it cannot. What fits the form but not the model, the run tells. */
/** @type {Record<string, (text: any) => any>} */
const FIELDS = {
  prompt: (text) => (text.trim() && text.length <= MAX_PROMPT ? text : undefined),
  compare: isOne("", "adapters-off", "skip", "state", "residual"),
  period: isWhole(1, 100000),
  layers: isRange,
  drop_ratio: isNumber(0, 1),
  drop_layers: isList,
  reuse: isOne("state", "anchor", "residual", "skip"),
  part: isOne("block", "attention"),
  kv: isOne("skip", "write"),
  refresh_entropy: isThreshold,
  refresh_norm: isThreshold,
  adapters: isOne("auto", "none"),
  max_new_tokens: isWhole(1, 100000),
  temperature: isNumber(0, 100),
  top_p: isNumber(0, 1),
  seed: isWhole(0, Number.MAX_SAFE_INTEGER),
  view: isOne("race", "lock-step"),
  audit: isFlag,
  ignore_eos: isFlag,
};

/**
 * A run's settings as a link's parameters.
 *
 * @param {Told} run
 * @returns {Record<string, string>}
 */
function parameters(run) {
  const { header } = run;
  const lane = header.lanes.find(({ id }) => id === "lora_drop") ?? header.lanes[header.lanes.length - 1];
  const { config } = lane;
  const sampling = header.sampling;
  /** @type {Record<string, unknown>} */
  const found = {
    prompt: header.prompt,
    compare: sampling.compare ?? "",
    period: config.period,
    layers: config.layers ? config.layers.join("-") : "",
    drop_ratio: config.drop_ratio,
    drop_layers: (config.drop_layers ?? []).join(","),
    reuse: config.reuse,
    part: config.part,
    kv: config.kv,
    refresh_entropy: config.refresh_entropy ?? "",
    refresh_norm: config.refresh_norm ?? "",
    adapters: config.adapters,
    max_new_tokens: sampling.max_new_tokens,
    temperature: sampling.temperature,
    top_p: sampling.top_p,
    seed: header.seed,
    view: sampling.view,
    audit: sampling.audit,
    ignore_eos: sampling.ignore_eos,
  };
  if (!config.layers) delete found.layers;
  return Object.fromEntries(Object.entries(found).map(([name, value]) => [name, String(value)]));
}

/**
 * The texts of a finished run, by lane, as the first digits of their sha256.
 *
 * @param {NonNullable<Run["summary"]>} summary
 */
const textHashes = (summary) =>
  Object.entries(summary.lanes).map(([id, lane]) => `${id}:${(lane.text_sha256 ?? "").slice(0, HASH)}`);

/** @param {Told} run */
const modelOf = ({ header }) => `${header.model.id}@${header.model.revision}`;

/**
 * The address that restores a run.
 *
 * @param {Told} run
 * @param {string} [page] the address without parameters
 */
export function linkOf(run, page = location.origin + location.pathname) {
  const query = new URLSearchParams(parameters(run));
  if (run.summary) query.set("texts", textHashes(run.summary).join("."));
  query.set("model", modelOf(run));
  return `${page}?${query}`;
}

/**
 * What an address asks for: values for prompt, third lane, all controls, the model and the status line, and the link
 * to compare a run with; null where it asks for nothing.
 *
 * @param {string} search
 * @param {string[]} labels the models on offer
 * @returns {{values: any[], link: Link | null}}
 */
export function readLink(search, labels) {
  const query = new URLSearchParams(search);
  const names = Object.keys(FIELDS);
  if (!names.some((name) => query.has(name))) {
    return { values: [...names, "model", "status"].map(() => UNCHANGED), link: null };
  }
  /** @type {Record<string, any>} */
  const values = {};
  const wrong = [];
  for (const name of names) {
    if (!query.has(name)) continue;
    const value = FIELDS[name](query.get(name));
    if (value === undefined) wrong.push(name);
    else values[name] = value;
  }
  const written = query.get("texts") ?? "";
  const texts = TEXTS.test(written) ? written.split(".") : null;
  const told = wrong.length
    ? { kind: "error", text: `The link's ${wrong.join(", ")} cannot be used: left as set here.` }
    : { kind: "idle", text: `Settings restored from the link. Press Run${texts ? " to see whether it reproduces" : ""}.` };
  const model = (query.get("model") ?? "").split("@")[0];
  const offered = labels.includes(model) ? model : UNCHANGED;
  return {
    values: [...names.map((name) => (name in values ? values[name] : UNCHANGED)), offered, told],
    link: { query, texts, model: query.get("model") },
  };
}

/**
 * Does a finished run give what the link's run gave? Null where the link does not say what that was.
 *
 * @param {Link | null} link
 * @param {Told} run
 * @returns {{state: "reproduced" | "differs" | "other", text: string} | null}
 */
export function compareWithLink(link, run) {
  if (!link?.texts || !run.summary) return null;
  const now = parameters(run);
  const other = Object.keys(now).filter((name) => link.query.has(name) && link.query.get(name) !== now[name]);
  if (other.length) return { state: "other", text: `Not the link's run: ${other.join(", ")} changed since.` };
  const here = textHashes(run.summary);
  const differs = link.texts.filter((text) => !here.includes(text)).map((text) => text.split(":")[0]);
  if (!differs.length) return { state: "reproduced", text: "Reproduced: the texts are the link's, to the letter." };
  const which = differs.map((id) => LANE_NAMES.get(id) ?? "another").join(" and ");
  const why =
    link.model && link.model !== modelOf(run) ? " The link was made with another model or other weights." : "";
  return { state: "differs", text: `Differs from the link: the text of ${which}.${why}` };
}
