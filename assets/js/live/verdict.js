/* The verdict line: an invitation before a run, a note while it runs, then Python's verdict on it. Below each chart a
 * sentence explains it. */

import { find, make } from "../dom.js";
import { differences, hasThirdLane } from "../settings.js";
import { runLabel } from "../store.js";

/** @typedef {import("../store.js").State} State */
/** @typedef {import("../run.js").Run} Run */
/** @typedef {import("../records.js").VerdictFigure} Figure */

const UNFOLDING = "The answers are written side by side, each at its own measured speed.";
const INVITE = "Press Run: the full model and LoRA-Drop with the settings below answer the prompt, side by side.";
const INVITE_TWO =
  "Press Show me: a language model answers the prompt twice: with every layer for every word; and skipping layers for " +
  "most words, with an untrained rule in their place (LoRA-Drop without trained corrections: this model has none).";
const LOST = "The connection was lost during the run; its text so far is shown.";

/**
 * @param {HTMLElement} root
 * @param {import("../store.js").Store} store
 */
export function mountVerdict(root, store) {
  const box = find(root, ".ld-verdict");
  const note = find(box, ".ld-verdict-note");
  const invite = find(box, ".ld-verdict-text").textContent ?? ""; // from the template, so that nothing moves when this mounts
  const draw = (state) => {
    const { kind, text, reads, speed, figures = [], line = "" } = verdictOf(state, invite);
    // The line keeps the height of the last verdict, so that the answers below do not move.
    if (kind === "running" && box.dataset.kind !== "running") box.style.minHeight = `${box.offsetHeight}px`;
    box.dataset.kind = kind;
    box.dataset.opened = String(Boolean(state.run?.isWhole && !state.run.isRecorded));
    box.dataset.reads = reads ?? "";
    box.dataset.speed = speed ?? "";
    setText(find(box, ".ld-verdict-text"), text);
    drawGlance(box, figures, line);
    const words = noteOf(state);
    note.hidden = !words;
    setText(note, words);
    // An opened run never had the controls' settings: it keeps its colours.
    root.dataset.stale = String(isEnded(state) && !state.run?.isWhole && differences(state).length > 0);
    drawWhys(root, state);
  };
  window.addEventListener("resize", () => (box.style.minHeight = ""));
  store.subscribe(["isTalk"], () => (box.style.minHeight = ""));
  store.subscribe(["run", "revision", "isUnfolding", "settings", "prompt", "model", "presets", "isAsked", "isMoved"], draw);
  draw(store.state);
}

/**
 * Draw the figures of a verdict in place of its text, which stays for screen readers. A figure's detail unfolds.
 *
 * @param {HTMLElement} box
 * @param {Figure[]} figures
 * @param {string} line
 */
function drawGlance(box, figures, line) {
  box.dataset.glance = String(figures.length > 0);
  const list = find(box, ".ld-glance");
  const content = JSON.stringify(figures);
  if (list.dataset.content !== content) {
    list.dataset.content = content;
    list.replaceChildren(...figures.map(figureOf));
  }
  list.hidden = figures.length === 0;
  const words = find(box, ".ld-verdict-line");
  words.hidden = !(figures.length && line);
  setText(words, line);
}

/** @param {Figure} figure */
function figureOf({ id, value, label, detail }) {
  const item = make("li");
  item.dataset.glance = id;
  const head = make(detail ? "summary" : "div");
  head.append(make("b", "", value), make("span", "", label));
  const fold = make("details");
  fold.append(head, make("p", "", detail));
  item.append(detail ? fold : head);
  return item;
}

/** Set a text only if it changes: a screen reader reads each change. */
function setText(node, text) {
  if (node.textContent !== text) node.textContent = text;
}

/** True if a run is shown to its end. @param {State} state */
const isEnded = ({ run, isUnfolding }) => Boolean(run?.isOver && !isUnfolding);

/**
 * @param {State} state
 * @param {string} invite text before the first run
 * @returns {{kind: string, text: string, reads?: string, speed?: string, figures?: Figure[], line?: string}}
 */
function verdictOf(state, invite) {
  const { run } = state;
  if (!run) return { kind: "invite", text: state.isMoved ? INVITE : hasThirdLane(state) ? invite : INVITE_TWO };
  if (!isEnded(state)) return { kind: "running", text: UNFOLDING };
  const verdict = run.report?.verdict;
  if (verdict) return { ...verdict, reads: verdict.facts.reads, speed: verdict.facts.speed };
  return { kind: "stopped", text: run.isLost ? `${LOST} Press ${runLabel(state)} to try again.` : "This run was cut short; its text so far is shown." };
}

/**
 * Note that a run is recorded, or has other settings than the controls.
 *
 * @param {State} state
 */
function noteOf(state) {
  const { run } = state;
  if (run?.isRecorded) {
    const { device, software } = run.header;
    const date = software?.date ? `, recorded ${software.date}` : "";
    const recorded = `a recorded run of “${run.header.prompt}”${date}, on ${device.name}`;
    return state.isAsked ? `While you wait: ${recorded}. Yours starts when it is its turn.` : `This is ${recorded}.`;
  }
  if (!isEnded(state)) return "";
  const changed = differences(state);
  if (!changed.length) return "";
  const subject = run?.isWhole ? "This opened run has other settings than the controls" : "This result has other settings";
  return `${subject}: ${changed.join(", ")}. Press ${runLabel(state)} for the new ones.`;
}

/**
 * @param {HTMLElement} root
 * @param {State} state
 */
function drawWhys(root, state) {
  const why = isEnded(state) ? (state.run?.report?.why ?? {}) : {};
  for (const node of root.querySelectorAll("[data-why]")) {
    setText(node, why[/** @type {HTMLElement} */ (node).dataset.why ?? ""] ?? "");
  }
}
