/* The arithmetic of schedule.py and cost.py for the page: which layers run when, the bytes of a step, the speed bound. It
 * serves drawings without a run: the forecast, the Method tab, the formulas beside counted values. A test compares the two
 * on random settings. */

/** @typedef {import("./records.js").Schedule} Schedule */
/** @typedef {import("./records.js").Shape} Shape */

/**
 * Round half to even, as Python does.
 *
 * @param {number} x
 */
export function roundHalfEven(x) {
  const below = Math.floor(x);
  if (x - below !== 0.5) return Math.round(x);
  return below % 2 === 0 ? below : below + 1;
}

/**
 * Skipped layers of the range lo..hi (inclusive), evenly spaced.
 *
 * @param {number} lo
 * @param {number} hi
 * @param {number} dropRatio
 */
export function droppedLayers(lo, hi, dropRatio) {
  const span = hi - lo + 1;
  const n = roundHalfEven(dropRatio * span);
  return Array.from({ length: n }, (_, j) => lo + Math.floor(((2 * j + 1) * span) / (2 * n)));
}

/**
 * True if every step runs every layer.
 *
 * @param {Schedule} schedule
 */
export const isBaseline = (schedule) =>
  schedule.period === 1 || (schedule.dropped.length === 0 && schedule.head !== "screened");

/**
 * True if a full step also runs the tokens since the last one.
 *
 * @param {Schedule} schedule
 */
export const repairs = (schedule) => !isBaseline(schedule) && schedule.refresh === "repair";

/**
 * True if a full step may reject drafts.
 *
 * @param {Schedule} schedule
 */
export const verifies = (schedule) => repairs(schedule) && Boolean(schedule.accept);

/**
 * True if a skipped layer writes K/V in a LoRA step.
 *
 * @param {Schedule} schedule
 */
export const writesKv = (schedule) => schedule.kv === "write" && !repairs(schedule);

/**
 * True if refreshes may come early. Then `kind` and all that uses it assume the longest gaps.
 *
 * @param {Schedule} schedule
 */
export const isAdaptive = (schedule) => !isBaseline(schedule) && Boolean(schedule.mayBeEarly);

/**
 * True if the full steps of a run may come at other steps than `kind` says, and more often.
 *
 * @param {Schedule} schedule
 */
export const varies = (schedule) => isAdaptive(schedule) || verifies(schedule);

/**
 * @param {Schedule} schedule
 * @param {number} step
 * @param {number} [promptTokens] without a `refresh_position` it does not matter
 * @returns {"prefill" | "refresh" | "lora"}
 */
export function kind(schedule, step, promptTokens = 0) {
  if (step === 0) return "prefill";
  const every = schedule.refresh_position;
  const byPosition = every && (promptTokens - 1 + step) % every === 0;
  return isBaseline(schedule) || step % schedule.period === 0 || byPosition ? "refresh" : "lora";
}

/**
 * How many decode steps up to `step` are refreshes, if none comes early.
 *
 * @param {Schedule} schedule
 * @param {number} promptTokens
 * @param {number} step
 */
export function refreshesOf(schedule, promptTokens, step) {
  const byPeriod = Math.floor(step / schedule.period);
  const every = schedule.refresh_position;
  if (!every) return byPeriod;
  const before = promptTokens - 1;
  const byPosition = Math.floor((before + step) / every) - Math.floor(before / every);
  return byPosition + (before % every ? byPeriod : 0);
}

/**
 * The schedule without skipped layers.
 *
 * @param {number} numLayers
 * @returns {Schedule}
 */
export const baseline = (numLayers) => ({ period: 1, numLayers, dropped: [], reuse: "residual", part: "block", kv: "skip" });

/**
 * Tokens in a layer's K/V cache after `step`, of a run with `refreshes` up to it, the last at `lastRefresh`.
 *
 * @param {Schedule} schedule
 * @param {boolean} isDropped
 * @param {number} promptTokens
 * @param {number} step
 * @param {number} [refreshes]
 * @param {number} [lastRefresh]
 */
export function kvLength(schedule, isDropped, promptTokens, step, refreshes, lastRefresh) {
  if (!isDropped || isBaseline(schedule)) return promptTokens + step;
  if (schedule.kv === "skip") return promptTokens + (refreshes ?? refreshesOf(schedule, promptTokens, step));
  return promptTokens + (repairs(schedule) ? (lastRefresh ?? step - (step % schedule.period)) : step);
}

/**
 * Tokens in all layers' caches after `step`.
 *
 * @param {Schedule} schedule
 * @param {number} promptTokens
 * @param {number} step
 * @param {number} [refreshes]
 * @param {number} [lastRefresh]
 */
export function kvTokens(schedule, promptTokens, step, refreshes, lastRefresh) {
  const n = schedule.dropped.length;
  return (
    (schedule.numLayers - n) * kvLength(schedule, false, promptTokens, step) +
    n * kvLength(schedule, true, promptTokens, step, refreshes, lastRefresh)
  );
}

/**
 * Reads of a model's weights, in units of an activation's size. Each layer's matrices may be packed in another way.
 *
 * @param {Shape} shape
 */
