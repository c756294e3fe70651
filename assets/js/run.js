/* A run as far as the page has it: its header, and each lane's steps and audits as they come. It knows no element. */

import { NO_EXTRAS } from "./schedule.js";
import { hasTriggers } from "./settings.js";

/** @typedef {import("./records.js").Figures} Figures */
/** @typedef {import("./records.js").Header} Header */
/** @typedef {import("./records.js").Schedule} Schedule */
/** @typedef {import("./records.js").Summary} Summary */

/** @type {("prefill" | "refresh" | "lora")[]} by the wire's number */
const KINDS = ["prefill", "refresh", "lora"];
const TRIGGERS = ["entropy", "norm"];
const NO_FIGURES = {
  ...{ speedup: null, bound: null, kv_saved: null, first_divergence: null, top1_agreement: null },
  ...{ quality_loss: null, accepted: null },
  by_chance: false,
};

/**
 * @typedef {object} Step
 * @property {number} step
 * @property {number} tokenId
 * @property {string} text
 * @property {"prefill" | "refresh" | "lora"} kind
 * @property {number} ms on the lane's own clock
 * @property {number} kvBytes
 * @property {number | null} entropy in nats
 * @property {string | null} trigger what made it a refresh before its time
 * @property {number} refreshes of the steps up to it
 * @property {number} lastRefresh step of the last of them; 0 before any
 */

/**
 * @typedef {object} Rewind what the full model took back
 * @property {number} to the last step that stands
 * @property {string} text of the tokens that do not
 */

/**
 * @typedef {object} Audit
 * @property {(number | null)[]} drift by skipped layer
 * @property {number | null} kl to the full model, in nats
 * @property {boolean} agrees
 * @property {string | 0} argmax the full model's choice, where it is another one
 */

/**
 * @typedef {object} Lane
 * @property {number} index
 * @property {string} id
 * @property {string} label
 * @property {number} rank
 * @property {Schedule} schedule
 * @property {Step[]} steps
 * @property {Map<number, Audit>} audits by step
 * @property {Rewind[]} rewinds as they came
 * @property {number[]} clock milliseconds on the lane's own clock after each step
 * @property {number} takenMs of what was taken back since the last step: the next one stands so much later
 * @property {number} prefillMs
 * @property {number | null} speed in tokens a second
 * @property {number | null} divergence index of the first token that differs from the first lane's
 */

/**
 * @param {Header["lanes"][number]} lane
 * @param {number} index
 * @param {number} numLayers
 * @returns {Lane}
 */
function laneOf({ id, label, config }, index, numLayers) {
  return {
    index,
    id,
    label,
    rank: config.rank ?? 0,
    schedule: {
      period: config.period,
      numLayers,
      dropped: config.dropped,
      corrected: config.corrected,
      reuse: config.reuse,
      part: config.part,
      kv: config.kv,
      refresh: config.refresh,
      accept: config.accept,
      head: config.head,
      extras: config.extras && { ...NO_EXTRAS, ...config.extras },
      hasTriggers: hasTriggers(config),
    },
    steps: [],
    audits: new Map(),
    rewinds: [],
    clock: [],
    takenMs: 0,
    prefillMs: 0,
    speed: null,
    divergence: null,
  };
}

