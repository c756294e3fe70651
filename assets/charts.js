/* The live charts. Each keeps its plot for the life of the page: lines grow by Plotly.extendTraces, heatmaps by values
 * changed in place, and a layout is only set again where its range or its colours change, so a zoom stays. The cursor of
 * the scrubber is a line and dots over the plots: moving it draws nothing anew. */
"use strict";
(() => {
  const { schedule: S, make } = window.LoraDrop;
  const FIRST_SPAN = 512; // steps that the x axis shows at once at most, until a run is longer
  const WINDOW = 1024; // steps that are drawn while a longer run streams: its last ones; at its end all are
  const SHORTEST_PAUSE = 250; // milliseconds between two rounds of redraws: on a CPU they take time from the decode
  const SHARE = 0.12; // of the page's time that they may take
  const CONFIG = {
    responsive: false, // a ResizeObserver does it, also when a column changes and not the window
    displaylogo: false,
    modeBarButtonsToRemove: ["select2d", "lasso2d", "autoScale2d", "toImage"],
  };
  const KINDS = ["full", "refresh", "early", "dropped", "dropped-kv"];
  const WORDS = {
    full: "runs",
    refresh: "runs, and renews what is reused",
    early: "runs, and renews what is reused, early: ",
    dropped: "dropped, no K/V written",
    "dropped-kv": "dropped, K/V written",
  };

  /** A colour of the page by its name in lora_drop/ui/colors.py. */
  function color(name) {
    return getComputedStyle(document.body).getPropertyValue(`--ld-${name}`).trim() || "#888888";
  }

  /** The colour of lane number `index`. */
  const laneColor = (index) => color(["baseline", "lora-drop", "third"][index] ?? "muted");

  /** A colour with an opacity, from #RRGGBB. */
  function faded(hex, opacity) {
    const parts = [1, 3, 5].map((i) => parseInt(hex.slice(i, i + 2), 16));
    return `rgba(${parts.join(",")},${opacity})`;
  }

  const isTalk = () => document.body.classList.contains("ld-talk");

  /** What all layouts share; `chart` has the x axis: its first step and its span. */
  function baseLayout({ run, from, span }, yTitle) {
    const size = isTalk() ? 18 : 11; // for the back of a room
    const axis = {
      gridcolor: color("grid"),
      linecolor: color("line"),
      zerolinecolor: color("line"),
      tickfont: { size, color: color("muted") },
      title: { font: { size, color: color("muted") }, standoff: 10 },
    };
    return {
      uirevision: run?.id ?? "",
      margin: isTalk() ? { l: 72, r: 14, t: 6, b: 60 } : { l: 44, r: 8, t: 4, b: 38 },
      paper_bgcolor: "rgba(0,0,0,0)",
      plot_bgcolor: "rgba(0,0,0,0)",
      font: { family: getComputedStyle(document.body).fontFamily, size: 11, color: color("ink") },
      showlegend: false,
      hovermode: "closest",
      hoverlabel: {
        bgcolor: color("panel"),
        bordercolor: color("line"),
        font: { size: 12, color: color("ink") },
        align: "left",
      },
      dragmode: "zoom",
      modebar: { bgcolor: "rgba(0,0,0,0)", color: color("muted"), activecolor: color("ink") },
      xaxis: {
        ...axis,
        title: { ...axis.title, text: "decode step" },
        range: [from - 0.5, from + span + 0.5],
        showgrid: false,
        zeroline: false,
      },
      yaxis: { ...axis, title: { ...axis.title, text: yTitle }, rangemode: "tozero" },
    };
  }

  /** What a chart is: a plot that is made once, `begin` for a run, `extend` with what came since, `paint` for colours,
   * `at` for what it shows at a step. */
  class Chart {
    constructor(figure) {
      this.figure = figure;
      this.plot = figure.querySelector(".ld-plot");
      this.run = null;
      this.span = 1;
      this.revision = 0;
      this.traces = [];
      this.visible = true;
      this.cursorStep = null;
      this.cursor = make("div", "ld-cursor");
      this.cursor.hidden = true;
      this.plot.after(this.cursor);
    }

    /** Start over for a run; the plot stays. */
    begin(run) {
      this.run = run;
      this.span = firstSpan(run);
      this.from = 0; // the first step of the x axis
      this.figure.dataset.state = "running";
      this.isDrawn = this.isFinished = false;
      this.setUp();
      if (this.visible) this.apply();
    }

    /** What the plot tells of the reader's hand, once there is one. */
    listen() {
      this.isListening = true;
      this.plot.on("plotly_relayout", () => this.moveCursor(this.cursorStep));
      this.plot.on("plotly_click", ({ points }) => this.onPick?.(Math.round(points[0].x), points[0]));
    }

    /** Put the cursor at a step; null takes it away. Values of the chart get a dot. */
    moveCursor(step) {
      this.cursorStep = step;
      const axes = this.plot._fullLayout;
      const inside = step !== null && this.isDrawn && axes?.xaxis;
      const x = inside ? axes.xaxis.l2p(step) : -1;
      if (!inside || x < -1 || x > axes.xaxis._length + 1) {
        this.cursor.hidden = true;
        return;
      }
      const { xaxis, yaxis } = axes;
      this.cursor.hidden = false;
      this.cursor.style.left = `${this.plot.offsetLeft + xaxis._offset + x}px`;
      this.cursor.style.top = `${this.plot.offsetTop + yaxis._offset}px`;
      this.cursor.style.height = `${yaxis._length}px`;
      const dots = this.at(step).map(([y, tint]) => {
        const dot = make("i");
        dot.style.top = `${yaxis.l2p(y)}px`;
        dot.style.background = tint;
        return dot;
      });
      this.cursor.replaceChildren(...dots);
    }

    /** The window has moved on: what is before a step goes. */
    forget(step) {
      for (const trace of this.traces) {
        if (!trace.x?.length || trace.isAhead) continue;
        const gone = trace.x.findIndex((x) => x >= step);
        const count = gone < 0 ? trace.x.length : gone;
        for (const key of ["x", "y", "customdata"]) if (Array.isArray(trace[key])) trace[key] = trace[key].slice(count);
      }
    }

    /** Add what is too dear to draw while a run streams. */
    finish() {}

    /** An empty plot before any run: the first one costs the most, and the reader waits for nothing yet. */
    prepare() {
      if (this.run) return;
      window.Plotly.react(this.plot, [], baseLayout({ from: 0, span: 1 }, ""), CONFIG);
    }

    /** [value, colour] of what the chart shows at a step; a heatmap has none. */
    at() {
      return [];
    }

    /** Draw what came since the last time, if the reader can see it. */
    update() {
      if (!this.visible) return;
      const last = Math.max(...this.run.lanes.map((lane) => lane.steps.length - 1), 1);
      const isOver = this.run.summary && !this.isFinished;
      const [span, from] = [this.span, this.from];
      if (this.run.summary) [this.span, this.from] = [last, 0];
      else if (last > WINDOW) [this.span, this.from] = [WINDOW, (Math.ceil((2 * last) / WINDOW) - 2) * (WINDOW / 2)];
      else this.span = spanFor(this.run, span, last);
      const moved = span !== this.span || from !== this.from;
      if (isOver && from > 0) {
        // What scrolled out of the window comes back.
        this.setUp();
        this.isDrawn = false;
      }
      if (moved && this.from > from) this.forget(this.from);
      if (!this.isDrawn) this.apply();
      this.extend();
      if (isOver) this.finish();
      this.isFinished ||= isOver;
      if (moved || isOver) this.apply();
      else if (this.cursorStep !== null) this.moveCursor(this.cursorStep);
    }

    /** Give data and layout to Plotly, which keeps what the reader zoomed. */
    apply() {
      const layout = { ...this.layout(), datarevision: ++this.revision };
      window.Plotly.react(this.plot, this.traces, layout, CONFIG);
      this.isDrawn = true;
      if (!this.isListening) this.listen();
      if (this.cursorStep !== null) this.moveCursor(this.cursorStep);
    }

    /** The theme changed. */
    repaint() {
      if (!this.run) return;
      this.paint();
      if (this.isDrawn) this.apply();
    }
  }

  /** The x axis a run starts with: its whole planned length, if that is not too long to read. */
  const firstSpan = (run) => Math.max(1, Math.min(run.planned, FIRST_SPAN));

  /** The x axis once the run is at step `last`: doubled where it is full. */
  function spanFor(run, span, last) {
    while (span < last) span = Math.min(2 * span, Math.max(run.planned, last));
    return span;
  }

  /** Layers x steps: who runs, who is renewed, who is dropped. */
  class ActivityChart extends Chart {
    setUp() {
      const layers = this.run.focus.schedule.numLayers;
      this.drawn = 0;
      this.z = Array.from({ length: layers }, () => []);
      this.words = Array.from({ length: layers }, () => []);
      this.traces = [
        {
          type: "heatmap",
          x0: 0,
          dx: 1,
          z: this.z,
          zmin: -0.5,
          zmax: KINDS.length - 0.5,
          showscale: false,
          hovertemplate: "step %{x}, layer %{y}<extra></extra>",
        },
      ];
      this.dropped = new Set(this.run.focus.schedule.dropped);
      const kept = this.run.focus.schedule.kv === "write";
      this.figure.dataset.kv = kept ? "write" : "skip";
      this.figure.dataset.adaptive = String(S.isAdaptive(this.run.focus.schedule));
      this.paint();
    }

    paint() {
      const bands = KINDS.flatMap((kind, i) => [
        [i / KINDS.length, color(kind)],
        [(i + 1) / KINDS.length, color(kind)],
      ]);
      this.traces[0].colorscale = bands;
    }

    extend() {
      const { steps, schedule } = this.run.focus;
      if (this.drawn === steps.length) return;
      for (; this.drawn < steps.length; this.drawn++) {
        const { kind: stepKind, trigger } = steps[this.drawn];
        for (let layer = 0; layer < this.z.length; layer++) {
          let kind = window.LoraDrop.cellKind(stepKind === "lora", this.dropped.has(layer), schedule);
          if (trigger && kind === "refresh") kind = "early";
          this.z[layer].push(KINDS.indexOf(kind));
          this.words[layer].push(kind === "early" ? WORDS.early + window.LoraDrop.triggerWords[trigger] : WORDS[kind]);
        }
      }
      this.apply();
    }

    forget(step) {
      const [trace] = this.traces;
      const gone = step - trace.x0;
      for (const rows of [this.z, this.words]) for (const row of rows) row.splice(0, gone);
      trace.x0 = step;
    }

    finish() {
      Object.assign(this.traces[0], {
        text: this.words,
        hovertemplate: "step %{x}, layer %{y}<br>%{text}<extra></extra>",
      });
    }

    layout() {
      const layout = baseLayout(this, "layer");
      layout.yaxis.range = [-0.5, this.z.length - 0.5];
      layout.yaxis.showgrid = false;
      layout.yaxis.zeroline = false;
      return layout;
    }
  }

  const LAYER = 7; // the drift chart's trace of one layer
  const meanOf = (values) => values.reduce((sum, value) => sum + value, 0) / values.length;

  /** The audit's truth: mean drift over the dropped layers, least to most as a band, a line where a refresh is (dotted
   * where it came early). */
  class DriftChart extends Chart {
    setUp() {
      this.drawn = 1; // prefill has no audit
      const line = (more) => ({ type: "scatter", mode: "lines", x: [], y: [], hoverinfo: "skip", ...more });
      this.traces = [
        line({ yaxis: "y2", visible: false }),
        line({ line: { width: 0 } }),
        line({ line: { width: 0 }, fill: "tonexty" }),
        line({
          customdata: [],
          hoverinfo: "all",
          hovertemplate:
            "step %{x}: mean drift %{y:.3f}<br>least %{customdata[0]:.3f}, most %{customdata[1]:.3f}" +
            "<br>KL to the full model %{customdata[2]}%{customdata[3]}<extra></extra>",
        }),
        line({ mode: "markers" }),
        line({ yaxis: "y2", visible: false }),
        line({ mode: "markers" }),
        line({ hoverinfo: "all", hovertemplate: "step %{x}: %{y:.3f}<extra>this layer</extra>" }),
      ];
      this.others = this.run.lanes.filter((lane) => lane !== this.run.focus && !S.isBaseline(lane.schedule));
      this.othersDrawn = this.others.map(() => 1);
      for (const lane of this.others) {
        const name = this.run.plainLabels[lane.index];
        this.traces.push(line({ hoverinfo: "all", hovertemplate: `step %{x}: mean drift %{y:.3f}<extra>${name}</extra>` }));
      }
      this.layer = null;
      this.means = [];
      this.refreshes = { 0: { x: [], y: [] }, 5: { x: [], y: [] } }; // the lines of traces 0 and 5, for the end
      this.figure.dataset.adaptive = String(S.isAdaptive(this.run.focus.schedule));
      this.drawChip();
      this.paint();
    }

    /** Show the drift of one layer beside the mean; null takes it away. */
    showLayer(layer) {
      this.layer = layer;
      this.drawChip();
      const row = this.run.focus.schedule.dropped.indexOf(layer);
      const [x, y] = [[], []];
      for (const [step, { drift }] of this.run.focus.audits) {
        if (row < 0 || drift[row] === null) continue;
        x.push(step);
        y.push(drift[row]);
      }
      Object.assign(this.traces[LAYER], { x, y });
      this.apply();
    }

    /** Which layer is shown, with a way back. */
    drawChip() {
      this.chip?.remove();
      if (this.layer === null) return;
      const drops = this.run.focus.schedule.dropped.includes(this.layer);
      this.chip = make("button", "ld-chip", drops ? `layer ${this.layer} ✕` : `layer ${this.layer} always runs ✕`);
      this.chip.type = "button";
      this.chip.setAttribute("aria-label", `Layer ${this.layer}: back to the mean alone`);
      this.chip.addEventListener("click", () => this.showLayer(null));
      this.figure.querySelector("h3").after(this.chip);
    }

    at(step) {
      const mean = this.means[step];
      const found = mean === undefined ? [] : [[mean, laneColor(this.run.focus.index)]];
      const row = this.layer === null ? -1 : this.run.focus.schedule.dropped.indexOf(this.layer);
      const own = this.run.focus.audits.get(step)?.drift[row] ?? null;
      return own === null ? found : [...found, [own, color("ink")]];
    }

    paint() {
      const [own, refresh, early] = [laneColor(this.run.focus.index), color("refresh"), color("early")];
      // Lines every other step would be a curtain: the closer they stand, the fainter they are.
      const density = Math.min(1, this.run.focus.schedule.period / 8);
      this.traces[0].line = { width: 1, color: faded(refresh, 0.1 + 0.4 * density) };
      this.traces[2].fillcolor = faded(own, 0.16);
      this.traces[3].line = { width: 1.75, color: own };
      this.traces[4].marker = { size: 5, color: refresh };
      // So do the early ones, of which nobody knows the number ahead.
      const crowd = Math.min(1, 25 / (1 + (this.refreshes?.[5].x.length ?? 0) / 3));
      this.traces[5].line = { width: 1, dash: "dot", color: faded(early, 0.12 + 0.38 * crowd) };
      this.traces[6].marker = { size: 6, color: early, symbol: "diamond" };
      this.traces[LAYER].line = { width: 1.5, color: color("ink") };
      this.others.forEach((lane, i) => (this.traces[LAYER + 1 + i].line = { width: 1.25, color: laneColor(lane.index) }));
    }

    extend() {
      const { audits, steps } = this.run.focus;
      const add = this.traces.map(() => ({ x: [], y: [] }));
      const custom = [];
      const row = this.layer === null ? -1 : this.run.focus.schedule.dropped.indexOf(this.layer);
      while (audits.has(this.drawn)) {
        const step = this.drawn++;
        const { drift, kl } = audits.get(step);
        const known = drift.filter((value) => value !== null);
        if (!known.length) continue;
        const [least, most] = [Math.min(...known), Math.max(...known)];
        const mean = meanOf(known);
        this.means[step] = mean;
        if (row >= 0 && drift[row] !== null) {
          add[LAYER].x.push(step);
          add[LAYER].y.push(drift[row]);
        }
        for (const [trace, y] of [[1, least], [2, most], [3, mean]]) {
          add[trace].x.push(step);
          add[trace].y.push(y);
        }
        const { kind, trigger } = steps[step];
        const why = trigger ? `<br>refreshed early: ${window.LoraDrop.triggerWords[trigger]}` : "";
        custom.push([least, most, kl === null ? "–" : kl.toFixed(3), why]);
        if (kind !== "refresh") continue;
        const [lines, dots] = trigger ? [5, 6] : [0, 4];
        add[dots].x.push(step);
        add[dots].y.push(mean);
        this.refreshes[lines].x.push(step, step, null);
        this.refreshes[lines].y.push(0, 1, null);
      }
      this.others.forEach((lane, i) => {
        for (; lane.audits.has(this.othersDrawn[i]); this.othersDrawn[i]++) {
          const known = lane.audits.get(this.othersDrawn[i]).drift.filter((value) => value !== null);
          if (!known.length) continue;
          add[LAYER + 1 + i].x.push(this.othersDrawn[i]);
          add[LAYER + 1 + i].y.push(meanOf(known));
        }
      });
      if (!add.some((trace) => trace.x.length)) return;
      const grown = this.traces.map((_, i) => i);
      const column = (key) => add.map((trace) => trace[key]);
      window.Plotly.extendTraces(this.plot, { x: column("x"), y: column("y") }, grown);
      this.traces = this.plot.data;
      this.traces[3].customdata.push(...custom);
      this.figure.dataset.state = "running";
    }

    finish() {
      for (const [trace, { x, y }] of Object.entries(this.refreshes)) {
        Object.assign(this.traces[trace], { x, y, visible: true });
      }
      this.paint();
    }

    layout() {
      const layout = baseLayout(this, "‖x̂ − x‖ / ‖x‖");
      layout.yaxis2 = { overlaying: "y", range: [0, 1], visible: false, fixedrange: true };
      return layout;
    }
  }

  /** Bytes of K/V: counted in each lane, and the formula dashed ahead of them; where refreshes may come early nobody
   * knows it ahead, and it is drawn for the refreshes that happened. */
  class KvChart extends Chart {
    setUp() {
      const { lanes, promptTokens, bytesPerToken } = this.run;
      const most = S.kvTokens(S.baseline(lanes[0].schedule.numLayers), promptTokens, this.run.planned) * bytesPerToken;
      const power = Math.max(0, Math.min(3, Math.floor(Math.log2(Math.max(most, 1)) / 10)));
      this.unit = ["B", "KiB", "MiB", "GiB"][power];
      this.scale = 1024 ** power;
      this.drawn = lanes.map(() => 0);
      this.traces = [
        ...lanes.map((lane) => ({
          type: "scatter",
          mode: "lines",
          x: [],
          y: [],
          hovertemplate: `step %{x}: %{y:.2f} ${this.unit}<extra>${this.run.plainLabels[lane.index]}, counted</extra>`,
        })),
        ...lanes.map((lane) => this.formula(lane)), // over the counted lines, so that both are seen
      ];
      this.paint();
    }

    /** The formula's bytes after a step of a run, in the chart's unit. */
    formulaAt(lane, step, refreshes) {
      return (S.kvTokens(lane.schedule, this.run.promptTokens, step, refreshes) * this.run.bytesPerToken) / this.scale;
    }

    /** The formula of a lane over the planned run, in at most some hundred points (it has steps where w > 1). */
    formula(lane) {
      if (S.isAdaptive(lane.schedule)) return { type: "scatter", mode: "lines", x: [], y: [], hoverinfo: "skip" };
      const x = [];
      const stride = Math.max(1, Math.floor(this.run.planned / 600));
      for (let step = 0; step <= this.run.planned; step += stride) x.push(step);
      const y = x.map((step) => this.formulaAt(lane, step));
      return { type: "scatter", mode: "lines", x, y, hoverinfo: "skip", isAhead: true };
    }

    paint() {
      const n = this.run.lanes.length;
      for (const { index } of this.run.lanes) {
        this.traces[index].line = { width: 3.5, color: laneColor(index) };
        this.traces[n + index].line = { width: 1, dash: "4px,4px", color: color("ink") };
      }
    }

    extend() {
      const { lanes } = this.run;
      const [x, y, grown] = [[], [], []];
      const grow = (trace, steps, bytes) => {
        grown.push(trace);
        x.push(steps.map((step) => step.step));
        y.push(steps.map(bytes));
      };
      for (const lane of lanes) {
        const fresh = lane.steps.slice(this.drawn[lane.index]);
        this.drawn[lane.index] = lane.steps.length;
        if (!fresh.length) continue;
        grow(lane.index, fresh, (step) => step.kvBytes / this.scale);
        if (!S.isAdaptive(lane.schedule)) continue;
        grow(lanes.length + lane.index, fresh, ({ step, refreshes }) => this.formulaAt(lane, step, refreshes));
      }
      if (!grown.length) return;
      window.Plotly.extendTraces(this.plot, { x, y }, grown);
      this.traces = this.plot.data;
    }

    at(step) {
      return valuesAt(this.run, step, ({ kvBytes }) => kvBytes / this.scale);
    }

    layout() {
      return baseLayout(this, this.unit);
    }
  }

  /** [value, colour] of each lane that has come to a step. */
  function valuesAt(run, step, value) {
    const there = run.lanes.filter((lane) => lane.steps[step] && value(lane.steps[step], lane) !== null);
    return there.map((lane) => [value(lane.steps[step], lane), laneColor(lane.index)]);
  }

  /** A line for each lane, of a value that comes with its steps. */
  class LinesChart extends Chart {
    setUp() {
      this.lanes = this.run.lanes.filter((lane) => this.shows(lane));
      this.drawn = this.lanes.map(() => 1); // a decode step is the first
      this.traces = this.lanes.flatMap((lane) => this.tracesOf(lane, this.run.plainLabels[lane.index]));
      this.paint();
    }

    extend() {
      const perLane = this.traces.length / Math.max(1, this.lanes.length);
      const add = this.traces.map(() => ({ x: [], y: [] }));
      this.lanes.forEach((lane, i) => {
        for (; this.isThere(lane, this.drawn[i]); this.drawn[i]++) this.point(lane, this.drawn[i], add, i * perLane);
      });
      if (!add.some((trace) => trace.x.length)) return;
      const column = (key) => add.map((trace) => trace[key]);
      window.Plotly.extendTraces(this.plot, { x: column("x"), y: column("y") }, add.map((_, i) => i));
      this.traces = this.plot.data;
    }
  }

  /** Milliseconds of each step on each lane's own clock. */
  class TimeChart extends LinesChart {
    shows() {
      return true;
    }

    isThere(lane, step) {
      return step < lane.steps.length;
    }

    tracesOf(lane, name) {
      const hovertemplate = `step %{x}: %{y:.2f} ms<extra>${name}</extra>`;
      return [{ type: "scatter", mode: "lines", x: [], y: [], hovertemplate }];
    }

    point(lane, step, add, at) {
      add[at].x.push(step);
      add[at].y.push(lane.steps[step].ms);
    }

    paint() {
      this.lanes.forEach((lane, i) => (this.traces[i].line = { width: 1.25, color: laneColor(lane.index) }));
    }

    at(step) {
      return step === 0 ? [] : valuesAt(this.run, step, ({ ms }) => ms);
    }

    layout() {
      return baseLayout(this, "ms");
    }
  }

  /** KL to the full model at each audited step, with a mark where both would say something else. */
  class KlChart extends LinesChart {
    shows(lane) {
      return !S.isBaseline(lane.schedule);
    }

    isThere(lane, step) {
      return lane.audits.has(step);
    }

    tracesOf(lane, name) {
      const hovertemplate = `step %{x}: %{y:.3f} nats<extra>${name}</extra>`;
      const both = { type: "scatter", x: [], y: [], hovertemplate };
      return [
        { ...both, mode: "lines" },
        { ...both, mode: "markers" },
      ];
    }

    point(lane, step, add, at) {
      const { kl, agrees } = lane.audits.get(step);
      if (kl === null) return;
      for (const trace of agrees ? [at] : [at, at + 1]) {
        add[trace].x.push(step);
        add[trace].y.push(kl);
      }
    }

    paint() {
      this.lanes.forEach((lane, i) => {
        this.traces[2 * i].line = { width: 1.25, color: laneColor(lane.index) };
        this.traces[2 * i + 1].marker = { size: 7, symbol: "x-thin", line: { width: 1.5, color: laneColor(lane.index) } };
      });
    }

    at(step) {
      return valuesAt(this.run, step, (_, lane) => lane.audits.get(step)?.kl ?? null);
    }

    layout() {
      return baseLayout(this, "nats");
    }
  }

  /** Dropped layers x steps: how far each strays. */
  class DriftMap extends Chart {
    setUp() {
      const { dropped } = this.run.focus.schedule;
      this.drawn = 1;
      this.z = dropped.map(() => [null]); // prefill has no audit
      const hovertemplate = "step %{x}, layer %{customdata}: %{z:.3f}<extra></extra>";
      this.traces = [
        {
          type: "heatmap",
          x0: 0,
          dx: 1,
          z: this.z,
          customdata: dropped.map((layer) => Array(1).fill(layer)),
          zmin: 0,
          hovertemplate,
          colorbar: { thickness: 8, len: 1, outlinewidth: 0, xpad: 4, ypad: 0 },
        },
      ];
      this.paint();
    }

    paint() {
      this.traces[0].colorscale = [
        [0, color("panel")],
        [0.5, color("dropped")],
        [1, color("bad")],
      ];
      Object.assign(this.traces[0].colorbar, { tickfont: { size: isTalk() ? 16 : 10, color: color("muted") } });
    }

    extend() {
      const { audits, schedule } = this.run.focus;
      const before = this.drawn;
      for (; audits.has(this.drawn); this.drawn++) {
        const { drift } = audits.get(this.drawn);
        this.z.forEach((row, i) => row.push(drift[i]));
        schedule.dropped.forEach((layer, i) => this.traces[0].customdata[i].push(layer));
      }
      if (this.drawn > before) this.apply();
    }

    forget(step) {
      const [trace] = this.traces;
      const gone = step - trace.x0;
      for (const rows of [this.z, trace.customdata]) for (const row of rows) row.splice(0, gone);
      trace.x0 = step;
    }

    layout() {
      const { dropped } = this.run.focus.schedule;
      const layout = baseLayout(this, "dropped layer");
      const every = Math.ceil(dropped.length / 8);
      const shown = dropped.map((_, i) => i).filter((i) => i % every === 0);
      Object.assign(layout.yaxis, {
        range: [-0.5, Math.max(dropped.length, 1) - 0.5],
        tickvals: shown,
        ticktext: shown.map((i) => String(dropped[i])),
        showgrid: false,
        zeroline: false,
      });
      return layout;
    }
  }

  /** The charts of a view, drawn one a frame so that none blocks the text. `onStep(step)`: the reader picked one. */
  class Charts {
    constructor(root, onStep) {
      const figure = (name) => root.querySelector(`[data-chart="${name}"]`);
      const kinds = {
        activity: ActivityChart,
        drift: DriftChart,
        kv: KvChart,
        "drift-map": DriftMap,
        time: TimeChart,
        kl: KlChart,
      };
      this.root = root;
      this.all = Object.entries(kinds).map(([name, Kind]) => new Kind(figure(name)));
      const [activity, drift] = this.all;
      this.drift = drift;
      this.queue = [];
      this.last = 0; // when the last round of redraws began
      this.cost = 0; // milliseconds that it took
      this.waiting = false;
      this.drawing = false;
      for (const chart of this.all) chart.onPick = (step) => onStep(step);
      activity.onPick = (step, { y }) => {
        onStep(step);
        drift.showLayer(y);
      };
      this.all[3].onPick = (step, { y }) => {
        onStep(step);
        drift.showLayer(this.run.focus.schedule.dropped[y]);
      };
      const resize = new ResizeObserver((entries) => {
        for (const { target } of entries) {
          if (!target.data || !target.offsetWidth) continue;
          const chart = this.all.find((one) => one.plot === target);
          window.Plotly.Plots.resize(target).then(() => chart.moveCursor(chart.cursorStep));
        }
      });
      for (const chart of this.all) resize.observe(chart.plot);
      // What nobody sees is not drawn; it catches up when it comes into view.
      const seen = new IntersectionObserver((entries) => {
        for (const { target, isIntersecting } of entries) {
          const chart = this.all.find((one) => one.figure === target);
          chart.visible = isIntersecting;
          if (isIntersecting && chart.run) this.later(() => chart.update());
        }
      });
      for (const chart of this.all) {
        seen.observe(chart.figure);
        this.later(() => chart.prepare());
      }
      window.addEventListener("beforeprint", () => {
        for (const chart of this.all) if (chart.run) this.complete(chart.figure);
      });
      const repaint = () => this.all.forEach((chart) => this.later(() => chart.repaint()));
      new MutationObserver(repaint).observe(document.body, { attributes: true, attributeFilter: ["class"] });
    }

    /** Draw all of a chart's data, seen or not: a picture of it is wanted. */
    complete(figure) {
      const chart = this.all.find((one) => one.figure === figure);
      const { visible } = chart;
      chart.visible = true;
      chart.update();
      chart.visible = visible;
    }

    /** The scrubber's step in all charts; null for none. */
    moveCursor(step) {
      for (const chart of this.all) if (chart.run) chart.moveCursor(step);
    }

    begin(run) {
      this.run = run;
      for (const key of this.root.querySelectorAll(".ld-key-third")) key.textContent = run.lanes[2]?.label ?? "";
      for (const chart of this.all) this.later(() => chart.begin(run));
    }

    /** Ask for a redraw. The charts take at most a share of the page's time, however slow the machine is. */
    update() {
      if (this.waiting) return;
      this.waiting = true;
      const next = this.last + Math.max(SHORTEST_PAUSE, this.cost / SHARE);
      setTimeout(() => {
        this.waiting = false;
        this.last = performance.now();
        this.cost = 0;
        for (const chart of this.all) this.later(() => chart.update());
      }, this.run.summary ? 0 : Math.max(0, next - performance.now()));
    }

    /** One piece of work a frame. */
    later(work) {
      this.queue.push(work);
      if (this.drawing) return;
      this.drawing = true;
      const next = () => {
        const piece = this.queue.shift();
        this.drawing = this.queue.length > 0;
        if (this.drawing) requestAnimationFrame(next);
        const started = performance.now();
        piece();
        this.cost += performance.now() - started;
      };
      requestAnimationFrame(next);
    }
  }

  window.LoraDrop.Charts = Charts;
})();
