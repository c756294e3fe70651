/* A model that was chosen from the menu: its facts go into the store, and so to all who draw with them. */

/** @typedef {import("../store.js").Store} Store */

/**
 * Mount what brings a chosen model: props.value is page_facts, null for the model that the page was built over;
 * props.labels are the models on offer. It has nothing to see.
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
