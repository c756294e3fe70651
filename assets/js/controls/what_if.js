/* The forecast: how the settings read by the nearest measurement, and their bound, saving and pattern, without a run. */

import { find, makeSvg, withNextFrame } from "../dom.js";
import { formatLoss, formatNumber, formatShare } from "../format.js";
import { cellKind } from "../kinds.js";
import { isAdaptive, isBaseline, kind, kvSaved, refreshesOf, speedBound, varies, verifiedBound, verifies } from "../schedule.js";
import { bankOf, chosenPreset, differences, scheduleOf, withBank } from "../settings.js";
import { expectedOf } from "./expected.js";

/** @typedef {import("../store.js").State} State */
/** @typedef {import("../store.js").Store} Store */
/** @typedef {import("../records.js").Schedule} Schedule */

const COUNT_AFTER_MS = 400;
const FIGURES = ["reads", "expected", "bound", "kv-saved", "dropped", "refreshes"];
const HEIGHT = 84; // of the pattern, about, in pixels

/**
 * Mount the forecast. Its props are the page's first model, the settings with their table, the presets and the number of
 * prompt tokens.
 *
 * @param {HTMLElement} element
 * @param {import("../records.js").Props} props
 * @param {{count_tokens: (wanted: [string, string | undefined, any]) => Promise<number | null>}} server
 * @param {Store} store
 */
export function mountWhatIf(element, props, server, store) {
  const { model, presets: named, settings, table, prompt_tokens: promptTokens } = props;
  store.update({ table, named, promptTokens, settings: { ...settings }, ...(store.state.model ? {} : { model }) });
  drawStrip(element, store.state);
  const strip = find(element, ".ld-whatif");
  store.subscribe(["run", "revision", "settings", "prompt", "model", "isUnfolding"], (state) => {
    strip.dataset.ran = String(Boolean(state.run?.isOver) && !state.run?.isRecorded && !state.isUnfolding && !differences(state).length);
  });
  /** @type {(keyof State)[]} */
  const keys = ["model", "named", "settings", "promptTokens", "preset", "presets"];
  store.subscribe(keys, withNextFrame(() => drawStrip(element, store.state)));
  countPrompt(server, store);
}

/**
 * @param {HTMLElement} element
 * @param {State} state
 */
function drawStrip(element, state) {
  const { model, settings, presets, promptTokens } = state;
  if (!model || !settings || !presets) return;
  const schedule = scheduleOf(settings, model.shape.num_layers);
  const strip = find(element, ".ld-whatif");
  const note = find(element, ".ld-whatif-note");
  const line = find(element, ".ld-whatif-line");
  const figure = (name, text) => (find(element, `[data-figure="${name}"]`).textContent = text);
  if (typeof schedule === "string") {
    for (const name of FIGURES) figure(name, "–");
    line.textContent = "Forecast: these settings cannot run.";
    note.textContent = schedule;
    strip.dataset.state = "invalid";
    return;
  }
  const steps = settings.max_new_tokens - 1;
  const plain = isBaseline(schedule);
  const bank = bankOf(model, settings, schedule);
  const corrected = withBank(model, settings, schedule, bank);
  const expected = plain ? null : expectedOf(state, schedule, bank);
  const whole = speedBound(model.shape, corrected, steps, promptTokens, bank?.rank);
  const accepted = expected?.accepted ?? null;
  const bound = accepted === null ? whole : verifiedBound(whole, schedule.period, accepted);
  const isSlower = bound < presets.forecast.slower;
  const text = readsWords(schedule, plain, expected);
  figure("reads", text);
  find(element, "[data-figure=reads]").title = presets.criterion;
  figure("expected", verifies(schedule) ? (accepted === null ? "not measured" : `${of100(accepted)} of 100`) : "not checked");
  figure("bound", `${formatNumber(bound, 2)}×`);
  const early = varies(schedule); // then the figures assume the longest gaps
  const saved = formatShare(kvSaved(model.shape, schedule, promptTokens, steps));
  figure("kv-saved", early ? `at most ${saved}` : saved);
  figure("dropped", plain ? "none" : `${schedule.dropped.length} of ${schedule.numLayers}`);
  const full = refreshesOf(schedule, promptTokens, schedule.period);
  figure("refreshes", plain ? "all" : `${early ? "at least " : ""}${full} in ${schedule.period}`);
  line.textContent = `Forecast: ${plain ? "nothing is skipped" : lineWords(state, text, accepted, bound, isSlower)}.`;
  strip.dataset.state = plain ? "baseline" : "drops";
  strip.dataset.pace = isSlower ? "slower" : "";
  note.textContent = plain ? "This is the baseline: nothing is skipped." : noteWords(state, schedule, expected);
  /** @type {SVGElement} */
  const svg = find(element, ".ld-pattern-svg");
  drawPattern(svg, find(element, ".ld-pattern-caption"), schedule, promptTokens);
}

const of100 = (share) => formatNumber(100 * share);

/** How the text is expected to read. */
function readsWords(schedule, plain, expected) {
  if (plain || (verifies(schedule) && schedule.accept === 1)) return "the full model's own";
  return expected?.reads ?? "not measured";
}

