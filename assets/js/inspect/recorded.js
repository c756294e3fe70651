/* What a replay says of its steps: the server put it together (lora_drop/run/report/steps.py, `inside`). */

/** @typedef {[number, number, number, number, [string, number][] | null]} Told places in `words`, and the likeliest tokens */
/** @typedef {{words: any[], lanes: Record<string, Told[]>}} Inside */

/**
 * A step of a replay; null where it does not say.
 *
 * @param {import("../run.js").Run} run
 * @param {import("../run.js").Lane} lane
 * @param {number} step
 * @returns {import("./draw.js").Step | null}
 */
export function recorded(run, lane, step) {
  const inside = run.inside;
  const own = inside?.lanes[lane.id]?.[step];
  if (!inside || !own) return null;
  const drift = lane.audits.get(step)?.drift;
  const driftOf = (layer) => drift?.[lane.schedule.dropped.indexOf(layer)];
  const [did, , text, refresh] = own.slice(0, 4).map((place) => inside.words[Number(place)]);
  const others = Object.entries(inside.lanes).filter(([, steps]) => steps[step]);
  return {
    prefix_text: text,
    layers: did.map((words, layer) => ({ did: words, drift: driftOf(layer) ?? null })),
    top: Object.fromEntries(
      others.map(([name, steps]) => [name, { prefix_of: inside.words[steps[step][1]], tokens: steps[step][4] }]),
    ),
    refresh: refresh && { text: refresh },
  };
}
