/* The Method tab: the build-up; folded under it the real schedule drawn and played, a pattern for each reuse rule, the
 * paper's table. */

import { find } from "../dom.js";
import { mountBuildUp } from "./build_up.js";
import { Drawing } from "./drawing.js";
import { fillPaper } from "./paper.js";
import { drawRule } from "./rules.js";

/**
 * Mount the tab: props.model is what model_facts says, props.paper the paper's rows, props.ours our own in words.
 *
 * @param {HTMLElement} element
 * @param {import("../records.js").Props} props
 * @param {import("../store.js").Store} store
 */
export function mountMethod(element, props, store) {
  mountBuildUp(find(element, ".ld-build-up"));
  for (const rule of element.querySelectorAll(".ld-rule")) {
    /** @type {SVGElement | null} */
    const svg = rule.querySelector(".ld-rule-svg");
    if (svg) drawRule(svg, /** @type {HTMLElement} */ (rule).dataset.rule ?? "");
  }
  fillPaper(element, props);
  const { state } = store;
  const drawing = new Drawing(element, () => ({ model: state.model ?? props.model, settings: state.settings }));
  store.subscribe(["model"], () => drawing.build());
}
