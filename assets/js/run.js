/* A run as far as the page has it: its header, and each lane's steps and audits as they come. It knows no element. */

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
 * @property {number[]} clock milliseconds on the lane's own clock after each step
 * @property {number} prefillMs
 * @property {number} refreshes
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
      hasTriggers: hasTriggers(config),
    },
    steps: [],
    audits: new Map(),
    clock: [],
    prefillMs: 0,
    refreshes: 0,
    speed: null,
    divergence: null,
  };
}

export class Run {
  /**
   * @param {string} id
   * @param {Header} header
   */
  constructor(id, header) {
    this.id = id;
    this.header = header;
    this.promptTokens = header.prompt_tokens;
    this.bytesPerToken = header.model.kv_bytes_per_token;
    this.planned = header.sampling.max_new_tokens - 1;
    /** @type {Summary | null} */
    this.summary = null;
    this.isStreaming = false; // it was shown before it had its end
    this.lanes = header.lanes.map((lane, index) => laneOf(lane, index, header.model.layers));
    this.plainLabels = this.lanes.map((lane) => lane.label.split(":")[0].replace(/[^\w .-]/g, ""));
    /** @type {Lane} the one that the headline figures are about */
    this.main = this.lanes.find(({ id }) => id === header.main) ?? this.lanes[this.lanes.length - 1];
    this.focus = this.main; // what the activity and drift charts are about: the reader may turn them to another
    /** @type {Figures} as the server computes them from the records */
    this.figures = NO_FIGURES;
  }

  /** @param {any[]} values a line of the wire: lane, step, token, text, kind, ms, bytes, entropy, trigger */
  addStep([lane, step, tokenId, text, kind, ms, kvBytes, entropy, trigger]) {
    const own = this.lanes[lane];
    if (KINDS[kind] === "refresh") own.refreshes += 1;
    own.steps.push({
      step,
      tokenId,
      text,
      kind: KINDS[kind],
      ms,
      kvBytes,
      entropy,
      trigger: TRIGGERS[trigger] ?? null, // only an early refresh has one
      refreshes: own.refreshes,
    });
    own.clock.push(ms + (own.clock[step - 1] ?? 0));
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

  /** @param {any[]} values the line of the figures so far: its mark, those of the main lane, and each lane's two */
  setFigures([, speedup, bound, saved, differs, agreement, byChance, lanes]) {
    this.figures = {
      speedup,
      bound,
      kv_saved: saved,
      first_divergence: differs,
      top1_agreement: agreement,
      by_chance: Boolean(byChance),
    };
    for (const lane of this.lanes) [lane.speed, lane.divergence] = lanes[lane.index];
  }
}
