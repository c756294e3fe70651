/* The head of the whole figure: settings and figures of the run. */

import { decoderName, formatLoss, formatSaved, modelName } from "../format.js";

/** @typedef {import("../run.js").Run} Run */
/** @typedef {import("./sheet.js").Sheet} Sheet */

const LABEL = 150; // widest line of a figure's label, where its value is narrower

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
 * The verdict's figures, then the others of the run: value and label.
 *
 * @param {Run} run
 */
function figuresOf(run) {
  const now = run.figures;
  const glance = run.report?.verdict?.figures ?? [];
  const figures = glance.map(({ value, label }) => [value, label]);
  if (now.kv_saved !== null) figures.push([formatSaved(now.kv_saved), "K/V memory saved"]);
  if (now.quality_loss !== null) figures.push([formatLoss(now.quality_loss), "regret, nats a token"]);
  return figures;
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
  for (const [value, label] of figuresOf(run).reverse()) {
    const room = Math.max(sheet.measure(value, 38, 700), LABEL);
    const lines = sheet.wrap(label, room, 17, 3);
    const left = right - Math.max(sheet.measure(value, 38, 700), ...lines.map((line) => sheet.measure(label.slice(...line), 17)));
    sheet.text(left, y + 34, value, { size: 38, weight: 700 });
    lines.forEach((line, row) => sheet.text(left, y + 58 + 20 * row, label.slice(...line), { size: 17, color: "muted" }));
    right = left - 32;
  }
  const room = right - x;
  const { model, device, prompt } = run.header;
  const title = `LoRA-Drop on ${modelName(model.id)}`;
  const size = Math.max(24, Math.min(36, (36 * room) / sheet.measure(title, 36, 700)));
  sheet.text(x, y + 32, title, { size, weight: 700, width: room });
  const words = settingsWords(run);
  const small = [20, 18, 16, 14].find((pixels) => sheet.wrap(words, room, pixels, 2).length <= 2) ?? 14;
  sheet.wrap(words, room, small, 1).slice(0, 2).forEach(([start, end], row) => {
    const line = row ? words.slice(start) : words.slice(start, end).replace(/\s·$/, "");
    sheet.text(x, y + 64 + 26 * row, line, { size: small, width: room });
  });
  const below = y + 116;
  const muted = { size: 18, color: "muted" };
  const place = `${model.dtype}, ${decoderName(device.decoder)}, on ${device.name}`;
  const taken = sheet.text(x + width, below, place, { ...muted, anchor: "end", width: 0.5 * width });
  sheet.text(x, below, `Prompt: ${prompt.replace(/\s+/g, " ")}`, { ...muted, width: width - taken - 36 });
  const { line } = run.report?.verdict ?? {};
  if (line) sheet.text(x, below + 26, line, { size: 18, weight: 600, width });
  return below + (line ? 46 : 20);
}
