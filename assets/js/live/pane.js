/* A lane's pane: its name, figures and text. */

import { LANES } from "../charts/layout.js";
import { make } from "../dom.js";
import { formatBytes, formatNumber } from "../format.js";
import { isBaseline } from "../schedule.js";

/** @typedef {import("../run.js").Lane} Lane */
/** @typedef {import("../run.js").Run} Run */

const NEAR_END = 24; // pixels from the end of a pane within which it follows the text
const FAR = 1e9; // a scroll position beyond the end of any text
const SHOWN_MS = 1000; // time for which rejected drafts are visible
const FIGURES = [["speed", "tokens/s"], ["tokens", "tokens"], ["kv", "KV cache"]];

export class Pane {
  /** @type {Lane | null} */
  lane = null;
  /** @type {HTMLElement[]} an element for each token */
  spans = [];
  /** @type {{node: HTMLElement, from: number}[]} lines of the text, so that a new token lays out its line only */
  blocks = [];
  rewound = 0; // rewinds of the lane that were handled
  /** @type {Map<number, string>} rejected drafts, by the step that replaced them */
  taken = new Map();
  struck = -1; // the last of these steps whose drafts were shown struck through
  isHeld = false; // the text after a position is veiled
  count = 0; // tokens before that position
  /** @type {HTMLElement | null} the first token that differs */
  diverged = null;
  /** @type {HTMLElement | null} the token at the position */
  now = null;
  /** @type {{node: HTMLElement, from: number} | null} the partly veiled line */
  partial = null;
  // The pane follows its text until the reader scrolls up. Reading its height at every update would cost a layout.
  follows = true;

  /**
   * @param {number} index
   * @param {string} [title]
   * @param {string} [note]
   * @param {string} [invite] text before the first run
   */
  constructor(index, title = "", note = "", invite = "") {
    this.node = make("article", "ld-pane");
    this.node.dataset.lane = String(index);
    this.node.dataset.testid = `answer-${(LANES[index] ?? "further").replace("-", "_")}`;
    this.title = make("h2", "", title);
    this.note = make("p", "ld-pane-note", note);
    /** @type {Record<string, HTMLElement>} */
    this.values = {};
    const head = make("header", "ld-pane-head");
    head.append(this.title, this.figureList(), this.note);
    this.text = make("div", "ld-text");
    this.text.tabIndex = 0;
    this.text.setAttribute("role", "region");
    this.text.setAttribute("aria-label", `Text of ${title}`);
    this.text.append(make("p", "ld-empty", invite));
    this.node.append(head, this.text);
    this.text.addEventListener("scroll", () => {
      const { scrollTop, scrollHeight, clientHeight } = this.text;
      this.follows = scrollHeight - clientHeight - scrollTop < NEAR_END;
    });
  }

  figureList() {
    const list = make("dl", "ld-figures");
    for (const [key, name] of FIGURES) {
      const item = make("div");
      this.values[key] = make("dd", "", "–");
      this.values[key].dataset.figure = key;
      item.append(make("dt", "", name), this.values[key]);
      list.append(item);
    }
    return list;
  }

  /** Reset the state of the tokens. */
  resetTokens() {
    this.spans = [];
    this.blocks = [];
    this.rewound = 0;
    this.taken = new Map();
    this.struck = -1;
    this.isHeld = false;
    this.diverged = null;
    this.now = null;
    this.partial = null;
    this.follows = true;
  }

  /**
   * Start a lane of a new run.
   *
   * @param {Lane} lane
   * @param {Run} run
   */
  begin(lane, run) {
    const [name, note] = lane.label.split(/:\s*/, 2);
    this.title.textContent = name;
    this.text.setAttribute("aria-label", `Text of ${name}`);
    this.text.replaceChildren();
    this.resetTokens();
    this.lane = lane;
    this.node.dataset.testid = `answer-${lane.id}`;
    this.node.dataset.plain = String(isBaseline(lane.schedule) || lane.looksUp); // every pass is full, so none is marked
    const words = note ?? run.header.words.lanes[lane.id].join(", ");
    this.note.textContent = `${words.charAt(0).toUpperCase()}${words.slice(1)}.`;
    this.node.dataset.untrained = String(!isBaseline(lane.schedule) && lane.rank === 0);
    this.note.title = [this.note.textContent, ...(run.header.sampling.notes ?? [])].join("\n");
  }

  /**
   * Put a warning about the lane's text before the note.
   *
   * @param {string} words
   */
  warn(words) {
    if (this.note.firstElementChild) return;
    this.note.prepend(make("strong", "ld-warning", words), " ");
    this.note.title = `${words}\n${this.note.title}`;
  }

