/* The page's own controls: the two-handle layer slider, the status line, the what-if strip, the presets' table and the
 * buttons that run the same with one setting changed.
 * Values from outside reach the page through textContent only. */
"use strict";
(() => {
  const S = window.LoraDrop.schedule;
  const SVG = "http://www.w3.org/2000/svg";
  const MAX_NEW_TOKENS = 100000;
  const COUNT_AFTER_MS = 400;
  const PATTERN_HEIGHT = 84; // pixels, about
  // The controls that a preset sets, in the layout's order.
  const RULES = [
    ...["period", "layers", "drop_ratio", "drop_layers", "reuse", "part", "kv"],
    ...["refresh_entropy", "refresh_norm", "adapters"],
  ];

  const formats = {}; // by number of decimals: making one takes longer than using it

  /** A number with `digits` decimals and thousands marks; "–" for none. */
  function formatNumber(value, digits = 0) {
    if (value === null || value === undefined || !Number.isFinite(value)) return "–";
    const options = { minimumFractionDigits: digits, maximumFractionDigits: digits };
    return (formats[digits] ??= new Intl.NumberFormat("en-US", options)).format(value);
  }

  /** Bytes in binary units, as human_bytes in schedule.py. */
  function formatBytes(bytes) {
    const power = bytes >= 1 ? Math.min(3, Math.floor(Math.log2(bytes) / 10)) : 0;
    return `${formatNumber(bytes / 1024 ** power, power ? 2 : 0)} ${["B", "KiB", "MiB", "GiB"][power]}`;
  }

  /** A share as a percentage. */
  const formatShare = (share, digits = 0) => (share === null ? "–" : `${formatNumber(100 * share, digits)}%`);

  /** An element with a class and, if given, a text. */
  function make(tag, className, text) {
    const node = document.createElement(tag);
    if (className) node.className = className;
    if (text !== undefined) node.textContent = text;
    return node;
  }

  /** Mount the status line: props.value is {kind, text}. */
  function mountStatus(element, props, watch) {
    const line = element.querySelector(".ld-status");
    const draw = () => {
      line.textContent = props.value.text;
      line.dataset.kind = props.value.kind;
      line.title = props.value.text;
    };
    watch("value", draw);
    draw();
  }

  const modelWatchers = []; // called with page_facts of a model that was chosen from the menu
  let facts = null; // {labels, value}: the models on offer, and page_facts of the one shown; null for the page's first
  let isChosen = false; // by the visitor; a link brings settings of its own

  /** Mount what tells all others of a newly chosen model: props.value is page_facts, props.labels what is on offer. */
  function mountFacts(element, props, watch) {
    facts = props;
    watch("value", () => {
      if (props.value) for (const tell of modelWatchers) tell(props.value);
    });
  }

  /** Mount the two-handle slider: props.value is [lo, hi], props.last the model's last layer; a move triggers input. */
  function mountRange(element, props, watch, trigger) {
    const [low, high] = [element.querySelector(".ld-range-lo"), element.querySelector(".ld-range-hi")];
    const fill = element.querySelector(".ld-range-fill");
    const shown = element.querySelector(".ld-range-value");
    let last;

    function setLast(layer) {
      last = layer;
      element.querySelector(".ld-range-last").textContent = last;
      for (const handle of [low, high]) {
        handle.min = 1;
        handle.max = last;
      }
    }

    function draw() {
      const [lo, hi] = [Number(low.value), Number(high.value)];
      const at = (layer) => (last > 1 ? (layer - 1) / (last - 1) : 0);
      fill.style.left = `${100 * at(lo)}%`;
      fill.style.right = `${100 * (1 - at(hi))}%`;
      shown.textContent = `${lo} – ${hi}`;
      // Where both handles meet, the one that can still move has to be on top.
      low.style.zIndex = at(lo) > 0.5 ? 3 : 2;
      high.style.zIndex = at(lo) > 0.5 ? 2 : 3;
    }

    function take(value) {
      if (!Array.isArray(value)) return;
      low.value = value[0];
      high.value = value[1];
      draw();
    }

    function moved(handle) {
      if (Number(low.value) > Number(high.value)) handle.value = handle === low ? high.value : low.value;
      draw();
      whatIf?.change({ layers: [Number(low.value), Number(high.value)], drop_layers: "" });
    }

    for (const handle of [low, high]) {
      handle.addEventListener("input", () => moved(handle));
      // Gradio dispatches its own `change` when props.value is set; triggering one too would fire twice.
      handle.addEventListener("change", () => {
        props.value = [Number(low.value), Number(high.value)];
        trigger("input"); // a visitor moved it: exact layers make way (see layout.py)
      });
    }
    const note = element.querySelector(".ld-range-note");
    range = {
      /** Say whether exact layers stand in for the range. */
      draw() {
        const isListed = (whatIf?.settings.drop_layers ?? "").trim() !== "";
        note.textContent = isListed ? "exact layers are set: a move here replaces them" : "layer 0 always runs";
      },
    };
    range.draw();
    setLast(props.last);
    watch("value", () => take(props.value));
    take(props.value);
    modelWatchers.push(({ model }) => {
      setLast(model.shape.num_layers - 1);
      take(props.value);
    });
  }

  /** "4,6,8" as ascending layer numbers; null for an empty text, undefined for one that is not a list. */
  function parseList(text) {
    const parts = text.split(",").map((part) => part.trim());
    if (text.trim() === "") return null;
    if (!parts.every((part) => /^\d+$/.test(part))) return undefined;
    return parts.map(Number).sort((a, b) => a - b);
  }

  /** "2.5" as a number; null for an empty text, undefined for one that is no threshold. */
  function parseThreshold(text) {
    if ((text ?? "").trim() === "") return null;
    const value = Number(text);
    return Number.isFinite(value) && value >= 0 ? value : undefined;
  }

  /** The schedule that page settings give on a model, or a string that says what is wrong with them. */
  function scheduleOf(settings, numLayers) {
    const last = numLayers - 1;
    const { period, drop_ratio: ratio, layers, max_new_tokens: tokens } = settings;
    if (!Number.isInteger(period) || period < 1) return "The period is a whole number from 1 upwards.";
    if (typeof ratio !== "number" || !(ratio >= 0 && ratio <= 1)) return "The drop ratio lies between 0 and 1.";
    if (!Number.isInteger(tokens) || tokens < 1 || tokens > MAX_NEW_TOKENS) {
      return `New tokens is a whole number from 1 to ${formatNumber(MAX_NEW_TOKENS)}.`;
    }
    const listed = parseList(settings.drop_layers ?? "");
    if (listed === undefined) return "Exact layers are numbers with commas between them, such as 4,6,8.";
    if (listed && (listed[0] < 1 || listed[listed.length - 1] > last || new Set(listed).size < listed.length)) {
      return `Exact layers are different numbers from 1 to ${last}: layer 0 always runs.`;
    }
    const [refreshEntropy, refreshNorm] = [settings.refresh_entropy, settings.refresh_norm].map(parseThreshold);
    if (refreshEntropy === undefined || refreshNorm === undefined) {
      return "A threshold of early refreshes is a number from 0 upwards; leave it empty for none.";
    }
    const dropped = listed ?? S.droppedLayers(layers[0], layers[1], ratio);
    const { reuse, part, kv } = settings;
    return { period, numLayers, dropped, reuse, part, kv, refreshEntropy, refreshNorm };
  }

  /** The bank that `auto` takes for these settings on a model; null for none, or one that corrects no dropped layer. */
  function bankOf(model, settings, schedule) {
    if (settings.adapters === "none" || S.isBaseline(schedule)) return null;
    const bank = model.banks[`${schedule.reuse}/${schedule.part}`];
    return bank && schedule.dropped.some((layer) => bank.corrected.includes(layer)) ? bank : null;
  }

  /** What quality to expect: a chosen preset's own figures, else those of the sweep's nearest point, named as such. */
  function expectedWords(model, settings, schedule, bank) {
    const chosen = presets?.chosen();
    const figures = ({ agreement, gap }) =>
      `same next word ${formatShare(agreement)}, ${formatNumber(gap, 2)} nats lost a token`;
    const own = bank ? chosen?.measured : chosen?.bare;
    if (own) return `This preset, measured: ${figures({ agreement: own.agreement, gap: own.nll_gap })}.`;
    const share = schedule.dropped.length / model.droppable;
    const away = (row) => Math.abs(row.drop_ratio - share) / 0.25 + Math.abs(Math.log2(row.period / schedule.period));
    const alike = (row) => row.reuse === schedule.reuse && row.part === schedule.part && row.corrected === Boolean(bank);
    const nearest = model.sweep.filter(alike).sort((a, b) => away(a) - away(b))[0];
    if (!nearest) return "How well these settings read was not measured.";
    return `Nearest measured setting (p ${nearest.drop_ratio}, w ${nearest.period}): ${figures(nearest)}.`;
  }

  let whatIf = null;
  let range = null;
  let presets = null;
  let compare = null;

  /** Mount the what-if strip; it redraws on every change of a setting, in the browser alone. */
  function mountWhatIf(element, props, server) {
    const find = (selector) => element.querySelector(selector);
    const figure = (name, text) => (find(`[data-figure="${name}"]`).textContent = text);
    let { model, presets: named } = props;
    const settings = { ...props.settings };
    let lastPrompt = null; // as typed; null while it is the page's first
    let promptTokens = props.prompt_tokens;
    let asked = false;
    let countTimer = 0;
    let countOf = 0;

    function draw() {
      asked = false;
      const schedule = scheduleOf(settings, model.shape.num_layers);
      compare?.draw();
      range?.draw();
      if (typeof schedule === "string") {
        for (const name of ["bound", "kv-saved", "dropped", "refreshes"]) figure(name, "–");
        find(".ld-whatif-note").textContent = schedule;
        find(".ld-whatif").dataset.state = "invalid";
        return;
      }
      const steps = settings.max_new_tokens - 1;
      const plain = S.isBaseline(schedule);
      const bank = bankOf(model, settings, schedule);
      const corrected = { ...schedule, corrected: bank?.corrected };
      const bound = S.speedBound(model.shape, corrected, steps, promptTokens, bank?.rank);
      figure("bound", `${formatNumber(bound, 2)}×`);
      const early = S.isAdaptive(schedule); // then all of this is what the longest gaps would give
      const saved = formatShare(S.kvSaved(model.shape, schedule, promptTokens, steps));
      figure("kv-saved", early ? `at most ${saved}` : saved);
      figure("dropped", plain ? "none" : `${schedule.dropped.length} of ${schedule.numLayers}`);
      figure("refreshes", plain ? "all" : `${early ? "at least " : ""}1 in ${schedule.period}`);
      find(".ld-whatif").dataset.state = plain ? "baseline" : "drops";
      find(".ld-whatif-note").textContent = plain
        ? "This is the baseline: nothing is dropped."
        : `For ${formatNumber(promptTokens)} prompt and ${formatNumber(settings.max_new_tokens)} new tokens. ` +
          "Reading fewer bytes is the most that can be gained." +
          (early ? " Early refreshes take some of it back." : "") +
          (plain ? "" : ` ${expectedWords(model, settings, schedule, bank)}`);
      drawPattern(find(".ld-pattern-svg"), find(".ld-pattern-caption"), schedule);
    }

    /** Take over some settings and redraw with the next frame. */
    function change(some) {
      Object.assign(settings, some);
      if (!asked) requestAnimationFrame(draw);
      asked = true;
    }

    /** The prompt changed: ask for its number of tokens once the typing rests. */
    function prompt(text) {
      lastPrompt = text;
      clearTimeout(countTimer);
      countTimer = setTimeout(async () => {
        const mine = ++countOf;
        try {
          const count = await server.count_tokens([text, model.id]);
          if (mine === countOf && Number.isInteger(count)) {
            promptTokens = count;
            change({});
          }
        } catch {
          // The strip keeps the last count: it is a guide, and the run counts for itself.
        }
      }, COUNT_AFTER_MS);
    }

    /** The preset that these settings are, or "custom". */
    function presetName() {
      const names = Object.keys(named);
      const same = (name) =>
        Object.entries(named[name]).every(([key, value]) => String(settings[key]) === String(value));
      return names.find(same) ?? "custom";
    }

    whatIf = { change, prompt, presetName, named: () => named, settings, model: () => model };
    draw();
    modelWatchers.push((found) => {
      ({ model, settings: named } = found);
      prompt(lastPrompt ?? document.querySelector("#ld-prompt textarea")?.value ?? "");
      change({});
    });
  }

  /** Mount the presets' table: props.value is the chosen name, props.facts what preset_facts tells. */
  function mountPresets(element, props, watch, trigger) {
    const body = element.querySelector("tbody");
    let radios = [];
    let known = null; // what preset_facts tells of the model

    function cells({ measured, reads_well: readsWell }) {
      const verdict = make("td", readsWell ? "ld-good" : "ld-bad", readsWell ? "well" : "not well");
      const speed = make("td", "", formatNumber(measured.speedup, 2));
      speed.append(make("small", "", `\u2009/\u2009${formatNumber(measured.bound, 2)}×`));
      return [
        verdict,
        make("td", "", formatShare(measured.agreement)),
        make("td", "", formatNumber(measured.nll_gap, 2)),
        speed,
        make("td", "", formatShare(measured.kv_saved)),
      ];
    }

    /** A preset's row; returns its radio button. */
    function addRow(preset) {
      const radio = make("input");
      Object.assign(radio, { type: "radio", name: "ld-preset", value: preset.name });
      const label = make("label");
      // What is in parentheses stays on one line.
      label.append(radio, make("span", "", preset.label.replace(/ (?=[^(]*\))/g, "\u00a0")));
      const name = make("th");
      name.scope = "row";
      name.append(label);
      const row = make("tr");
      row.title = preset.note;
      row.dataset.preset = preset.name;
      row.append(name);
      if (preset.measured) {
        row.append(...cells(preset));
      } else {
        const note = make("td", "ld-presets-note", preset.note);
        note.colSpan = 5;
        row.append(note);
      }
      row.addEventListener("click", (event) => event.target.closest("label") ?? radio.click());
      radio.addEventListener("change", () => {
        props.value = preset.name;
        trigger("input");
      });
      body.append(row);
      return radio;
    }

    /** Fill the table with a model's presets. */
    function fill(found) {
      known = found;
      const { about, gap, missing } = known;
      body.replaceChildren();
      const custom = { name: "custom", label: "Custom", note: "Your own settings.", measured: null };
      radios = [...known.presets, custom].map(addRow);
      element.querySelector("[data-column=reads]").title = `“well” where at most ${gap} nats a token are lost over all steps`;
      element.querySelector(".ld-presets-about").textContent = missing
        ? `${missing.charAt(0).toUpperCase()}${missing.slice(1).replace(/\.$/, "")}.`
        : `Measured on ${formatNumber(about.tokens)} tokens of ${about.file}, ${about.device}, ${about.dtype}, ` +
          `${about.date}. Same next word as the full model at LoRA steps; nats lost over all steps: ` +
          `up to ${gap} reads well.`;
      element.querySelector(".ld-presets").dataset.state = missing ? "unmeasured" : "measured";
    }

    function draw() {
      for (const radio of radios) radio.checked = radio.value === props.value;
      compare?.draw();
    }
    fill(props.facts);
    presets = { chosen: () => known.presets.find((preset) => preset.name === props.value) ?? null };
    watch("value", draw);
    draw();
    modelWatchers.push((found) => {
      fill(found.presets);
      draw();
    });
  }

  /** Mount the third lane's choice: props.comparisons are {button, lane} by name, props.value a name or "" for none. */
  function mountCompare(element, props, watch) {
    const note = element.querySelector(".ld-compare-note");
    const train = element.querySelector(".ld-train");
    const buttons = Object.fromEntries(
      [["", { button: "none" }], ...Object.entries(props.comparisons)].map(([name, { button: text }]) => {
        const button = make("button", "", text);
        button.type = "button";
        button.dataset.compare = name;
        button.addEventListener("click", () => {
          props.value = name;
          draw();
        });
        return [name, button];
      }),
    );
    element.querySelector(".ld-compare-buttons").append(...Object.values(buttons));

    /** Which lanes there are to add, and the words for what they compare. */
    function draw() {
      if (!whatIf) return;
      const { settings } = whatIf;
      const model = whatIf.model();
      const schedule = scheduleOf(settings, model.shape.num_layers);
      const drops = typeof schedule !== "string" && !S.isBaseline(schedule);
      const bank = drops ? bankOf(model, settings, schedule) : null;
      buttons["adapters-off"].disabled = !bank;
      for (const rule of ["skip", "state", "residual"]) buttons[rule].disabled = !drops || settings.reuse === rule;
      buttons.state.hidden = settings.reuse === "state"; // the paper's rule against ours, or the other way round
      buttons.residual.hidden = settings.reuse !== "state";
      for (const [name, button] of Object.entries(buttons)) {
        button.setAttribute("aria-pressed", String(name === (props.value ?? "")));
      }
      // A model without any corrections: what makes some.
      train.hidden = !model.train || !drops;
      train.querySelector("code").textContent = model.train ?? "";
      note.textContent = drops ? `${bankWords(settings, bank)}${measuredWords(bank)}` : baselineWords(schedule);
    }

    compare = { draw };
    watch("value", draw);
    draw();
  }

  /** "residual64, rank 64, trained on 143,360 tokens." */
  function bankWords(settings, bank) {
    if (settings.adapters === "none") return "The adapters are off: this is the untrained rule.";
    if (!bank) return "There are no trained corrections for these settings: this is the untrained rule.";
    const trained = bank.tokens === null ? "" : `, trained on ${formatNumber(bank.tokens)} tokens`;
    return `Corrections ${bank.name}, rank ${bank.rank}${trained}.`;
  }

  /** What the chosen preset was measured to do with corrections and without. */
  function measuredWords(bank) {
    const chosen = presets?.chosen();
    if (!bank || !chosen?.measured || !chosen.bare) return "";
    const [withThem, without] = [chosen.measured, chosen.bare].map((row) => formatShare(row.agreement));
    return ` Same next word, measured: ${withThem} with them, ${without} without.`;
  }

  const baselineWords = (schedule) =>
    typeof schedule === "string" ? "These settings cannot run." : "Nothing is dropped: there is nothing to compare.";

  /** Layers x one cycle of steps, in the colours of the layer-activity chart. */
  function drawPattern(svg, caption, schedule) {
    const plain = S.isBaseline(schedule);
    // Whole pixels a layer, or the rows would differ.
    const [width, height] = [240, schedule.numLayers * Math.max(1, Math.round(PATTERN_HEIGHT / schedule.numLayers))];
    const columns = plain ? 1 : Math.min(schedule.period, 64);
    const dropped = new Set(plain ? [] : schedule.dropped);
    const [cellW, cellH] = [width / columns, height / schedule.numLayers];
    const cells = [];
    for (let column = 0; column < columns; column++) {
      const isLora = S.kind(schedule, column + 1) === "lora";
      for (let layer = 0; layer < schedule.numLayers; layer++) {
        const cell = document.createElementNS(SVG, "rect");
        const gap = cellH > 2 ? 1 : 0;
        cell.setAttribute("x", (column * cellW + 0.5).toFixed(2));
        cell.setAttribute("y", (height - (layer + 1) * cellH).toFixed(2));
        cell.setAttribute("width", Math.max(cellW - 1, 0.5).toFixed(2));
        cell.setAttribute("height", (cellH - gap).toFixed(2));
        cell.setAttribute("class", `ld-cell ld-cell-${cellKind(isLora, dropped.has(layer), schedule)}`);
        cells.push(cell);
      }
    }
    svg.setAttribute("viewBox", `0 0 ${width} ${height}`);
    svg.setAttribute("preserveAspectRatio", "none");
    svg.style.height = `${height}px`;
    svg.replaceChildren(...cells);
    const cycle = S.isAdaptive(schedule) ? "the longest cycle" : "one cycle";
    const what = plain ? "every step runs every layer" : `${schedule.period} steps, the last one full`;
    svg.setAttribute("aria-label", `Schedule pattern: ${what}; dropped layers ${[...dropped].join(", ") || "none"}`);
    caption.textContent = plain
      ? `${schedule.numLayers} layers, every step alike`
      : `${schedule.numLayers} layers (0 below) × ${cycle} of ${schedule.period} steps`;
  }

  /** What a layer does in a step: "full", "refresh" (a full step of a dropped layer), "dropped" or "dropped-kv". */
  function cellKind(isLora, isDropped, schedule) {
    if (!isDropped) return "full";
    if (!isLora) return "refresh";
    return schedule.kv === "write" ? "dropped-kv" : "dropped";
  }

  /** Why a refresh came early, by the trace's word. */
  const triggerWords = {
    entropy: "the last token's entropy was high",
    norm: "the last corrections were large",
  };

  Object.assign(window.LoraDrop, {
    cellKind,
    formatBytes,
    formatNumber,
    formatShare,
    make,
    mountCompare,
    mountFacts,
    mountPresets,
    mountRange,
    mountStatus,
    mountWhatIf,
    scheduleOf,
    triggerWords,

    /** Gradio calls this with the controls' values when one changes; returns the preset that they make. */
    settings([period, layers, ratio, listed, reuse, part, kv, entropy, norm, adapters, tokens]) {
      if (!whatIf) return "custom";
      whatIf.change({
        period,
        layers,
        drop_ratio: ratio,
        drop_layers: listed ?? "",
        reuse,
        part,
        kv,
        refresh_entropy: entropy ?? "",
        refresh_norm: norm ?? "",
        adapters,
        max_new_tokens: tokens,
      });
      return whatIf.presetName();
    },

    /** Gradio calls this with a preset's name; returns the values of the controls. */
    preset(name) {
      const wanted = whatIf.named()[name] ?? whatIf.settings;
      return RULES.map((key) => wanted[key]);
    },

    /** What wants to know of a model that is chosen from the menu; called with its page_facts. */
    onModel: (tell) => modelWatchers.push(tell),

    /** The models on offer, by id. */
    modelLabels: () => facts?.labels ?? [],

    /** Gradio calls this when the visitor chooses a model, before it is loaded. */
    modelChosen() {
      isChosen = true;
    },

    /** Gradio calls this once a model is shown; returns the preset and the values of the controls. */
    modelSettings() {
      const name = isChosen && facts.value ? facts.value.presets.default : whatIf.presetName();
      const wanted = isChosen && facts.value ? facts.value.settings[name] : whatIf.settings;
      isChosen = false;
      return [name, ...RULES.map((key) => wanted[key])];
    },

    /** Gradio calls this when the prompt changes. */
    prompt(text) {
      whatIf?.prompt(text);
    },
  });
})();
