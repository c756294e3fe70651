/* The forecast: bound, saving and pattern of the settings, computed without a run. */

import { find, makeSvg } from "../dom.js";
import { formatNumber, formatShare } from "../format.js";
import { cellKind } from "../kinds.js";
import { isAdaptive, isBaseline, kind, kvSaved, repairs, speedBound, varies, verifies } from "../schedule.js";
import { bankOf, chosenPreset, differences, scheduleOf, withBank } from "../settings.js";

/** @typedef {import("../store.js").State} State */
/** @typedef {import("../store.js").Store} Store */
/** @typedef {import("../records.js").Schedule} Schedule */

const COUNT_AFTER_MS = 400;
const FIGURES = ["bound", "kv-saved", "dropped", "refreshes"];
const HEIGHT = 84; // of the pattern, about, in pixels

/**
 * Mount the forecast. Its props are the page's first model, the settings with their table, the presets and the number of
 * prompt tokens.
 *
 * @param {HTMLElement} element
 * @param {import("../records.js").Props} props
 * @param {{count_tokens: (wanted: [string, string]) => Promise<number | null>}} server
 * @param {Store} store
 */
export function mountWhatIf(element, props, server, store) {
  const { model, presets: named, settings, table, prompt_tokens: promptTokens } = props;
  store.update({ table, named, promptTokens, settings: { ...settings }, ...(store.state.model ? {} : { model }) });
  let isAsked = false;
  drawStrip(element, store.state);
  const strip = find(element, ".ld-whatif");
  store.subscribe(["run", "revision", "settings", "prompt", "model", "isUnfolding"], (state) => {
    strip.dataset.ran = String(Boolean(state.run?.isOver) && !state.run?.isRecorded && !state.isUnfolding && !differences(state).length);
  });
  store.subscribe(["model", "named", "settings", "promptTokens", "preset", "presets"], () => {
    if (isAsked) return;
    isAsked = true;
    requestAnimationFrame(() => {
      isAsked = false;
      drawStrip(element, store.state);
    });
  });
  countPrompt(server, store);
}

/**
 * @param {HTMLElement} element
 * @param {State} state
 */
function drawStrip(element, state) {
  const { model, settings, promptTokens } = state;
  if (!model || !settings) return;
  const schedule = scheduleOf(settings, model.shape.num_layers);
  const strip = find(element, ".ld-whatif");
  const note = find(element, ".ld-whatif-note");
  const figure = (name, text) => (find(element, `[data-figure="${name}"]`).textContent = text);
  if (typeof schedule === "string") {
    for (const name of FIGURES) figure(name, "–");
    note.textContent = schedule;
    strip.dataset.state = "invalid";
    return;
  }
  const steps = settings.max_new_tokens - 1;
  const plain = isBaseline(schedule);
  const bank = bankOf(model, settings, schedule);
  const corrected = withBank(model, settings, schedule, bank);
  const bound = `${formatNumber(speedBound(model.shape, corrected, steps, promptTokens, bank?.rank), 2)}×`;
  figure("bound", bound);
  const early = varies(schedule); // then the figures assume the longest gaps
  const saved = formatShare(kvSaved(model.shape, schedule, promptTokens, steps));
  figure("kv-saved", early ? `at most ${saved}` : saved);
  figure("dropped", plain ? "none" : `${schedule.dropped.length} of ${schedule.numLayers}`);
  figure("refreshes", plain ? "all" : `${early ? "at least " : ""}1 in ${schedule.period}`);
  find(element, ".ld-whatif-line").textContent = plain
    ? "Forecast: nothing is skipped."
    : `Forecast: speed bound ${bound}, ${saved} KV memory saved.`;
  strip.dataset.state = plain ? "baseline" : "drops";
  note.textContent = plain ? "This is the baseline: nothing is skipped." : noteWords(state, schedule, bank);
  /** @type {SVGElement} */
  const svg = find(element, ".ld-pattern-svg");
  drawPattern(svg, find(element, ".ld-pattern-caption"), schedule);
}

