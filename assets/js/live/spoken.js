/* The answers for a screen reader, a sentence at a time as they are written: politely, and each sentence once. */

import { make } from "../dom.js";
import { shownTokens } from "../position.js";
import { verifies } from "../schedule.js";

/** @typedef {import("../run.js").Lane} Lane */
/** @typedef {import("../run.js").Run} Run */
/** @typedef {import("../store.js").State} State */

const SENTENCE = /^.*?\p{L}.*?(?:[.!?]+["')\]]*(?=\s)|[。！？]|\n)\s*/su; // with a word: "1." alone is none
const MOST = 600; // characters of what has no end of a sentence
const KEPT = 12; // sentences in the region: readers say what is added, and what is left can be read again

/**
 * @param {HTMLElement} root
 * @param {import("../store.js").Store} store
 */
export function mountSpoken(root, store) {
  const region = make("div", "ld-spoken");
  region.setAttribute("role", "log");
  region.setAttribute("aria-live", "polite");
  region.setAttribute("aria-label", "The answers, sentence by sentence");
  root.append(region);
  /** @type {Speaker[]} */
  let speakers = [];
  /** @type {Set<string>} */
  let said = new Set();

  store.subscribe(["run"], ({ run }) => {
    region.replaceChildren();
    said = new Set();
    // A run that is there as a whole is read in its pane.
    speakers = run && !run.isWhole ? run.lanes.map((lane) => new Speaker(lane)) : [];
  });
  store.subscribe(["revision", "moment", "isUnfolding"], (state) => {
    const { run } = state;
    if (!run) return;
    for (const [index, speaker] of speakers.entries()) {
      for (const { at, text } of speaker.next(state)) {
        // Up to the first difference the answers are one text, which is said once.
        const key = `${at} ${text}`;
        if (!text || said.has(key)) continue;
        said.add(key);
        region.append(make("p", "", `${run.plainLabels[index]}: ${text}`));
        if (region.children.length > KEPT) region.firstElementChild?.remove();
      }
    }
  });
}

/** The sentences of a lane, as far as they are shown and stand. */
class Speaker {
  tokens = 0; // that were taken
  waiting = ""; // what has no end yet
  at = 0; // characters before it

  /** @param {Lane} lane */
  constructor(lane) {
    this.lane = lane;
  }

  /**
   * The sentences that have come to their end since the last time, with the place where each begins.
   *
   * @param {State} state
   */
  next(state) {
    const { steps } = this.lane;
    const isEnd = Boolean(state.run?.isOver && !state.isUnfolding);
    const shown = Math.min(isEnd ? steps.length : (shownTokens(state, this.lane) ?? steps.length), steps.length);
    // A draft may be taken back until the next full step: what was said cannot be.
    const stands = verifies(this.lane.schedule) && !isEnd ? (steps[shown - 1]?.lastRefresh ?? -1) + 1 : shown;
    for (; this.tokens < stands; this.tokens++) this.waiting += steps[this.tokens].text;
    const found = [];
    for (let end; (end = this.endOf(isEnd)); ) {
      found.push({ at: this.at, text: this.waiting.slice(0, end).trim() });
      this.at += end;
      this.waiting = this.waiting.slice(end);
    }
    return found;
  }

  /** Where the next sentence ends; 0 where it has not yet. @param {boolean} isEnd nothing more will come */
  endOf(isEnd) {
    const length = SENTENCE.exec(this.waiting)?.[0].length ?? 0;
    if (length && length <= MOST) return length;
    if (this.waiting.length > MOST) return (this.waiting.lastIndexOf(" ", MOST) + 1) || MOST;
    return isEnd ? this.waiting.length : 0;
  }
}
