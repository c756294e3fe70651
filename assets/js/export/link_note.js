/* A line at the run's end, on a page that a link opened: does the run give what the link's run gave? */

import { find } from "../dom.js";
import { compareWithLink } from "./link.js";

/**
 * @param {HTMLElement} root
 * @param {import("../store.js").Store} store
 */
export function mountLinkNote(root, store) {
  const note = find(root, ".ld-link-note");
  store.subscribe(["run", "revision", "isUnfolding"], ({ link, run, table, isUnfolding }) => {
    const found = run?.summary && !run.isRecorded && !isUnfolding ? compareWithLink(link, run, table) : null;
    note.hidden = !found;
    if (!found) return;
    note.dataset.state = found.state;
    note.textContent = found.text;
  });
}
