/* The scrubber over a run: one position, a step of the focused lane, moved by hand, by keys or by playing. A new run is
 * played while it arrives, at a reading pace. The position goes into the store; text and charts follow it. */

import { find } from "./dom.js";
import { formatNumber } from "./format.js";
import { stepWords } from "./kinds.js";
import { paceWords, reached, readingPace } from "./pace.js";
import { decodeMs, lastStep } from "./position.js";

const FRAME_MS = 30; // least time between two frames of playing
const LATE_MS = 250; // most time that a frame moves on, so that it does not leap after a busy second or in a hidden tab
const STILL = "(prefers-reduced-motion: reduce)";

const TYPED_IN = "input:not([type=range]):not([type=checkbox]), textarea, select, [contenteditable]";

export class Player {
  /**
   * @param {HTMLElement} root
   * @param {import("./store.js").Store} store
   */
  constructor(root, store) {
    this.root = root;
    this.store = store;
    this.timer = 0;
    this.at = 0; // the step that playing has reached
    this.moment = 0; // milliseconds of decoding on the lanes' clocks
    this.reading = { rate: 1, isSure: false }; // reading pace of this run
    this.lastFrame = 0; // time of the last frame
    /** @type {HTMLInputElement} */
    this.scrub = find(root, ".ld-scrub");
    this.words = find(root, ".ld-scrub-words");
    this.paceWords = find(root, ".ld-pace-words");
    /** @type {HTMLButtonElement} */
    this.skip = find(root, "[data-act=skip]");
    /** @type {HTMLSelectElement} */
    this.rateMenu = find(root, ".ld-rate");
    /** @type {HTMLInputElement} */
    this.sameStep = find(root, ".ld-same-step");
    /** @type {HTMLButtonElement[]} */
    const [back, play, forward] = ["back", "play", "forward"].map((act) => find(root, `[data-act=${act}]`));
    this.buttons = { back, play, forward };
    this.listen();
    store.subscribe(["run"], () => this.run && this.begin());
    store.subscribe(["focus"], () => this.run && this.grow());
    store.subscribe(["revision"], () => {
      this.setPace();
      this.grow();
      this.show(this.step === null ? null : this.clamp(this.step)); // its draft may have been rejected
    });
  }

  listen() {
    const { back, play, forward } = this.buttons;
    this.scrub.addEventListener("input", () => this.moveTo(Number(this.scrub.value)));
    this.sameStep.addEventListener("change", () => {
      this.store.update({ isSameStep: this.sameStep.checked });
      if (this.step !== null) this.moveTo(this.step);
    });
    back.addEventListener("click", () => this.moveBy(-1));
    forward.addEventListener("click", () => this.moveBy(1));
    play.addEventListener("click", () => this.toggle());
    this.skip.addEventListener("click", () => this.release());
    this.rateMenu.addEventListener("change", () => this.showPace());
    document.addEventListener("keydown", (event) => this.onKey(event));
  }

  get run() {
    return this.store.state.run;
  }

  get step() {
    return this.store.state.step;
  }

  get last() {
    return this.run ? this.run.focus.steps.length - 1 : 0;
  }

  /** The nearest step that the run has. @param {number} step */
  clamp(step) {
    return Math.max(0, Math.min(step, this.last));
  }

  get isPlaying() {
    return this.timer !== 0;
  }

  /** Start a new run: play it from its first token, unless it is complete or motion is unwanted. */
  begin() {
    this.pause();
    this.sameStep.checked = this.run?.header.sampling.view === "lock-step";
    this.reading = { rate: 1, isSure: false };
    this.setPace(); // a fast run may be complete with its first record
    const comes = !this.run?.isWhole || this.run.isRecorded;
    const isUnfolding = comes && !this.store.state.isBlind && !window.matchMedia(STILL).matches;
    this.store.update({ step: null, moment: null, isSameStep: this.sameStep.checked, isUnfolding });
    this.grow();
    if (isUnfolding) this.play(0);
    this.showPace();
  }

  /** Set the reading pace, until the speed of each lane is sure. */
  setPace() {
    if (!this.run || this.reading.isSure) return;
    this.reading = readingPace(this.run);
    this.showPace();
  }

  /** Speed of playing: 1 is real time. */
  get pace() {
    return this.rateMenu.value === "reading" ? this.reading.rate : Number(this.rateMenu.value);
  }

  /** Write the pace in words, while playing. */
  showPace() {
    const isShown = this.isPlaying || this.store.state.isUnfolding;
    this.skip.hidden = !isShown;
    this.paceWords.textContent = isShown && this.reading.isSure ? paceWords(this.pace) : "";
  }

