/* A tip with the facts about a token, beside it. */

import { find, make } from "../dom.js";
import { formatBytes, formatNumber } from "../format.js";
import { stepWords, triggerWords } from "../kinds.js";

/** @typedef {import("../run.js").Lane} Lane */
/** @typedef {import("../run.js").Run} Run */

/**
 * @param {HTMLElement} root
 * @param {import("../store.js").Store} store
 * @param {import("./panes.js").Panes} panes
 */
export function mountTip(root, store, panes) {
  const tip = find(root, ".ld-tip");
  const hide = () => {
    tip.hidden = true;
  };
  for (const name of ["pointerover", "click"]) {
    panes.row.addEventListener(name, (event) => {
      const token = panes.tokenAt(/** @type {Element} */ (event.target));
      const { run } = store.state;
      if (!token || !run) return hide();
      const { text } = token.lane.steps[token.step];
      tip.replaceChildren(make("code", "", JSON.stringify(text)), ...rowsOf(run, token.lane, token.step, panes).map(rowNode));
      tip.hidden = false;
      placeBeside(tip, token.span);
    });
  }
  panes.row.addEventListener("pointerleave", hide);
  window.addEventListener("scroll", hide, { passive: true });
  document.addEventListener("keydown", (event) => event.key === "Escape" && hide());
  store.subscribe(["run"], hide);
}

/**
 * @param {Run} run
 * @param {Lane} lane
 * @param {number} index
 * @param {import("./panes.js").Panes} panes
 * @returns {[string, string][]} name and value
 */
function rowsOf(run, lane, index, panes) {
  const step = lane.steps[index];
  const audit = lane.audits.get(index);
  /** @type {[string, string][]} */
  const rows = [
    ["step", `${index}, ${stepWords[step.kind]}${step.trigger ? ", early" : ""}`],
    ["time", `${formatNumber(step.ms, 1)} ms`],
    ["entropy", step.entropy === null ? "–" : `${formatNumber(step.entropy, 2)} nats`],
    ["K/V", formatBytes(step.kvBytes)],
  ];
  if (audit) {
    rows.push(["KL", audit.kl === null ? "–" : `${formatNumber(audit.kl, 3)} nats`]);
    rows.push(["full model", audit.agrees ? "same next token" : `would say ${JSON.stringify(audit.argmax)}`]);
  }
  const taken = panes.all[lane.index].taken.get(index);
  if (taken !== undefined) rows.push(["rejected", JSON.stringify(taken)]);
  if (step.trigger) rows.push(["early", triggerWords[step.trigger]]);
  if (index === (lane.index ? lane.divergence : run.main.divergence)) rows.push(["", "the first token that differs"]);
  return rows;
}

/** @param {[string, string]} row */
function rowNode([name, text]) {
  const row = make("div");
  row.append(make("span", "", name), make("b", "", text));
  return row;
}

/** Place the tip below the token, or above it without room below. */
function placeBeside(tip, span) {
  const at = span.getBoundingClientRect();
  const { width, height } = tip.getBoundingClientRect();
  const below = at.bottom + 6 + height < window.innerHeight;
  tip.style.left = `${Math.max(8, Math.min(at.left, window.innerWidth - width - 8))}px`;
  tip.style.top = `${below ? at.bottom + 6 : at.top - height - 6}px`;
}
