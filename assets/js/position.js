/* Where the scrubber stands, in each lane's tokens. */

/** @typedef {import("./store.js").State} State */

/**
 * How many tokens a lane shows at the scrubber's position: what it had by then on its own clock, or the same step.
 * Null at the live end, where all of them show.
 *
 * @param {State} state
 * @param {import("./run.js").Lane} lane
 * @returns {number | null}
 */
export function shownTokens({ run, step, moment, isSameStep }, lane) {
  if (step === null || !run) return null;
  const { focus } = run;
  if (lane === focus || isSameStep) return Math.min(step + 1, lane.steps.length);
  const until = moment ?? focus.clock[step];
  let count = 0;
  let above = lane.clock.length;
  while (count < above) {
    const middle = (count + above) >> 1;
    if (lane.clock[middle] <= until) count = middle + 1;
    else above = middle;
  }
  return count;
}
