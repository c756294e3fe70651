/* The what-if strip: what the settings would do, drawn with no run. */

import { find } from "../dom.js";
import { formatNumber, formatShare } from "../format.js";
import { isAdaptive, isBaseline, verifies, kvSaved, repairs, speedBound, varies } from "../schedule.js";
import { differences } from "../stale.js";
import { bankOf, chosenPreset, scheduleOf, withBank } from "../settings.js";
import { drawPattern } from "./pattern.js";

/** @typedef {import("../store.js").State} State */
/** @typedef {import("../store.js").Store} Store */
/** @typedef {import("../records.js").Schedule} Schedule */

const COUNT_AFTER_MS = 400;
const FIGURES = ["bound", "kv-saved", "dropped", "refreshes"];

/**
 * Mount the strip. Its props bring the page's first model, settings with their table, presets and number of prompt tokens.
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
  figure("bound", verifies(schedule) ? `at most ${bound}` : bound);
  const early = varies(schedule); // then all of this is what the longest gaps would give
  const saved = formatShare(kvSaved(model.shape, schedule, promptTokens, steps));
  figure("kv-saved", early ? `at most ${saved}` : saved);
  figure("dropped", plain ? "none" : `${schedule.dropped.length} of ${schedule.numLayers}`);
  figure("refreshes", plain ? "all" : `${early ? "at least " : ""}1 in ${schedule.period}`);
  find(element, ".ld-whatif-line").textContent = plain
    ? "By these settings nothing is skipped."
    : `By these settings, computed: ${bound.replace("at most ", "")} at most, ${saved} KV memory saved.`;
  strip.dataset.state = plain ? "baseline" : "drops";
  note.textContent = plain ? "This is the baseline: nothing is skipped." : noteWords(state, schedule, bank);
  /** @type {SVGElement} */
  const svg = find(element, ".ld-pattern-svg");
  drawPattern(svg, find(element, ".ld-pattern-caption"), schedule);
}

/** What the figures hold for, and what quality to expect. */
function noteWords(state, schedule, bank) {
  const { promptTokens, settings } = state;
  return (
    `For ${formatNumber(promptTokens)} prompt and ${formatNumber(settings.max_new_tokens)} new tokens. ` +
    "Reading fewer bytes is the most that can be gained." +
    (isAdaptive(schedule) ? " Early refreshes take some of it back." : "") +
    (verifies(schedule) ? " Each token that is taken back costs time." : "") +
    ` ${expectedWords(state, schedule, bank)}`
  );
}

/** What quality to expect: a chosen preset's own figures, else those of the sweep's nearest point, named as such. */
function expectedWords(state, schedule, bank) {
  const { model } = state;
  const chosen = chosenPreset(state);
  const figures = ({ loss }) => `quality loss ${formatNumber(loss, 2)} nats per token`;
  const own = bank ? chosen?.measured : chosen?.bare;
  if (own) return `This preset, measured: ${figures(own)}.`;
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

/** Count the prompt's tokens with the model's tokenizer, once the typing stops. */
function countPrompt(server, store) {
  let timer = 0;
  let last = 0; // number of the count that was asked for last

  async function count(text) {
    const mine = ++last;
    try {
      const promptTokens = await server.count_tokens([text, store.state.model?.id]);
      if (mine === last && Number.isInteger(promptTokens)) store.update({ promptTokens });
    } catch {
      // The strip keeps the last count: it is a guide, and the run counts for itself.
    }
  }

  store.subscribe(["prompt", "model"], ({ prompt }) => {
    clearTimeout(timer);
    timer = setTimeout(() => count(prompt ?? firstPrompt()), COUNT_AFTER_MS);
  });
}

/** The page's first prompt is Gradio's: it reports changes only. */
const firstPrompt = () =>
  /** @type {HTMLTextAreaElement | null} */ (document.querySelector("#ld-prompt textarea"))?.value ?? "";
