/* The scrubber over a run: one position, a step of the lane that the charts are about, moved by hand, by keys or by
 * playing. It knows no text and no chart; whoever made it shows the position. */
"use strict";
(() => {
  const { formatNumber } = window.LoraDrop;
  const KIND_WORDS = { prefill: "prefill, full", refresh: "full step", lora: "LoRA step" };
  const TYPED_IN = "input:not([type=range]):not([type=checkbox]), textarea, select, [contenteditable]";

  class Player {
    /** `onMove(step, isPlaying)` shows a position; null is the live end of the run. */
    constructor(root, onMove) {
      const find = (selector) => root.querySelector(selector);
      this.root = root;
      this.onMove = onMove;
      this.run = null;
      this.step = null;
      this.timer = 0;
      this.scrub = find(".ld-scrub");
      this.words = find(".ld-scrub-words");
      this.rate = find(".ld-rate");
      this.same = find(".ld-same-step");
      this.buttons = Object.fromEntries(["back", "play", "forward"].map((act) => [act, find(`[data-act=${act}]`)]));
      this.scrub.addEventListener("input", () => this.moveTo(Number(this.scrub.value)));
      this.same.addEventListener("change", () => this.step !== null && this.moveTo(this.step));
      this.buttons.back.addEventListener("click", () => this.moveBy(-1));
      this.buttons.forward.addEventListener("click", () => this.moveBy(1));
      this.buttons.play.addEventListener("click", () => this.toggle());
      document.addEventListener("keydown", (event) => this.onKey(event));
    }

    get last() {
      return this.run ? this.run.focus.steps.length - 1 : 0;
    }

    get isPlaying() {
      return this.timer !== 0;
    }

    begin(run) {
      this.pause();
      this.run = run;
      this.step = null;
      this.same.checked = run.header.sampling.view === "lock-step";
      this.grow();
    }

    /** More steps are there. */
    grow() {
      const isEmpty = this.last < 1;
      for (const control of [this.scrub, ...Object.values(this.buttons)]) control.disabled = isEmpty;
      this.scrub.max = Math.max(this.last, 0);
      if (this.step === null) this.scrub.value = this.last;
      this.tell();
    }

    /** Go to a step; the last one of a run that still streams follows it again. */
    moveTo(step) {
      this.pause();
      const to = Math.max(0, Math.min(step, this.last));
      this.show(to === this.last && !this.run.summary ? null : to);
    }

    moveBy(count) {
      this.moveTo((this.step ?? this.last) + count);
    }

    /** Forget the position: all of the run shows. */
    release() {
      this.pause();
      this.show(null);
    }

    show(step) {
      this.step = step;
      this.scrub.value = step ?? this.last;
      this.tell();
      this.onMove(step, this.isPlaying);
    }

    toggle() {
      if (this.isPlaying) {
        this.pause();
        this.show(this.step);
        return;
      }
      if (this.last < 1) return;
      this.at = this.step === null || this.step >= this.last ? 0 : this.step;
      this.moment = this.run.focus.clock[this.at];
      this.before = performance.now();
      this.setPlaying(requestAnimationFrame(() => this.tick()));
      this.show(this.at);
    }

    /** A frame of playing: the lane's own clock goes on, at the chosen rate. */
    tick() {
      const now = performance.now();
      this.moment += (now - this.before) * Number(this.rate.value);
      this.before = now;
      const { clock } = this.run.focus;
      const from = this.at;
      while (this.at < this.last && clock[this.at + 1] <= this.moment) this.at += 1;
      const isOver = this.at >= this.last && (this.same.checked || this.run.lanes.every((lane) => this.isPast(lane)));
      if (isOver) {
        this.release();
        return;
      }
      this.timer = requestAnimationFrame(() => this.tick());
      if (this.at !== from || !this.same.checked) this.show(this.at);
    }

    isPast({ clock }) {
      return clock[clock.length - 1] <= this.moment;
    }

    pause() {
      cancelAnimationFrame(this.timer);
      this.setPlaying(0);
    }

    setPlaying(timer) {
      this.timer = timer;
      const play = this.buttons.play;
      play.textContent = timer ? "❚❚" : "▶";
      play.setAttribute("aria-label", timer ? "Pause" : "Play");
      this.root.dataset.playing = String(timer !== 0);
    }

    /** How many tokens a lane shows at the position: what it had by then on its own clock, or the same step. */
    shown(lane) {
      if (this.step === null) return lane.steps.length;
      const { focus } = this.run;
      if (lane === focus || this.same.checked) return Math.min(this.step + 1, lane.steps.length);
      const moment = this.isPlaying ? this.moment : focus.clock[this.step];
      let count = 0;
      let above = lane.clock.length;
      while (count < above) {
        const middle = (count + above) >> 1;
        if (lane.clock[middle] <= moment) count = middle + 1;
        else above = middle;
      }
      return count;
    }

    /** The position in words. */
    tell() {
      if (this.last < 1) return;
      const at = this.step ?? this.last;
      const { kind, ms } = this.run.focus.steps[at];
      const audit = this.run.focus.audits.get(at);
      const kl = audit && audit.kl !== null ? `, KL ${formatNumber(audit.kl, 2)}` : "";
      this.words.textContent = `step ${at} of ${this.last}: ${KIND_WORDS[kind]}, ${formatNumber(ms, 1)} ms${kl}`;
      this.scrub.setAttribute("aria-valuetext", this.words.textContent);
    }

    onKey(event) {
      if (event.ctrlKey || event.metaKey || event.altKey || this.last < 1) return;
      const target = event.target;
      if (target.matches?.(TYPED_IN) || !this.root.isConnected || !this.root.offsetParent) return;
      const isScrub = target === this.scrub; // the browser moves it
      const isButton = target.matches?.("button, summary, a, input, [role=tab], [role=radio]");
      if (event.key === " " && (!isButton || isScrub)) this.toggle();
      else if (event.key === "ArrowLeft" && !isButton) this.moveBy(-1);
      else if (event.key === "ArrowRight" && !isButton) this.moveBy(1);
      else if (event.key === "Escape" && this.step !== null) this.release();
      else return;
      event.preventDefault();
    }
  }

  window.LoraDrop.Player = Player;
})();
