/* The panes of all lanes, side by side, as the run streams and as the scrubber moves. */

import { find } from "../dom.js";
import { isBaseline } from "../schedule.js";
import { shownTokens } from "../position.js";
import { Pane } from "./pane.js";

/** @typedef {import("../run.js").Run} Run */
/** @typedef {import("../store.js").Store} Store */

const LINES_BEFORE = 2; // of the first difference, that are in sight above it
const INVITES = [
  ["Baseline", "Every layer, for every token.", "The full model's answer will stand here."],
  ["LoRA-Drop", "Some layers are skipped between full steps.", "The answer with skipped layers will stand here, beside the full model's."],
  ["Without corrections", "The same layers are skipped, with nothing in their place.", "What skipping alone writes will stand here."],
];

export class Panes {
  /**
   * @param {HTMLElement} root
   * @param {Store} store
   * @param {(step: number) => void} goTo put the scrubber at a step
   * @param {number} lanes of the first run, as far as can be told: its answers then move nothing
   */
  constructor(root, store, goTo, lanes) {
    this.row = find(root, ".ld-panes");
    this.store = store;
    /** @type {Run | null} whose answers were brought to their first difference */
    this.settled = null;
    this.all = INVITES.slice(0, lanes).map((words, index) => new Pane(index, ...words));
    this.row.append(...this.all.map((pane) => pane.node));
    this.row.addEventListener("click", (event) => {
      const target = /** @type {Element} */ (event.target);
      const found = this.tokenAt(target);
      if (found) goTo(found.step);
      else if (target.closest?.(".ld-pane-head")) this.focusOn(target);
    });
    store.subscribe(["run"], ({ run }) => run && this.begin(run));
    store.subscribe(["revision"], ({ run }) => run && this.extend(run));
    store.subscribe(["step", "moment", "isSameStep"], (state) => {
      for (const pane of this.all) if (pane.lane) pane.showUpTo(shownTokens(state, pane.lane), state.moment !== null);
    });
    store.subscribe(["step", "moment", "revision"], ({ run }) => run && this.drawFigures(run));
    store.subscribe(["isUnfolding", "revision"], ({ run, isUnfolding }) => {
      if (run?.isOver && !isUnfolding && this.settled !== run) this.settle(run);
    });
    // Answers scroll together: up to the first difference they have the same lines.
    this.row.addEventListener("scroll", (event) => this.follow(/** @type {HTMLElement} */ (event.target)), true);
  }

  /**
   * The other answers stand where this one does.
   *
   * @param {HTMLElement} text
   */
  follow(text) {
    const { step, isUnfolding, isSameStep } = this.store.state;
    if (isUnfolding || (step !== null && !isSameStep)) return; // each lane is at a token of its own
    for (const pane of this.all) if (pane.text !== text) pane.text.scrollTop = text.scrollTop;
  }

  /**
   * A run is told to its end: its answers stand at the first difference.
   *
   * @param {Run} run
   */
  settle(run) {
    this.settled = run;
    for (const pane of this.all) pane.text.scrollTop = 0;
    const pane = this.all[run.main.index];
    if (pane.diverged) pane.scrollTo(pane.diverged, LINES_BEFORE);
    for (const other of this.all) other.text.scrollTop = pane.text.scrollTop;
  }

  /**
   * As many panes as lanes, each at its beginning.
   *
   * @param {Run} run
   */
  begin(run) {
    while (this.all.length > run.lanes.length) this.all.pop()?.node.remove();
    while (this.all.length < run.lanes.length) {
      this.all.push(new Pane(this.all.length));
      this.row.append(this.all[this.all.length - 1].node);
    }
    run.lanes.forEach((lane, index) => this.all[index].begin(lane, run));
  }

  /**
   * Bring all up to what was read.
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
   * The charts of activity and drift are about the lane of this pane.
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
   * The token that an element of a pane is, if any.
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
