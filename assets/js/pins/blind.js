/* The vote "Which one is LoRA-Drop?": nothing of the next run is visible until its two answers are there, without names, and
 * the visitor has voted. */

import { make, makeButton, makeStatus } from "../dom.js";

/** @typedef {import("../run.js").Run} Run */

const QUESTION = "Which one is LoRA-Drop?";
const ASK = "Write a prompt whose answers you have not seen, and start it. The names stay hidden until you vote.";
const WRITING = "The full model and LoRA-Drop are writing. You will see both answers without names.";

/**
 * Mount the vote at the top of the view, with its button in a bar.
 *
 * @param {HTMLElement} root
 * @param {HTMLElement} bar
 * @param {import("../store.js").Store} store
 */
export function mountBlind(root, bar, store) {
  const part = make("section", "ld-blind");
  part.setAttribute("aria-label", QUESTION);
  part.hidden = true;
  root.prepend(part);
  /** @type {Run | null} the last run whose names the visitor may see */
  let seen = null;

  bar.append(makeButton(QUESTION, () => {
    seen = store.state.run;
    setBlind(true);
    show(makeStatus("", ASK), makeButton("Cancel", close));
    window.scrollTo(0, 0);
  }));

  /** Hide or show all but the vote. @param {boolean} isBlind */
  function setBlind(isBlind) {
    root.dataset.blind = String(isBlind); // style sheets hide the rest
    store.update({ isBlind });
  }

  /** @param {HTMLElement[]} content */
  function show(...content) {
    part.replaceChildren(make("h2", "", QUESTION), ...content);
    part.hidden = false;
  }

  function close() {
    part.hidden = true;
    setBlind(false);
  }

  /**
   * Show the answers of a run, as A and B in random order, with two buttons to vote.
   *
   * @param {Run} run
   * @param {import("../run.js").Lane[]} lanes
   */
  function ask(run, lanes) {
    if (Math.random() < 0.5) lanes.reverse();
    const status = makeStatus("", "Read both, then vote.");
    const row = make("div", "ld-blind-row");
    const end = makeButton("Show the run", close);
    const votes = lanes.map((lane, at) => makeButton(`${"AB"[at]} is LoRA-Drop`, () => reveal(lane === run.main)));
    lanes.forEach(({ steps }, at) => {
      const card = make("article");
      card.append(make("h3", "", "AB"[at]), make("p", "ld-blind-text", steps.map(({ text }) => text).join("")), votes[at]);
      row.append(card);
    });

    /** @param {boolean} isRight */
    function reveal(isRight) {
      for (const vote of votes) vote.disabled = true;
      row.querySelectorAll("h3").forEach((title, at) => {
        title.textContent = `${"AB"[at]}: ${run.plainLabels[lanes[at].index]}`;
      });
      const same = run.main.divergence === null ? " Both wrote the same text, so that was a guess." : "";
      status.textContent = `${isRight ? "Right." : "No: it was the other one."}${same}`;
      end.textContent = "Close";
      setBlind(false);
      end.focus();
    }

    show(status, row, end);
  }

  store.subscribe(["run", "revision"], ({ run, isBlind }) => {
    if (!run || run === seen || run.isRecorded) return;
    if (!isBlind) {
      part.hidden = true; // the vote was on an older run
      return;
    }
    const lanes = rivals(run);
    if (!lanes) close(); // nothing to guess
    else if (run.isOver) {
      seen = run;
      ask(run, lanes);
    } else if (part.dataset.run !== run.id) show(makeStatus("", WRITING));
    part.dataset.run = run.id;
  });
}

/** The full model's lane and the main one; null without both. @param {Run} run */
function rivals(run) {
  const baseline = run.lanes.find(({ id }) => id === "baseline");
  return baseline && baseline !== run.main ? [baseline, run.main] : null;
}
