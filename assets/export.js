/* Pictures of a run for slides, as SVG or PNG, composed in the browser from the run's own data and charts. The SVG
 * holds rectangles, lines, texts and nested plots, all colours resolved: it asks nobody for anything, and no text
 * becomes markup. */
"use strict";
(() => {
  const { formatBytes, formatNumber, formatShare, schedule: S } = window.LoraDrop;
  const SVG = "http://www.w3.org/2000/svg";
  const XML = "http://www.w3.org/XML/1998/namespace";
  const NO_RUN = "There is no run to draw yet: press Run first.";
  const NAMES = ["baseline", "lora-drop", "third", "diverged", "tint", "ink", "muted", "line", "panel", "page"];
  const LANES = ["baseline", "lora-drop", "third"];
  // Parts of an axis with the size that Plotly gives them.
  const AXIS_PARTS = [["ticklen", 5], ["tickwidth", 1], ["linewidth", 1], ["gridwidth", 1]];
  const DRAWN_FOR = 11; // the size of axes and legends that the page's lines and keys go with, in talk mode too
  const FINE = 3; // a heatmap is made of pixels: it is drawn so many times as large, and made smaller
  const CHARTS = ["activity", "drift", "kv"]; // of the whole figure
  const TEXT_SIZES = [25, 23, 21, 19]; // of the lanes' texts, the largest that shows all of them
  const CUT_SIZE = 21; // where none does: better read than complete
  const LINE_HEIGHT = 1.42;
  const BASELINE_AT = 0.36; // of a text's size below the middle of its line
  // What XML 1.0 forbids, and halves of surrogate pairs.
  // eslint-disable-next-line no-control-regex
  const FORBIDDEN = /[\0-\x08\x0B\x0C\x0E-\x1F\uFFFE\uFFFF]|\p{Cs}/gu;
  const graphemes = new Intl.Segmenter(undefined, { granularity: "grapheme" });

  const clean = (text) => text.replace(FORBIDDEN, "\uFFFD");

  /** "rgb(1, 2, 3)" or "rgba(1, 2, 3, 0.5)" as ["#010203", 0.5]: programs for slides do not read rgba(). */
  function plainColor(css) {
    const [red, green, blue, alpha = 1] = (css.match(/[\d.]+/g) ?? [0, 0, 0]).map(Number);
    return [`#${[red, green, blue].map((part) => part.toString(16).padStart(2, "0")).join("")}`, alpha];
  }

  /** An SVG element with attributes, numbers rounded. */
  function node(name, attributes = {}, ...children) {
    const made = document.createElementNS(SVG, name);
    for (const [key, value] of Object.entries(attributes)) {
      if (value === undefined) continue;
      made.setAttribute(key, typeof value === "number" ? Math.round(100 * value) / 100 : value);
    }
    made.append(...children);
    return made;
  }

  /** A drawing under way: the page's colours and font, a ruler for texts, the SVG that grows. */
  class Sheet {
    constructor(width, height) {
      const style = getComputedStyle(document.body);
      this.colors = Object.fromEntries(NAMES.map((name) => [name, style.getPropertyValue(`--ld-${name}`).trim()]));
      this.family = style.fontFamily;
      this.ruler = document.createElement("canvas").getContext("2d");
      this.svg = node("svg", { viewBox: `0 0 ${width} ${height}`, "font-family": this.family });
      [this.width, this.height] = [width, height];
    }

    add(name, attributes, ...children) {
      this.svg.append(node(name, attributes, ...children));
    }

    measure(text, size, weight = 400) {
      this.ruler.font = `${weight} ${size}px ${this.family}`;
      return this.ruler.measureText(text).width;
    }

    /** A line of text, its baseline at `y`; `width` cuts it. Returns the width that it takes. */
    text(x, y, string, { size, weight = 400, color = "ink", anchor = "start", width = Infinity }) {
      const shown = this.cut(clean(string), width, size, weight);
      const style = { "font-size": size, "font-weight": weight, fill: this.colors[color], "text-anchor": anchor };
      this.add("text", { x, y, ...style }, shown);
      return this.measure(shown, size, weight);
    }

    /** The text, or as much of it as fits with an ellipsis at its end. */
    cut(text, width, size, weight, mark = "") {
      if (this.measure(text + mark, size, weight) <= width) return text + mark;
      const parts = [...graphemes.segment(text.slice(0, 2000))].map(({ segment }) => segment);
      while (parts.length && this.measure(`${parts.join("").trimEnd()}…`, size, weight) > width) parts.pop();
      return `${parts.join("").trimEnd()}…`;
    }

    /** [start, end] of each line of a text in a width; goes on for one line more than `most`. */
    wrap(text, width, size, most, weight = 400) {
      const fits = (from, to) => this.measure(text.slice(from, to), size, weight) <= width;
      const lines = [];
      let start = 0;
      const breakAt = (end, next) => {
        lines.push([start, start + text.slice(start, end).trimEnd().length]);
        start = next;
      };
      for (const { 0: part, index } of text.matchAll(/\n|[^\S\n\u00A0]+|[\S\u00A0]+/g)) {
        if (lines.length > most) return lines;
        if (part === "\n") {
          breakAt(index, index + 1);
        } else if (part.trim() && !fits(start, index + part.length)) {
          if (index > start) breakAt(index, index);
          if (fits(index, index + part.length)) continue;
          for (const { segment, index: at } of graphemes.segment(part)) {
            if (index + at > start && !fits(start, index + at + segment.length)) breakAt(index + at, index + at);
            if (lines.length > most) return lines;
          }
        }
      }
      breakAt(text.length, text.length);
      return lines;
    }

    panel(x, y, width, height) {
      const { panel, line } = this.colors;
      this.add("rect", { x, y, width, height, rx: 10, fill: panel, stroke: line, "stroke-width": 1.5 });
    }

    background(name) {
      this.add("rect", { width: this.width, height: this.height, fill: this.colors[name] });
    }
  }

  /** The fonts' sizes and the margins of a layout, times `k`. Parts may be shared: `seen` are those that have it. */
  function enlarge(layout, k, seen = new Set()) {
    for (const [key, value] of Object.entries(layout)) {
      if (value === null || typeof value !== "object" || seen.has(value)) continue;
      seen.add(value);
      if (/font$/i.test(key) && value.size) value.size *= k;
      if (key === "title" && value.standoff) value.standoff *= k;
      if (key === "margin") for (const side of Object.keys(value)) value[side] *= k;
      enlarge(value, k, seen);
    }
  }

  /** A copy of a plot's data and layout for a picture whose axes are labelled in `size`, lines as much wider. */
  function enlarged(plot, size, unit, panel) {
    const { data, layout } = structuredClone({ data: plot.data, layout: plot.layout });
    const k = (unit * size) / DRAWN_FOR;
    const ofFonts = (unit * size) / (layout.xaxis?.tickfont?.size ?? layout.font?.size ?? DRAWN_FOR);
    enlarge(layout, ofFonts);
    Object.assign(layout, { paper_bgcolor: panel, plot_bgcolor: panel, autosize: false });
    for (const [name, axis] of Object.entries(layout)) {
      if (unit === 1 || !/^[xy]axis/.test(name)) continue; // setting them may bring ticks where there are none
      for (const [part, usual] of AXIS_PARTS) axis[part] = (axis[part] ?? usual) * unit;
    }
    for (const trace of data) {
      const { line, marker, colorbar } = trace;
      for (const gap of ["xgap", "ygap"]) if (trace[gap]) trace[gap] *= k;
      for (const part of [line, marker?.line]) if (part?.width) part.width *= k;
      if (/px/.test(line?.dash)) line.dash = line.dash.replace(/[\d.]+/g, (length) => Number(length) * k);
      if (typeof marker?.size === "number") marker.size *= k;
      if (!colorbar) continue;
      enlarge(colorbar, ofFonts);
      for (const part of ["thickness", "xpad"]) if (colorbar[part]) colorbar[part] *= k;
    }
    return { data, layout };
  }

  const hasPoints = (plot) =>
    Boolean(plot.data?.some((trace) => (trace.type === "heatmap" ? trace.z?.[0]?.length : trace.x?.length)));

  /** Put a plot's picture on the sheet; the page's own plot is only read. */
  async function addPlot(sheet, plot, box, size) {
    if (!hasPoints(plot)) {
      const [x, y] = [box.x + box.width / 2, box.y + box.height / 2];
      sheet.text(x, y, "Nothing was measured here in this run.", { size, color: "muted", anchor: "middle" });
      return;
    }
    const unit = plot.data.some((trace) => trace.type === "heatmap") ? FINE : 1;
    const [width, height] = [Math.floor(box.width), Math.floor(box.height)];
    const wanted = { format: "svg", width: width * unit, height: height * unit, imageDataOnly: true };
    const text = await window.Plotly.toImage(enlarged(plot, size, unit, sheet.colors.panel), wanted);
    const drawn = new DOMParser().parseFromString(clean(text), "image/svg+xml").documentElement;
    const place = { x: box.x, y: box.y, width, height, viewBox: `0 0 ${width * unit} ${height * unit}` };
    for (const [name, value] of Object.entries(place)) drawn.setAttribute(name, value);
    sheet.svg.append(document.importNode(drawn, true));
  }

  /** The chart's legend from (x, y) in lines of `width`; returns the height that it takes. */
  function addLegend(sheet, figure, x, y, width, size) {
    const height = 1.5 * size;
    let [left, middle] = [x, y + height / 2];
    const isShown = (li) => getComputedStyle(li).display !== "none";
    const items = [...figure.querySelectorAll(".ld-legend li")].filter(isShown);
    const k = size / DRAWN_FOR;
    for (const li of items) {
      const key = getComputedStyle(li, "::before");
      const sign = /^"(.+)"$/.exec(key.content)?.[1];
      const signSize = parseFloat(key.fontSize) * k;
      const keyWidth = sign ? sheet.measure(sign, signSize) : parseFloat(key.width) * k;
      const keyHeight = parseFloat(key.height) * k;
      const name = li.textContent;
      const full = keyWidth + 0.45 * size + sheet.measure(name, size);
      if (left > x && left + full > x + width) [left, middle] = [x, middle + height];
      const dash = parseFloat(key.borderTopWidth) * k;
      if (sign) {
        const [fill] = plainColor(key.color);
        sheet.add("text", { x: left, y: middle + BASELINE_AT * signSize, "font-size": signSize, fill }, sign);
      } else if (dash) {
        const [stroke] = plainColor(key.borderTopColor);
        const pattern = `${keyWidth / 3} ${keyWidth / 3}`; // ends as it began
        const line = { x1: left, x2: left + keyWidth, y1: middle, y2: middle, stroke, "stroke-width": dash };
        sheet.add("line", { ...line, "stroke-dasharray": pattern });
      } else {
        const [fill, alpha] = plainColor(key.backgroundColor);
        const turned = key.transform === "none" ? undefined : `rotate(45 ${left + keyWidth / 2} ${middle})`;
        const round = key.borderTopLeftRadius;
        const rx = round.endsWith("%") ? keyWidth / 2 : Math.min(parseFloat(round) * k, keyHeight / 2);
        const shape = { x: left, y: middle - keyHeight / 2, width: keyWidth, height: keyHeight, rx, fill };
        sheet.add("rect", { ...shape, "fill-opacity": alpha * Number(key.opacity), transform: turned });
      }
      sheet.text(left + keyWidth + 0.45 * size, middle + BASELINE_AT * size, name, { size, color: "muted" });
      left += full + 1.1 * size;
    }
    return items.length ? middle + height / 2 - y : 0;
  }

  /** A chart with its title and legend in a box; `size` is that of its axes. */
  async function addChart(sheet, figure, { x, y, width, height }, size) {
    const title = 1.3 * size;
    sheet.text(x, y + title, figure.querySelector("h3").textContent, { size: title, weight: 700, width });
    let top = y + 1.55 * title;
    top += addLegend(sheet, figure, x, top, width, size) + 0.4 * size;
    await addPlot(sheet, figure.querySelector(".ld-plot"), { x, y: top, width, height: y + height - top }, size);
  }

  /** The first lane that drops something, whose settings and figures the run is about. */
  const focusOf = (run) => run.lanes.find((lane) => !S.isBaseline(lane.schedule)) ?? run.lanes[run.lanes.length - 1];

  /** The settings of the lane that the run is about, in words. */
  function settingsWords(run, lane) {
    const { config } = run.header.lanes[lane.index ?? run.lanes.indexOf(lane)];
    const { temperature, top_p: topP } = run.header.sampling;
    const cut = topP < 1 ? `, top-p ${topP}` : "";
    const sampled = temperature ? `sampled at temperature ${temperature}${cut}` : "greedy";
    if (S.isBaseline(lane.schedule)) return `Nothing is dropped; ${sampled}`;
    const layers = `${config.dropped.length} of ${run.header.model.layers} layers`;
    const early = S.isAdaptive(lane.schedule) ? ", or earlier" : "";
    const parts = [
      `One full step in ${config.period}${early}`,
      config.part === "attention" ? `attention of ${layers} dropped` : `${layers} dropped`,
      `${config.reuse} rule`,
      config.rank ? `corrections of rank ${config.rank}` : "no corrections",
      config.kv === "write" ? "K/V kept when dropped" : "no K/V when dropped",
      sampled,
    ];
    return parts.map((part) => part.replaceAll(" ", "\u00A0")).join("\u00A0· "); // a part stays on one line
  }

  /** "native decoder (q4_1/q8_0 blocks)" */
  function decoderWords(decoder = "") {
    const [, name, weights] = /^(\w+)(.*)$/.exec(decoder) ?? [null, decoder, ""];
    return `${name} decoder${weights}`;
  }

  /** What ran at the left, its figures at the right; returns where the next row may begin. */
  function addHeadline(sheet, run, { x, y, width }) {
    const now = run.figures();
    const lane = focusOf(run);
    const bound = S.isBaseline(lane.schedule) ? 1 : now.bound;
    const differs = now.first_divergence;
    const none = run.lanes.length > 1 ? "none" : "–";
    const times = (value) => (value ? `${formatNumber(value, 2)}×` : "");
    const chance = run.isNoisy?.(now.speedup, bound) ? ", by chance" : "";
    const figures = [
      ["Speedup", times(now.speedup) || "–", bound ? `bound ${times(bound)}${chance}` : ""],
      ["KV memory saved", formatShare(now.kv_saved ?? null, 1), ""],
      ["Same top choice", formatShare(now.top1_agreement ?? null, 1), "at LoRA steps"],
      ["First difference", (differs ?? null) === null ? none : `token ${formatNumber(differs + 1)}`, ""],
    ];
    let right = x + width;
    for (const [name, value, more] of figures.reverse()) {
      const wide = Math.max(sheet.measure(value, 38, 700), sheet.measure(name, 18), sheet.measure(more, 18));
      const left = right - wide;
      sheet.text(left, y + 18, name, { size: 18, color: "muted" });
      sheet.text(left, y + 60, value, { size: 38, weight: 700 });
      sheet.text(left, y + 86, more, { size: 18, color: "muted" });
      right = left - 36;
    }
    const room = right - x;
    const { model, device, prompt } = run.header;
    const title = `LoRA-Drop on ${model.id.replace(/^bundled:/, "")}`;
    const size = Math.max(24, Math.min(36, (36 * room) / sheet.measure(title, 36, 700)));
    sheet.text(x, y + 32, title, { size, weight: 700, width: room });
    const words = settingsWords(run, lane);
    sheet.wrap(words, room, 20, 1).slice(0, 2).forEach(([start, end], row) => {
      const line = row ? words.slice(start) : words.slice(start, end).replace(/\s·$/, "");
      sheet.text(x, y + 64 + 26 * row, line, { size: 20, width: room });
    });
    const below = y + 116;
    const muted = { size: 18, color: "muted" };
    const place = `${model.dtype}, ${decoderWords(device.decoder)}, on ${device.name}`;
    const taken = sheet.text(x + width, below, place, { ...muted, anchor: "end", width: 0.5 * width });
    sheet.text(x, below, `Prompt: ${prompt.replace(/\s+/g, " ")}`, { ...muted, width: width - taken - 36 });
    return below + 20;
  }

  /** A lane's tokens as one text, where each begins, and the stretches that LoRA steps wrote or full ones. */
  function laneText(lane) {
    const starts = [0];
    const stretches = [];
    let text = "";
    for (const step of lane.steps) {
      const [from, isLora] = [text.length, step.kind === "lora"];
      text += clean(step.text.replace(/\r\n?|[\u0085\u2028\u2029]/g, "\n").replace(/\t/g, "    "));
      starts.push(text.length);
      const last = stretches.at(-1);
      if (last?.isLora === isLora) last.to = text.length;
      else stretches.push({ from, to: text.length, isLora });
    }
    return { text, starts, stretches };
  }

  /** The first token of a lane that differs from the first lane's; the first lane has the run's. */
  function divergenceOf(run, lane) {
    const first = run.lanes[0];
    if (lane === first) return run.divergence ?? -1;
    return lane.steps.findIndex(({ tokenId }, i) => first.steps[i] && first.steps[i].tokenId !== tokenId);
  }

  /** Draw as many lines of a lane's text as the box holds: tints, then the text, then the mark of a difference. */
  function addText(sheet, { text, starts, stretches }, lines, differs, { x, y, width, height, most }, size) {
    const group = node("g", { "font-size": size, fill: sheet.colors.ink });
    const lineHeight = Math.min(1.6 * size, height / most);
    const isCut = lines.length > most;
    const shown = lines.slice(0, most);
    if (isCut) {
      // The ellipsis follows words, not an empty line.
      while (shown.length > 1 && !text.slice(...shown.at(-1)).trim()) shown.pop();
      const [start, end] = shown.pop();
      const kept = sheet.cut(text.slice(start, end), width, size, 400, " …").replace(/ ?…$/, "");
      shown.push([start, start + kept.length]);
    }
    const at = ([start], index) => x + sheet.measure(text.slice(start, index), size);
    const box = (row, left, right) => {
      return { x: left, y: y + (row + 0.06) * lineHeight, width: right - left, height: 0.88 * lineHeight, rx: 4 };
    };
    const put = (row, left, string) => {
      const words = node("text", { x: left, y: y + (row + 0.5) * lineHeight + BASELINE_AT * size }, string);
      words.setAttributeNS(XML, "xml:space", "preserve");
      group.append(words);
    };
    shown.forEach((line, row) => {
      for (const stretch of stretches) {
        const [from, to] = [Math.max(stretch.from, line[0]), Math.min(stretch.to, line[1])];
        if (from >= to) continue;
        const tint = { ...box(row, at(line, from), at(line, to)), fill: sheet.colors.tint };
        if (stretch.isLora) sheet.add("rect", tint);
        // Each stretch has a place of its own, so that text and tint stay together in another font; programs that
        // collapse spaces must not move it.
        const words = text.slice(from, to);
        if (words.trim()) put(row, at(line, from + words.length - words.trimStart().length), words.trim());
      }
    });
    if (isCut) {
      const line = shown.at(-1);
      const gap = /[.…]$/.test(text.slice(...line)) ? 0.3 * size : 0; // no fourth full stop
      put(shown.length - 1, at(line, line[1]) + gap, "…");
    }
    sheet.svg.append(group);

    if (differs < 0) return;
    const [first, last] = [starts[differs], starts[differs + 1]];
    const begins = lines.findLastIndex(([start]) => start <= first);
    if (begins >= shown.length || (isCut && first >= shown.at(-1)[1])) return;
    const marks = [];
    for (let row = begins; row < shown.length && (row === begins || shown[row][0] < last); row++) {
      const [start, end] = shown[row];
      const [left, right] = [Math.max(start, Math.min(first, end)), Math.min(last, end)];
      if (right > left) marks.push(box(row, at(shown[row], left) - 2, at(shown[row], right) + 2));
    }
    // What shows nothing, such as a line's end, is marked where it stands.
    const place = at(shown[begins], Math.min(first, shown[begins][1]));
    if (!marks.length) marks.push(box(begins, place - 2, place + 0.4 * size));
    for (const mark of marks) {
      sheet.add("rect", { ...mark, fill: "none", stroke: sheet.colors.diverged, "stroke-width": 3 });
    }
  }

  /** All lanes side by side, each with its name, its figures and its text. */
  function addPanes(sheet, run, { x, y, width, height }) {
    const gap = 16;
    const wide = (width - gap * (run.lanes.length - 1)) / run.lanes.length;
    const head = 48;
    const inner = { width: wide - 36, height: height - head - 14 };
    const texts = run.lanes.map(laneText);
    const mostOf = (size) => Math.max(1, Math.floor(inner.height / (LINE_HEIGHT * size)));
    const layOut = (size) => texts.map(({ text }) => sheet.wrap(text, inner.width, size, mostOf(size)));
    const showsAll = (size) => layOut(size).every((lines) => lines.length <= mostOf(size));
    const size = TEXT_SIZES.find(showsAll) ?? CUT_SIZE;
    const { speeds } = run.figures();
    const heads = run.lanes.map((lane, index) => {
      const speed = speeds[index] ? `${formatNumber(speeds[index], 1)} tokens/s` : "";
      const kv = lane.steps.length ? `${formatBytes(lane.steps.at(-1).kvBytes)} KV` : "";
      return [lane.label.split(":")[0], [speed, kv].filter(Boolean).join("  ·  ")];
    });
    const needed = heads.map(([name, figures]) => sheet.measure(name, 24, 700) + sheet.measure(figures, 20, 700) + 20);
    const k = Math.max(0.8, Math.min(1, inner.width / Math.max(...needed)));
    layOut(size).forEach((lines, index) => {
      const left = x + index * (wide + gap);
      const color = LANES[index] ?? "muted";
      sheet.panel(left, y, wide, height);
      sheet.add("rect", { x: left, y, width: wide, height: 5, rx: 2.5, fill: sheet.colors[color] });
      const [name, figures] = heads[index];
      const side = { size: 20 * k, weight: 700, anchor: "end", width: 0.7 * inner.width };
      const taken = sheet.text(left + wide - 18, y + 36, figures, side);
      sheet.text(left + 18, y + 36, name, { size: 24 * k, weight: 700, color, width: inner.width - taken - 16 });
      const box = { ...inner, x: left + 18, y: y + head, most: mostOf(size) };
      addText(sheet, texts[index], lines, divergenceOf(run, run.lanes[index]), box, size);
    });
  }

  /** What tint and mark mean. */
  function addKey(sheet, x, y) {
    const { tint, diverged } = sheet.colors;
    const style = { size: 17, color: "muted" };
    const box = { y: y + 2, width: 30, height: 18, rx: 4 };
    sheet.add("rect", { ...box, x, fill: tint });
    const next = x + 40 + sheet.text(x + 40, y + 17, "written by a LoRA step", style) + 36;
    sheet.add("rect", { ...box, x: next, fill: "none", stroke: diverged, "stroke-width": 3 });
    sheet.text(next + 40, y + 17, "first token that differs from the baseline", style);
  }

  async function drawWhole(root, run, width, height) {
    const sheet = new Sheet(width, height);
    const [side, gap] = [32, 16];
    const inner = width - 2 * side;
    sheet.background("page");
    const top = addHeadline(sheet, run, { x: side, y: 24, width: inner });
    const rest = height - top - 20;
    const panes = Math.round(0.44 * rest);
    addPanes(sheet, run, { x: side, y: top, width: inner, height: panes });
    addKey(sheet, side, top + panes + 8);
    const charts = { y: top + panes + 40, height: rest - panes - 40 };
    const wide = (inner - gap * (CHARTS.length - 1)) / CHARTS.length;
    for (const [index, name] of CHARTS.entries()) {
      const x = side + index * (wide + gap);
      sheet.panel(x, charts.y, wide, charts.height);
      const box = { x: x + 14, y: charts.y + 6, width: wide - 28, height: charts.height - 14 };
      await addChart(sheet, root.querySelector(`[data-chart="${name}"]`), box, 17);
    }
    return sheet.svg;
  }

  async function drawChart(figure, width, height) {
    const sheet = new Sheet(width, height);
    sheet.background("panel");
    await addChart(sheet, figure, { x: 40, y: 24, width: width - 80, height: height - 48 }, 26);
    return sheet.svg;
  }

  /** The drawing as a file of `width` x `height`, a PNG `scale` times as large. */
  async function file(svg, { format, scale, width, height }) {
    const k = format === "png" ? scale : 1;
    svg.setAttribute("width", Math.round(width * k));
    svg.setAttribute("height", Math.round(height * k));
    const drawing = new Blob([clean(new XMLSerializer().serializeToString(svg))], { type: "image/svg+xml" });
    if (format === "svg") return drawing;
    const address = URL.createObjectURL(drawing);
    try {
      const picture = new Image();
      picture.src = address;
      await picture.decode();
      const canvas = document.createElement("canvas");
      [canvas.width, canvas.height] = [Math.round(width * k), Math.round(height * k)];
      canvas.getContext("2d", { alpha: false }).drawImage(picture, 0, 0, canvas.width, canvas.height);
      const png = await new Promise((done) => canvas.toBlob(done, "image/png"));
      if (!png) throw new Error(`${canvas.width} x ${canvas.height} pixels are too many for this browser.`);
      return png;
    } finally {
      URL.revokeObjectURL(address);
    }
  }

  /** Draw at `design` pixels across, so that every size keeps its place at any width. */
  async function make(draw, design, wanted) {
    const { format, scale, width, height } = wanted;
    if (format !== "svg" && format !== "png") throw new Error("A picture's format is svg or png.");
    if (![scale, width, height].every((value) => Number.isFinite(value) && value > 0)) {
      throw new Error("A picture's scale, width and height are numbers above 0.");
    }
    return file(await draw(design, Math.round((design * height) / width)), wanted);
  }

  window.LoraDrop.pictures = {
    /** One chart (a [data-chart] element) with its title and legend. */
    async chart(figure, { format = "png", scale = 3, width = 1280, height = 720 } = {}) {
      if (!figure.querySelector(".ld-plot").data?.length) throw new Error(NO_RUN);
      return make((...size) => drawChart(figure, ...size), 1280, { format, scale, width, height });
    },

    /** The whole figure of a run in the view `root`. */
    async whole(root, run, { format = "png", scale = 3, width = 1600, height = 900 } = {}) {
      if (!run?.lanes.some((lane) => lane.steps.length)) throw new Error(NO_RUN);
      return make((...size) => drawWhole(root, run, ...size), 1600, { format, scale, width, height });
    },

    /** Hand a picture to the reader as a download. */
    save(blob, name) {
      const link = document.createElement("a");
      const address = URL.createObjectURL(blob);
      link.href = address;
      link.download = name.replace(/[^A-Za-z0-9._-]+/g, "-").replace(/^[.-]+/, "").slice(0, 100) || "lora-drop";
      document.body.append(link);
      link.click();
      link.remove();
      setTimeout(() => URL.revokeObjectURL(address), 60000); // a download may begin late
    },
  };
})();
