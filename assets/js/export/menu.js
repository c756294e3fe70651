/* The menu of what leaves the page: pictures from the page itself, files from the server where there is one, a link. */

import { find, make } from "../dom.js";
import { copyCode } from "./code.js";
import { linkOf } from "./link.js";
import { chart, save, whole } from "./picture.js";
import { raceFilm } from "./race_picture.js";

/** @typedef {import("../run.js").Run} Run */
/** @typedef {import("../store.js").Store} Store */

const READ_MS = 1600; // how long "Saved" is seen

/** @typedef {{name: string, text: string, error?: undefined} | {error: string}} Exported a file, or why there is none */
/** @typedef {{export_run: (wanted: [string, string]) => Promise<Exported>}} ExportServer */

/**
 * @param {HTMLElement} root
 * @param {ExportServer | null} server
 * @param {Store} store
 * @param {(figure: HTMLElement) => void} complete draw all of a chart's data
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
    // What is done is read before the menu closes; a link that is to be copied by hand stays.
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
      if (kind === "png" || kind === "svg") say(await savePicture(root, run, kind, complete), "done");
      else if (kind === "film") say(await saveFilm(run, say), "done");
      else if (kind === "command" || kind === "python") say(await copyCode(run, kind, note), "done");
      else if (kind === "link") say(await copyLink(run, store.state.table, note), "done");
      else say(await saveFile(run, kind, server), "done");
    } catch (error) {
      say(error.message, "error");
    } finally {
      isBusy = false;
    }
  });
  // It opens where there is room.
  menu.addEventListener("toggle", () => {
    const body = find(menu, ".ld-menu-body");
    body.classList.remove("ld-above");
    const { bottom, height } = body.getBoundingClientRect();
    body.classList.toggle("ld-above", bottom > window.innerHeight && height < menu.getBoundingClientRect().top);
  });
  // A menu closes where the reader goes elsewhere.
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
 * A picture of what the menu names.
 *
 * @param {HTMLElement} root
 * @param {Run | null} run
 * @param {"png" | "svg"} format
 * @param {(figure: HTMLElement) => void} complete
 */
async function savePicture(root, run, format, complete) {
  if (!run) throw new Error("There is no run to draw yet: press Run first.");
  /** @type {HTMLSelectElement} */
  const chosen = find(root, ".ld-picture");
  const what = chosen.value;
  const scale = Number(/** @type {HTMLSelectElement} */ (find(root, ".ld-picture-scale")).value);
  const transparent = /** @type {HTMLInputElement} */ (find(root, ".ld-picture-clear")).checked;
  const wanted = { format, scale, transparent };
  const figure = (name) => find(root, name === "race" ? ".ld-race" : `[data-chart="${name}"]`);
  for (const name of what === "whole" ? ["activity", "drift", "kv"] : [what]) complete(figure(name));
  const blob = what === "whole" ? await whole(root, run, wanted) : await chart(figure(what), wanted, run);
  save(blob, `lora-drop-${what}.${format}`);
  return `Saved lora-drop-${what}.${format}.`;
}

/**
 * The race as an animated GIF.
 *
 * @param {Run | null} run
 * @param {(words: string) => void} say
 */
async function saveFilm(run, say) {
  save(await raceFilm(run, say), "lora-drop-race.gif");
  return "Saved lora-drop-race.gif.";
}

/**
 * A file that the server makes of the run.
 *
 * @param {Run | null} run
 * @param {string} kind
 * @param {ExportServer | null} server
 */
async function saveFile(run, kind, server) {
  if (!run || !server) throw new Error("There is no run to export yet: press Run first.");
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
 * The link goes to the clipboard, or below the menu's line.
 *
 * @param {Run | null} run
 * @param {import("../records.js").Setting[]} table
 * @param {HTMLElement} note
 */
async function copyLink(run, table, note) {
  if (!run) throw new Error("There is no run to link to yet: press Run first.");
  const address = linkOf(run, table);
  try {
    await navigator.clipboard.writeText(address);
    return "The link is on the clipboard.";
  } catch {
    // No permission, or no secure origin: it is shown, to be copied by hand.
    const field = make("input", "ld-link");
    field.value = address;
    field.readOnly = true;
    field.setAttribute("aria-label", "Link to this run");
    note.after(field);
    field.select();
    return "Copy this link:";
  }
}
