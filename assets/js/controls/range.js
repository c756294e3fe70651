/* The two-handle slider of the droppable layers. */

import { find } from "../dom.js";

/** @typedef {import("../store.js").Store} Store */

/**
 * Mount the slider: props.value is [lo, hi], props.last the model's last layer; a move triggers `input`.
 *
 * @param {HTMLElement} element
 * @param {import("../records.js").Props} props
 * @param {import("../records.js").Watch} watch
 * @param {import("../records.js").Trigger} trigger
 * @param {Store} store
 */
export function mountRange(element, props, watch, trigger, store) {
  /** @type {HTMLInputElement} */
  const low = find(element, ".ld-range-lo");
  /** @type {HTMLInputElement} */
  const high = find(element, ".ld-range-hi");
  const draw = drawing(element, low, high);

  function setLast(last) {
    find(element, ".ld-range-last").textContent = last;
    for (const handle of [low, high]) {
      handle.min = "1";
      handle.max = last;
    }
  }

  function take() {
    if (!Array.isArray(props.value)) return;
    low.value = props.value[0];
    high.value = props.value[1];
    draw();
  }

  function moved(handle) {
    if (Number(low.value) > Number(high.value)) handle.value = handle === low ? high.value : low.value;
    draw();
    const { settings } = store.state;
    const layers = [Number(low.value), Number(high.value)];
    if (settings) store.update({ settings: { ...settings, layers, drop_layers: "" } });
  }

  for (const handle of [low, high]) {
    handle.addEventListener("input", () => moved(handle));
    // Gradio dispatches `change` when props.value is set: a second one here would fire twice.
    handle.addEventListener("change", () => {
      props.value = [Number(low.value), Number(high.value)];
      trigger("input"); // it also clears exact layers (lora_drop/ui/run_tab.py)
    });
  }

  /** Note whether exact layers replace the range. */
  function drawNote() {
    const isListed = (store.state.settings?.drop_layers ?? "").trim() !== "";
    const note = isListed ? "exact layers are set; moving this replaces them" : "layer 0 always runs";
    find(element, ".ld-range-note").textContent = note;
  }

  find(element, ".ld-range-info").textContent = props.info;
  drawNote();
  setLast(props.last);
  watch("value", take);
  take();
  store.subscribe(["settings"], drawNote);
  store.subscribe(["model"], ({ model }) => {
    if (!model) return;
    setLast(model.shape.num_layers - 1);
    take();
  });
}

/** Returns a function that draws the parts of the slider that follow its handles. */
function drawing(element, low, high) {
  const fill = find(element, ".ld-range-fill");
  const value = find(element, ".ld-range-value");
  return () => {
    const [lo, hi, last] = [low.value, high.value, low.max].map(Number);
    const at = (layer) => (last > 1 ? (layer - 1) / (last - 1) : 0);
    fill.style.left = `${100 * at(lo)}%`;
    fill.style.right = `${100 * (1 - at(hi))}%`;
    value.textContent = `${lo} – ${hi}`;
    // Where both handles meet, the handle that can still move must be on top.
    low.style.zIndex = at(lo) > 0.5 ? "3" : "2";
    high.style.zIndex = at(lo) > 0.5 ? "2" : "3";
  };
}
