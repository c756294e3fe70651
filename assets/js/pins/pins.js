/* Runs that the reader pinned, side by side, and a blind vote on the next one. The browser keeps the ids; the server
 * keeps the runs, compares them and makes all figures and words (lora_drop/run/report/compare.py). */

import { addTable, byStep } from "../charts/table.js";
import { make, makeButton, makeHead, makeRow, makeStatus, makeSvg } from "../dom.js";
import { formatNumber, formatSaved } from "../format.js";
import { mountBlind } from "./blind.js";
import { mountRecordedWords, wordsView } from "./words.js";

/** @typedef {{id: string, prompt: string}} Pin */
/** @typedef {import("./words.js").Aligned} Aligned */
/**
 * `compared` in lora_drop/run/report/compare.py.
 *
 * @typedef {object} Compared
 * @property {{id: string, name: string, main: string, lanes: {id: string, label: string}[], words: string, verdict: string | null, speed: string | null, reads: string | null, figures: Record<string, number | null>}[]} runs
 * @property {string} criterion when a text reads well, slips or reads badly
 * @property {{name: string, values: string[]}[]} settings
 * @property {Record<string, (number | null)[][]>} curves
 */
/**
 * @typedef {object} PinServer
 * @property {(ids: string[]) => Promise<{compared: Compared, gone: string[], error?: string}>} compare_runs
 * @property {(lanes: string[]) => Promise<Aligned | {error: string}>} align_answers takes a run and a lane, twice
 */

const KEY = "lora-drop-pins";
const MOST = 8; // as MOST in compare.py
const [WIDTH, HEIGHT] = [560, 150];
const CURVES = { drift: "Mean drift of the skipped layers, by step", clock: "Milliseconds so far, by step" };

/**
 * Mount a folded part below the charts. A replay has no server: it has the words of its answers, and no vote, as their
 * names are visible.
 *
 * @param {HTMLElement} root
 * @param {import("../store.js").Store} store
 * @param {PinServer | null} server
 */
export function mountPins(root, store, server) {
  if (!server) return mountRecordedWords(root, store);
  const bar = make("div", "ld-pins-bar");
  root.append(bar);
  const part = make("details", "ld-pins");
  const title = make("summary");
  const add = makeButton("Pin this run", () => change([...read().filter(({ id }) => id !== store.state.run?.id), pinOf()]));
  const note = makeStatus("ld-pins-note");
  const body = make("div");
  part.append(title, note, body);
  bar.append(add);
  mountBlind(root, bar, store);
  root.append(part);

  const pinOf = () => ({ id: store.state.run?.id ?? "", prompt: store.state.run?.header.prompt ?? "" });

  /** @param {Pin[]} pins */
  function change(pins) {
    write(pins.slice(-MOST));
    show();
  }

  async function show() {
    const pins = read();
    title.textContent = `Pinned runs (${pins.length})`;
    add.disabled = !isPinnable(store.state);
    if (!part.open || !server) return;
    note.textContent = pins.length ? "One moment …" : "Pin runs to compare their settings and results here.";
    body.replaceChildren();
    if (!pins.length) return;
    try {
      const { compared, gone, error } = await server.compare_runs(pins.map(({ id }) => id));
      if (error) {
        note.textContent = error;
        return;
      }
      const lost = pins.filter(({ id }) => gone.includes(id)).map(({ prompt }) => `"${prompt}"`);
      note.textContent = lost.length ? `The server no longer keeps ${lost.join(", ")}. Run and pin again.` : "";
      const forget = (id) => change(read().filter((pin) => pin.id !== id));
      body.replaceChildren(comparison(compared, forget), ...wordsOf(compared, server));
      if (lost.length) body.append(makeButton("Unpin the lost runs", () => change(pins.filter(({ id }) => !gone.includes(id)))));
    } catch {
      note.textContent = "The server does not answer. The pins stay: open this again when it is back.";
    }
  }

  part.addEventListener("toggle", show);
  store.subscribe(["run", "revision"], (state) => (add.disabled = !isPinnable(state)));
  show();
}

/** True if the run is over or cut short, and stored by the server. @param {import("../store.js").State} state */
const isPinnable = ({ run }) => Boolean(run?.isOver && !run.isRecorded && !run.isLost);

/** @returns {Pin[]} */
function read() {
  try {
    const pins = JSON.parse(localStorage.getItem(KEY) ?? "[]");
    return Array.isArray(pins) ? pins.filter((pin) => typeof pin?.id === "string" && typeof pin?.prompt === "string") : [];
  } catch {
    return []; // the browser has no storage, or other content there
  }
}