/** The forecast at one glance: a preset as measured on this machine, else how fast and how the text reads. */
function lineWords(state, text, accepted, bound, isSlower) {
  const chosen = chosenPreset(state);
  if (chosen?.measured && chosen.measured.speedup !== null) return chosen.short;
  const reads = text === "not measured" ? "reading quality not measured" : text;
  const isMost = accepted !== null && accepted < 0.5;
  const rejected = `${isMost ? "most" : `${of100(1 - accepted)} of 100`} guesses are rejected`;
  if (isSlower) return `slower, as ${rejected}; ${reads}`;
  return `${isMost ? `${rejected}; ` : ""}${reads}, bound ${formatNumber(bound, 2)}×`;
}

/** Words on the figures' assumptions, and where the quality was measured. */
function noteWords({ promptTokens, settings }, schedule, expected) {
  const isCounted = typeof expected?.accepted === "number";
  return (
    `For ${formatNumber(promptTokens)} prompt and ${formatNumber(settings.max_new_tokens)} new tokens. ` +
    "The bound is an estimate from memory traffic." +
    (isAdaptive(schedule) ? " Early refreshes take some of it back." : "") +
    (verifies(schedule) ? ` Rejected drafts are ${isCounted ? "" : "not "}counted in it.` : "") +
    ` ${sourceWords(expected)}`
  );
}

function sourceWords(expected) {
  if (!expected) return "How these settings read was not measured, nor any near them.";
  const regret = expected.regret === null ? "" : ` (regret ${formatLoss(expected.regret)} nats per token)`;
  return `${expected.isExact ? "Measured" : "Nearest measured setting"}: ${expected.label}${regret}.`;
}

/** Count the prompt's tokens with the model's tokenizer when the typing stops. */
function countPrompt(server, store) {
  let timer = 0;
  let last = 0; // number of the latest request

  async function count(text) {
    const mine = ++last;
    try {
      const { model, settings } = store.state;
      const promptTokens = await server.count_tokens([text, model?.id, settings]);
      if (mine === last && Number.isInteger(promptTokens)) store.update({ promptTokens });
    } catch {
      // The forecast keeps the last count; a run counts its prompt again.
    }
  }

  const keyOf = ({ prompt, model, settings }) =>
    JSON.stringify([prompt, model?.id, settings?.system, settings?.thinking, settings?.plain]);
  let key = keyOf(store.state);
  store.subscribe(["prompt", "model", "settings"], (state) => {
    if (key === keyOf(state)) return;
    const { prompt } = state;
    key = keyOf(state);
    clearTimeout(timer);
    timer = setTimeout(() => count(prompt ?? firstPrompt()), COUNT_AFTER_MS);
  });
}

/** The page's first prompt: Gradio reports changes only. */
const firstPrompt = () =>
  /** @type {HTMLTextAreaElement | null} */ (document.querySelector("#ld-prompt textarea"))?.value ?? "";

/**
 * Draw the schedule: layers by one cycle of steps, in the colours of the layer-activity chart.
 *
 * @param {SVGElement} svg
 * @param {HTMLElement} caption
 * @param {import("../records.js").Schedule} schedule
 * @param {number} promptTokens
 */
function drawPattern(svg, caption, schedule, promptTokens) {
  const plain = isBaseline(schedule);
  const dropped = new Set(plain ? [] : schedule.dropped);
  // Whole pixels for each layer, or the rows would differ.
  const [width, height] = [240, schedule.numLayers * Math.max(1, Math.round(HEIGHT / schedule.numLayers))];
  svg.setAttribute("viewBox", `0 0 ${width} ${height}`);
  svg.setAttribute("preserveAspectRatio", "none");
  svg.style.height = `${height}px`;
  svg.replaceChildren(...cells(schedule, promptTokens, dropped, width, height));
  const full = refreshesOf(schedule, promptTokens, schedule.period);
  const which = full > 1 ? `${full} of them full` : "the last one full";
  const pattern = plain ? "every step runs every layer" : `${schedule.period} steps, ${which}`;
  svg.setAttribute("aria-label", `Schedule pattern: ${pattern}; skipped layers ${[...dropped].join(", ") || "none"}`);
  caption.textContent = plain
    ? `Rows: ${schedule.numLayers} layers. Every step is the same.`
    : `Rows: ${schedule.numLayers} layers. Columns: ${isAdaptive(schedule) ? "up to " : ""}${schedule.period} steps.`;
}

/** One rectangle for each layer of each step. */
function cells(schedule, promptTokens, dropped, width, height) {
  const columns = isBaseline(schedule) ? 1 : Math.min(schedule.period, 64);
  const [cellW, cellH] = [width / columns, height / schedule.numLayers];
  const gap = cellH > 2 ? 1 : 0;
  const shapes = [];
  for (let column = 0; column < columns; column++) {
    const isLora = kind(schedule, column + 1, promptTokens) === "lora";
    for (let layer = 0; layer < schedule.numLayers; layer++) {
      shapes.push(
        makeSvg("rect", {
          x: (column * cellW + 0.5).toFixed(2),
          y: (height - (layer + 1) * cellH).toFixed(2),
          width: Math.max(cellW - 1, 0.5).toFixed(2),
          height: (cellH - gap).toFixed(2),
          class: `ld-cell ld-cell-${cellKind(isLora, dropped.has(layer))}`,
        }),
      );
    }
  }
  return shapes;
}
