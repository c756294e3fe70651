/* The talk mode: large, 16:9, nothing but the run. */

import { find } from "../dom.js";

const TYPED_IN = "input:not([type=range]):not([type=checkbox]), textarea, select";

/**
 * @param {HTMLElement} root
 * @param {import("../store.js").Store} store
 */
export function mountTalk(root, store) {
  const button = find(root, "[data-act=talk]");
  const toggle = () => store.update({ isTalk: !store.state.isTalk });
  button.addEventListener("click", toggle);
  document.addEventListener("keydown", (event) => {
    const target = /** @type {Element} */ (event.target);
    if (target.matches?.(TYPED_IN) || event.ctrlKey || event.metaKey || event.altKey) return;
    if (event.key.toLowerCase() === "t") toggle();
  });
  store.subscribe(["isTalk"], ({ isTalk }) => {
    // The style sheets, and with them the charts, go by the body's class.
    document.body.classList.toggle("ld-talk", isTalk);
    root.classList.toggle("ld-talking", isTalk);
    button.setAttribute("aria-pressed", String(isTalk));
    button.textContent = isTalk ? "Leave" : "Talk";
    window.scrollTo(0, 0);
  });
  if (new URLSearchParams(location.search).get("talk") === "1") store.update({ isTalk: true });
}
