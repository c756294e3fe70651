/* Reads the answers to a screen reader while they are written, sentence by sentence, each sentence once. */

import { make } from "../dom.js";
import { shownTokens } from "../position.js";
import { verifies } from "../schedule.js";

/** @typedef {import("../run.js").Lane} Lane */
/** @typedef {import("../run.js").Run} Run */
/** @typedef {import("../store.js").State} State */

// It has a word: "1." alone is no sentence.
const SENTENCE = /^.*?\p{L}.*?(?:[.!?]+["')\]]*(?=\s)|[。！？]|\n)\s*/su;
const LONGEST = 600; // characters of a text without the end of a sentence
const REGION_SENTENCES = 12; // a screen reader announces new ones; the others can be read again

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
  let spoken = new Set();

  store.subscribe(["run"], ({ run }) => {
    region.replaceChildren();
    spoken = new Set();
    // A complete run can be read in its pane.
    speakers = run && !run.isWhole ? run.lanes.map((lane) => new Speaker(lane)) : [];
  });
  store.subscribe(["revision", "moment", "isUnfolding"], (state) => {
    const { run } = state;
    if (!run) return;
    for (const [index, speaker] of speakers.entries()) {
      for (const { at, text } of speaker.next(state)) {
        // Up to the first difference the answers are the same text, which is read once.
        const key = `${at} ${text}`;
        if (!text || spoken.has(key)) continue;
        spoken.add(key);
        region.append(make("p", "", `${run.plainLabels[index]}: ${text}`));
        if (region.children.length > REGION_SENTENCES) region.firstElementChild?.remove();
      }
    }
  });
}

/** The sentences of a lane that are shown and can no longer be rejected. */
class Speaker {
  tokens = 0; // tokens read so far
  waiting = ""; // text of an unfinished sentence
  at = 0; // characters before that sentence

  /** @param {Lane} lane */
  constructor(lane) {
    this.lane = lane;
  }

  /**
   * Sentences completed since the last call, each with its first character's place.
   *
   * @param {State} state
   */
  next(state) {
    const { steps } = this.lane;
    const isEnd = Boolean(state.run?.isOver && !state.isUnfolding);
    const count = Math.min(isEnd ? steps.length : (shownTokens(state, this.lane) ?? steps.length), steps.length);
    // A draft may be rejected until the next full step; a spoken sentence cannot be revoked.
    const safe = verifies(this.lane.schedule) && !isEnd ? (steps[count - 1]?.lastRefresh ?? -1) + 1 : count;
    for (; this.tokens < safe; this.tokens++) this.waiting += steps[this.tokens].text;
    const sentences = [];
    for (let end; (end = this.endOf(isEnd)); ) {
      sentences.push({ at: this.at, text: this.waiting.slice(0, end).trim() });
      this.at += end;
      this.waiting = this.waiting.slice(end);
    }
    return sentences;
  }

  /** Place where the next sentence ends; 0 if it has no end yet. @param {boolean} isEnd the text is complete */
  endOf(isEnd) {
    const length = SENTENCE.exec(this.waiting)?.[0].length ?? 0;
    if (length && length <= LONGEST) return length;
    if (this.waiting.length > LONGEST) return (this.waiting.lastIndexOf(" ", LONGEST) + 1) || LONGEST;
    return isEnd ? this.waiting.length : 0;
  }
}
