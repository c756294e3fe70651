/* The method in four ideas, each with a slider, then the formula. It needs no run, model or server. */

import { make, makeSvg } from "../dom.js";
import { IDEAS, VIEW } from "./scenes.js";

/** @typedef {import("./scenes.js").Idea} Idea */

// Text before each letter, the letter, and its index.
const FORMULA = [
  ["", "h", "t, i+1"],
  [" = ", "h", "t, i"],
  [" + ", "g", ""],
  [" · (", "h", "a, i+1"],
  [" − ", "h", "a, i"],
  [") + ", "d", ""],
];

/** The card of the two steps, for a slide. */
export const twoStepsCard = () => cardOf(IDEAS[1]);

/**
 * Fill an element with the build-up.
 *
 * @param {HTMLElement} element
 */
export function mountBuildUp(element) {
  element.replaceChildren(...IDEAS.map(cardOf), formula());
}

/** @param {Idea} idea */
function cardOf(idea) {
  const card = make("article", "ld-chart ld-idea");
  card.dataset.idea = idea.id;
  const svg = makeSvg("svg", { viewBox: VIEW, class: "ld-idea-svg", role: "img", "aria-label": idea.title });
  const words = make("p", "ld-idea-words");
  const place = make("output");
  const range = make("input");
  Object.assign(range, { type: "range", min: "0", max: String(idea.max), step: "1", value: String(idea.start) });
  const slider = make("label", "ld-idea-slider");
  slider.append(make("span", "", idea.slider), place, range);
  const draw = () => {
    const at = Number(range.value);
    place.textContent = idea.where(at);
    range.setAttribute("aria-valuetext", idea.where(at));
    words.textContent = idea.words(at);
    svg.replaceChildren(...idea.draw(at));
  };
  range.addEventListener("input", draw);
  draw();
  card.append(make("h3", "", idea.title), svg, slider, words);
  return card;
}

/** The formula of the four ideas. */
function formula() {
  const card = make("article", "ld-chart ld-idea ld-idea-formula");
  const line = make("p", "ld-formula");
  for (const [before, name, place] of FORMULA) {
    line.append(before, make("i", "", name), ...(place ? [make("sub", "", place)] : []));
  }
  card.append(
    make("h3", "", "In one line: a skipped layer"),
    line,
    make(
      "p",
      "ld-idea-words",
      "The token t keeps its own stream h. Layer i reuses what it added at the last full step a, scaled by a learned gate g; d = (α / r) · B (A h) is the trained correction.",
    ),
  );
  return card;
}
