/* The token inspector: one step of a lane, layer by layer. The server reads the lane's text again for it
 * (lora_drop/run/inspect.py); a replay has the facts in the run's records alone. */

import { find, make } from "../dom.js";
import { draw } from "./draw.js";

/** @typedef {import("../run.js").Run} Run */
/** @typedef {import("./draw.js").Step} Step */
/** @typedef {{inspect_step: (step: [string, string, number]) => Promise<{step: Step | null, error: string | null}>}} InspectServer */

/** @typedef {[number, number, number, number, [string, number][] | null]} Recorded places in `words`, and the likeliest tokens */
/** @typedef {{words: any[], lanes: Record<string, Recorded[]>}} Inside a replay's steps (lora_drop/run/report/steps.py, `inside`) */

const PAUSE = 120; // milliseconds before the server is asked, as the reader may move on
const STEPS = new Map([["ArrowRight", 1], ["ArrowLeft", -1], ["ArrowDown", 1], ["ArrowUp", -1]]);
const OFFLINE = "This recorded run has no model: it has the likeliest tokens, but not the lens of the layers.";

/**
 * A click on a token opens the inspector; so do the arrow keys in an answer, which is a single tab stop. The talk mode has no
 * inspector.
 *
 * @param {HTMLElement} root
 * @param {import("../store.js").Store} store
 * @param {InspectServer | null} server
 */
export function mountInspector(root, store, server) {
  const panel = make("section", "ld-inspector");
  panel.dataset.testid = "token-inspector";
  panel.setAttribute("aria-label", "Token inspector");
  panel.hidden = true;
  find(root, ".ld-answers").after(panel);
  /** @type {HTMLElement | null} */
  let token = null;
  let asked = 0;
  let timer = 0;

  function leave() {
    clearTimeout(timer);
    asked += 1;
    if (token) release(token, root);
    token = null;
    panel.hidden = true;
  }

  /** @param {HTMLElement} span */
  function open(span) {
    const { run } = store.state;
    const pane = /** @type {HTMLElement} */ (span.closest(".ld-pane"));
    const lane = run?.lanes[Number(pane.dataset.lane)];
    if (!run || !lane) return;
    if (token && token !== span) release(token, root);
    token = hold(span);
    clearTimeout(timer);
    const mine = ++asked;
    const step = Number(span.dataset.step);
    const show = (facts, message, isBusy = false) => {
      if (mine !== asked) return;
      draw(panel, { run, lane, step, facts, message, isBusy }, close);
      uncover(span, panel);
    };
    const replayed = recorded(run, lane, step);
    if (!server) return show(replayed, replayed ? OFFLINE : "This recorded run stores no details of its tokens.");
    show(null, "Reading the text again, as soon as no run needs the device.", true);
    timer = window.setTimeout(async () => {
      try {
        const answer = await server.inspect_step([run.id, lane.id, step]);
        show(answer.step, answer.error ?? "");
      } catch {
        show(null, "The server does not answer. Try this token again when it is back.");
      }
    }, PAUSE);
  }

  function close() {
    const back = token;
    leave();
    (back?.isConnected ? back : null)?.focus({ preventScroll: true });
  }

  root.addEventListener("click", (event) => {
    const span = /** @type {HTMLElement | null} */ (/** @type {Element} */ (event.target).closest?.(".ld-panes .ld-token"));
    if (span && !store.state.isTalk) open(span);
  });
  root.addEventListener("keydown", (event) => store.state.isTalk || onKey(event, () => token, close));
  store.subscribe(["run", "isTalk"], leave);
  store.subscribe(["revision"], () => token && !token.isConnected && leave()); // its draft was rejected
}

/** Scroll the page by what the panel covers of a token. */
function uncover(span, panel) {
  const bottom = (node) => node.getBoundingClientRect().bottom;
  const covered = Math.min(bottom(span) + 8, bottom(span.closest(".ld-text"))) - panel.getBoundingClientRect().top;
  if (covered > 0) window.scrollBy({ top: covered });
}

/** Move the answer's tab stop from its text to a token. */
function hold(span) {
  const text = /** @type {HTMLElement} */ (span.closest(".ld-text"));
  text.tabIndex = -1;
  span.tabIndex = 0;
  span.setAttribute("role", "button");
  span.classList.add("ld-inspected");
  return span;
}

/**
 * Move the tab stop back to the text.
 *
 * @param {HTMLElement} span it may have left its answer
 * @param {HTMLElement} root
 */
function release(span, root) {
  span.classList.remove("ld-inspected");
  span.removeAttribute("tabindex");
  span.removeAttribute("role");
  for (const text of root.querySelectorAll(".ld-text")) /** @type {HTMLElement} */ (text).tabIndex = 0;
}

/**
 * @param {KeyboardEvent} event
 * @param {() => HTMLElement | null} current
 * @param {() => void} close
 */
function onKey(event, current, close) {
  if (event.ctrlKey || event.metaKey || event.altKey) return;
  const at = /** @type {HTMLElement} */ (event.target);
  const token = current();
  if (event.key === "Escape" && token && at.closest(".ld-inspector, .ld-text")) {
    close();
  } else {
    const text = at.closest(".ld-panes .ld-text");
    const by = STEPS.get(event.key) ?? (event.key === "Enter" || event.key === "Home" || event.key === "End" ? 0 : null);
    if (!text || by === null) return;
    const all = /** @type {HTMLElement[]} */ ([...text.querySelectorAll(".ld-token")]);
    const held = token ? all.indexOf(token) : -1;
    const place = event.key === "Home" ? 0 : event.key === "End" ? all.length - 1 : held < 0 ? 0 : held + by;
    const next = all[Math.max(0, Math.min(place, all.length - 1))];
    if (!next) return;
    next.click(); // moves the scrubber too
    next.focus({ preventScroll: true });
    next.scrollIntoView({ block: "nearest" });
  }
  event.preventDefault();
  event.stopPropagation();
}

/**
 * A step of a replay; null if the replay has no facts about it.
 *
 * @param {import("../run.js").Run} run
 * @param {import("../run.js").Lane} lane
 * @param {number} step
 * @returns {import("./draw.js").Step | null}
 */
function recorded(run, lane, step) {
  const inside = run.inside;
  const facts = inside?.lanes[lane.id]?.[step];
  if (!inside || !facts) return null;
  const drift = lane.audits.get(step)?.drift;
  const driftOf = (layer) => drift?.[lane.schedule.dropped.indexOf(layer)];
  const [did, , text, refresh] = facts.slice(0, 4).map((place) => inside.words[Number(place)]);
  const others = Object.entries(inside.lanes).filter(([, steps]) => steps[step]);
  return {
    prefix_text: text,
    layers: did.map((words, layer) => ({ did: words, drift: driftOf(layer) ?? null })),
    top: Object.fromEntries(
      others.map(([name, steps]) => [name, { prefix_of: inside.words[steps[step][1]], tokens: steps[step][4] }]),
    ),
    refresh: refresh && { text: refresh },
  };
}
