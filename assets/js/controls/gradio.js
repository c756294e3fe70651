/* What Gradio's own controls ask of the page's scripts: lora_drop/ui/run_tab.py and safe_zone/tab.py name these. */

import { readLink } from "../export/link.js";
import { presetName, rulesOf } from "../settings.js";

/** @typedef {import("../store.js").Store} Store */

/**
 * The functions by the names that the layout calls them by.
 *
 * @param {Store} store
 */
export function gradioDoor(store) {
  const { state } = store;
  const valuesOf = (settings) => rulesOf(state.table).map((key) => settings?.[key]);
  return {
    /** The controls' values, in the table's order, when one changes; returns the preset that they make. */
    settings(values) {
      if (!state.settings) return "custom";
      const settings = Object.fromEntries(state.table.map(({ name }, i) => [name, values[i] ?? ""]));
      store.update({ settings: { ...state.settings, ...settings } });
      return presetName(state);
    },

    /** A visitor moved a control: from now on what runs is theirs. */
    moved: () => store.update({ isMoved: true }),

    /** A preset's name; returns the values of the controls. The one that the page opens on is what Show me shows. */
    preset(name) {
      store.update({ isMoved: name !== state.presets?.default });
      return valuesOf(state.named[name] ?? state.settings);
    },

    /** A cell of the Safe zone's map or a stop of the dial; returns the values of the controls. */
    chosen({ chosen }) {
      store.update({ isMoved: true }); // what runs from now on is the visitor's choice
      return rulesOf(state.table).map((key) => chosen?.[key] ?? state.settings?.[key]);
    },

    /** Press Run once the controls hold what was chosen. */
    async pressRun({ chosen }) {
      const isSet = () => rulesOf(state.table).every((key) => !(key in chosen) || String(state.settings?.[key]) === String(chosen[key]));
      for (let waited = 0; !isSet() && waited < 3000; waited += 50) await new Promise((done) => setTimeout(done, 50));
      /** @type {HTMLElement} */ (document.querySelector("#ld-tabs [role=tab]")).click();
      /** @type {HTMLElement} */ (document.querySelector("#ld-run")).click();
      window.scrollTo(0, 0);
    },

    /** A run is asked for. */
    asked: () => store.update({ isAsked: true }),

    /** It did not begin, or its connection was lost; returns the status line. */
    failed(refused, lost) {
      const { run, isAsked } = state;
      const isLost = Boolean(run && !isAsked && !run.isOver);
      if (run && isLost) run.isLost = true;
      store.update({ isAsked: false, revision: state.revision + 1 });
      return { kind: "error", text: isLost ? lost : refused };
    },

    /** The prompt changed. */
    prompt: (text) => store.update({ prompt: text }),

    /** The visitor chooses a model, which is not loaded yet. */
    modelChosen: () => store.update({ isChosen: true, isAsked: true }),

    /** A model is shown; returns the preset and the values of the controls. */
    modelSettings() {
      const found = state.isChosen ? state.facts?.value : null;
      const name = found ? found.presets.default : presetName(state);
      store.update({ isChosen: false, isAsked: false, isMoved: !found });
      return [name, ...valuesOf(found ? found.settings[name] : state.settings)];
    },

    /** The page has loaded; returns what its address asks for: all controls, the model and the status line. */
    fromLink() {
      const { values, link } = readLink(location.search, state.facts?.labels ?? [], state.table);
      store.update({ link, isMoved: link !== null });
      return values;
    },
  };
}