/** @param {Pin[]} pins */
function write(pins) {
  try {
    localStorage.setItem(KEY, JSON.stringify(pins));
  } catch {
    // Without storage the pins last as long as the page.
  }
}

/**
 * The pinned runs as a table, and their curves in one chart each.
 *
 * @param {Compared} compared
 * @param {(id: string) => void} forget
 */
function comparison(compared, forget) {
  const all = make("div", "ld-pins-found");
  all.append(tableOf(compared, forget), ...Object.entries(CURVES).map(([name, words]) => chart(words, compared.curves[name])));
  return all;
}

function tableOf({ runs, settings, criterion }, forget) {
  const node = make("table", "ld-pins-table");
  const head = makeRow("", ...runs.map((run, at) => headOf(run, at, forget)));
  const rows = [
    row("Settings", runs.map(({ words }) => words)),
    row("Verdict", runs.map(({ verdict }) => verdict ?? "–")),
    row("Text", runs.map(({ reads }) => reads ?? "–")),
    row("Speed of this run", runs.map(({ speed }) => speed ?? "–")),
    row("KV memory saved", runs.map(({ figures }) => formatSaved(figures.kv_saved))),
    row("First difference", runs.map(({ figures }) => tokenWords(figures.first_divergence))),
    ...settings.map(({ name, values }) => row(name, values)),
  ];
  node.append(make("caption", "", `Settings that differ are below the figures. ${criterion}`), head, ...rows);
  return node;
}

/** @param {number | null} index of a token */
const tokenWords = (index) => (index === null ? "–" : `token ${formatNumber(index + 1)}`);

function headOf({ id, name }, at, forget) {
  const cell = make("th", `ld-pin-${at}`, `${at + 1}. ${name.slice(0, 60)} `);
  cell.scope = "col";
  const button = makeButton("Unpin", () => forget(id));
  button.setAttribute("aria-label", `Unpin run ${at + 1}`);
  cell.append(button);
  return cell;
}

const row = (name, values) => makeRow(makeHead(name, "row"), ...values);

/** One line for each run; a gap where there is no value. */
function chart(words, curves) {
  const figure = make("figure", "ld-pins-chart");
  const values = curves.flat().filter((value) => value !== null);
  const top = Math.max(...values, 1e-9);
  const steps = Math.max(...curves.map((curve) => curve.length), 2);
  const svg = makeSvg("svg", { viewBox: `0 0 ${WIDTH} ${HEIGHT}`, role: "img", "aria-label": `${words}, 0 to ${formatNumber(top, 2)}` });
  curves.forEach((curve, at) => svg.append(makeSvg("path", { d: pathOf(curve, steps, top), class: `ld-pin-line ld-pin-${at}` })));
  figure.append(make("figcaption", "", `${words} (0 to ${formatNumber(top, 2)}; ${steps} steps)`), svg);
  addTable(figure, () => byStep(words, curves.map((curve, at) => ({ name: `run ${at + 1}`, x: curve.map((_, i) => i + 1), y: curve, digits: 2 }))));
  return figure;
}

function pathOf(curve, steps, top) {
  const points = curve.map((value, at) => (value === null ? null : `${((at * WIDTH) / (steps - 1)).toFixed(1)} ${(HEIGHT - 2 - ((HEIGHT - 4) * value) / top).toFixed(1)}`));
  return points.map((point, at) => point && `${points[at - 1] ? "L" : "M"}${point}`).filter(Boolean).join("");
}

/**
 * Any two of the pinned answers: at first the main lanes of the first and the last run; of a single run, the full
 * model's answer and the main lane's.
 *
 * @param {Compared} compared
 * @param {PinServer} server
 */
function wordsOf({ runs }, server) {
  const lanes = runs.flatMap((run, at) => run.lanes.map(({ id, label }) => ({ run, at, id, label: label.split(":")[0] })));
  if (lanes.length < 2) return [];
  const mains = lanes.flatMap(({ run, id }, place) => (id === run.main ? [place] : []));
  const last = mains[mains.length - 1];
  const choices = lanes.map(({ run, at, id, label }) => ({ key: JSON.stringify([run.id, id]), label: `${at + 1}. ${label}` }));
  const ask = (first, second) => server.align_answers([...JSON.parse(first), ...JSON.parse(second)]);
  return [wordsView(choices, mains.length > 1 ? [mains[0], last] : [last ? 0 : 1, last], ask)];
}
