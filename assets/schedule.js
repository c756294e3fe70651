/* The arithmetic of lora_drop/schedule.py for the page: which layers run when, what a step reads, what can be gained.
 * A test compares the two on random settings. A `schedule` is {period, numLayers, dropped, reuse, part, kv}, with
 * refreshEntropy and refreshNorm where it may refresh early; a `shape` has the fields of ModelShape. */
"use strict";
window.LoraDrop = window.LoraDrop || {};
window.LoraDrop.schedule = (() => {
  /** Round half to even, as Python does. */
  function roundHalfEven(x) {
    const below = Math.floor(x);
    if (x - below !== 0.5) return Math.round(x);
    return below % 2 === 0 ? below : below + 1;
  }

  /** The dropped layers of the range lo..hi (inclusive), evenly spread. */
  function droppedLayers(lo, hi, dropRatio) {
    const span = hi - lo + 1;
    const n = roundHalfEven(dropRatio * span);
    return Array.from({ length: n }, (_, j) => lo + Math.floor(((2 * j + 1) * span) / (2 * n)));
  }

  /** Does every step run every layer? */
  const isBaseline = (schedule) => schedule.period === 1 || schedule.dropped.length === 0;

  /** May a step be a refresh before its time? Then `kind` and what follows from it are the longest gaps. */
  const isAdaptive = (schedule) =>
    !isBaseline(schedule) && ((schedule.refreshEntropy ?? null) !== null || (schedule.refreshNorm ?? null) !== null);

  /** "prefill", "refresh" or "lora". */
  function kind(schedule, step) {
    if (step === 0) return "prefill";
    return isBaseline(schedule) || step % schedule.period === 0 ? "refresh" : "lora";
  }

  /** The schedule that drops nothing. */
  const baseline = (numLayers) => ({ period: 1, numLayers, dropped: [], reuse: "residual", part: "block", kv: "skip" });

  /** Tokens in the K/V cache of a layer after `step`, with `refreshes` of the steps up to it full. */
  function kvLength(schedule, isDropped, promptTokens, step, refreshes = Math.floor(step / schedule.period)) {
    return promptTokens + (isDropped && schedule.kv === "skip" ? refreshes : step);
  }

  /** Tokens in all layers' caches after `step`. */
  function kvTokens(schedule, promptTokens, step, refreshes) {
    const n = schedule.dropped.length;
    return (
      (schedule.numLayers - n) * kvLength(schedule, false, promptTokens, step, refreshes) +
      n * kvLength(schedule, true, promptTokens, step, refreshes)
    );
  }

  /** What ModelShape's weights cost to read, in units of an activation's size: matrices may be packed. */
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

  /** The exact KV formula: bytes held after `steps` decode steps. */
  const kvBytes = (shape, schedule, promptTokens, steps, itemsize) =>
    weights(shape).perToken * itemsize * kvTokens(schedule, promptTokens, steps);

  /** Bytes that decode step `step` has to read: weights used, and the K/V that each attention run reads. `happened` is
   * {isLora, refreshes} of a run: what the step was, and how many up to it were full; null is the fixed schedule. */
  function stepBytes(shape, schedule, step, promptTokens, itemsize, rank = 0, kv = true, happened = null) {
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
      const corrected = schedule.corrected ? schedule.dropped.filter((i) => schedule.corrected.includes(i)).length : n;
      total += corrected * (2 * rank * shape.hidden_size + (schedule.reuse === "residual" ? shape.hidden_size : 0));
    }
    if (schedule.part === "attention") dropped += w.mlp;
    if (schedule.kv === "write") dropped += shape.hidden_size + w.kv;
    total += n * dropped;
    return total * itemsize;
  }

  /** The most that the schedule can gain at batch 1 over `steps` decode steps; null steps: one period, weights only. */
  function speedBound(shape, schedule, steps = null, promptTokens = 0, rank = 0, kv = true) {
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

  /** Share of the baseline's KV bytes that the schedule saves after `steps` decode steps, by the formula. */
  function kvSaved(shape, schedule, promptTokens, steps) {
    const full = kvTokens(baseline(schedule.numLayers), promptTokens, steps);
    return full ? 1 - kvTokens(schedule, promptTokens, steps) / full : 0;
  }

  return {
    baseline,
    droppedLayers,
    isAdaptive,
    isBaseline,
    kind,
    kvBytes,
    kvLength,
    kvSaved,
    kvTokens,
    roundHalfEven,
    speedBound,
    stepBytes,
  };
})();
