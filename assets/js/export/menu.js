/* The export menu: pictures made by the page, files from the server, a link, and code. */

import { find, make } from "../dom.js";
import { linkOf } from "./link.js";
import { chart, save, whole } from "./picture.js";
import { raceFilm } from "./race_picture.js";

/** @typedef {import("../run.js").Run} Run */
/** @typedef {import("../store.js").Store} Store */

const READ_MS = 1600; // time for which "Saved" is visible

/** @typedef {{name: string, text: string, error?: undefined} | {error: string}} Exported a file, or an error */
/** @typedef {{export_run: (run: [string, string]) => Promise<Exported>}} ExportServer */

/**
 * @param {HTMLElement} root
 * @param {ExportServer | null} server
 * @param {Store} store
 * @param {(figure: HTMLElement) => void} complete draws all of a chart's data
 */
export function mountMenu(root, server, store, complete) {
  const menu = /** @type {HTMLDetailsElement} */ (find(root, ".ld-menu"));
  const note = find(root, ".ld-menu-note");
  for (const part of root.querySelectorAll("[data-needs]")) /** @type {HTMLElement} */ (part).hidden = !server;
  let timer = 0;
  const say = (text, kind = "") => {
    note.textContent = text;
    note.dataset.kind = kind;
    clearTimeout(timer);
    // The menu closes once the note was read; a link to copy by hand stays.
    if (kind === "done" && !root.querySelector(".ld-link")) timer = setTimeout(() => (menu.open = false), READ_MS);
  };
  let isBusy = false;
  menu.addEventListener("click", async (event) => {
    /** @type {HTMLElement | null} */
    const button = /** @type {Element} */ (event.target).closest("[data-save]");
    const kind = button?.dataset.save;
    if (!kind || isBusy) return;
    isBusy = true;
    root.querySelector(".ld-link, .ld-code")?.remove();
    say("One moment …");
    const { run } = store.state;
    try {
      if (!run) throw new Error("There is no run yet: start one first.");
      if (kind === "png" || kind === "svg") say(await savePicture(root, run, kind, complete), "done");
      else if (kind === "film") say(await saveFilm(root, run, say), "done");
      else if (kind === "command" || kind === "python") say(await copyCode(run, kind, note), "done");
      else if (kind === "link") say(await copyLink(run, store.state.table, note), "done");
      else if (server) say(await saveFile(run, kind, server), "done");
    } catch (error) {
      say(error.message, "error");
    } finally {
      isBusy = false;
    }
  });
  // The menu opens above or below, where there is room.
  menu.addEventListener("toggle", () => {
    const body = find(menu, ".ld-menu-body");
    body.classList.remove("ld-above");
    const { bottom, height } = body.getBoundingClientRect();
    body.classList.toggle("ld-above", bottom > window.innerHeight && height < menu.getBoundingClientRect().top);
  });
  // A click elsewhere closes the menu.
  document.addEventListener("click", (event) => {
    if (!menu.contains(/** @type {Node} */ (event.target))) menu.open = false;
  });
  menu.addEventListener("keydown", (event) => {
    if (event.key !== "Escape") return;
    menu.open = false;
    find(menu, "summary").focus();
  });
}

/**
 * Save a picture of the chosen part.
 *
 * @param {HTMLElement} root
 * @param {Run} run
 * @param {"png" | "svg"} format
 * @param {(figure: HTMLElement) => void} complete
 */
async function savePicture(root, run, format, complete) {
  /** @type {HTMLSelectElement} */
  const chosen = find(root, ".ld-picture");
  const part = chosen.value;
  const scale = Number(/** @type {HTMLSelectElement} */ (find(root, ".ld-picture-scale")).value);
  const transparent = /** @type {HTMLInputElement} */ (find(root, ".ld-picture-clear")).checked;
  const options = { format, scale, transparent };
  const figure = (name) => find(root, name === "race" ? ".ld-race" : `[data-chart="${name}"]`);
  for (const name of part === "whole" ? ["activity", "drift", "kv"] : [part]) complete(figure(name));
  const blob = part === "whole" ? await whole(root, run, options) : await chart(figure(part), options, run);
  save(blob, `lora-drop-${part}.${format}`);
  return `Saved lora-drop-${part}.${format}.`;
}

/**
 * Save the race as an animated GIF.
 *
 * @param {HTMLElement} root
 * @param {Run} run
 * @param {(words: string) => void} say
 */
async function saveFilm(root, run, say) {
  save(await raceFilm(find(root, ".ld-race"), run, say), "lora-drop-race.gif");
  return "Saved lora-drop-race.gif.";
}

/**
 * Save a file that the server makes of the run.
 *
 * @param {Run} run
 * @param {string} kind
 * @param {ExportServer} server
 */
async function saveFile(run, kind, server) {
  let answer;
  try {
    answer = await server.export_run([run.id, kind]);
  } catch {
    throw new Error("The server does not answer: pictures work without it; try files again when it is back.");
  }
  if (answer.error !== undefined) throw new Error(answer.error);
  save(new Blob([answer.text], { type: "application/octet-stream" }), answer.name);
  return `Saved ${answer.name}.`;
}

/**
 * Copy a text to the clipboard, or show it below the menu's note to be copied by hand.
 *
 * @param {string} text
 * @param {HTMLTextAreaElement | HTMLInputElement} field shows the text
 * @param {string} label of the field
 * @param {HTMLElement} note
 * @param {string} copied note on a text in the clipboard
 */
async function copy(text, field, label, note, copied) {
  try {
    await navigator.clipboard.writeText(text);
    return copied;
  } catch {
    // No permission, or no secure origin.
    field.value = text;
    field.readOnly = true;
    field.setAttribute("aria-label", label);
    note.after(field);
    field.select();
    return "Copy this:";
  }
}

/**
 * Copy the command or the Python code that repeats a run; the server made both (lora_drop/run/report/commands.py).
 *
 * @param {Run} run
 * @param {"command" | "python"} kind
 * @param {HTMLElement} note
 */
async function copyCode(run, kind, note) {
  const name = { command: "command", python: "Python code" }[kind];
  return copy(run.header.commands[kind], make("textarea", "ld-code"), `This run as ${name}`, note, `Copied the ${name}.`);
}

/**
 * Copy the link to a run.
 *
 * @param {Run} run
 * @param {import("../records.js").Setting[]} table
 * @param {HTMLElement} note
 */
async function copyLink(run, table, note) {
  return copy(linkOf(run, table), make("input", "ld-link"), "Link to this run", note, "The link is on the clipboard.");
}
