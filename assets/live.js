/* The live view: reads the run's wire text (lora_drop/trace.py, wire_line) as it grows and shows it, in text panes,
 * figures and charts. Any number of lanes; the header names them. Text enters the page through textContent only. */
"use strict";
(() => {
  const { schedule: S, Charts, Player, formatBytes, formatNumber, formatShare, make } = window.LoraDrop;
  const KINDS = ["prefill", "refresh", "lora"];
  const TRIGGERS = ["entropy", "norm"];
  const AUDIT = 100; // an audit line starts with 100 + its lane
  const NEAR_END = 24; // pixels from the end of a pane within which it follows the text
  const FAR = 1e9; // a scroll position beyond every text
  const PANES = [
    ["Baseline", "Every layer, for every token.", "Press Run: the full model's answer streams in here."],
    ["LoRA-Drop", "Some layers rest between full steps.", "Its answer streams in here, each token tinted by the step that wrote it."],
  ];

  /** What a run has shown so far. */
  class Run {
    constructor(id, header) {
      this.id = id;
      this.header = header;
      this.promptTokens = header.prompt_tokens;
      this.bytesPerToken = header.model.kv_bytes_per_token;
      this.planned = header.sampling.max_new_tokens - 1;
      this.summary = null;
      this.lanes = header.lanes.map(({ id: lane, label, config }, index) => ({
        index,
        id: lane,
        label,
        rank: config.rank ?? 0,
        schedule: {
          period: config.period,
          numLayers: header.model.layers,
          dropped: config.dropped,
          corrected: config.corrected,
          reuse: config.reuse,
          part: config.part,
          kv: config.kv,
          refreshEntropy: config.refresh_entropy,
          refreshNorm: config.refresh_norm,
        },
        steps: [],
        audits: new Map(),
        clock: [], // milliseconds on the lane's own clock after each step
        prefillMs: 0,
        decodeMs: 0,
        agreed: 0,
        audited: 0,
        refreshes: 0,
        divergence: null,
        compared: 0,
        baseBytes: 0,
        ownBytes: 0,
      }));
      this.plainLabels = this.lanes.map((lane) => lane.label.split(":")[0].replace(/[^\w .-]/g, ""));
      this.shape = header.model.shape ?? null; // traces of older versions have none: then there is no bound on the way
      // The lane that the activity and drift charts are about: the first that drops something.
      this.focus = this.lanes.find((lane) => !S.isBaseline(lane.schedule)) ?? this.lanes[this.lanes.length - 1];
      this.main = this.focus; // the lane that the headline figures are about; the reader may turn the charts to another
    }

    /** Index of the main lane's first token that differs from the first lane's, or null. */
    get divergence() {
      return this.main.divergence;
    }

    /** The first lane and one to compare it with, or null. */
    pair() {
      return this.lanes.length > 1 ? [this.lanes[0], this.main === this.lanes[0] ? this.lanes[1] : this.main] : null;
    }

    addStep([lane, step, tokenId, text, kind, ms, kvBytes, entropy, trigger]) {
      const { shape } = this;
      const own = this.lanes[lane];
      if (KINDS[kind] === "refresh") own.refreshes += 1;
      own.steps.push({
        step,
        tokenId,
        text,
        kind: KINDS[kind],
        ms,
        kvBytes,
        entropy,
        trigger: TRIGGERS[trigger] ?? null, // only an early refresh has one
        refreshes: own.refreshes,
      });
      own.clock.push(ms + (own.clock[step - 1] ?? 0));
      if (step === 0) {
        own.prefillMs = ms;
        return;
      }
      own.decodeMs += ms;
      if (!shape) return;
      own.baseBytes += S.stepBytes(shape, S.baseline(own.schedule.numLayers), step, this.promptTokens, 1);
      const happened = { isLora: KINDS[kind] === "lora", refreshes: own.refreshes };
      own.ownBytes += S.stepBytes(shape, own.schedule, step, this.promptTokens, 1, own.rank, true, happened);
    }

    addAudit([lane, step, drift, kl, agrees, argmax]) {
      const own = this.lanes[lane - AUDIT];
      own.audits.set(step, { drift: drift.map((d) => (d === null ? null : d / 1e4)), kl, agrees: Boolean(agrees), argmax });
      if (own.steps[step]?.kind !== "lora") return;
      own.audited += 1;
      own.agreed += agrees;
    }

    /** Each lane's first token that differs from the first lane's, looked for in what is new. */
    findDivergence() {
      const [first, ...others] = this.lanes;
      for (const lane of others) {
        const both = Math.min(first.steps.length, lane.steps.length);
        for (; lane.divergence === null && lane.compared < both; lane.compared++) {
          if (first.steps[lane.compared].tokenId !== lane.steps[lane.compared].tokenId) lane.divergence = lane.compared;
        }
      }
    }

    /** Is a speedup beyond what bytes allow? Then the lanes' steps met different loads; no reading is saved twice. */
    isNoisy(speedup, bound) {
      return Boolean(speedup && bound && this.summary && speedup > 1.03 * bound);
    }

    /** The run's figures: the summary's once it is there, counted from the steps until then. */
    figures() {
      const speeds = this.lanes.map((lane) => {
        const decoded = lane.steps.length - 1;
        return decoded > 0 && lane.decodeMs > 0 ? (1000 * decoded) / lane.decodeMs : null;
      });
      if (this.summary) return { ...this.summary, speeds: this.lanes.map((l) => this.summary.lanes[l.id].tokens_per_second) };
      const pair = this.pair();
      let [speedup, saved] = [null, null];
      if (pair) {
        const [one, two] = [speeds[pair[0].index], speeds[pair[1].index]];
        speedup = one && two ? two / one : null;
        const shorter = Math.min(pair[0].steps.length, pair[1].steps.length) - 1;
        saved = shorter >= 0 ? 1 - pair[1].steps[shorter].kvBytes / pair[0].steps[shorter].kvBytes : null;
      }
      const { audited, agreed, baseBytes, ownBytes } = this.main;
      return {
        speeds,
        speedup,
        bound: ownBytes ? baseBytes / ownBytes : null,
        kv_saved: saved,
        first_divergence: this.divergence,
        top1_agreement: audited ? agreed / audited : null,
      };
    }
  }

  /** A lane's pane: its name, its figures, its text. */
  class Pane {
    constructor(index, title, note, invite) {
      this.node = make("article", "ld-pane");
      this.node.dataset.lane = index;
      const head = make("header", "ld-pane-head");
      this.title = make("h2", "", title);
      this.note = make("p", "ld-pane-note", note);
      const list = make("dl", "ld-figures");
      this.values = {};
      for (const [key, name] of [["speed", "tokens/s"], ["tokens", "tokens"], ["kv", "KV cache"], ["prefill", "prefill"]]) {
        const item = make("div");
        this.values[key] = make("dd", "", "–");
        this.values[key].dataset.figure = key;
        item.append(make("dt", "", name), this.values[key]);
        list.append(item);
      }
      head.append(this.title, list, this.note);
      this.text = make("div", "ld-text");
      this.text.tabIndex = 0;
      this.text.setAttribute("role", "region");
      this.text.setAttribute("aria-label", `Text of ${title}`);
      this.text.append(make("p", "ld-empty", invite));
      this.node.append(head, this.text);
      this.spans = [];
      // It follows its text until the reader scrolls up. Asking the pane's height at every update costs a layout.
      this.follows = true;
      this.text.addEventListener("scroll", () => {
        const { scrollTop, scrollHeight, clientHeight } = this.text;
        this.follows = scrollHeight - clientHeight - scrollTop < NEAR_END;
      });
    }

    /** Start over for a lane of a run. */
    begin(lane, run) {
      const [name, note] = lane.label.split(/:\s*/, 2);
      this.title.textContent = name;
      this.text.setAttribute("aria-label", `Text of ${name}`);
      this.text.replaceChildren();
      this.spans = [];
      this.blocks = []; // {node, from}: lines of the text, so that a new token lays out its own line only
      this.marked = 0;
      this.isHeld = false;
      this.now = this.partial = null;
      this.follows = true;
      this.lane = lane;
      this.note.textContent = note ? `${note.charAt(0).toUpperCase()}${note.slice(1)}.` : laneNote(lane);
      this.node.dataset.untrained = String(!S.isBaseline(lane.schedule) && lane.rank === 0);
      this.note.title = [this.note.textContent, ...(run.header.sampling.notes ?? [])].join("\n");
    }

    /** Append the tokens that came since the last time. */
    extend() {
      const { steps } = this.lane;
      if (this.spans.length === steps.length) return;
      const fresh = document.createDocumentFragment();
      for (let i = this.spans.length; i < steps.length; i++) {
        const span = make("span", `ld-token ld-token-${steps[i].kind}`, steps[i].text);
        span.dataset.step = i;
        this.spans.push(span);
        if (i === 0 || steps[i - 1].text.endsWith("\n")) {
          this.blocks.push({ node: make("div", "ld-line"), from: i });
          fresh.append(this.blocks[this.blocks.length - 1].node);
        }
        this.blocks[this.blocks.length - 1].node.append(span);
      }
      this.text.append(fresh);
      if (this.follows && !this.isHeld) this.text.scrollTop = FAR;
    }

    /** Veil what comes after the first `count` tokens, and mark the last of those; `count` null shows all. */
    showUpTo(count) {
      if (count === null && !this.isHeld) return;
      const to = Math.min(count ?? this.spans.length, this.spans.length);
      this.isHeld = count !== null;
      // Whole lines by their own class; in the line where the step is, token by token.
      const isLater = (block) => block.from >= to;
      for (const block of this.blocks) block.node.classList.toggle("ld-later-line", isLater(block));
      const line = this.blocks.filter((block) => !isLater(block)).pop();
      if (this.partial && this.partial !== line) {
        for (const span of this.partial.node.children) span.classList.remove("ld-later");
      }
      this.partial = line ?? null;
      for (const span of line?.node.children ?? []) span.classList.toggle("ld-later", Number(span.dataset.step) >= to);
      this.now?.classList.remove("ld-now");
      this.now = count === null ? null : this.spans[to - 1];
      if (!this.now) return;
      this.now.classList.add("ld-now");
      const { offsetTop, offsetHeight } = this.now;
      const { scrollTop, clientHeight } = this.text;
      const top = offsetTop - this.text.offsetTop;
      if (top < scrollTop || top + offsetHeight > scrollTop + clientHeight) {
        this.text.scrollTop = top - clientHeight + 2 * offsetHeight;
      }
    }
  }

  /** "13 of 30 layers rest in 3 of 4 steps. Corrections of rank 64." */
  function laneNote({ schedule, rank }) {
    if (S.isBaseline(schedule)) return "Nothing is dropped: this is the baseline again.";
    const { period, dropped, numLayers, part, reuse } = schedule;
    const layers = `${dropped.length} of ${numLayers} layers`;
    const what = part === "attention" ? `Attention of ${layers} rests` : `${layers} rest`;
    const share = period === 2 ? "every other step" : `in ${period - 1} of ${period} steps`;
    const when = S.isAdaptive(schedule) ? `${share} at most` : share;
    const untrained = reuse === "skip" ? "No corrections: they are left out." : "No corrections: the untrained rule.";
    const trained = rank ? `Corrections of rank ${rank}.` : untrained;
    return `${what} ${when}. ${trained}`;
  }

  /** "SmolLM2-135M-Instruct, bfloat16, native decoder (q4_1/q8_0 blocks), on AMD EPYC" */
  function place(model, dtype, decoder, device) {
    const [, name, weights] = /^(\w+)(.*)$/.exec(decoder) ?? [null, decoder, ""];
    return `${model.replace(/^bundled:/, "")}, ${dtype}, ${name} decoder${weights}, on ${device}`;
  }

  /** Mount the view: props.value is the wire text so far, props.model the loaded model's facts (a recorded run that is
   * replayed has none, and no server either). */
  function mountLive(element, props, watch, server = null) {
    const root = element.querySelector(".ld-live");
    const paneRow = root.querySelector(".ld-panes");
    const tip = root.querySelector(".ld-tip");
    const figure = (name, text) => (root.querySelector(`.ld-summary [data-figure="${name}"]`).textContent = text);
    const panes = PANES.map(([title, note, invite], index) => new Pane(index, title, note, invite));
    paneRow.append(...panes.map((pane) => pane.node));
    const charts = new Charts(root, (step) => player.moveTo(step));
    const player = new Player(root, showMoment);
    let run = null;
    let runId = null;
    let read = 0; // characters of props.value that were read
    let asked = false;
    const { model } = props;
    const showPlace = (told) => figure("device", place(told.id, told.dtype, told.decoder, told.device));
    if (model) {
      showPlace(model);
      window.LoraDrop.onModel((found) => run || showPlace(found.model)); // a run keeps the name of its own
    }
    window.LoraDrop.mountTakeAway?.(root, server, () => run, charts);

    /** Read the complete lines that were appended; a text that does not go on is another run. */
    function take() {
      const text = props.value ?? "";
      if (text.length < read || (runId && !text.startsWith(`{"type":"run","id":"${runId}"`))) {
        read = 0;
        run = runId = null;
      }
      const end = text.lastIndexOf("\n") + 1;
      if (end <= read) return;
      const lines = text.slice(read, end).split("\n");
      read = end;
      for (const line of lines) if (line) takeLine(JSON.parse(line));
      if (!asked) requestAnimationFrame(draw);
      asked = true;
    }

    function takeLine(values) {
      if (Array.isArray(values)) {
        if (values[0] >= AUDIT) run.addAudit(values);
        else run.addStep(values);
      } else if (values.type === "run") {
        runId = values.id;
      } else if (values.type === "header") {
        begin(new Run(runId, values));
      } else if (values.type === "summary") {
        run.summary = values;
      }
    }

    function begin(next) {
      run = root.loraDropRun = next;
      root.dataset.lanes = run.lanes.length;
      root.dataset.state = "running";
      root.dataset.run = run.id;
      const { model, device } = run.header;
      figure("device", place(model.id, model.dtype, device.decoder, device.name));
      hideTip();
      while (panes.length > run.lanes.length) panes.pop().node.remove();
      while (panes.length < run.lanes.length) {
        panes.push(new Pane(panes.length, "", "", ""));
        paneRow.append(panes[panes.length - 1].node);
      }
      run.lanes.forEach((lane, index) => panes[index].begin(lane, run));
      charts.begin(run);
      player.begin(run);
      window.LoraDrop.began?.(root, run);
    }

    /** Show a position of the scrubber: a step, or null for all there is. */
    function showMoment(step) {
      for (const pane of panes) pane.showUpTo(step === null ? null : player.shown(pane.lane));
      charts.moveCursor(step);
    }

    /** The charts of activity and drift are about another lane. */
    function focusOn(lane) {
      if (!run || S.isBaseline(lane.schedule) || lane === run.focus) return;
      run.focus = lane;
      charts.begin(run);
      charts.update();
      player.grow();
      drawFigures();
    }

    /** Bring the page up to what was read: text and figures now, the charts over the next frames. */
    function draw() {
      asked = false;
      if (!run) return;
      run.findDivergence();
      for (const pane of panes) pane.extend();
      markDivergence();
      for (const pane of panes) markDisagreements(pane);
      drawFigures();
      charts.update();
      player.grow();
      showMoment(player.step);
      // A run that comes whole, from a file, is read from its beginning.
      const isWhole = run.summary && root.dataset.state === "running" && !run.isStreaming;
      if (isWhole) for (const pane of panes) pane.text.scrollTop = 0;
      run.isStreaming = !run.summary;
      if (!run.summary) return;
      root.dataset.state = "done";
      window.LoraDrop.ended?.(root, run);
    }

    function markDivergence() {
      for (const lane of run.lanes) {
        if (lane.divergence !== null) panes[lane.index].spans[lane.divergence].classList.add("ld-diverged");
      }
      if (run.divergence !== null) panes[0].spans[run.divergence].classList.add("ld-diverged");
    }

    /** An audit comes after its step, and in order. */
    function markDisagreements(pane) {
      const { lane, spans } = pane;
      for (; lane.audits.has(pane.marked + 1) && spans[pane.marked + 1]; pane.marked++) {
        if (!lane.audits.get(pane.marked + 1).agrees) spans[pane.marked + 1].classList.add("ld-disagrees");
      }
    }

    function drawFigures() {
      const now = run.figures();
      const bound = S.isBaseline(run.main.schedule) ? 1 : now.bound;
      figure("speedup", now.speedup ? `${formatNumber(now.speedup, 2)}×` : "–");
      figure("bound", bound ? `${formatNumber(bound, 2)}×` : "–");
      figure("noise", run.isNoisy(now.speedup, bound) ? ", passed by chance: a busy machine" : "");
      figure("kv-saved", formatShare(now.kv_saved, 1));
      figure("agreement", formatShare(now.top1_agreement, 1));
      const differs = now.first_divergence;
      figure("divergence", differs === null ? (run.lanes.length > 1 ? "none" : "–") : `token ${differs + 1}`);
      run.lanes.forEach((lane, index) => {
        const last = lane.steps[lane.steps.length - 1];
        const set = (name, text) => (panes[index].values[name].textContent = text);
        set("speed", formatNumber(now.speeds[index], 1));
        set("tokens", formatNumber(lane.steps.length));
        set("kv", last ? formatBytes(last.kvBytes) : "–");
        set("prefill", lane.prefillMs ? `${formatNumber(lane.prefillMs)} ms` : "–");
      });
    }

    /** What is known of a token, beside it. */
    function showTip(span, pane) {
      const index = Number(span.dataset.step);
      const step = pane.lane.steps[index];
      const audit = pane.lane.audits.get(index);
      const kind = { prefill: "prefill (full)", refresh: "full step", lora: "LoRA step" }[step.kind];
      const rows = [
        ["step", `${index}, ${kind}${step.trigger ? ", early" : ""}`],
        ["time", `${formatNumber(step.ms, 1)} ms`],
        ["entropy", step.entropy === null ? "–" : `${formatNumber(step.entropy, 2)} nats`],
        ["K/V", formatBytes(step.kvBytes)],
      ];
      if (audit) {
        rows.push(["KL", audit.kl === null ? "–" : `${formatNumber(audit.kl, 3)} nats`]);
        rows.push(["full model", audit.agrees ? "same top choice" : `would say ${JSON.stringify(audit.argmax)}`]);
      }
      if (step.trigger) rows.push(["early", window.LoraDrop.triggerWords[step.trigger]]);
      if (index === (pane.lane.index ? pane.lane.divergence : run.divergence)) rows.push(["", "the first token that differs"]);
      tip.replaceChildren(
        make("code", "", JSON.stringify(step.text)),
        ...rows.map(([name, text]) => {
          const row = make("div");
          row.append(make("span", "", name), make("b", "", text));
          return row;
        }),
      );
      tip.hidden = false;
      const at = span.getBoundingClientRect();
      const own = tip.getBoundingClientRect();
      const below = at.bottom + 6 + own.height < window.innerHeight;
      tip.style.left = `${Math.max(8, Math.min(at.left, window.innerWidth - own.width - 8))}px`;
      tip.style.top = `${below ? at.bottom + 6 : at.top - own.height - 6}px`;
    }

    function hideTip() {
      tip.hidden = true;
    }

    /** The token under a pointer event, with its pane. */
    function tokenAt(event) {
      const span = event.target.closest?.(".ld-token");
      const pane = span && panes.find((one) => one.node.contains(span));
      return pane ? [span, pane] : null;
    }

    for (const name of ["pointerover", "click"]) {
      paneRow.addEventListener(name, (event) => {
        const found = tokenAt(event);
        if (found) showTip(...found);
        else hideTip();
      });
    }
    paneRow.addEventListener("click", (event) => {
      const found = tokenAt(event);
      if (found) player.moveTo(Number(found[0].dataset.step));
      else if (event.target.closest?.(".ld-pane-head")) {
        const pane = panes.find((one) => one.node.contains(event.target));
        if (pane.lane) focusOn(pane.lane);
      }
    });
    paneRow.addEventListener("pointerleave", hideTip);
    window.addEventListener("scroll", hideTip, { passive: true });
    document.addEventListener("keydown", (event) => event.key === "Escape" && hideTip());

    watch("value", take);
    take();
  }

  Object.assign(window.LoraDrop, { mountLive });
})();
