/* The measured results of the nearest setting. Python makes the rows, their words and the limits
 * (lora_drop/run/results/forecast.py). */

import { acceptedShare, isAdaptive, verifies } from "../schedule.js";

/**
 * @typedef {object} Expected results of the nearest measured setting
 * @property {string} label its name
 * @property {boolean} isExact it is the very setting
 * @property {string | null} reads
 * @property {number | null} regret nats per token
 * @property {number | null} accepted share of the drafts, at the period of the settings
 */

/**
 * Results of the measured setting that is nearest; null if none is near, or nothing is skipped.
 *
 * @param {import("../store.js").State} state
 * @param {import("../records.js").Schedule} schedule
 * @param {import("../records.js").Bank | null} bank
 * @returns {Expected | null}
 */
export function expectedOf({ model, settings, presets }, schedule, bank) {
  if (!model || !settings || !presets || !schedule.dropped.length) return null;
  const { rows, near } = presets.forecast;
  const corrected = bank !== null && settings.corrections;
  const range = settings.drop_layers.trim() ? null : settings.layers;
  const isAlike = (row) =>
    row.reuse === schedule.reuse &&
    row.part === schedule.part &&
    row.refresh === schedule.refresh &&
    row.corrected === corrected &&
    row.early === isAdaptive(schedule) &&
    !schedule.refresh_position && // never measured
    row.accept > 0 === verifies(schedule);
  const apart = (row) =>
    (4 * layersApart(row, range, schedule.dropped)) / model.droppable +
    Math.abs(Math.log2(row.period / schedule.period)) / 2 +
    2 * Math.abs(row.accept - (schedule.accept ?? 0));
  const measured = rows.filter(isAlike).map((row) => ({ row, distance: apart(row) }));
  const nearest = measured.sort((a, b) => a.distance - b.distance)[0];
  if (!nearest || nearest.distance > near) return null;
  const { label, reads, regret, chance } = nearest.row;
  const accepted = chance === null ? null : acceptedShare(chance, schedule.period - 1);
  return { label, isExact: nearest.distance === 0, reads, regret, accepted };
}

/** Layers by which two choices differ; their numbers are compared where both are spread over the same range. */
function layersApart({ layers, range }, ownRange, dropped) {
  if (range && ownRange && String(range) === String(ownRange)) return Math.abs(layers.length - dropped.length);
  const both = layers.filter((layer) => dropped.includes(layer)).length;
  return Math.max(layers.length, dropped.length) - both;
}
