/* The talk mode: large, 16:9, one thing a slide, no controls. The keys of a clicker turn the slides. */

import { find, make } from "../dom.js";

const TYPED_IN = "input:not([type=range]):not([type=checkbox]), textarea, select";
/** Slides in order, with their titles; the first has the prompt instead. */
const TITLES = {
  prompt: "",
  steps: "Two kinds of step",
  answers: "The answers",
  verdict: "What it gives",
  stack: "Which layers run",
  race: "The race",
  activity: "Layer activity",
  drift: "Drift from the full model",
  kv: "K/V memory",
};
const SLIDES = Object.keys(TITLES);

/**
 * @param {HTMLElement} root
 * @param {import("../store.js").Store} store
 * @param {() => Promise<typeof import("../method/build_up.js")>} loadBuildUp the Method's drawings, loaded with the mode
 */
export function mountTalk(root, store, loadBuildUp) {
  const button = find(root, "[data-act=talk]");
  const head = make("h1", "ld-talk-head"); // the slide hides the page's heading
  root.prepend(head);
  const steps = make("section", "ld-steps");
  root.append(steps);
  const toggle = () => store.update({ isTalk: !store.state.isTalk });

  async function drawSteps() {
    try {
      const { twoStepsCard } = await loadBuildUp();
      steps.replaceChildren(twoStepsCard());
    } catch {
      steps.textContent = "The drawing could not be loaded: the server cannot be reached.";
    }
  }

  /** @param {number} by slides */
  function turn(by) {
    const at = SLIDES.indexOf(root.dataset.slide ?? "") + by;
    show(SLIDES[Math.max(0, Math.min(at, SLIDES.length - 1))]);
  }

  /** @param {string} slide */
  function show(slide) {
    const { run, prompt } = store.state;
    root.dataset.slide = slide;
    head.textContent = TITLES[slide] || (run?.header.prompt ?? prompt ?? "");
  }

  /** @param {string} key @returns {boolean} true if the key was handled */
  function press(key) {
    if (key.toLowerCase() === "t") toggle();
    else if (!store.state.isTalk) return false;
    else if (key === "PageDown" || key === "ArrowRight") turn(1);
    else if (key === "PageUp" || key === "ArrowLeft") turn(-1);
    else if (key.toLowerCase() === "r") /** @type {HTMLElement | null} */ (document.querySelector("#ld-run"))?.click();
    else if (key === "Escape") toggle();
    else return false;
    return true;
  }

  button.addEventListener("click", toggle);
  document.addEventListener("keydown", (event) => {
    const target = /** @type {Element} */ (event.target);
    if (target.matches?.(TYPED_IN) || event.ctrlKey || event.metaKey || event.altKey || event.defaultPrevented) return;
    if (press(event.key)) event.preventDefault();
  });
  store.subscribe(["run", "prompt"], () => show(root.dataset.slide ?? "prompt"));
  store.subscribe(["isTalk"], ({ isTalk, run }) => {
    if (isTalk) show(run ? "answers" : "prompt");
    if (isTalk && !steps.querySelector("svg")) drawSteps();
    // Style sheets and charts follow the body's class.
    document.body.classList.toggle("ld-talk", isTalk);
    root.classList.toggle("ld-talking", isTalk);
    button.setAttribute("aria-pressed", String(isTalk));
    window.scrollTo(0, 0);
  });
  if (new URLSearchParams(location.search).get("talk") === "1") store.update({ isTalk: true });
}
