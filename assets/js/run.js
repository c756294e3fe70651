/* A run as it arrives: its header, and each lane's steps and audits. It touches no element. */

import { NO_EXTRAS, hasLoraSteps } from "./schedule.js";

/** @typedef {import("./records.js").Figures} Figures */
/** @typedef {import("./records.js").Header} Header */
/** @typedef {import("./records.js").Schedule} Schedule */
/** @typedef {import("./records.js").Summary} Summary */

/** @type {("prefill" | "refresh" | "lora" | "draft")[]} by their numbers on the wire */
const KINDS = ["prefill", "refresh", "lora", "draft"];
const NO_FIGURES = {
  speedup: null, bound: null, kv_saved: null, first_divergence: null, top1_agreement: null,
  quality_loss: null, accepted: null, by_chance: false,
};

/**
 * @typedef {object} Step
 * @property {number} step
 * @property {string} text
 * @property {"prefill" | "refresh" | "lora" | "draft"} kind
 * @property {number} ms
 * @property {number} kvBytes
 * @property {number | null} entropy in nats
 * @property {string | null} trigger cause of an early refresh
 * @property {boolean} isThought
 * @property {number} thoughts number of tokens of thoughts up to this step
 * @property {number} refreshes number of refreshes up to this step
 * @property {number} lastRefresh step of the last refresh; 0 before the first
 * @property {number} lastPass the last step that was no draft without a pass
 */

/**
 * @typedef {object} Rewind drafts that the full model rejected
 * @property {number} to the last step that stays
 * @property {string} text of the rejected tokens
 * @property {number[]} clock milliseconds on the lane's clock after each of them
 */

