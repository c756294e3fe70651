/* Runs that the reader has pinned, beside each other. Their ids stay in the browser, the runs on the server, which
 * compares them (lora_drop/run/compare.py). */

import { make } from "../dom.js";
import { mountBlind } from "./blind.js";
import { comparison } from "./table.js";

/** @typedef {{id: string, prompt: string}} Pin */
/** @typedef {{found: import("./table.js").Compared, gone: string[]}} Answer */
/** @typedef {{compare_runs: (ids: string[]) => Promise<Answer>}} PinServer */

const KEY = "lora-drop-pins";
const MOST = 8; // as MOST in compare.py

/**
 * A folded part below the charts; a replay, which has no server, has the guess alone.
 *
 * @param {HTMLElement} root
 * @param {import("../store.js").Store} store
 * @param {PinServer | null} server
 */
export function mountPins(root, store, server) {
  const bar = make("div", "ld-pins-bar");
  root.append(bar);
  mountBlind(bar, store);
  if (!server) return;
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
    add.disabled = !store.state.run?.summary;
    if (!part.open || !server) return;
    note.textContent = pins.length ? "One moment …" : "Pin runs to see here what was set otherwise and what came of it.";
    body.replaceChildren();
    if (!pins.length) return;
    try {
      const { found, gone } = await server.compare_runs(pins.map(({ id }) => id));
      const lost = pins.filter(({ id }) => gone.includes(id)).map(({ prompt }) => `"${prompt}"`);
      note.textContent = lost.length ? `No longer kept on the server: ${lost.join(", ")}. Run and pin again.` : "";
      const forget = (id) => change(read().filter((pin) => pin.id !== id));
      body.replaceChildren(comparison(found, forget));
      if (lost.length) body.append(button("Forget those that are gone", () => change(pins.filter(({ id }) => !gone.includes(id)))));
    } catch {
      note.textContent = "The server does not answer: the pins stay, open this again when it is back.";
    }
  }

  part.addEventListener("toggle", show);
  store.subscribe(["run", "revision"], ({ run }) => (add.disabled = !run?.summary));
  show();
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
