/* What is to be said of a run, in the one place where the eye is: before it, while it runs, and at its end the verdict
 * that Python made of its records. Below each chart a sentence says why it looks so. */

import { find } from "../dom.js";
import { differences } from "../stale.js";

/** @typedef {import("../store.js").State} State */
/** @typedef {import("../run.js").Run} Run */

const UNFOLDING = "The answers are written side by side, each at its own measured speed.";
const LOST = "The connection was lost in the middle of the run: what came is shown. Press Run to try again.";

/**
 * @param {HTMLElement} root
 * @param {import("../store.js").Store} store
 */
export function mountVerdict(root, store) {
  const box = find(root, ".ld-verdict");
  const note = find(box, ".ld-verdict-note");
  const invite = find(box, ".ld-verdict-text").textContent ?? ""; // the template has it: nothing moves when this mounts
  const draw = (state) => {
    const { kind, text, reads, speed } = verdictOf(state, invite);
    // A run's one line keeps the room of what stood before: the answers below it stay where they are.
    if (kind === "running" && box.dataset.kind !== "running") box.style.minHeight = `${box.offsetHeight}px`;
    box.dataset.kind = kind;
    box.dataset.opened = String(Boolean(state.run?.isWhole && !state.run.isRecorded));
    box.dataset.reads = reads ?? "";
    box.dataset.speed = speed ?? "";
    setText(find(box, ".ld-verdict-text"), text);
    const words = noteOf(state);
    note.hidden = !words;
    setText(note, words);
    // An opened run was never one of the controls': it keeps its colours.
    root.dataset.stale = String(isTold(state) && !state.run?.isWhole && differences(state).length > 0);
    drawWhys(root, state);
  };
  window.addEventListener("resize", () => (box.style.minHeight = ""));
  store.subscribe(["isTalk"], () => (box.style.minHeight = ""));
  store.subscribe(["run", "revision", "isUnfolding", "settings", "prompt", "model", "isAsked"], draw);
  draw(store.state);
}

/** A text that stays is left alone: it is read aloud when it changes. */
function setText(node, text) {
  if (node.textContent !== text) node.textContent = text;
}

/** Is a run shown to its end? @param {State} state */
const isTold = ({ run, isUnfolding }) => Boolean(run?.isOver && !isUnfolding);

/**
 * @param {State} state
 * @param {string} invite what stands there before any run
 * @returns {{kind: string, text: string, reads?: string, speed?: string}}
 */
function verdictOf(state, invite) {
  const { run } = state;
  if (!run) return { kind: "invite", text: invite };
  if (!isTold(state)) return { kind: "running", text: UNFOLDING };
  const verdict = run.told?.verdict;
  if (verdict) return { kind: verdict.kind, text: verdict.text, reads: verdict.facts.reads, speed: verdict.facts.speed };
  return { kind: "stopped", text: run.isLost ? LOST : "This run was cut short: what it holds is shown." };
}

/**
 * That a run is a recorded one, or is of other settings than the controls show.
 *
 * @param {State} state
 */
function noteOf(state) {
  const { run } = state;
  if (run?.isRecorded) {
    const { device, software } = run.header;
    const date = software?.date ? `, recorded ${software.date}` : "";
    const what = `a recorded run of “${run.header.prompt}”${date}, on ${device.name}`;
    return state.isAsked ? `While you wait: ${what}. Yours begins when it is its turn.` : `This is ${what}.`;
  }
  if (!isTold(state)) return "";
  const changed = differences(state);
  if (!changed.length) return "";
  const what = run?.isWhole ? "This is an opened run, of other settings than the controls" : "This result is of other settings";
  return `${what}: ${changed.join(", ")}. Press Run for the new ones.`;
}

/**
 * @param {HTMLElement} root
 * @param {State} state
 */
function drawWhys(root, state) {
  const why = isTold(state) ? (state.run?.told?.why ?? {}) : {};
  for (const node of root.querySelectorAll("[data-why]")) {
    setText(node, why[/** @type {HTMLElement} */ (node).dataset.why ?? ""] ?? "");
  }
}
