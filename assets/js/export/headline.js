/* The head of the whole figure: settings and figures of the run. */

import { decoderName, formatNumber, formatSaved, formatShare, modelName } from "../format.js";

/** @typedef {import("../run.js").Run} Run */
/** @typedef {import("./sheet.js").Sheet} Sheet */

/**
 * Settings of the main lane in words, each on one line.
 *
 * @param {Run} run
 */
function settingsWords({ header, main }) {
  const words = [...header.words.lanes[main.id], ...header.words.run];
  return words.map((part) => part.replaceAll(" ", "\u00A0")).join("\u00A0· ");
}

/**
 * The run's figures: name, value, and a note below.
 *
 * @param {Run} run
 */
function figuresOf(run) {
  const now = run.figures;
  const differs = now.first_divergence ?? null;
  const none = run.lanes.length > 1 ? "none" : "–";
  const times = (value) => (value ? `${formatNumber(value, 2)}×` : "");
  const chance = now.by_chance ? ", timing noise" : "";
  const words = run.summary?.words.speedup;
  const bound = now.bound ? `bound ${times(now.bound)}${chance}` : "";
  const loss = now.quality_loss;
  return [
    ["Speedup", (!words && times(now.speedup)) || "–", words ?? bound],
    ["KV memory saved", formatSaved(now.kv_saved), ""],
    ["Regret", loss === null ? "–" : formatNumber(loss, 2), loss === null ? "" : "nats a token"],
    ["Same next token", formatShare(now.top1_agreement ?? null, 1), "at LoRA steps"],
    ["First difference", differs === null ? none : `token ${formatNumber(differs + 1)}`, ""],
  ];
}

/**
 * Draw the settings on the left and the figures on the right; returns the top of the next row.
 *
 * @param {Sheet} sheet
 * @param {Run} run
 * @param {{x: number, y: number, width: number}} box
 */
export function addHeadline(sheet, run, { x, y, width }) {
  let right = x + width;
  for (const [name, value, more] of figuresOf(run).reverse()) {
    const wide = Math.max(sheet.measure(value, 38, 700), sheet.measure(name, 18), sheet.measure(more, 18));
    const left = right - wide;
    sheet.text(left, y + 18, name, { size: 18, color: "muted" });
    sheet.text(left, y + 60, value, { size: 38, weight: 700 });
    sheet.text(left, y + 86, more, { size: 18, color: "muted" });
    right = left - 36;
  }
  const room = right - x;
  const { model, device, prompt } = run.header;
  const title = `LoRA-Drop on ${modelName(model.id)}`;
  const size = Math.max(24, Math.min(36, (36 * room) / sheet.measure(title, 36, 700)));
  sheet.text(x, y + 32, title, { size, weight: 700, width: room });
  const words = settingsWords(run);
  const small = [20, 18, 16, 14].find((one) => sheet.wrap(words, room, one, 2).length <= 2) ?? 14;
  sheet.wrap(words, room, small, 1).slice(0, 2).forEach(([start, end], row) => {
    const line = row ? words.slice(start) : words.slice(start, end).replace(/\s·$/, "");
    sheet.text(x, y + 64 + 26 * row, line, { size: small, width: room });
  });
  const below = y + 116;
  const muted = { size: 18, color: "muted" };
  const place = `${model.dtype}, ${decoderName(device.decoder)}, on ${device.name}`;
  const taken = sheet.text(x + width, below, place, { ...muted, anchor: "end", width: 0.5 * width });
  sheet.text(x, below, `Prompt: ${prompt.replace(/\s+/g, " ")}`, { ...muted, width: width - taken - 36 });
  return below + 20;
}