/** Words on the figures' assumptions and the expected quality. */
function noteWords(state, schedule, bank) {
  const { promptTokens, settings } = state;
  return (
    `For ${formatNumber(promptTokens)} prompt and ${formatNumber(settings.max_new_tokens)} new tokens. ` +
    "The bound is an estimate from memory traffic." +
    (isAdaptive(schedule) ? " Early refreshes take some of it back." : "") +
    (verifies(schedule) ? " Each rejected draft costs time." : "") +
    ` ${expectedWords(state, schedule, bank)}`
  );
}

/** Words on the expected quality: the chosen preset's measurement, or the sweep's nearest point. */
function expectedWords(state, schedule, bank) {
  const { model } = state;
  const chosen = chosenPreset(state);
  const figures = ({ regret }) => `regret ${formatNumber(regret, 2)} nats per token`;
  const own = bank ? chosen?.measured : chosen?.bare;
  if (own && own.regret !== null) return `This preset, measured: ${figures(own)}.`;
  const share = schedule.dropped.length / model.droppable;
  const away = (row) => Math.abs(row.drop_ratio - share) / 0.25 + Math.abs(Math.log2(row.period / schedule.period));
  const refresh = repairs(schedule) ? "repair" : "single";
  const alike = (row) =>
    row.reuse === schedule.reuse &&
    row.part === schedule.part &&
    row.refresh === refresh &&
    row.corrected === Boolean(bank);
  const nearest = model.sweep.filter(alike).sort((a, b) => away(a) - away(b))[0];
  if (!nearest) return "How well these settings read was not measured.";
  return `Nearest measured setting (p ${nearest.drop_ratio}, w ${nearest.period}): ${figures(nearest)}.`;
}

/** Count the prompt's tokens with the model's tokenizer when the typing stops. */
function countPrompt(server, store) {
  let timer = 0;
  let last = 0; // number of the latest request

  async function count(text) {
    const mine = ++last;
    try {
      const promptTokens = await server.count_tokens([text, store.state.model?.id]);
      if (mine === last && Number.isInteger(promptTokens)) store.update({ promptTokens });
    } catch {
      // The forecast keeps the last count; a run counts its own.
    }
  }

  store.subscribe(["prompt", "model"], ({ prompt }) => {
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
 */
function drawPattern(svg, caption, schedule) {
  const plain = isBaseline(schedule);
  const dropped = new Set(plain ? [] : schedule.dropped);
  // Whole pixels for each layer, or the rows would differ.
  const [width, height] = [240, schedule.numLayers * Math.max(1, Math.round(HEIGHT / schedule.numLayers))];
  svg.setAttribute("viewBox", `0 0 ${width} ${height}`);
  svg.setAttribute("preserveAspectRatio", "none");
  svg.style.height = `${height}px`;
  svg.replaceChildren(...cells(schedule, dropped, width, height));
  const what = plain ? "every step runs every layer" : `${schedule.period} steps, the last one full`;
  svg.setAttribute("aria-label", `Schedule pattern: ${what}; skipped layers ${[...dropped].join(", ") || "none"}`);
  caption.textContent = plain
    ? `Rows: ${schedule.numLayers} layers. Every step is the same.`
    : `Rows: ${schedule.numLayers} layers. Columns: ${isAdaptive(schedule) ? "up to " : ""}${schedule.period} steps.`;
}

/** One rectangle for each layer of each step. */
function cells(schedule, dropped, width, height) {
  const columns = isBaseline(schedule) ? 1 : Math.min(schedule.period, 64);
  const [cellW, cellH] = [width / columns, height / schedule.numLayers];
  const gap = cellH > 2 ? 1 : 0;
  const shapes = [];
  for (let column = 0; column < columns; column++) {
    const isLora = kind(schedule, column + 1) === "lora";
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
