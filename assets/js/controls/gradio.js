/* Functions that Gradio's controls call (lora_drop/ui/run_tab.py and safe_zone/tab.py name them), and the buttons and
 * facts that Gradio mounts. */

import { readLink } from "../export/link.js";
import { hasThirdLane, presetName, rulesOf } from "../settings.js";
import { runLabel } from "../store.js";

/** @typedef {import("../store.js").Store} Store */

/**
 * The functions, by their names in the layout.
 *
 * @param {Store} store
 */
export function gradioDoor(store) {
  const { state } = store;
  const valuesOf = (settings) => rulesOf(state.table).map((key) => settings?.[key]);
  return {
    /** A control changed: take all values, in the table's order; returns the name of their preset. */
    settings(values) {
      if (!state.settings) return "custom";
      const settings = Object.fromEntries(state.table.map(({ name }, i) => [name, values[i] ?? ""]));
      store.update({ settings: { ...state.settings, ...settings } });
      return presetName(state);
    },

    /** A visitor moved a control. */
    moved: () => store.update({ isMoved: true }),

    /** A preset was chosen; returns the values of the controls. With the default preset the button says "Show me". */
    preset(name) {
      store.update({ isMoved: name !== state.presets?.default });
      return valuesOf(state.named[name] ?? state.settings);
    },

    /** A cell of the Safe zone's map or a stop of the dial was chosen; returns the values of the controls. */
    chosen({ chosen }) {
      store.update({ isMoved: true });
      return rulesOf(state.table).map((key) => chosen?.[key] ?? state.settings?.[key]);
    },

    /** Press Run once the controls hold the chosen setting. */
    async pressRun({ chosen }) {
      const isSet = () => rulesOf(state.table).every((key) => !(key in chosen) || String(state.settings?.[key]) === String(chosen[key]));
      for (let waited = 0; !isSet() && waited < 3000; waited += 50) await new Promise((done) => setTimeout(done, 50));
      /** @type {HTMLElement} */ (document.querySelector("#ld-tabs [role=tab]")).click();
      /** @type {HTMLElement} */ (document.querySelector("#ld-run")).click();
      window.scrollTo(0, 0);
    },

    /** Run was pressed. */
    asked: () => store.update({ isAsked: true }),

    /** The run did not start, or lost its connection; returns the status line. */
    failed(refused, lost) {
      const { run, isAsked } = state;
      const isLost = Boolean(run && !isAsked && !run.isOver);
      if (run && isLost) run.isLost = true;
      store.update({ isAsked: false, revision: state.revision + 1 });
      return { kind: "error", text: isLost ? lost : refused };
    },

    /** The prompt changed. */
    prompt: (text) => store.update({ prompt: text }),

    /** On a narrow page: move the settings between the question and the answers, or back below these. */
    toSettings() {
      const page = /** @type {HTMLElement} */ (document.querySelector("#ld-page"));
      if (page.classList.toggle("ld-settings-first")) document.querySelector("#ld-settings")?.scrollIntoView();
    },

    /** The visitor chose a model; it may not be loaded yet. */
    modelChosen: () => store.update({ isChosen: true, isAsked: true }),

    /** A model is shown; returns the preset and the values of the controls. */
    modelSettings() {
      const facts = state.isChosen ? state.facts?.value : null;
      const name = facts ? facts.presets.default : presetName(state);
      store.update({ isChosen: false, isAsked: false, isMoved: !facts });
      return [name, ...valuesOf(facts ? facts.settings[name] : state.settings)];
    },

    /** The page has loaded; returns the values in its address: all controls, the model and the status line. */
    fromLink() {
      const { values, link } = readLink(location.search, state.facts?.labels ?? [], state.table);
      store.update({ link, isMoved: link !== null });
      return values;
    },
  };
}

/**
 * Mount the invisible component that brings a chosen model's facts. props.value is page_facts, null for the page's first
 * model; props.labels are the models that can be chosen.
 *
 * @param {import("../records.js").Props} props
 * @param {import("../records.js").Watch} watch
 * @param {Store} store
 */
export function mountFacts(props, watch, store) {
  store.update({ facts: props });
  watch("value", () => {
    if (!props.value) return;
    const { model, settings: named, presets } = props.value;
    store.update({ model, named, presets });
  });
}

/**
 * Label the page's button: "Show me" shows what LoRA-Drop does; after a control was moved, "Run" runs these settings.
 *
 * @param {Store} store
 */
export function mountRunButton(store) {
  const draw = () => {
    const button = document.querySelector("#ld-run");
    const stop = document.querySelector("#ld-stop");
    if (!(button instanceof HTMLElement) || !(stop instanceof HTMLElement)) return;
    const { isMoved } = store.state;
    button.textContent = runLabel(store.state);
    button.dataset.testid = isMoved ? "run" : "show-me";
    button.title = isMoved
      ? "Answers the prompt with the settings below, in place of the run on the page"
      : `Answers the prompt ${hasThirdLane(store.state) ? "three times" : "twice"}, side by side`;
    stop.dataset.testid = "stop";
    stop.title = "Ends the run after its current step; the text so far stays";
    const open = document.querySelector("#ld-open");
    if (open instanceof HTMLElement) open.title = "Opens a run that was saved as a trace, in place of the run on the page";
  };
  store.subscribe(["isMoved", "settings", "model", "presets"], draw);
  draw();
}
