/* The three live charts. Each keeps its plot for the life of the page: lines grow by Plotly.extendTraces, the heatmap by
 * values changed in place, and a layout is only set again where its range or its colours change, so a zoom stays. */
"use strict";
(() => {
  const S = window.LoraDrop.schedule;
  const FIRST_SPAN = 512; // steps that the x axis shows at once at most, until a run is longer
  const SHORTEST_PAUSE = 100; // milliseconds between two rounds of redraws
  const SHARE = 0.2; // of the page's time that they may take
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

  /** What all layouts share. `span` is the last step on the x axis. */
  function baseLayout(runId, span, yTitle) {
    const axis = {
      gridcolor: color("grid"),
      linecolor: color("line"),
      zerolinecolor: color("line"),
      tickfont: { size: 11, color: color("muted") },
      title: { font: { size: 11, color: color("muted") }, standoff: 10 },
    };
    return {
      uirevision: runId,
      margin: { l: 44, r: 8, t: 4, b: 38 },
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
      xaxis: { ...axis, title: { ...axis.title, text: "decode step" }, range: [-0.5, span + 0.5], showgrid: false, zeroline: false },
      yaxis: { ...axis, title: { ...axis.title, text: yTitle }, rangemode: "tozero" },
    };
  }

  /** What a chart is: a plot that is made once, `begin` for a run, `extend` with what came since, `paint` for colours. */
  class Chart {
    constructor(figure) {
      this.figure = figure;
      this.plot = figure.querySelector(".ld-plot");
      this.run = null;
      this.span = 1;
      this.revision = 0;
      this.traces = [];
    }

    /** Start over for a run; the plot stays. */
    begin(run) {
      this.run = run;
      this.span = firstSpan(run);
      this.figure.dataset.state = "running";
      this.setUp();
      this.apply();
    }

    /** Draw what came since the last time. */
    update() {
      const last = Math.max(...this.run.lanes.map((lane) => lane.steps.length - 1), 1);
      const wanted = this.run.summary ? last : spanFor(this.run, this.span, last);
      const moved = wanted !== this.span;
      this.span = wanted;
      this.extend();
      if (moved) this.apply();
    }

    /** Give data and layout to Plotly, which keeps what the reader zoomed. */
    apply() {
      const layout = { ...this.layout(), datarevision: ++this.revision };
      window.Plotly.react(this.plot, this.traces, layout, CONFIG);
    }

    /** The theme changed. */
    repaint() {
      if (!this.run) return;
      this.paint();
      this.apply();
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
          text: this.words,
          zmin: -0.5,
          zmax: KINDS.length - 0.5,
          showscale: false,
          hovertemplate: "step %{x}, layer %{y}<br>%{text}<extra></extra>",
          ygap: layers > 48 ? 0 : 1,
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

    layout() {
      const layout = baseLayout(this.run.id, this.span, "layer");
      layout.yaxis.range = [-0.5, this.z.length - 0.5];
      layout.yaxis.showgrid = false;
      layout.yaxis.zeroline = false;
      return layout;
    }
  }

  /** The audit's truth: mean drift over the dropped layers, least to most as a band, a line where a refresh is (dotted
   * where it came early). */
  class DriftChart extends Chart {
    setUp() {
      this.drawn = 1; // prefill has no audit
      const line = (more) => ({ type: "scatter", mode: "lines", x: [], y: [], hoverinfo: "skip", ...more });
      this.traces = [
        line({ yaxis: "y2" }),
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
        line({ yaxis: "y2" }),
        line({ mode: "markers" }),
      ];
      this.figure.dataset.adaptive = String(S.isAdaptive(this.run.focus.schedule));
      this.paint();
    }

    paint() {
      const [own, refresh, early] = [laneColor(this.run.focus.index), color("refresh"), color("early")];
      // Lines every other step would be a curtain: the closer they stand, the fainter they are.
      const density = Math.min(1, this.run.focus.schedule.period / 8);
      this.traces[0].line = { width: 1, color: faded(refresh, 0.1 + 0.4 * density) };
      this.traces[2].fillcolor = faded(own, 0.16);
      this.traces[3].line = { width: 1.75, color: own };
      this.traces[4].marker = { size: 5, color: refresh };
      this.traces[5].line = { width: 1, dash: "dot", color: faded(early, 0.5) };
      this.traces[6].marker = { size: 6, color: early, symbol: "diamond" };
    }

    extend() {
      const { audits, steps } = this.run.focus;
      const add = this.traces.map(() => ({ x: [], y: [] }));
      const custom = [];
      while (audits.has(this.drawn)) {
        const step = this.drawn++;
        const { drift, kl } = audits.get(step);
        const known = drift.filter((value) => value !== null);
        if (!known.length) continue;
        const [least, most] = [Math.min(...known), Math.max(...known)];
        const mean = known.reduce((sum, value) => sum + value, 0) / known.length;
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
        add[lines].x.push(step, step, null);
        add[lines].y.push(0, 1, null);
      }
      if (!custom.length) return;
      const grown = this.traces.map((_, i) => i);
      const column = (key) => add.map((trace) => trace[key]);
      window.Plotly.extendTraces(this.plot, { x: column("x"), y: column("y") }, grown);
      this.traces = this.plot.data;
      this.traces[3].customdata.push(...custom);
      this.figure.dataset.state = "running";
    }

    layout() {
      const layout = baseLayout(this.run.id, this.span, "‖x̂ − x‖ / ‖x‖");
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
      return { type: "scatter", mode: "lines", x, y, hoverinfo: "skip" };
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

    layout() {
      return baseLayout(this.run.id, this.span, this.unit);
    }
  }

  /** The charts of a view, drawn one a frame so that none blocks the text. */
  class Charts {
    constructor(root) {
      const figure = (name) => root.querySelector(`[data-chart="${name}"]`);
      this.all = [
        new ActivityChart(figure("activity")),
        new DriftChart(figure("drift")),
        new KvChart(figure("kv")),
      ];
      this.queue = [];
      this.last = 0; // when the last round of redraws began
      this.cost = 0; // milliseconds that it took
      this.waiting = false;
      this.drawing = false;
      const resize = new ResizeObserver((entries) => {
        for (const { target } of entries) if (target.data) window.Plotly.Plots.resize(target);
      });
      for (const chart of this.all) resize.observe(chart.plot);
      const repaint = () => this.all.forEach((chart) => this.later(() => chart.repaint()));
      new MutationObserver(repaint).observe(document.body, { attributes: true, attributeFilter: ["class"] });
    }

    begin(run) {
      this.run = run;
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
