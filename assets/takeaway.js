/* What leaves the page and what comes into it: pictures, files, links, and the talk mode. */
"use strict";
(() => {
  const { make } = window.LoraDrop;
  const UNCHANGED = { __type__: "update" }; // Gradio's word for "leave this control alone"
  const MAX_PROMPT = 20000; // characters that a link may carry
  const HASH = 12; // hex digits of a text's sha256 in a link
  const LANE_NAMES = new Map([["baseline", "baseline"], ["lora_drop", "LoRA-Drop"], ["third", "third"]]);

  const isWhole = (low, high) => (text) => {
    const value = /^\d{1,19}$/.test(text) ? Number(text) : NaN;
    return value >= low && value <= high ? value : undefined;
  };
  // As people and the server write numbers; Number would also take "0x10", which the server does not.
  const isNumber = (low, high) => (text) => {
    const value = /^\d{1,30}(\.\d{1,30})?(e[-+]?\d{1,3})?$/.test(text) ? Number(text) : NaN;
    return value >= low && value <= high ? value : undefined;
  };
  const isOne = (...words) => (text) => (words.includes(text) ? text : undefined);
  const isFlag = (text) => (text === "true" ? true : text === "false" ? false : undefined);
  const isList = (text) => (/^(\d{1,4}(,\d{1,4}){0,999})?$/.test(text) ? text : undefined);
  const isThreshold = (text) => (text === "" || isNumber(0, 1e6)(text) !== undefined ? text : undefined);
  const isRange = (text) => {
    const found = /^(\d{1,4})-(\d{1,4})$/.exec(text);
    const [low, high] = found ? found.slice(1).map(Number) : [0, 0];
    return low >= 1 && low <= high ? [low, high] : undefined;
  };
  /* A link's parameters in the order of the page's controls (layout.py), by the command line's names: how a text
   * becomes a control's value; undefined where it cannot. What fits the form but not the model, the run tells. */
  const FIELDS = {
    prompt: (text) => (text.trim() && text.length <= MAX_PROMPT ? text : undefined),
    compare: isOne("", "adapters-off", "skip", "state", "residual"),
    period: isWhole(1, 100000),
    layers: isRange,
    drop_ratio: isNumber(0, 1),
    drop_layers: isList,
    reuse: isOne("state", "anchor", "residual", "skip"),
    part: isOne("block", "attention"),
    kv: isOne("skip", "write"),
    refresh_entropy: isThreshold,
    refresh_norm: isThreshold,
    adapters: isOne("auto", "none"),
    max_new_tokens: isWhole(1, 100000),
    temperature: isNumber(0, 100),
    top_p: isNumber(0, 1),
    seed: isWhole(0, Number.MAX_SAFE_INTEGER),
    view: isOne("race", "lock-step"),
    audit: isFlag,
    ignore_eos: isFlag,
  };

  let linked = null; // what the page's address asks for: {values, texts, model}

  /** A run's settings as a link's parameters. */
  function parameters(run) {
    const { header } = run;
    const lane = header.lanes.find(({ id }) => id === "lora_drop") ?? header.lanes[header.lanes.length - 1];
    const { config } = lane;
    const sampling = header.sampling;
    const found = {
      prompt: header.prompt,
      compare: sampling.compare ?? "",
      period: config.period,
      layers: config.layers ? config.layers.join("-") : "",
      drop_ratio: config.drop_ratio,
      drop_layers: (config.drop_layers ?? []).join(","),
      reuse: config.reuse,
      part: config.part,
      kv: config.kv,
      refresh_entropy: config.refresh_entropy ?? "",
      refresh_norm: config.refresh_norm ?? "",
      adapters: config.adapters,
      max_new_tokens: sampling.max_new_tokens,
      temperature: sampling.temperature,
      top_p: sampling.top_p,
      seed: header.seed,
      view: sampling.view,
      audit: sampling.audit,
      ignore_eos: sampling.ignore_eos,
    };
    if (!config.layers) delete found.layers;
    return Object.fromEntries(Object.entries(found).map(([name, value]) => [name, String(value)]));
  }

  /** The texts of a finished run, by lane, as the first digits of their sha256. */
  const textHashes = (run) =>
    Object.entries(run.summary.lanes).map(([id, lane]) => `${id}:${(lane.text_sha256 ?? "").slice(0, HASH)}`);

  /** The address that restores a run. */
  function linkOf(run) {
    const query = new URLSearchParams(parameters(run));
    if (run.summary) query.set("texts", textHashes(run).join("."));
    query.set("model", `${run.header.model.id}@${run.header.model.revision}`);
    return `${location.origin}${location.pathname}?${query}`;
  }

  /** Gradio calls this when the page loads: values for prompt, third lane, all controls, and the status line. */
  function fromLink() {
    const query = new URLSearchParams(location.search);
    const names = Object.keys(FIELDS);
    if (!names.some((name) => query.has(name))) return [...names, "model", "status"].map(() => UNCHANGED);
    const values = {};
    const wrong = [];
    for (const name of names) {
      if (!query.has(name)) continue;
      const value = FIELDS[name](query.get(name));
      if (value === undefined) wrong.push(name);
      else values[name] = value;
    }
    const texts = /^[a-z_]{1,20}:[0-9a-f]{12}(\.[a-z_]{1,20}:[0-9a-f]{12}){0,3}$/.test(query.get("texts") ?? "")
      ? query.get("texts").split(".")
      : null;
    linked = { query, texts, model: query.get("model") };
    const told = wrong.length
      ? { kind: "error", text: `The link's ${wrong.join(", ")} cannot be used: left as set here.` }
      : { kind: "idle", text: `Settings restored from the link. Press Run${texts ? " to see whether it reproduces" : ""}.` };
    const model = (query.get("model") ?? "").split("@")[0];
    const offered = window.LoraDrop.modelLabels().includes(model) ? model : UNCHANGED;
    return [...names.map((name) => (name in values ? values[name] : UNCHANGED)), offered, told];
  }

  /** After a run: does it give what the link's run gave? */
  function compareWithLink(root, run) {
    const note = root.querySelector(".ld-link-note");
    note.hidden = true;
    if (!linked?.texts || !run.summary) return;
    const now = parameters(run);
    const other = Object.keys(now).filter((name) => linked.query.has(name) && linked.query.get(name) !== now[name]);
    const here = textHashes(run);
    const differs = linked.texts.filter((text) => !here.includes(text)).map((text) => text.split(":")[0]);
    const model = `${run.header.model.id}@${run.header.model.revision}`;
    let text;
    if (other.length) text = `Not the link's run: ${other.join(", ")} changed since.`;
    else if (!differs.length) text = "Reproduced: the texts are the link's, to the letter.";
    else {
      const which = differs.map((id) => LANE_NAMES.get(id) ?? "another").join(" and ");
      const why = linked.model && linked.model !== model ? " The link was made with another model or other weights." : "";
      text = `Differs from the link: the text of ${which}.${why}`;
    }
    note.dataset.state = other.length ? "other" : differs.length ? "differs" : "reproduced";
    note.textContent = text;
    note.hidden = false;
  }

  /** The talk mode: large, 16:9, nothing but the run. */
  function setTalk(root, isOn) {
    document.body.classList.toggle("ld-talk", isOn);
    root.classList.toggle("ld-talking", isOn);
    const button = root.querySelector("[data-act=talk]");
    button.setAttribute("aria-pressed", String(isOn));
    button.textContent = isOn ? "Leave" : "Talk";
    window.scrollTo(0, 0);
  }

  /** Mount the menu: pictures from the page itself, files from the server where there is one. */
  function mountTakeAway(root, server, currentRun, charts) {
    const menu = root.querySelector(".ld-menu");
    const note = root.querySelector(".ld-menu-note");
    for (const part of root.querySelectorAll("[data-needs]")) part.hidden = !server;
    const say = (text, kind = "") => {
      note.textContent = text;
      note.dataset.kind = kind;
    };

    async function picture(format) {
      const what = root.querySelector(".ld-picture").value;
      const run = currentRun();
      if (!run) throw new Error("There is no run to draw yet: press Run first.");
      const { pictures } = window.LoraDrop;
      const figures = what === "whole" ? ["activity", "drift", "kv"] : [what];
      for (const name of figures) charts.complete(root.querySelector(`[data-chart="${name}"]`));
      const blob =
        what === "whole"
          ? await pictures.whole(root, run, { format })
          : await pictures.chart(root.querySelector(`[data-chart="${what}"]`), { format });
      pictures.save(blob, `lora-drop-${what}.${format}`);
      return `Saved lora-drop-${what}.${format}.`;
    }

    async function file(kind) {
      const run = currentRun();
      if (!run) throw new Error("There is no run to take away yet: press Run first.");
      let answer;
      try {
        answer = await server.export_run([run.id, kind]);
      } catch {
        throw new Error("The server does not answer: pictures work without it; try files again when it is back.");
      }
      if (answer.error) throw new Error(answer.error);
      window.LoraDrop.pictures.save(new Blob([answer.text], { type: "application/octet-stream" }), answer.name);
      return `Saved ${answer.name}.`;
    }

    async function link() {
      const run = currentRun();
      if (!run) throw new Error("There is no run to link to yet: press Run first.");
      const address = linkOf(run);
      try {
        await navigator.clipboard.writeText(address);
        return "The link is on the clipboard.";
      } catch {
        // No permission, or no secure origin: it is shown, to be copied by hand.
        const field = make("input", "ld-link");
        field.value = address;
        field.readOnly = true;
        field.setAttribute("aria-label", "Link to this run");
        note.after(field);
        field.select();
        return "Copy this link:";
      }
    }

    menu.addEventListener("click", async (event) => {
      const kind = event.target.closest("[data-save]")?.dataset.save;
      if (!kind) return;
      root.querySelector(".ld-link")?.remove();
      say("One moment …");
      try {
        const work = kind === "link" ? link() : kind === "png" || kind === "svg" ? picture(kind) : file(kind);
        say(await work, "done");
      } catch (error) {
        say(error.message, "error");
      }
    });
    // A menu closes where the reader goes elsewhere.
    document.addEventListener("click", (event) => menu.contains(event.target) || (menu.open = false));
    menu.addEventListener("keydown", (event) => {
      if (event.key !== "Escape") return;
      menu.open = false;
      menu.querySelector("summary").focus();
    });

    root.querySelector("[data-act=talk]").addEventListener("click", () => {
      setTalk(root, !document.body.classList.contains("ld-talk"));
    });
    document.addEventListener("keydown", (event) => {
      const isTyping = event.target.matches?.("input:not([type=range]):not([type=checkbox]), textarea, select");
      if (isTyping || event.ctrlKey || event.metaKey || event.altKey) return;
      const isOn = document.body.classList.contains("ld-talk");
      if (event.key.toLowerCase() === "t") setTalk(root, !isOn);
    });
    if (new URLSearchParams(location.search).get("talk") === "1") setTalk(root, true);
  }

  Object.assign(window.LoraDrop, {
    fromLink,
    linkOf,
    mountTakeAway,

    /** The live view calls these at a run's begin and end. */
    began(root) {
      root.querySelector(".ld-link-note").hidden = true;
    },
    ended: compareWithLink,
  });
})();
