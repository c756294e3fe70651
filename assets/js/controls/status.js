/* The status line of a run or a sweep, and a sweep's progress bar. */

import { find } from "../dom.js";

/**
 * Mount the status line: props.value is {kind, text}.
 *
 * @param {HTMLElement} element
 * @param {import("../records.js").Props} props
 * @param {import("../records.js").Watch} watch
 * @param {import("../store.js").Store} store
 */
export function mountStatus(element, props, watch, store) {
  const line = find(element, ".ld-status");
  const draw = () => {
    say(line, props.value);
    if (props.value.kind === "error") store.update({ isAsked: false }); // no run will start
  };
  watch("value", draw);
  draw();
}

/**
 * Mount the progress: props.value is {kind, text, done, total}.
 *
 * @param {HTMLElement} element
 * @param {import("../records.js").Props} props
 * @param {import("../records.js").Watch} watch
 */
export function mountProgress(element, props, watch) {
  const line = find(element, ".ld-status");
  /** @type {HTMLProgressElement} */
  const bar = find(element, "progress");
  const draw = () => {
    const { kind, done, total } = props.value;
    say(line, props.value);
    bar.max = Math.max(total, 1);
    bar.value = done;
    bar.dataset.kind = kind;
  };
  watch("value", draw);
  draw();
}

/**
 * @param {HTMLElement} line
 * @param {{kind: string, text: string}} value
 */
function say(line, { kind, text }) {
  line.textContent = text;
  line.dataset.kind = kind;
  line.title = text;
}
