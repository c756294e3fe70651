/* Which one is LoRA-Drop? Two answers without names, a vote, then the reveal. */

import { make } from "../dom.js";

/**
 * @param {HTMLElement} bar where the button goes
 * @param {import("../store.js").Store} store
 */
export function mountBlind(bar, store) {
  const open = make("button", "", "Which one is LoRA-Drop?");
  open.type = "button";
  open.disabled = true;
  const dialog = make("dialog", "ld-blind");
  dialog.setAttribute("aria-label", "Which one is LoRA-Drop?");
  bar.append(open, dialog);
  open.addEventListener("click", () => {
    const { run } = store.state;
    const lanes = run && rivals(run);
    if (lanes) ask(dialog, run, lanes);
  });
  store.subscribe(["run", "revision"], ({ run }) => (open.disabled = !run?.summary || !rivals(run)));
}

/**
 * The full model's lane and the one that the run is about; null where there are not both.
 *
 * @param {import("../run.js").Run} run
 */
function rivals(run) {
  const baseline = run.lanes.find(({ id }) => id === "baseline");
  return baseline && baseline !== run.main ? [baseline, run.main] : null;
}

function ask(dialog, run, lanes) {
  if (Math.random() < 0.5) lanes.reverse();
  const said = make("p", "", "Read both, then vote.");
  said.setAttribute("role", "status");
  const row = make("div", "ld-blind-row");
  const votes = [];
  lanes.forEach((lane, at) => {
    const name = "AB"[at];
    const card = make("article");
    const text = make("p", "ld-blind-text", lane.steps.map((step) => step.text).join(""));
    const vote = make("button", "", `${name} is LoRA-Drop`);
    vote.type = "button";
    vote.addEventListener("click", () => reveal(lane === run.main));
    votes.push(vote);
    card.append(make("h3", "", name), text, vote);
    row.append(card);
  });
  function reveal(isRight) {
    for (const vote of votes) vote.disabled = true;
    row.querySelectorAll("h3").forEach((title, at) => {
      title.textContent = `${"AB"[at]}: ${run.plainLabels[lanes[at].index]}`;
    });
    const same = run.main.divergence === null ? " Both wrote the same text, so that was a guess." : "";
    said.textContent = `${isRight ? "Right." : "No: it was the other one."}${same}`;
    close.focus();
  }
  const close = make("button", "", "Close");
  close.type = "button";
  close.addEventListener("click", () => dialog.close());
  dialog.replaceChildren(make("h2", "", "Which one is LoRA-Drop?"), row, said, close);
  dialog.showModal();
}