export class Run {
  /**
   * @param {string} id
   * @param {Header} header
   * @param {boolean} [isWhole] nothing more will come, though it may have been cut short
   */
  constructor(id, header, isWhole = false) {
    this.id = id;
    this.isWhole = isWhole;
    this.isRecorded = false; // it is shown while a visitor waits for a run of their own
    this.header = header;
    this.promptTokens = header.prompt_tokens;
    this.bytesPerToken = header.model.kv_bytes_per_token;
    this.planned = header.sampling.max_new_tokens - 1;
    /** @type {Summary | null} */
    this.summary = null;
    /** @type {import("./inspect/recorded.js").Inside | null} what a replay says of its steps */
    this.inside = null;
    /** @type {(import("./pins/words.js").Aligned & {lanes: string[]})[] | null} a replay's answers, word by word */
    this.answers = null;
    /** @type {import("./records.js").Told | null} what is said of it, once it has ended */
    this.told = null;
    this.isLost = false; // the connection was lost while it streamed
    this.isStreaming = false; // it was shown before it had its end
    this.lanes = header.lanes.map((lane, index) => laneOf(lane, index, header.model.layers));
    this.plainLabels = this.lanes.map((lane) => lane.label.split(":")[0].replace(/[^\w .-]/g, ""));
    /** @type {Lane} the one that the headline figures are about */
    this.main = this.lanes.find(({ id }) => id === header.main) ?? this.lanes[this.lanes.length - 1];
    this.focus = this.main; // what the activity and drift charts are about: the reader may turn them to another
    /** @type {Figures} as the server computes them from the records */
    this.figures = NO_FIGURES;
  }

  /** Will anything more come? */
  get isOver() {
    return this.isWhole || this.isLost || this.summary !== null;
  }

  /** @param {any} values the summary, or of a trace that was cut short what is said of it */
  end(values) {
    if (values.type === "summary") this.summary = values;
    if (values.type === "summary" || values.type === "cut") this.told = values;
  }

  /** @param {any[]} values a line of the wire: lane, step, token, text, kind, ms, bytes, entropy, trigger */
  addStep([lane, step, tokenId, text, kind, ms, kvBytes, entropy, trigger]) {
    const own = this.lanes[lane];
    const before = own.steps[step - 1];
    const isRefresh = KINDS[kind] === "refresh";
    own.steps.push({
      step,
      tokenId,
      text,
      kind: KINDS[kind],
      ms,
      kvBytes,
      entropy,
      trigger: TRIGGERS[trigger] ?? null, // only an early refresh has one
      refreshes: (before?.refreshes ?? 0) + Number(isRefresh),
      lastRefresh: isRefresh ? step : (before?.lastRefresh ?? 0),
    });
    own.clock.push((own.clock[step - 1] ?? 0) + own.takenMs + ms);
    own.takenMs = 0;
    if (step === 0) own.prefillMs = ms;
  }

  /**
   * @param {number} index of the lane
   * @param {any[]} values a line of the wire: its lane's mark, step, drift, KL, agreement, the full model's choice
   */
  addAudit(index, [, step, drift, kl, agrees, argmax]) {
    const own = this.lanes[index];
    own.audits.set(step, { drift: drift.map((d) => (d === null ? null : d / 1e4)), kl, agrees: Boolean(agrees), argmax });
  }

  /**
   * The full model takes back what a lane wrote after a step. The time that it took stays in the lane's clock.
   *
   * @param {number} index of the lane
   * @param {any[]} values a line of the wire: its lane's mark, the last step that stands
   */
  rewind(index, [, to]) {
    const own = this.lanes[index];
    const taken = own.steps.splice(to + 1);
    own.takenMs += own.clock[own.clock.length - 1] - own.clock[to];
    own.clock.length = to + 1;
    for (const { step } of taken) own.audits.delete(step);
    own.rewinds.push({ to, text: taken.map(({ text }) => text).join("") });
  }

  /**
   * The last drafts of a lane are judged, and stand.
   *
   * @param {number} index of the lane
   * @param {any[]} values a line of the wire: its lane's mark, tokens, milliseconds, how many stand
   */
  judge(index, [, , ms]) {
    const { clock } = this.lanes[index];
    if (clock.length) clock[clock.length - 1] += ms;
  }

  /** @param {any[]} values the line of the figures so far: its mark, those of the main lane, and each lane's two */
  setFigures([, speedup, bound, saved, differs, agreement, loss, accepted, byChance, lanes]) {
    this.figures = {
      speedup,
      bound,
      kv_saved: saved,
      first_divergence: differs,
      top1_agreement: agreement,
      quality_loss: loss,
      accepted,
      by_chance: Boolean(byChance),
    };
    for (const lane of this.lanes) [lane.speed, lane.divergence] = lanes[lane.index];
  }
}
