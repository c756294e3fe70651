/* How fast a run is played: one factor for all lanes, so that the race keeps its proportions. Measurements do not change. */

import { formatNumber } from "./format.js";
import { decodeMs, lastStep } from "./position.js";

/** @typedef {import("./run.js").Lane} Lane */
/** @typedef {import("./run.js").Run} Run */

const READING_MS = 8000; // most time for the slowest lane, if it takes less time
const TOKEN_MS = 62.5; // of a short answer: sixteen tokens a second
const SURE_FROM = 8; // decode steps of a lane after which its time can be predicted

/**
 * Milliseconds that a lane takes in all, predicted while it runs.
 *
 * @param {Run} run
 * @param {Lane} lane
 */
export function expectedMs(run, lane) {
  const last = lastStep(lane);
  if (last < 1) return 0;
  return decodeMs(lane, last) * (run.isOver ? 1 : Math.max(run.planned, last) / last);
}

/**
 * Speed at which a run is played: 1 is real time, 0.2 five times slower.
 *
 * @param {Run} run
 * @returns {{rate: number, isSure: boolean}}
 */
export function readingPace(run) {
  const longest = Math.max(...run.lanes.map((lane) => expectedMs(run, lane)));
  const steps = Math.max(...run.lanes.map((lane) => (run.isOver ? lastStep(lane) : run.planned)));
  const target = Math.min(READING_MS, Math.max(steps, 1) * TOKEN_MS);
  const isSure = run.isOver || run.lanes.every((lane) => lastStep(lane) >= SURE_FROM || hasEnded(run, lane));
  return { rate: longest > 0 ? Math.min(1, longest / target) : 1, isSure };
}

/**
 * The latest moment that all of the lanes have reached. A lane that has ended holds up no other.
 *
 * @param {Run} run
 * @param {Lane[]} lanes
 */
export function reached(run, lanes) {
  if (run.isOver) return Infinity;
  const going = lanes.filter((lane) => !hasEnded(run, lane));
  return Math.min(...going.map((lane) => (lane.steps.length ? decodeMs(lane, lastStep(lane)) : 0)));
}

/**
 * True if a lane of a running run writes no more: it has all tokens, or another lane made a step when this one was behind,
 * whose turn it would have been (lora_drop/run/race.py).
 *
 * @param {Run} run
 * @param {Lane} lane
 */
function hasEnded(run, lane) {
  if (lastStep(lane) >= run.planned) return true;
  if (run.header.sampling.view === "lock-step") return run.lanes.some((other) => lastStep(other) - 1 > lastStep(lane));
  const now = (lane.clock.at(-1) ?? 0) + lane.takenMs;
  return run.lanes.some((other) => other.clock.length > 1 && other.clock[lastStep(other) - 1] > now);
}

/** @param {number} rate */
export const paceWords = (rate) => (rate === 1 ? "real time" : `${formatNumber(rate, rate < 0.1 ? 3 : 2)}× real speed`);