/**
 * @typedef {object} Audit
 * @property {(number | null)[]} drift by skipped layer
 * @property {number | null} kl to the full model, in nats
 * @property {boolean} agrees
 * @property {string | 0} argmax the full model's choice, if it differs
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
 * @property {Rewind[]} rewinds in order
 * @property {number[]} clock milliseconds on the lane's clock after each step
 * @property {boolean} isVerified the full model verified the last drafts
 * @property {number} takenMs milliseconds of drafts rejected since the last step; the next step is so much later
 * @property {number} prefillMs
 * @property {boolean} looksUp its drafts take no pass, so that every pass is full
 * @property {number | null} speed in tokens a second
 * @property {number | null} divergence index of the first token that differs from the baseline's
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
    looksUp: Boolean(config.lookup) && !hasLoraSteps(config),
    schedule: {
      ...config,
      numLayers,
      extras: config.extras && { ...NO_EXTRAS, ...config.extras },
      mayBeEarly: (config.refresh_entropy ?? null) !== null,
    },
    steps: [],
    audits: new Map(),
    rewinds: [],
    clock: [],
    isVerified: false,
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
   * @param {boolean} [isWhole] the text is complete, though the run may have been cut short
   */
  constructor(id, header, isWhole = false) {
    this.id = id;
    this.isWhole = isWhole;
    this.isRecorded = false; // played while a visitor waits for a first run
    this.header = header;
    this.promptTokens = header.prompt_tokens;
    this.bytesPerToken = header.model.kv_bytes_per_token;
    this.planned = header.sampling.max_new_tokens - 1;
    /** @type {Summary | null} */
    this.summary = null;
    /** @type {import("./inspect/inspector.js").Inside | null} a replay's facts about its steps */
    this.inside = null;
    /** @type {(import("./pins/words.js").Aligned & {lanes: string[]})[] | null} a replay's answers, word by word */
    this.answers = null;
    /** @type {import("./records.js").Report | null} its report, once it has ended */
    this.report = null;
    this.isLost = false; // the connection was lost while it streamed
    this.lanes = header.lanes.map((lane, index) => laneOf(lane, index, header.model.layers));
    this.plainLabels = this.lanes.map((lane) => lane.label.split(":")[0].replace(/[^\w .-]/g, ""));
    /** @type {Lane} the lane of the headline figures */
    this.main = this.lanes.find(({ id }) => id === header.main) ?? this.lanes[this.lanes.length - 1];
    this.focus = this.main; // the lane in the activity and drift charts; the reader may choose another
    /** @type {Figures} computed by the server */
    this.figures = NO_FIGURES;
  }

  /** True if nothing more will arrive. */
  get isOver() {
    return this.isWhole || this.isLost || this.summary !== null;
  }

  /** @param {any} values the summary, or the report of a trace that was cut short */
  end(values) {
    if (values.type === "summary") this.summary = values;
    if (values.type === "summary" || values.type === "cut") this.report = values;
  }

  /** @param {any[]} values a line of the wire: lane, step, token, text, kind, ms, bytes, entropy, trigger, thought */
  addStep([index, step, , text, kind, ms, kvBytes, entropy, trigger, thought]) {
    const lane = this.lanes[index];
    const before = lane.steps[step - 1];
    const isRefresh = KINDS[kind] === "refresh";
    lane.steps.push({
      step,
      text,
      kind: KINDS[kind],
      ms,
      kvBytes,
      entropy,
      trigger: trigger ?? null, // only an early refresh has one
      isThought: Boolean(thought),
      thoughts: (before?.thoughts ?? 0) + Number(Boolean(thought)),
      refreshes: (before?.refreshes ?? 0) + Number(isRefresh),
      lastRefresh: isRefresh ? step : (before?.lastRefresh ?? 0),
      lastPass: KINDS[kind] === "draft" ? (before?.lastPass ?? 0) : step,
    });
    lane.clock.push((lane.clock[step - 1] ?? 0) + lane.takenMs + ms);
    lane.takenMs = 0;
    if (step === 0) lane.prefillMs = ms;
  }

  /**
   * @param {number} index of the lane
   * @param {any[]} values a line of the wire: its lane's mark, step, drift, KL, agreement, the full model's choice
   */
  addAudit(index, [, step, drift, kl, agrees, argmax]) {
    const lane = this.lanes[index];
    lane.audits.set(step, { drift: drift.map((d) => (d === null ? null : d / 1e4)), kl, agrees: Boolean(agrees), argmax });
  }

  /**
   * The full model rejects a lane's drafts after a step. Their time stays in the lane's clock.
   *
   * @param {number} index of the lane
   * @param {any[]} values a line of the wire: its lane's mark, the last step that stays
   */
  rewind(index, [, to]) {
    const lane = this.lanes[index];
    const taken = lane.steps.splice(to + 1);
    lane.takenMs += lane.clock[lane.clock.length - 1] - lane.clock[to];
    const clock = lane.clock.splice(to + 1);
    lane.isVerified = false;
    for (const { step } of taken) lane.audits.delete(step);
    lane.rewinds.push({ to, text: taken.map(({ text }) => text).join(""), clock });
  }

  /**
   * The full model verifies a lane's last drafts; a rewind has removed the rejected drafts.
   *
   * @param {number} index of the lane
   * @param {any[]} values a line of the wire: its lane's mark, tokens, milliseconds, number accepted
   */
  judge(index, [, , ms]) {
    const lane = this.lanes[index];
    if (lane.clock.length) lane.clock[lane.clock.length - 1] += ms;
    lane.isVerified = true;
  }

  /** @param {any[]} values the line of the figures so far: its mark, the main lane's, and two of each lane */
  setFigures([, speedup, bound, kv_saved, first_divergence, top1_agreement, quality_loss, accepted, byChance, lanes]) {
    const figures = { speedup, bound, kv_saved, first_divergence, top1_agreement, quality_loss, accepted };
    this.figures = { ...figures, by_chance: Boolean(byChance) };
    for (const lane of this.lanes) [lane.speed, lane.divergence] = lanes[lane.index];
  }
}
