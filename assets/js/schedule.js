/* The arithmetic of schedule.py and cost for the page: which layers run when, what a step reads, what can be gained.
 * It serves what is drawn with no run: the what-if strip, the Method tab, the formulas beside what was counted. A test
 * compares the two on random settings. */

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
 * The skipped layers of the range lo..hi (inclusive), evenly spread.
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
 * Does every step run every layer?
 *
 * @param {Schedule} schedule
 */
export const isBaseline = (schedule) => schedule.period === 1 || schedule.dropped.length === 0;

/**
 * May a step be a refresh before its time? Then `kind` and what follows from it are the longest gaps.
 *
 * @param {Schedule} schedule
 */
export const isAdaptive = (schedule) =>
  !isBaseline(schedule) && Boolean(schedule.hasTriggers);

/**
 * @param {Schedule} schedule
 * @param {number} step
 * @returns {"prefill" | "refresh" | "lora"}
 */
export function kind(schedule, step) {
  if (step === 0) return "prefill";
  return isBaseline(schedule) || step % schedule.period === 0 ? "refresh" : "lora";
}

/**
 * The schedule that skips nothing.
 *
 * @param {number} numLayers
 * @returns {Schedule}
 */
export const baseline = (numLayers) => ({ period: 1, numLayers, dropped: [], reuse: "residual", part: "block", kv: "skip" });

/**
 * Tokens in the K/V cache of a layer after `step`, with `refreshes` of the steps up to it full.
 *
 * @param {Schedule} schedule
 * @param {boolean} isDropped
 * @param {number} promptTokens
 * @param {number} step
 * @param {number} [refreshes]
 */
export function kvLength(schedule, isDropped, promptTokens, step, refreshes = Math.floor(step / schedule.period)) {
  return promptTokens + (isDropped && schedule.kv === "skip" ? refreshes : step);
}

/**
 * Tokens in all layers' caches after `step`.
 *
 * @param {Schedule} schedule
 * @param {number} promptTokens
 * @param {number} step
 * @param {number} [refreshes]
 */
export function kvTokens(schedule, promptTokens, step, refreshes) {
  const n = schedule.dropped.length;
  return (
    (schedule.numLayers - n) * kvLength(schedule, false, promptTokens, step, refreshes) +
    n * kvLength(schedule, true, promptTokens, step, refreshes)
  );
}

/**
 * What ModelShape's weights cost to read, in units of an activation's size: matrices may be packed.
 *
 * @param {Shape} shape
 */
function weights(shape) {
  const bias = Number(shape.qkv_bias);
  const norm = shape.qk_norm ? shape.head_dim : 0;
  const inner = shape.num_heads * shape.head_dim;
  const perToken = 2 * shape.num_kv_heads * shape.head_dim;
  const matrix = (count) => count * shape.matrix_size;
  const kv = matrix(perToken * shape.hidden_size) + perToken * bias + norm;
  const q = matrix(inner * shape.hidden_size) + inner * bias + norm;
  return {
    kv,
    attention: shape.hidden_size + q + kv + matrix(inner * shape.hidden_size),
    mlp: shape.hidden_size + matrix(3 * shape.hidden_size * shape.intermediate_size),
    shared: shape.vocab_size * shape.hidden_size * shape.head_size + 2 * shape.hidden_size,
    perToken,
  };
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
 * Bytes that decode step `step` has to read: weights used, and the K/V that each attention run reads. `happened` is
 * of a run: what the step was, and how many up to it were full; without it, the fixed schedule.
 *
 * @param {Shape} shape
 * @param {Schedule} schedule
 * @param {number} step
 * @param {number} promptTokens
 * @param {number} itemsize
 * @param {number} [rank]
 * @param {boolean} [kv]
 * @param {{isLora: boolean, refreshes: number}} [happened]
 */
export function stepBytes(shape, schedule, step, promptTokens, itemsize, rank = 0, kv = true, happened = undefined) {
  const w = weights(shape);
  const isLora = happened ? happened.isLora : kind(schedule, step) === "lora";
  const n = schedule.dropped.length;
  const full = w.attention + w.mlp;
  const held = (isDropped) => kvLength(schedule, isDropped, promptTokens, step, happened?.refreshes);
  const reads = (isDropped) => (kv ? w.perToken * held(isDropped) : 0);
  let total = w.shared + (schedule.numLayers - n) * (full + reads(false));
  if (!isLora) return (total + n * (full + reads(true))) * itemsize;
  let dropped = 0;
  if (rank) {
    // `corrected`: the layers that have adapters; without it, all.
    const own = schedule.corrected;
    const corrected = own ? schedule.dropped.filter((i) => own.includes(i)).length : n;
    total += corrected * (2 * rank * shape.hidden_size + (schedule.reuse === "residual" ? shape.hidden_size : 0));
  }
  if (schedule.part === "attention") dropped += w.mlp;
  if (schedule.kv === "write") dropped += shape.hidden_size + w.kv;
  total += n * dropped;
  return total * itemsize;
}

/**
 * The most that the schedule can gain at batch 1 over `steps` decode steps; null steps: one period, weights only.
 *
 * @param {Shape} shape
 * @param {Schedule} schedule
 * @param {number | null} [steps]
 * @param {number} [promptTokens]
 * @param {number} [rank]
 * @param {boolean} [kv]
 */
export function speedBound(shape, schedule, steps = null, promptTokens = 0, rank = 0, kv = true) {
  const counts = steps === null ? false : kv;
  const last = steps === null ? schedule.period : steps;
  const full = baseline(schedule.numLayers);
  let base = 0;
  let own = 0;
  for (let step = 1; step <= last; step++) {
    base += stepBytes(shape, full, step, promptTokens, 1, 0, counts);
    own += stepBytes(shape, schedule, step, promptTokens, 1, rank, counts);
  }
  return own ? base / own : 1;
}

/**
 * Share of the baseline's KV bytes that the schedule saves after `steps` decode steps, by the formula.
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

