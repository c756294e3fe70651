/* A run as far as the page has it: its header, and each lane's steps and audits as they come. It knows no element. */

import { baseline, isBaseline, stepBytes } from "./schedule.js";
import { hasTriggers } from "./settings.js";

/** @typedef {import("./records.js").Header} Header */
/** @typedef {import("./records.js").Schedule} Schedule */
/** @typedef {import("./records.js").Summary} Summary */

/** @type {("prefill" | "refresh" | "lora")[]} by the wire's number */
const KINDS = ["prefill", "refresh", "lora"];
const TRIGGERS = ["entropy", "norm"];

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
 * @property {number} decodeMs
 * @property {number} agreed
 * @property {number} audited
 * @property {number} refreshes
 * @property {number | null} divergence index of the first token that differs from the first lane's
 * @property {number} compared tokens that were looked at for it
 * @property {number} baseBytes that the full model would have read in its decode steps
 * @property {number} ownBytes
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
    decodeMs: 0,
    agreed: 0,
    audited: 0,
    refreshes: 0,
    divergence: null,
    compared: 0,
    baseBytes: 0,
    ownBytes: 0,
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
    this.shape = header.model.shape ?? null; // traces of older versions have none: then there is no bound on the way
    // The lane that the activity and drift charts are about: the first that skips something.
    this.focus = this.lanes.find((lane) => !isBaseline(lane.schedule)) ?? this.lanes[this.lanes.length - 1];
    this.main = this.focus; // the lane that the headline figures are about; the reader may turn the charts to another
  }

  /** Index of the main lane's first token that differs from the first lane's, or null. */
  get divergence() {
    return this.main.divergence;
  }

  /**
   * The first lane and one to compare it with, or null.
   *
   * @returns {[Lane, Lane] | null}
   */
  pair() {
    return this.lanes.length > 1 ? [this.lanes[0], this.main === this.lanes[0] ? this.lanes[1] : this.main] : null;
  }

  /** @param {any[]} values a line of the wire: lane, step, token, text, kind, ms, bytes, entropy, trigger */
  addStep([lane, step, tokenId, text, kind, ms, kvBytes, entropy, trigger]) {
    const { shape } = this;
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
    if (step === 0) {
      own.prefillMs = ms;
      return;
    }
    own.decodeMs += ms;
    if (!shape) return;
    own.baseBytes += stepBytes(shape, baseline(own.schedule.numLayers), step, this.promptTokens, 1);
    const happened = { isLora: KINDS[kind] === "lora", refreshes: own.refreshes };
    own.ownBytes += stepBytes(shape, own.schedule, step, this.promptTokens, 1, own.rank, true, happened);
  }

  /**
   * @param {number} index of the lane
   * @param {any[]} values a line of the wire: its lane's mark, step, drift, KL, agreement, the full model's choice
   */
  addAudit(index, [, step, drift, kl, agrees, argmax]) {
    const own = this.lanes[index];
    own.audits.set(step, { drift: drift.map((d) => (d === null ? null : d / 1e4)), kl, agrees: Boolean(agrees), argmax });
    if (own.steps[step]?.kind !== "lora") return;
    own.audited += 1;
    own.agreed += agrees;
  }

  /** Each lane's first token that differs from the first lane's, looked for in what is new. */
  findDivergence() {
    const [first, ...others] = this.lanes;
    for (const lane of others) {
      const both = Math.min(first.steps.length, lane.steps.length);
      for (; lane.divergence === null && lane.compared < both; lane.compared++) {
        if (first.steps[lane.compared].tokenId !== lane.steps[lane.compared].tokenId) lane.divergence = lane.compared;
      }
    }
  }

  /** Is a speedup beyond what bytes allow? Then the lanes' steps met different loads; no reading is saved twice. */
  isNoisy(speedup, bound) {
    return Boolean(speedup && bound && this.summary && speedup > 1.03 * bound);
  }

  /** The run's figures: the summary's once it is there, counted from the steps until then. */
  figures() {
    const speeds = this.lanes.map((lane) => {
      const decoded = lane.steps.length - 1;
      return decoded > 0 && lane.decodeMs > 0 ? (1000 * decoded) / lane.decodeMs : null;
    });
    const { summary } = this;
    if (summary) return { ...summary, speeds: this.lanes.map((l) => summary.lanes[l.id].tokens_per_second) };
    const pair = this.pair();
    /** @type {(number | null)[]} */
    let [speedup, saved] = [null, null];
    if (pair) {
      const [one, two] = [speeds[pair[0].index], speeds[pair[1].index]];
      speedup = one && two ? two / one : null;
      const shorter = Math.min(pair[0].steps.length, pair[1].steps.length) - 1;
      saved = shorter >= 0 ? 1 - pair[1].steps[shorter].kvBytes / pair[0].steps[shorter].kvBytes : null;
    }
    const { audited, agreed, baseBytes, ownBytes } = this.main;
    return {
      speeds,
      speedup,
      bound: ownBytes ? baseBytes / ownBytes : null,
      kv_saved: saved,
      first_divergence: this.divergence,
      top1_agreement: audited ? agreed / audited : null,
    };
  }
}
