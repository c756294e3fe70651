/* Runs that the reader has pinned, beside each other. Their ids stay in the browser, the runs on the server, which
 * compares them (lora_drop/run/report/compare.py). */

import { make } from "../dom.js";
import { mountBlind } from "./blind.js";
import { comparison } from "./table.js";
import { mountRecordedWords, wordsView } from "./words.js";

/** @typedef {{id: string, prompt: string}} Pin */
/** @typedef {{found: import("./table.js").Compared, gone: string[]}} Answer */
/** @typedef {import("./words.js").Aligned} Aligned */
/**
 * @typedef {object} PinServer
 * @property {(ids: string[]) => Promise<Answer>} compare_runs
 * @property {(wanted: string[]) => Promise<Aligned | {error: string}>} align_answers a run and a lane, twice
 */

const KEY = "lora-drop-pins";
const MOST = 8; // as MOST in compare.py

/**
 * A folded part below the charts. A replay, which has no server, has the guess and the words of its own answers.
 *
 * @param {HTMLElement} root
 * @param {import("../store.js").Store} store
 * @param {PinServer | null} server
 */
export function mountPins(root, store, server) {
  const bar = make("div", "ld-pins-bar");
  root.append(bar);
  mountBlind(bar, store);
  if (!server) return mountRecordedWords(root, store);
  const part = make("details", "ld-pins");
  const title = make("summary");
  const add = button("Pin this run", () => change([...read().filter(({ id }) => id !== store.state.run?.id), pinOf()]));
  const note = make("p", "ld-pins-note");
  note.setAttribute("role", "status");
  const body = make("div", "ld-pins-body");
  part.append(title, note, body);
  bar.prepend(add);
  root.append(part);

  const pinOf = () => ({ id: store.state.run?.id ?? "", prompt: store.state.run?.header.prompt ?? "" });

  /** @param {Pin[]} pins */
  function change(pins) {
    write(pins.slice(-MOST));
    show();
  }

  async function show() {
    const pins = read();
    title.textContent = `Pinned runs (${pins.length})`;
    add.disabled = !isPinnable(store.state);
    if (!part.open || !server) return;
    note.textContent = pins.length ? "One moment …" : "Pin runs to see here what was set otherwise and what came of it.";
    body.replaceChildren();
    if (!pins.length) return;
    try {
      const { found, gone } = await server.compare_runs(pins.map(({ id }) => id));
      const lost = pins.filter(({ id }) => gone.includes(id)).map(({ prompt }) => `"${prompt}"`);
      note.textContent = lost.length ? `No longer kept on the server: ${lost.join(", ")}. Run and pin again.` : "";
      const forget = (id) => change(read().filter((pin) => pin.id !== id));
      body.replaceChildren(comparison(found, forget), ...wordsOf(found, server));
      if (lost.length) body.append(button("Forget those that are gone", () => change(pins.filter(({ id }) => !gone.includes(id)))));
    } catch {
      note.textContent = "The server does not answer: the pins stay, open this again when it is back.";
    }
  }

  part.addEventListener("toggle", show);
  store.subscribe(["run", "revision"], (state) => (add.disabled = !isPinnable(state)));
  show();
}

/** A run that is over and that the server has: one that was cut short too. @param {import("../store.js").State} state */
const isPinnable = ({ run }) => Boolean(run?.isOver && !run.isRecorded && !run.isLost);

/**
 * Any two of the pinned answers: at first the first run's and the last one's; of a single run, the full model's and its own.
 *
 * @param {import("./table.js").Compared} found
 * @param {PinServer} server
 */
function wordsOf({ runs }, server) {
  const lanes = runs.flatMap((run, at) => run.lanes.map(({ id, label }) => ({ run, at, id, label: label.split(":")[0] })));
  if (lanes.length < 2) return [];
  const mains = lanes.flatMap(({ run, id }, place) => (id === run.main ? [place] : []));
  const last = mains[mains.length - 1];
  const choices = lanes.map(({ run, at, id, label }) => ({ key: JSON.stringify([run.id, id]), label: `${at + 1}. ${label}` }));
  const ask = (one, other) => server.align_answers([...JSON.parse(one), ...JSON.parse(other)]);
  return [wordsView(choices, mains.length > 1 ? [mains[0], last] : [last ? 0 : 1, last], ask)];
}

/**
 * @param {string} text
 * @param {() => void} press
 */
function button(text, press) {
  const node = make("button", "", text);
  node.type = "button";
  node.addEventListener("click", press);
  return node;
}

/** @returns {Pin[]} */
function read() {
  try {
    const found = JSON.parse(localStorage.getItem(KEY) ?? "[]");
    return Array.isArray(found) ? found.filter((pin) => typeof pin?.id === "string" && typeof pin?.prompt === "string") : [];
  } catch {
    return []; // no storage here, or not what was written
  }
}

/** @param {Pin[]} pins */
function write(pins) {
  try {
    localStorage.setItem(KEY, JSON.stringify(pins));
  } catch {
    // No storage: the pins last as long as the page. Nothing to be done about it.
  }
}
