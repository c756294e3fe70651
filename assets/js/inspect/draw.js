/* The inspector's panel: the likeliest tokens, the refresh that followed, the stack of layers. All of it comes from Python. */

import { make, makeButton, makeHead, makeRow, makeStatus, makeTable } from "../dom.js";
import { formatNumber, formatShare } from "../format.js";
import { stepWords } from "../kinds.js";

/** @typedef {import("../run.js").Run} Run */
/** @typedef {import("../run.js").Lane} Lane */
/** @typedef {[string, number][]} Five the five likeliest tokens with their probabilities */

/**
 * A step, as `inspect` and `about_steps` return it (lora_drop/run).
 *
 * @typedef {object} Step
 * @property {string} prefix_text note on the text before the step
 * @property {{did: string, drift?: number | null, lens?: Five, full_lens?: Five}[]} layers
 * @property {Record<string, {prefix_of: string[], tokens: Five | null}>} top by lane
 * @property {Five} [full] the full model's, after the same text
 * @property {{text: string, drift?: number | null} | null} refresh
 */

/** @typedef {{run: Run, lane: Lane, step: number, facts: Step | null, message: string, isBusy: boolean}} View */

/**
 * @param {HTMLElement} panel
 * @param {View} view
 * @param {() => void} close
 */
export function draw(panel, view, close) {
  const { facts, message, isBusy } = view;
  panel.hidden = false;
  panel.setAttribute("aria-busy", String(isBusy));
  panel.dataset.state = isBusy ? "busy" : facts?.full ? "read" : "recorded";
  const note = makeStatus("ld-inspector-note", message);
  note.hidden = !message;
  const body = make("div", "ld-inspector-body");
  if (facts) {
    const after = facts.refresh ? [make("p", "ld-inspector-refresh", refreshWords(facts.refresh))] : [];
    const words = make("p", "ld-inspector-prefix", facts.prefix_text);
    body.append(scrolled("This step", words, fives(view, facts), ...after), scrolled("Its layers", stack(view, facts)));
  }
  panel.replaceChildren(head(view, close), note, body);
}

/** A part that the arrow keys scroll. */
function scrolled(label, ...nodes) {
  const part = Object.assign(make("div"), { tabIndex: 0, role: "group", ariaLabel: label });
  part.append(...nodes);
  return part;
}

/** @param {View} view */
function head({ run, lane, step }, close) {
  const { text, kind } = lane.steps[step];
  const title = make("h3", "", `${run.plainLabels[lane.index]}, step ${step}: `);
  title.append(make("code", "", visible(text)), make("small", "", ` ${stepWords[kind]}`));
  const button = makeButton("Close", close);
  button.title = "Close (Escape)";
  const header = make("header", "ld-inspector-head");
  header.append(title, button);
  return header;
}

/** The five likeliest next tokens of each lane and of the full model. */
function fives({ run, lane }, facts) {
  const row = make("div", "ld-fives");
  const nameOf = (id) => run.plainLabels[run.lanes.findIndex((lane) => lane.id === id)] ?? id;
  for (const [id, { prefix_of: whose, tokens }] of Object.entries(facts.top)) {
    const shared = whose.length > 1 ? `text of ${whose.map(nameOf).join(" and ")}` : "its own text";
    row.append(five(nameOf(id), shared, tokens));
  }
  if (facts.full) row.append(five("Full model", `text of ${run.plainLabels[lane.index]}`, facts.full));
  return row;
}

function five(name, whose, tokens) {
  const box = make("div", "ld-five");
  const list = make("ol");
  for (const [text, chance] of tokens ?? []) {
    const item = make("li");
    item.style.setProperty("--ld-share", `${100 * chance}%`);
    item.append(make("code", "", visible(text)), make("span", "", formatShare(chance, 1)));
    list.append(item);
  }
  box.append(make("h4", "", name), make("p", "", whose), tokens ? list : make("p", "", "not recorded"));
  return box;
}

/** A table of the layers, the first at the bottom, as in every drawing. */
function stack({ run }, facts) {
  const hasLens = Boolean(facts.full);
  const lens = hasLens ? ["Lens: this lane would say", "Lens: the full model would say"] : [];
  const rows = facts.layers.map((layer, index) => layerRow(layer, index, hasLens)).reverse();
  const words = `The ${run.header.model.layers} layers at this step, layer 0 at the bottom. Drift: how far a layer's output is from the full model's, as a share of it.`;
  const more = " Lens: the next token if the head read this layer's output.";
  return makeTable("ld-layers", hasLens ? words + more : words, ["Layer", "What it did", "Drift", ...lens], rows);
}

function layerRow({ did, drift, lens, full_lens: full }, index, hasLens) {
  const amount = make("td", "ld-layer-drift", drift === undefined ? "–" : formatNumber(drift, 3));
  amount.style.setProperty("--ld-share", `${Math.min(100, 100 * (drift ?? 0))}%`);
  const row = makeRow(makeHead(index, "row"), did, amount, ...(hasLens ? [lensCell(lens), lensCell(full)] : []));
  row.dataset.did = did;
  return row;
}

function lensCell(tokens) {
  const cell = make("td", "ld-lens");
  for (const [text, chance] of tokens ?? []) {
    const token = make("code", "", visible(text));
    token.title = formatShare(chance, 1);
    token.style.setProperty("--ld-chance", formatShare(Math.sqrt(chance)));
    cell.append(token, " ");
  }
  return cell;
}

/**
 * Python's sentence about a refresh, with the drift after it.
 *
 * @param {{text: string, drift?: number | null}} refresh
 */
function refreshWords({ text, drift }) {
  if (drift === undefined || drift === null) return text;
  const words = drift < 5e-5 ? "equal the full model's" : `differ from the full model's by ${formatNumber(drift, 4)}`;
  return `${text} After it, this token's states ${words}.`;
}

/** A token's text with visible blanks. */
function visible(text) {
  return text.replace(/^ | $/g, "␣").replaceAll("\n", "⏎").replaceAll("\t", "⇥") || "∅";
}
