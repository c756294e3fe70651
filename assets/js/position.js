/* The scrubber's position in each lane's tokens. All lanes share the prefill; their clocks start after it. */

/** @typedef {import("./store.js").State} State */
/** @typedef {import("./run.js").Lane} Lane */

/**
 * Milliseconds of decoding on a lane's clock up to a step.
 *
 * @param {Lane} lane
 * @param {number} step
 */
export const decodeMs = ({ clock }, step) => (clock.length ? clock[step] - clock[0] : 0);

/** @param {Lane} lane */
export const lastStep = (lane) => lane.steps.length - 1;

/**
 * Number of tokens that a lane has written by a moment.
 *
 * @param {Lane} lane
 * @param {number} moment milliseconds of decoding
 */
export function tokensBy(lane, moment) {
  let count = 0;
  let above = lane.clock.length;
  while (count < above) {
    const middle = (count + above) >> 1;
    if (decodeMs(lane, middle) <= moment) count = middle + 1;
    else above = middle;
  }
  return count;
}

/**
 * Number of tokens that a lane shows at the scrubber's position: those written by then on its own clock, or up to the same
 * step. Null at the live end, where all are shown.
 *
 * @param {Pick<State, "run" | "step" | "moment" | "isSameStep">} state
 * @param {Lane} lane
 * @returns {number | null}
 */
export function shownTokens({ run, step, moment, isSameStep }, lane) {
  if (step === null || !run) return null;
  const { focus } = run;
  if (isSameStep || (lane === focus && moment === null)) return Math.min(step + 1, lane.steps.length);
  return tokensBy(lane, moment ?? decodeMs(focus, step));
}