  /** Follow new steps. */
  grow() {
    const isEmpty = this.last < 1;
    for (const control of [this.scrub, ...Object.values(this.buttons)]) control.disabled = isEmpty;
    this.scrub.max = String(Math.max(this.last, 0));
    this.at = this.clamp(this.at);
    if (this.step === null) this.scrub.value = String(this.last);
    this.showPosition();
  }

  /**
   * Go to a step; the last step of a streaming run follows it again.
   *
   * @param {number} step
   */
  moveTo(step) {
    if (this.store.state.isUnfolding) this.store.update({ isUnfolding: false });
    this.pause();
    const to = this.clamp(step);
    this.show(to === this.last && !this.run?.isOver ? null : to);
  }

  /** @param {number} count */
  moveBy(count) {
    this.moveTo((this.step ?? this.last) + count);
  }

  /** Leave the position and show the whole run. */
  release() {
    this.store.update({ isUnfolding: false });
    this.pause();
    this.show(null);
  }

  /** @param {number | null} step */
  show(step) {
    this.store.update({ step, moment: this.isPlaying ? this.moment : null });
    this.scrub.value = String(step ?? this.last);
    this.showPosition();
  }

  toggle() {
    if (this.isPlaying) {
      this.pause();
      this.show(this.step);
      return;
    }
    if (this.last < 1 || !this.run) return;
    this.play(this.step === null || this.step >= this.last ? 0 : this.step);
  }

  /** Play from a step. @param {number} from */
  play(from) {
    if (!this.run) return;
    this.at = from;
    this.moment = this.last > 0 ? decodeMs(this.run.focus, from) : 0;
    this.lastFrame = performance.now();
    this.setPlaying(requestAnimationFrame(() => this.tick()));
    this.show(from);
    this.showPace();
  }

  /** Play a frame: the lanes' clocks move on at the chosen pace, up to the latest step. */
  tick() {
    const { run } = this;
    if (!run) return;
    this.timer = requestAnimationFrame(() => this.tick());
    const now = performance.now();
    if (now - this.lastFrame < FRAME_MS) return; // sixty drawings a second would slow decoding on a CPU
    const passed = Math.min(now - this.lastFrame, LATE_MS) * this.pace;
    const lanes = this.sameStep.checked ? [run.focus] : run.lanes; // at the same step only this lane's clock counts
    this.moment = Math.max(this.moment, Math.min(this.moment + passed, reached(run, lanes)));
    this.lastFrame = now;
    const from = this.at;
    while (this.at < this.last && decodeMs(run.focus, this.at + 1) <= this.moment) this.at += 1;
    const isPast = this.sameStep.checked ? this.at >= this.last : run.lanes.every((lane) => decodeMs(lane, lastStep(lane)) <= this.moment);
    if (run.isOver && this.at >= this.last && isPast) this.release();
    else if (this.at !== from || !this.sameStep.checked) this.show(this.at);
  }

  pause() {
    cancelAnimationFrame(this.timer);
    this.setPlaying(0);
    this.showPace();
  }

  /** @param {number} timer of the next frame; 0 while paused */
  setPlaying(timer) {
    this.timer = timer;
    const { play } = this.buttons;
    play.textContent = timer ? "❚❚" : "▶";
    play.setAttribute("aria-label", timer ? "Pause" : "Play");
    this.root.dataset.playing = String(timer !== 0);
  }

  /** Write the position in words. */
  showPosition() {
    if (this.last < 1 || !this.run) return;
    const at = this.clamp(this.step ?? this.last); // its draft may have been rejected
    const { kind, ms } = this.run.focus.steps[at];
    const kl = this.run.focus.audits.get(at)?.kl ?? null;
    const audit = kl === null ? "" : `, KL ${formatNumber(kl, 2)}`;
    this.words.textContent = `step ${at} of ${this.last}: ${stepWords[kind]}, ${formatNumber(ms, 1)} ms${audit}`;
    this.scrub.setAttribute("aria-valuetext", this.words.textContent);
  }

  /** @param {KeyboardEvent} event */
  onKey(event) {
    if (event.ctrlKey || event.metaKey || event.altKey || this.last < 1) return;
    const target = /** @type {Element} */ (event.target);
    if (target.matches?.(TYPED_IN) || !this.root.isConnected || !this.root.offsetParent) return;
    const isScrub = target === this.scrub; // the browser moves it itself
    const isButton = target.matches?.("button, summary, a, input, [role=tab], [role=radio]");
    if (event.key === " " && (!isButton || isScrub)) this.toggle();
    else if (this.store.state.isTalk) return; // there the keys turn slides
    else if (event.key === "ArrowLeft" && !isButton) this.moveBy(-1);
    else if (event.key === "ArrowRight" && !isButton) this.moveBy(1);
    else if (event.key === "Escape" && this.step !== null) this.release();
    else return;
    event.preventDefault();
  }
}
