/* The panes of all lanes, side by side; they follow the stream and the scrubber. */

import { find } from "../dom.js";
import { isBaseline } from "../schedule.js";
import { shownTokens } from "../position.js";
import { Pane } from "./pane.js";

/** @typedef {import("../run.js").Run} Run */
/** @typedef {import("../store.js").Store} Store */

const LINES_BEFORE = 2; // lines shown above the first difference
const INVITES = [
  ["Baseline", "Every layer, for every token.", "The full model's answer will appear here."],
  ["LoRA-Drop", "Some layers are skipped between full steps.", "The answer with skipped layers will appear here, beside the full model's."],
  ["Corrections off", "The same run, with nothing in the place of skipped layers.", "The answer with the corrections off will appear here."],
];

export class Panes {
  /**
   * @param {HTMLElement} root
   * @param {Store} store
   * @param {(step: number) => void} goTo put the scrubber at a step
   * @param {number} lanes of the first run, as expected: then its answers do not move the page
   */
  constructor(root, store, goTo, lanes) {
    this.row = find(root, ".ld-panes");
    this.store = store;
    this.isSettled = false; // the answers were scrolled to their first difference since their end was last shown
    this.all = INVITES.slice(0, lanes).map((words, index) => new Pane(index, ...words));
    this.row.append(...this.all.map((pane) => pane.node));
    this.row.addEventListener("click", (event) => {
      const target = /** @type {Element} */ (event.target);
      const token = this.tokenAt(target);
      if (token) goTo(token.step);
      else if (target.closest?.(".ld-pane-head")) this.focusOn(target);
    });
    store.subscribe(["run"], ({ run }) => run && this.begin(run));
    store.subscribe(["revision"], ({ run }) => run && this.extend(run));
    store.subscribe(["step", "moment", "isSameStep"], (state) => {
      for (const pane of this.all) if (pane.lane) pane.showUpTo(shownTokens(state, pane.lane), state.moment !== null);
    });
    store.subscribe(["step", "moment", "revision"], ({ run }) => run && this.drawFigures(run));
    store.subscribe(["isUnfolding", "revision", "step", "isBlind"], (state) => {
      const isWhole = this.showsWhole(state);
      if (state.run && isWhole && !this.isSettled) this.settle(state.run);
      this.isSettled = isWhole;
    });
    // Answers scroll together: they have the same lines up to the first difference.
    this.row.addEventListener("scroll", (event) => this.follow(/** @type {HTMLElement} */ (event.target)), true);
  }

  /** True if the answers of a run that is over are shown to their end. @param {import("../store.js").State} state */
  showsWhole({ run, isUnfolding, step, isBlind }) {
    if (!run?.isOver || isUnfolding || isBlind || step !== null) return false;
    return this.all[run.main.index].spans.length === run.main.steps.length; // an opened run is there before its text
  }

  /**
   * Scroll the other answers to the position of this answer.
   *
   * @param {HTMLElement} text
   */
  follow(text) {
    const { step, isUnfolding, isSameStep } = this.store.state;
    if (isUnfolding || (step !== null && !isSameStep)) return; // each lane is at another token
    for (const pane of this.all) if (pane.text !== text) pane.text.scrollTop = text.scrollTop;
  }

  /**
   * Scroll the answers of a finished run to the first difference.
   *
   * @param {Run} run
   */
  settle(run) {
    for (const pane of this.all) pane.text.scrollTop = 0;
    const pane = this.all[run.main.index];
    if (pane.diverged) pane.scrollTo(pane.diverged, LINES_BEFORE);
    for (const other of this.all) other.text.scrollTop = pane.text.scrollTop;
  }

  /**
   * Start a pane for each lane.
   *
   * @param {Run} run
   */
  begin(run) {
    this.isSettled = false;
    while (this.all.length > run.lanes.length) this.all.pop()?.node.remove();
    while (this.all.length < run.lanes.length) {
      this.all.push(new Pane(this.all.length));
      this.row.append(this.all[this.all.length - 1].node);
    }
    run.lanes.forEach((lane, index) => this.all[index].begin(lane, run));
  }

  /**
   * Update all panes.
   *
   * @param {Run} run
   */
  extend(run) {
    for (const pane of this.all) pane.extend();
    for (const { index, divergence } of run.lanes) {
      this.all[index].markDivergence(index ? divergence : run.main.divergence);
      const warning = run.summary?.words.lanes[run.lanes[index].id];
      if (warning) this.all[index].warn(warning);
    }
  }

  /** @param {Run} run */
  drawFigures(run) {
    for (const [index, pane] of this.all.entries()) pane.drawFigures(run.lanes[index].speed);
  }

  /**
   * Show this pane's lane in the charts of activity and drift.
   *
   * @param {Element} target
   */
  focusOn(target) {
    const { run } = this.store.state;
    const lane = this.all.find((pane) => pane.node.contains(target))?.lane;
    if (!run || !lane || isBaseline(lane.schedule) || lane === run.focus) return;
    run.focus = lane;
    this.store.update({ focus: lane.index, layer: null });
  }

  /**
   * The token of an element in a pane; null for another element.
   *
   * @param {Element} target
   */
  tokenAt(target) {
    /** @type {HTMLElement | null} */
    const span = target.closest?.(".ld-token");
    const lane = span && this.all.find((pane) => pane.node.contains(span))?.lane;
    return lane ? { span, lane, step: Number(span.dataset.step) } : null;
  }
}
