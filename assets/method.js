/* The Method tab: the real schedule drawn and played, a pattern for each reuse rule, the paper's table.
 * Every number of the drawing comes from schedule.js. */
"use strict";
(() => {
  const { cellKind, formatBytes, formatNumber, formatShare, make, scheduleOf, schedule: S } = window.LoraDrop;
  const SVG = "http://www.w3.org/2000/svg";
  const PROMPT = 6; // tokens of the drawn prompt: few, so that the growth of the caches is seen
  const MAX_STEPS = 16; // decode steps that are drawn, at most
  const FULL_STEP_MS = 1500;
  const REST_MS = 450; // between two steps
  const END_MS = 2500; // at the end, before it starts again
  const HOP = 0.15; // time to pass a dropped layer, of that to run one; attention alone saves about a fifth
  const HOP_ATTENTION = 0.8;
  const ROWS_HEIGHT = 300;
  // What the Run tab's settings are called, in the order in which its controls have them.
  const NAMES = [
    ...["period", "layers", "drop_ratio", "drop_layers", "reuse", "part", "kv"],
    ...["refresh_entropy", "refresh_norm", "adapters"],
  ];

  /** An SVG element with attributes. */
  function draw(tag, attributes) {
    const node = document.createElementNS(SVG, tag);
    for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
    return node;
  }

  /** The Run tab's settings now. */
  function pageSettings() {
    const values = window.LoraDrop.preset("custom");
    return { ...Object.fromEntries(NAMES.map((name, i) => [name, values[i]])), max_new_tokens: MAX_STEPS };
  }

  /** The paper's schedule and rule on a model. */
  const paperSettings = (numLayers) => ({
    ...{ period: 4, drop_ratio: 0.5, layers: [Math.min(3, numLayers - 2), numLayers - 2], drop_layers: "" },
    ...{ reuse: "state", part: "block", kv: "skip", adapters: "auto", max_new_tokens: MAX_STEPS },
  });

  /** The step whose result a dropped layer reuses at LoRA step `step`; null for none. */
  function sourceOf(schedule, step) {
    if (schedule.reuse === "skip") return null;
    return schedule.reuse === "state" ? step - 1 : Math.floor(step / schedule.period) * schedule.period;
  }

  const REUSED = {
    state: "the previous token's output",
    anchor: "its output of the last full step",
    residual: "what it added at the last full step",
    skip: "nothing",
  };

  /** What happens at a step, in a sentence or two. */
  function stepWords(schedule, step, hasBank) {
    const n = schedule.dropped.length;
    const kind = S.kind(schedule, step);
    if (kind === "prefill") {
      return `The prompt (${PROMPT} tokens here) climbs every layer at once, and each dropped layer keeps its first anchor.`;
    }
    if (S.isBaseline(schedule)) return `Step ${step}: nothing is dropped, so this is the plain model.`;
    if (kind === "refresh") {
      return `Step ${step}, full: every layer runs, the anchors are renewed, and dropped layers write K/V again.`;
    }
    const what = schedule.part === "attention" ? "the attention of " : "";
    const correction = hasBank ? "adds its trained correction" : "has no trained correction to add";
    const kv = schedule.kv === "write" ? " Their K/V is still written." : " They write no K/V.";
    const reused = schedule.reuse === "skip" ? "is passed by, and" : `reuses ${REUSED[schedule.reuse]} and`;
    return `Step ${step}, LoRA: ${what}${n} of ${schedule.numLayers} layers rest${what ? "s" : ""}. Each ${reused} ${correction}.${kv}`;
  }

  /** Mount the tab: props.model is what model_facts tells, props.paper the paper's rows, props.ours our own in words. */
  function mountMethod(element, props) {
    const find = (selector) => element.querySelector(selector);
    const figure = (name, text) => (find(`[data-figure="${name}"]`).textContent = text);
    let { model } = props;
    const [panel, svg, which] = [find(".ld-drawing"), find(".ld-drawing-svg"), find(".ld-drawing-which")];
    const [play, next] = [find(".ld-play"), find(".ld-next")];
    let settings = null;
    let scene = null; // the schedule on the page, with its shapes
    let cursor = { step: 0, layer: 0 }; // layers below `layer` of `step` are done
    let time = 0;
    let playing = !window.matchMedia("(prefers-reduced-motion: reduce)").matches;
    let visible = false;
    let last = null; // when the frame before was

    /** Read the settings and lay the drawing out anew. */
    function build() {
      settings = which.value === "page" ? pageSettings() : paperSettings(model.shape.num_layers);
      let schedule = scheduleOf(settings, model.shape.num_layers);
      const invalid = typeof schedule === "string";
      if (invalid) {
        settings = paperSettings(model.shape.num_layers);
        schedule = scheduleOf(settings, model.shape.num_layers);
      }
      const bank = settings.adapters === "none" ? null : (model.banks[`${schedule.reuse}/${schedule.part}`] ?? null);
      const corrected = bank !== null && schedule.dropped.some((layer) => bank.corrected.includes(layer));
      const plain = S.isBaseline(schedule);
      const steps = plain ? 8 : Math.min(MAX_STEPS, 2 * schedule.period);
      scene = { schedule, bank: corrected ? bank : null, invalid, steps, dropped: new Set(plain ? [] : schedule.dropped) };
      scene.hop = schedule.part === "attention" ? HOP_ATTENTION : HOP;
      layOut();
      const bound = S.speedBound(
        model.shape,
        { ...schedule, corrected: scene.bank?.corrected },
        null,
        0,
        scene.bank?.rank ?? 0,
      );
      figure("bound", `${formatNumber(bound, 2)}×`);
      for (const rule of element.querySelectorAll(".ld-rule")) {
        rule.dataset.current = String(rule.dataset.rule === schedule.reuse);
      }
      find(".ld-key-dropped").hidden = schedule.kv === "write";
      find(".ld-key-dropped-kv").hidden = schedule.kv !== "write";
      if (playing) seek(0, 0);
      else still();
    }

    /** Make the shapes, in pixels of the panel as it is. */
    function layOut() {
      const { schedule, steps, dropped } = scene;
      const { numLayers } = schedule;
      const width = Math.max(svg.clientWidth, 280);
      const rowH = Math.max(3, Math.min(24, Math.floor(ROWS_HEIGHT / numLayers)));
      const [left, top] = [34, 16];
      const kvW = Math.round(width * 0.2);
      const colW = (width - left - kvW - 24) / (steps + 1);
      const height = top + rowH * numLayers + 20;
      const x = (step) => left + step * colW;
      const y = (layer) => top + (numLayers - 1 - layer) * rowH;
      const kvX = width - kvW;
      Object.assign(scene, { colW, rowH, x, y, kvW });
      svg.setAttribute("viewBox", `0 0 ${width} ${height}`);
      svg.style.height = `${height}px`;
      const label = (text, attributes) => Object.assign(draw("text", attributes), { textContent: text });
      const parts = [
        label("layer", { x: left - 4, y: top - 6, "text-anchor": "end" }),
        label(numLayers - 1, { x: left - 5, y: y(numLayers - 1) + Math.min(rowH, 10), "text-anchor": "end" }),
        label(0, { x: left - 5, y: y(0) + rowH - 1, "text-anchor": "end" }),
        label("KV cache", { x: kvX, y: top - 6 }),
      ];
      scene.cells = [];
      for (let step = 0; step <= steps; step++) {
        const kind = S.kind(schedule, step);
        const marks = label(step === 0 ? "prompt" : step, {
          x: step === 0 ? x(0) : x(step) + colW / 2,
          y: height - 6,
          "text-anchor": step === 0 ? "start" : "middle",
          class: kind === "lora" ? "" : "ld-step-full",
        });
        // The word is wider than a narrow column, where the number tells the same; two digits may be, too.
        if (step === 0 && colW < 42) marks.textContent = "0";
        if (colW < 18 && kind === "lora") marks.textContent = "";
        parts.push(marks);
        scene.cells.push(
          Array.from({ length: numLayers }, (_, layer) =>
            draw("rect", {
              x: (x(step) + 1).toFixed(1),
              y: y(layer),
              width: Math.max(colW - 2, 1).toFixed(1),
              height: rowH > 4 ? rowH - 1 : rowH,
              rx: Math.min(2, rowH / 4),
              class: `ld-cell ld-cell-${cellKind(kind === "lora", dropped.has(layer), schedule)}`,
              "data-step": step,
              "data-layer": layer,
              "data-kind": kind,
              "data-active": Number(kind !== "lora" || !dropped.has(layer)),
            }),
          ),
        );
      }
      scene.bars = Array.from({ length: numLayers }, (_, layer) =>
        draw("rect", {
          x: kvX,
          y: y(layer),
          width: 0,
          height: rowH > 4 ? rowH - 1 : rowH,
          class: `ld-kv-bar ${dropped.has(layer) ? "ld-kv-dropped" : ""}`,
        }),
      );
      scene.links = draw("g", { class: "ld-reuse-links" });
      scene.token = draw("circle", { r: Math.max(4, Math.min(8, rowH * 0.6)), class: "ld-travelling" });
      svg.replaceChildren(...parts, ...scene.cells.flat(), ...scene.bars, scene.links, scene.token);
      const every = S.isBaseline(schedule) ? "every step is full" : `every ${schedule.period}th step is full`;
      svg.setAttribute(
        "aria-label",
        `The schedule: ${numLayers} layers, dropped ${[...dropped].join(", ") || "none"}; ${every}. Columns are steps, rows layers.`,
      );
      for (let layer = 0; layer < numLayers; layer++) bar(layer, 0, false);
    }

    /** A layer's cache as long as it is after `step`, or before the step's token reached it. */
    function bar(layer, step, done) {
      const { schedule, steps, kvW, dropped } = scene;
      const at = done ? step : step - 1;
      const tokens = at < 0 ? 0 : S.kvLength(schedule, dropped.has(layer), PROMPT, at);
      scene.bars[layer].setAttribute("width", ((kvW * tokens) / (PROMPT + steps)).toFixed(1));
    }

    /** Lines from what is reused to the dropped layers that the token has passed. */
    function links(step, layers) {
      const { schedule, dropped, x, y, colW, rowH } = scene;
      const from = S.kind(schedule, step) === "lora" ? sourceOf(schedule, step) : null;
      const passed = from === null ? [] : [...dropped].filter((layer) => layer < layers);
      scene.links.replaceChildren(
        ...passed.map((layer) => {
          const at = y(layer) + rowH / 2;
          return draw("line", { x1: x(from) + colW / 2, x2: x(step) + colW / 2, y1: at, y2: at, "data-from": from });
        }),
      );
    }

    /** Show everything below `layer` of `step` as done. */
    function seek(step, layer) {
      scene.cells.forEach((column, s) =>
        column.forEach((cell, i) => cell.classList.toggle("ld-on", s < step || (s === step && i < layer))),
      );
      scene.bars.forEach((_, i) => bar(i, step, i < layer));
      cursor = { step, layer };
      time = 0;
      for (let s = 0; s < step; s++) time += duration(s);
      time += layer >= scene.schedule.numLayers ? duration(step) - REST_MS : partOf(step, layer);
      move(step, layer);
    }

    /** The whole schedule as a still picture. */
    function still() {
      seek(scene.steps, scene.schedule.numLayers);
      let step = scene.steps;
      while (step > 0 && S.kind(scene.schedule, step) !== "lora") step--;
      links(step, scene.schedule.numLayers);
    }

    /** Milliseconds that a step takes to climb to `layer`. */
    function partOf(step, layer) {
      const { schedule, dropped, hop } = scene;
      const unit = FULL_STEP_MS / schedule.numLayers;
      const isLora = S.kind(schedule, step) === "lora";
      let total = 0;
      for (let i = 0; i < layer; i++) total += isLora && dropped.has(i) ? unit * hop : unit;
      return total;
    }

    const duration = (step) => partOf(step, scene.schedule.numLayers) + REST_MS;

    /** Put the token at a height of its step, words and figures beside it; `height` may lie between two layers. */
    function move(step, height) {
      const { schedule, dropped, x, y, colW, rowH } = scene;
      const layer = Math.min(Math.floor(height), schedule.numLayers - 1);
      const hops = S.kind(schedule, step) === "lora" && dropped.has(layer) && height < schedule.numLayers;
      // Past a dropped layer it swings out of the stack.
      const aside = hops ? Math.sin(Math.PI * (height - layer)) * Math.min(colW * 0.42, 14) : 0;
      scene.token.setAttribute("cx", (x(step) + colW / 2 + aside).toFixed(1));
      scene.token.setAttribute("cy", (y(0) + rowH - height * rowH).toFixed(1));
      links(step, height);
      say(step, height >= schedule.numLayers ? step : step - 1);
    }

    let said = "";

    /** The caption of a step, and the exact figures after `done` steps. */
    function say(step, done) {
      const key = `${step} ${done}`;
      if (key === said) return;
      said = key;
      const { schedule, bank, invalid } = scene;
      const early = S.isAdaptive(schedule) ? " Full steps may come earlier in a run: drawn are the longest gaps." : "";
      const instead = invalid ? " (The Run tab's settings cannot run: this is the paper's schedule.)" : "";
      find(".ld-drawing-caption").textContent = stepWords(schedule, step, bank !== null) + early + instead;
      const at = Math.max(done, 0);
      const tokens = (isDropped) => `${S.kvLength(schedule, isDropped, PROMPT, at)} tokens`;
      const full = S.kvBytes(model.shape, S.baseline(schedule.numLayers), PROMPT, at, model.itemsize);
      figure("steps", `${at} of ${scene.steps}`);
      figure("kept", tokens(false));
      figure("held", S.isBaseline(schedule) ? "none dropped" : tokens(true));
      figure("kv-full", formatBytes(full));
      const own = S.kvBytes(model.shape, schedule, PROMPT, at, model.itemsize);
      figure("kv", `${formatBytes(own)}, ${formatShare(1 - own / full)} less`);
    }

    /** Where the token is at `time`: a step, and a height in layers. */
    function positionAt(now) {
      const { schedule, steps, dropped, hop } = scene;
      let step = 0;
      let rest = now;
      while (step < steps && rest >= duration(step)) rest -= duration(step++);
      const unit = FULL_STEP_MS / schedule.numLayers;
      const isLora = S.kind(schedule, step) === "lora";
      for (let layer = 0; layer < schedule.numLayers; layer++) {
        const takes = isLora && dropped.has(layer) ? unit * hop : unit;
        if (rest < takes) return { step, height: layer + rest / takes };
        rest -= takes;
      }
      return { step, height: schedule.numLayers };
    }

    function frame(now) {
      if (!playing || !visible) {
        last = null;
        return;
      }
      // A tab in the background gets no frames: it goes on where it was.
      time += Math.min(now - (last ?? now), 100);
      last = now;
      let total = END_MS;
      for (let s = 0; s <= scene.steps; s++) total += duration(s);
      if (time >= total) seek(0, 0);
      const { step, height } = positionAt(time);
      const layer = Math.floor(height);
      if (step !== cursor.step || layer !== cursor.layer) {
        const kept = time;
        for (let s = cursor.step; s <= step; s++) {
          const end = s === step ? layer : scene.schedule.numLayers;
          for (let i = s === cursor.step ? cursor.layer : 0; i < end; i++) {
            scene.cells[s][i].classList.add("ld-on");
            bar(i, s, true);
          }
        }
        cursor = { step, layer };
        time = kept;
      }
      move(step, height);
      requestAnimationFrame(frame);
    }

    function setPlaying(wanted) {
      playing = wanted;
      play.textContent = playing ? "Pause" : "Play";
      panel.dataset.playing = String(playing);
      const atEnd = cursor.step === scene.steps && cursor.layer >= scene.schedule.numLayers;
      if (playing && atEnd) seek(0, 0);
      if (playing && last === null) requestAnimationFrame(frame);
    }

    play.addEventListener("click", () => setPlaying(!playing));
    next.addEventListener("click", () => {
      setPlaying(false);
      const { numLayers } = scene.schedule;
      const finished = cursor.layer >= numLayers;
      const step = finished ? (cursor.step === scene.steps ? 0 : cursor.step + 1) : cursor.step;
      seek(step, numLayers);
    });
    which.addEventListener("change", build);
    let width = 0;
    new ResizeObserver(() => {
      visible = svg.clientWidth > 0;
      if (!visible) return; // its tab is closed
      const changed = which.value === "page" && JSON.stringify(pageSettings()) !== JSON.stringify(settings);
      if (changed || svg.clientWidth !== width) {
        width = svg.clientWidth;
        build();
      }
      if (playing && last === null) requestAnimationFrame(frame);
    }).observe(svg);

    for (const rule of element.querySelectorAll(".ld-rule")) {
      drawRule(rule.querySelector(".ld-rule-svg"), rule.dataset.rule);
    }
    fillPaper(find, props);
    build();
    window.LoraDrop.onModel((found) => {
      model = found.model;
      build();
    });
    setPlaying(playing);
  }

  /** A dropped layer over five steps, full at both ends: where its output comes from. */
  function drawRule(svg, rule) {
    const [size, gap, top, floor] = [16, 42, 26, 62];
    const x = (column) => 10 + column * gap;
    const parts = [];
    const arrow = (px, py, down) =>
      draw("path", { d: `M${px - 3} ${py - down * 5}h6l-3 ${down * 5}z`, class: "ld-rule-head" });
    for (let column = 0; column < 5; column++) {
      const isLora = column % 4 !== 0;
      const centre = x(column) + size / 2;
      if (!isLora || rule === "residual" || rule === "skip") {
        parts.push(draw("line", { x1: centre, x2: centre, y1: floor, y2: top + size + 3, class: "ld-rule-own" }));
      }
      if (isLora && rule === "state") {
        const [from, to, middle] = [x(column - 1) + size, x(column), top + size / 2];
        parts.push(draw("line", { x1: from, x2: to - 3, y1: middle, y2: middle, class: "ld-rule-reuse" }));
        parts.push(draw("path", { d: `M${to - 5} ${middle - 3}v6l5 -3z`, class: "ld-rule-head" }));
      }
      if (isLora && (rule === "anchor" || rule === "residual")) {
        const start = x(0) + size / 2;
        const bend = top - 8 - column * 7;
        parts.push(
          draw("path", { d: `M${start} ${top}C${start} ${bend} ${centre} ${bend} ${centre} ${top - 2}`, class: "ld-rule-reuse" }),
          arrow(centre, top, 1),
        );
      }
      const kind = isLora ? "dropped" : "refresh";
      parts.push(draw("rect", { x: x(column), y: top, width: size, height: size, rx: 3, class: `ld-cell-${kind}` }));
    }
    svg.setAttribute("viewBox", `0 0 ${x(4) + size + 10} 66`);
    svg.replaceChildren(...parts);
  }

  /** The paper's table and what is said around it. */
  function fillPaper(find, props) {
    find(".ld-paper-label").textContent = props.label;
    find(".ld-ours").textContent = props.ours;
    find(".ld-paper tbody").replaceChildren(
      ...props.paper.map((row) => {
        const line = make("tr");
        const change = `${row.accuracy_change < 0 ? "−" : "+"}${formatNumber(Math.abs(row.accuracy_change), 1)}`;
        const cells = [
          ...[formatNumber(row.drop_ratio, 2), row.k, `${formatNumber(row.accuracy_full, 1)} → ${formatNumber(row.accuracy, 1)}`],
          ...[change, `${formatNumber(row.speedup, 2)}×`, `${formatNumber(row.bound, 2)}×`],
          ...[`about ${formatShare(row.kv_saved)}`, formatShare(row.kv_limit)],
        ];
        line.append(
          Object.assign(make("th", "", row.model), { scope: "row" }),
          ...cells.map((cell) => make("td", "", cell)),
        );
        return line;
      }),
    );
  }

  Object.assign(window.LoraDrop, { mountMethod });
})();
