/* The panes of all lanes, side by side, as the run streams and as the scrubber moves. */

import { find } from "../dom.js";
import { isBaseline } from "../schedule.js";
import { shownTokens } from "../position.js";
import { Pane } from "./pane.js";

/** @typedef {import("../run.js").Run} Run */
/** @typedef {import("../store.js").Store} Store */

const STILL = "(prefers-reduced-motion: reduce)";
const INVITES = [
  ["Baseline", "Every layer, for every token.", "Press Run: the full model's answer streams in here."],
  ["LoRA-Drop", "Some layers are skipped between full steps.", "Its answer streams in here, each token tinted by the step that wrote it."],
];

export class Panes {
  /**
   * @param {HTMLElement} root
   * @param {Store} store
   * @param {(step: number) => void} goTo put the scrubber at a step
   */
  constructor(root, store, goTo) {
    this.row = find(root, ".ld-panes");
    this.store = store;
    this.all = INVITES.map((words, index) => new Pane(index, ...words));
    this.row.append(...this.all.map((pane) => pane.node));
    this.row.addEventListener("click", (event) => {
      const target = /** @type {Element} */ (event.target);
      const found = this.tokenAt(target);
      if (found) goTo(found.step);
      else if (target.closest?.(".ld-pane-head")) this.focusOn(target);
    });
    store.subscribe(["run"], ({ run }) => run && this.begin(run));
    store.subscribe(["revision"], ({ run }) => run && this.extend(run));
    store.subscribe(["focus", "revision"], ({ run }) => run && this.drawFigures(run));
    store.subscribe(["step", "moment", "isSameStep"], (state) => {
      for (const pane of this.all) if (pane.lane) pane.showUpTo(shownTokens(state, pane.lane));
    });
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
    // Of a run that comes whole nothing is shown that does not stand.
    const showsTaken = run.isStreaming && !window.matchMedia(STILL).matches;
    for (const pane of this.all) pane.extend(showsTaken);
    for (const { index, divergence } of run.lanes) {
      this.all[index].markDivergence(index ? divergence : run.main.divergence);
      const warning = run.summary?.words.lanes[run.lanes[index].id];
      if (warning) this.all[index].warn(warning);
    }
    for (const pane of this.all) pane.markDisagreements();
    // A run that comes whole, from a file, is read from its beginning.
    if (run.summary && !run.isStreaming) for (const pane of this.all) pane.text.scrollTop = 0;
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
