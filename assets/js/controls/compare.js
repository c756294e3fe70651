/* The corrections in use, and a choice of third lane: the same run with one setting changed. */

import { find, makeButton } from "../dom.js";
import { formatLoss, formatNumber } from "../format.js";
import { isBaseline, verifies } from "../schedule.js";
import { bankOf, chosenPreset, scheduleOf } from "../settings.js";

/** @typedef {import("../store.js").State} State */

/**
 * Mount the choice: props.comparisons are {button, lane} by name, props.value a name or "" for none.
 *
 * @param {HTMLElement} element
 * @param {import("../records.js").Props} props
 * @param {import("../records.js").Watch} watch
 * @param {import("../store.js").Store} store
 */
export function mountCompare(element, props, watch, store) {
  const choices = [["", { button: "none" }], ...Object.entries(props.comparisons)];
  const choose = (name) => {
    props.value = name;
    const { settings } = store.state;
    store.update({ isMoved: true, ...(settings && { settings: { ...settings, compare: name } }) });
    draw();
  };
  const buttons = Object.fromEntries(choices.map(([name, { button }]) => [name, buttonOf(name, button, () => choose(name))]));
  const draw = () => drawChoice(element, buttons, props.value ?? "", store.state);
  find(element, ".ld-compare-buttons").append(...Object.values(buttons));
  watch("value", draw);
  store.subscribe(["model", "settings", "preset", "presets"], draw);
  draw();
}

function buttonOf(name, text, press) {
  const button = makeButton(text, press);
  button.dataset.compare = name;
  return button;
}

/**
 * Draw which third lanes are possible, and words about the corrections.
 *
 * @param {HTMLElement} element
 * @param {Record<string, HTMLButtonElement>} buttons
 * @param {string} pressed
 * @param {State} state
 */
function drawChoice(element, buttons, pressed, state) {
  const { model, settings } = state;
  if (!model || !settings) return;
  const schedule = scheduleOf(settings, model.shape.num_layers);
  const drops = typeof schedule !== "string" && !isBaseline(schedule);
  const bank = drops ? bankOf(model, settings, schedule) : null;
  const isCorrected = bank !== null && settings.corrections;
  buttons["corrections-off"].disabled = !isCorrected;
  buttons["adapters-off"].hidden = pressed !== "adapters-off"; // of old links: now corrections and head are apart
  buttons.bare.disabled = !isCorrected && !(drops && verifies(schedule));
  buttons["screened-head"].disabled = !drops || !hasScreenedHead(model, settings);
  for (const rule of ["skip", "state", "residual"]) buttons[rule].disabled = !drops || settings.reuse === rule;
  buttons.state.hidden = settings.reuse === "state"; // the paper's rule against ours, or the other way round
  buttons.residual.hidden = settings.reuse !== "state";
  for (const [name, button] of Object.entries(buttons)) button.setAttribute("aria-pressed", String(name === pressed));
  // A model without corrections gets the command that trains some.
  const train = find(element, ".ld-train");
  train.hidden = !model.train || !drops;
  find(train, "code").textContent = model.train ?? "";
  const words = drops ? bankWords(settings, bank) + measuredWords(state, bank) : baselineWords(schedule);
  find(element, ".ld-compare-note").textContent = words;
}

/** True if the adapters that exact refreshes use have a screened head. */
const hasScreenedHead = ({ banks }, { adapters, reuse, part }) =>
  adapters === "none" ? false : (banks[[reuse, part, "repair", "write"].join("/")]?.head_rank ?? 0) > 0;

/** Words about the bank, such as "Corrections residual64, rank 64, trained on 143,360 tokens." */
function bankWords(settings, bank) {
  if (settings.adapters === "none") return "The adapters are off; the untrained rule stands in.";
  if (settings.adapters !== "auto") return `Corrections ${settings.adapters}, read when the run starts.`;
  if (!bank) return `${NO_BANK} The untrained rule stands in, so a lane with corrections off would be the same.`;
  if (!settings.corrections) return "The corrections are off; the untrained rule stands in.";
  const trained = bank.tokens === null ? "" : `, trained on ${formatNumber(bank.tokens)} tokens`;
  return `Corrections ${bank.name}, rank ${bank.rank}${trained}.`;
}

/** The chosen preset's measured loss with corrections and without. */
function measuredWords(state, bank) {
  const chosen = chosenPreset(state);
  if (!bank || !chosen?.measured || !chosen.bare) return "";
  const [withThem, without] = [chosen.measured, chosen.bare].map((row) => formatLoss(row.regret));
  return ` Measured regret, nats per token: ${withThem} with them, ${without} without.`;
}

const NO_BANK = "There are no trained corrections for these settings.";

const baselineWords = (schedule) =>
  typeof schedule === "string" ? "These settings cannot run." : "Nothing is skipped: there is nothing to compare.";
