/* What Gradio's own controls ask of the page's scripts: lora_drop/ui/events.py names these. */

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
    /** The controls' values when one changes; returns the preset that they make. */
    settings(values) {
      if (!state.settings) return "custom";
      const names = [...rulesOf(state.table), "max_new_tokens"];
      const settings = Object.fromEntries(names.map((name, i) => [name, values[i] ?? ""]));
      store.update({ settings: { ...state.settings, ...settings } });
      return presetName(state);
    },

    /** A preset's name; returns the values of the controls. */
    preset: (name) => valuesOf(state.named[name] ?? state.settings),

    /** The prompt changed. */
    prompt: (text) => store.update({ prompt: text }),

    /** The visitor chooses a model, which is not loaded yet. */
    modelChosen: () => store.update({ isChosen: true }),

    /** A model is shown; returns the preset and the values of the controls. */
    modelSettings() {
      const found = state.isChosen ? state.facts?.value : null;
      const name = found ? found.presets.default : presetName(state);
      store.update({ isChosen: false });
      return [name, ...valuesOf(found ? found.settings[name] : state.settings)];
    },

    /** The page has loaded; returns what its address asks for: all controls, the model and the status line. */
    fromLink() {
      const { values, link } = readLink(location.search, state.facts?.labels ?? [], state.table);
      store.update({ link });
      return values;
    },
  };
}
