/* The Method tab: the build-up; folded under it the real schedule drawn and played, a pattern for each reuse rule, the
 * paper's table. */

import { find } from "../dom.js";
import { mountBuildUp } from "./build_up.js";
import { Drawing } from "./drawing.js";
import { fillPaper } from "./paper.js";
import { drawRule } from "./rules.js";

/** @typedef {import("../records.js").Model} Model */

/**
 * Mount the tab: the server has its words, a file of its own, and what the paper says.
 *
 * @param {HTMLElement} element
 * @param {{method_words: () => Promise<{words: string, label: string, ours: string, paper: Record<string, any>[]}>}} server
 * @param {import("../store.js").Store} store
 */
export async function mountMethod(element, server, store) {
  const found = await server.method_words();
  const { body } = new DOMParser().parseFromString(found.words, "text/html");
  find(element, ".ld-method").replaceChildren(...body.childNodes);
  mountBuildUp(find(element, ".ld-build-up"));
  for (const rule of element.querySelectorAll(".ld-rule")) {
    /** @type {SVGElement | null} */
    const svg = rule.querySelector(".ld-rule-svg");
    if (svg) drawRule(svg, /** @type {HTMLElement} */ (rule).dataset.rule ?? "");
  }
  fillPaper(element, found);
  const { state } = store;
  const drawing = new Drawing(element, () => ({ model: /** @type {Model} */ (state.model), settings: state.settings }));
  store.subscribe(["model"], () => drawing.build());
}