function weights(shape) {
  const bias = Number(shape.qkv_bias);
  const norm = shape.qk_norm ? shape.head_dim : 0;
  const inner = shape.num_heads * shape.head_dim;
  const perToken = 2 * shape.num_kv_heads * shape.head_dim;
  /** @param {number[]} sizes */
  const layer = ([kvSize, attentionSize, mlpSize]) => {
    const vectors = perToken * bias + norm;
    const q = inner * shape.hidden_size;
    const kv = perToken * shape.hidden_size;
    return {
      kv: kv * kvSize + vectors,
      attention: shape.hidden_size + inner * bias + norm + vectors + (2 * q + kv) * attentionSize,
      mlp: shape.hidden_size + 3 * shape.hidden_size * shape.intermediate_size * mlpSize,
    };
  };
  const even = layer(Array(3).fill(shape.matrix_size));
  return {
    layers: shape.layer_sizes?.length ? shape.layer_sizes.map(layer) : Array(shape.num_layers).fill(even),
    head: shape.vocab_size * shape.hidden_size * shape.head_size,
    others: 2 * shape.hidden_size, // the last norm, one row of the embedding
    perToken,
  };
}

/** @type {import("./records.js").Extras} */
export const NO_EXTRAS = { head_rank: 0, head_best: 0, code_size: 1 };

/**
 * Reads of the screened head.
 *
 * @param {Shape} shape
 * @param {import("./records.js").Extras} extras
 */
function screenedHead(shape, { head_rank: rank, head_best: best, code_size: codeSize }) {
  return shape.vocab_size * rank * codeSize + (rank + best * shape.head_size) * shape.hidden_size;
}

/**
 * The exact KV formula: bytes held after `steps` decode steps.
 *
 * @param {Shape} shape
 * @param {Schedule} schedule
 * @param {number} promptTokens
 * @param {number} steps
 * @param {number} itemsize
 */
export const kvBytes = (shape, schedule, promptTokens, steps, itemsize) =>
  weights(shape).perToken * itemsize * kvTokens(schedule, promptTokens, steps);

/**
 * Bytes that decode step `step` of the fixed schedule reads, in units of an activation's size: the weights used, and the K/V
 * of each attention.
 *
 * @param {Shape} shape
 * @param {Schedule} schedule
 * @param {number} step
 * @param {number} promptTokens
 * @param {number} rank of the corrections; 0 without any
 * @param {boolean} kv count the K/V too
 */
function stepReads(shape, schedule, step, promptTokens, rank, kv) {
  const w = weights(shape);
  const n = schedule.dropped.length;
  const reads = (isDropped) => (kv ? w.perToken * kvLength(schedule, isDropped, promptTokens, step) : 0);
  const sum = (costs) => costs.reduce((total, cost) => total + cost, 0);
  const skipped = w.layers.filter((_, i) => schedule.dropped.includes(i)); // a link may name layers that do not exist
  const full = (layers) => sum(layers.map((layer) => layer.attention + layer.mlp));
  const all = w.others + full(w.layers) + (schedule.numLayers - n) * reads(false);
  if (kind(schedule, step, promptTokens) !== "lora") return w.head + all + n * reads(true);
  const extras = schedule.extras ?? NO_EXTRAS;
  const isScreened = schedule.head === "screened" && extras.head_rank > 0;
  let total = all - full(skipped) + (isScreened ? screenedHead(shape, extras) : w.head);
  if (rank) {
    // `corrected`: the layers with adapters; by default all.
    const { corrected } = schedule;
    const count = corrected ? schedule.dropped.filter((i) => corrected.includes(i)).length : n;
    const gate = Number(schedule.reuse === "residual");
    total += count * (2 * rank * shape.part_size + gate) * shape.hidden_size;
  }
  if (schedule.part === "attention") total += sum(skipped.map((layer) => layer.mlp));
  if (writesKv(schedule)) total += sum(skipped.map((layer) => shape.hidden_size + layer.kv));
  return total;
}

/**
 * Speed bound at batch 1 over `steps` decode steps; with null steps over one period, weights only.
 *
 * @param {Shape} shape
 * @param {Schedule} schedule
 * @param {number | null} [steps]
 * @param {number} [promptTokens]
 * @param {number} [rank]
 */
export function speedBound(shape, schedule, steps = null, promptTokens = 0, rank = 0) {
  const last = steps === null ? schedule.period : steps;
  const full = baseline(schedule.numLayers);
  let base = 0;
  let reads = 0;
  for (let step = 1; step <= last; step++) {
    base += stepReads(shape, full, step, promptTokens, 0, steps !== null);
    reads += stepReads(shape, schedule, step, promptTokens, rank, steps !== null);
  }
  return reads ? base / reads : 1;
}

/**
 * Share of a cycle's drafts that are accepted if each is accepted with `chance`, given those before it were.
 *
 * @param {number} chance
 * @param {number} drafts LoRA steps of a cycle, at least 1
 */
export function acceptedShare(chance, drafts) {
  let sum = 0;
  for (let i = 1; i <= drafts; i++) sum += chance ** i;
  return sum / drafts;
}

/**
 * A bound if only this share of the drafts is accepted: a cycle reads the same, but keeps fewer tokens.
 *
 * @param {number} bound
 * @param {number} period
 * @param {number} accepted
 */
export const verifiedBound = (bound, period, accepted) => (bound * (1 + accepted * (period - 1))) / period;

/**
 * Share of the baseline's K/V bytes that the schedule saves after `steps` decode steps, by the formula.
 *
 * @param {Shape} shape
 * @param {Schedule} schedule
 * @param {number} promptTokens
 * @param {number} steps
 */
export function kvSaved(shape, schedule, promptTokens, steps) {
  const full = kvTokens(baseline(schedule.numLayers), promptTokens, steps);
  return full ? 1 - kvTokens(schedule, promptTokens, steps) / full : 0;
}

