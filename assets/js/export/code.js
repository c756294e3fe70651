/* What to type to have a run again: Python made it from the table of settings (lora_drop/run/report/commands.py). */

import { make } from "../dom.js";

const SAID = { command: "The command is", python: "The Python is" };

/**
 * It goes to the clipboard, or below the menu's line.
 *
 * @param {import("../run.js").Run | null} run
 * @param {"command" | "python"} kind
 * @param {HTMLElement} note
 */
export async function copyCode(run, kind, note) {
  if (!run) throw new Error("There is no run to copy yet: press Run first.");
  const text = run.header.commands[kind];
  try {
    await navigator.clipboard.writeText(text);
    return `${SAID[kind]} on the clipboard.`;
  } catch {
    // No permission, or no secure origin: it is shown, to be copied by hand.
    const field = make("textarea", "ld-code");
    field.value = text;
    field.readOnly = true;
    field.setAttribute("aria-label", kind === "command" ? "This run as a command" : "This run as Python");
    note.after(field);
    field.select();
    return "Copy this:";
  }
}