  /** Update the text: remove rejected tokens, append new ones. */
  extend() {
    if (!this.lane) return;
    const { steps, rewinds } = this.lane;
    const gone = rewinds.slice(this.rewound);
    this.rewound = rewinds.length;
    for (const { to, text } of gone) this.taken.set(to + 1, text);
    const remaining = Math.min(this.spans.length, ...gone.map(({ to }) => to + 1));
    if (remaining < this.spans.length) this.cut(remaining);
    else if (!gone.length && remaining === steps.length) return;
    const fresh = document.createDocumentFragment();
    for (let i = remaining; i < steps.length; i++) {
      const span = make("span", `ld-token ld-token-${steps[i].kind}`, steps[i].text);
      span.dataset.step = String(i);
      if (steps[i].isThought) span.classList.add("ld-thought");
      if (this.taken.has(i)) span.classList.add("ld-replaced");
      this.spans.push(span);
      if (i === 0 || steps[i - 1].text.endsWith("\n")) {
        const node = make("div", this.isHeld ? "ld-line ld-later-line" : "ld-line");
        this.blocks.push({ node, from: i });
        fresh.append(node);
      }
      this.blocks[this.blocks.length - 1].node.append(span);
    }
    this.text.append(fresh);
    if (this.isHeld) this.veil(this.count);
    else if (this.follows) this.text.scrollTop = FAR;
  }

  /**
   * Remove all but the first `count` tokens.
   *
   * @param {number} count
   */
  cut(count) {
    for (const span of this.spans.splice(count)) span.remove();
    for (const { node, from } of this.blocks) if (from >= count) node.remove();
    this.blocks = this.blocks.filter(({ from }) => from < count);
  }

  /**
   * Show the drafts that a token replaced, struck through, for a moment.
   *
   * @param {number} step of the token
   */
  strike(step) {
    const text = this.taken.get(step);
    if (!text || step <= this.struck) return;
    this.struck = step;
    const node = make("del", "ld-taken-back", text);
    this.spans[step].before(node);
    setTimeout(() => node.remove(), SHOWN_MS);
  }

  /**
   * Mark the first token that differs; null for none.
   *
   * @param {number | null} token
   */
  markDivergence(token) {
    const span = token === null ? null : this.spans[token];
    if (span === this.diverged) return;
    this.diverged?.classList.remove("ld-diverged");
    span?.classList.add("ld-diverged");
    this.diverged = span;
  }

  /**
   * Draw the lane's figures.
   *
   * @param {number | null} speed tokens a second
   */
  drawFigures(speed) {
    if (!this.lane) return;
    const { steps } = this.lane;
    const count = this.isHeld ? this.count : steps.length;
    const last = steps[count - 1];
    this.values.speed.textContent = formatNumber(speed, 1);
    this.values.tokens.textContent = formatNumber(count) + (last?.thoughts ? ` (${formatNumber(last.thoughts)} thoughts)` : "");
    this.values.kv.textContent = last ? formatBytes(last.kvBytes) : "–";
  }

  /**
   * Veil the text after the first `count` tokens, and mark the last of them; null shows all.
   *
   * @param {number | null} count
   * @param {boolean} isPlaying show rejected drafts for a moment
   */
  showUpTo(count, isPlaying) {
    if (count === null && !this.isHeld) return;
    const to = Math.min(count ?? this.spans.length, this.spans.length);
    if (this.isHeld && count !== null && to === this.count && this.now === (this.spans[to - 1] ?? null)) return;
    this.isHeld = count !== null;
    this.count = to;
    this.veil(to);
    this.now?.classList.remove("ld-now");
    this.now = count === null ? null : (this.spans[to - 1] ?? null);
    if (!this.now) return;
    this.now.classList.add("ld-now");
    if (isPlaying) this.strike(to - 1);
    this.scrollTo(this.now);
  }

  /**
   * Veil whole lines by a class, and the line of the position token by token.
   *
   * @param {number} to
   */
  veil(to) {
    const isLater = (block) => block.from >= to;
    for (const block of this.blocks) block.node.classList.toggle("ld-later-line", isLater(block));
    const lines = this.blocks.filter((block) => !isLater(block));
    const line = lines.pop();
    if (this.partial && this.partial !== line) {
      for (const span of this.partial.node.children) span.classList.remove("ld-later");
    }
    this.partial = line ?? null;
    const inLine = line ? this.spans.slice(line.from, this.blocks[lines.length + 1]?.from) : [];
    for (const span of inLine) span.classList.toggle("ld-later", Number(span.dataset.step) >= to);
  }

  /**
   * Bring a token into sight.
   *
   * @param {HTMLElement} token
   * @param {number} [lines] number of lines to show before it
   */
  scrollTo(token, lines = 0) {
    const { scrollTop, clientHeight } = this.text;
    const { top: at, height } = token.getBoundingClientRect(); // its offsetTop counts from another ancestor in each browser
    const top = at - this.text.getBoundingClientRect().top + scrollTop;
    if (lines || top < scrollTop || top + height > scrollTop + clientHeight) {
      this.text.scrollTop = lines ? top - lines * height : top - clientHeight + 2 * height;
    }
  }
}
