/* Where LoRA-Drop pays: speedup by the share of a step that waits for weights, with a calculator. Python measures and
 * computes every figure (lora_drop/run/results/pays.py); this draws them. */

import { addTable } from "./charts/table.js";
import { make, makeSvg, makeText } from "./dom.js";
import { formatShare } from "./format.js";

/** @typedef {import("./store.js").Store} Store */
/** @typedef {{kind: string, label: string, waits: number, speedup: number, words: string, name?: string, setting?: string}}
 *   PaysPoint with `name` and `setting` where the picture labels it */
/** @typedef {{kind: string, label: string, points: [number, number][]}} Curve */
/**
 * @typedef {{name: string, label: string, note: string, low: number, high: number, step: number, value: number | null}}
 *   Field
 */
/** @typedef {{text: string, curves?: Curve[], own?: PaysPoint}} Result */
/** @typedef {{points: PaysPoint[], fields: Field[], result: Result}} Facts */
/** @typedef {(values: Record<string, number> | null) => Promise<Facts>} Ask */

const [WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM] = [640, 320, 44, 24, 12, 40];
const DOT = 7; // from a point's middle to its edge, with room
const NARROW = "(width < 760px)"; // as in pays.css
const TEXT = { wide: 11, narrow: 17 };
const ASK_AFTER_MS = 250; // after the last key
const KINDS = {
  here: "this model, this machine",
  head: "full model, screened head, this machine",
  same: "this model in another number type",
  shape: "the paper's shapes",
  card: "the paper's shapes on a card",
  own: "your model",
};
const INTRO =
  "Skipping layers saves reading and computing. Checking guesses computes each token once more, which costs little only " +
  "where a step waits for weights: that share is what one more row of a pass does not cost.";

/**
 * Draw the picture into an element, for the model that the page shows.
 *
 * @param {HTMLElement} root
 * @param {{where_it_pays: (asked: [string | undefined, Record<string, number> | null]) => Promise<Facts>}} server
 * @param {Store} store
 */
export async function drawPays(root, server, store) {
  const ask = (values) => server.where_it_pays([store.state.model?.id, values]);
  const view = build(root, await ask(null), ask);
  // Another model, or its speeds on this machine: the calculator's numbers stay.
  store.subscribe(["model", "presets"], async () => {
    const answer = await ask(view.values()).catch(() => null);
    if (answer) view.show(answer);
  });
}

/**
 * @param {HTMLElement} root
 * @param {Facts} facts
 * @param {Ask} ask
 */
function build(root, facts, ask) {
  const svg = makeSvg("svg", { viewBox: `0 0 ${WIDTH} ${HEIGHT}`, class: "ld-pays-svg", role: "img" });
  const legend = make("ul", "ld-legend ld-pays-legend");
  const form = make("div", "ld-pays-form");
  const words = make("p", "ld-pays-words");
  words.setAttribute("aria-live", "polite");
  const inputs = facts.fields.map((field) => inputOf(field));
  const values = () => Object.fromEntries(inputs.map((input) => [input.name, input.valueAsNumber]));
  let timer = 0;
  let latest = facts;
  let asked = 0; // requests so far

  /** @param {Facts} answer */
  function show(answer) {
    latest = answer;
    const { points, result } = answer;
    const all = result.own ? [...points, result.own] : points;
    svg.replaceChildren(...drawing(all, result.curves ?? []));
    svg.setAttribute("aria-label", `Speedup by the share of a step that waits for weights. ${result.text}`);
    legend.replaceChildren(...legendOf(all, result.curves ?? []));
    words.textContent = result.text;
    fill();
  }

  async function calculate() {
    const mine = ++asked;
    const answer = await ask(values()).catch(() => null);
    if (mine === asked && answer) show(answer);
  }

  form.append(...inputs.map((input, i) => labelOf(facts.fields[i], input)));
  form.addEventListener("input", () => {
    clearTimeout(timer);
    timer = setTimeout(calculate, ASK_AFTER_MS);
  });
  root.replaceChildren(
    make("h2", "", "Where it pays"),
    make("p", "", INTRO),
    svg,
    legend,
    make("h3", "", "Your own model"),
    form,
    words,
  );
  const head = ["Setting", "Waits for weights", "Speedup"];
  const fill = addTable(root, () => ({ caption: "Speedup by the share that waits", head, rows: latest.points.map(rowOf) }));
  window.matchMedia(NARROW).addEventListener("change", () => show(latest)); // its text has another size
  show(facts);
  return { show, values };
}

/** @param {Field} field */
function inputOf({ name, low, high, step, value }) {
  const input = make("input");
  Object.assign(input, { type: "number", name, min: low, max: high, step, value: value ?? "" });
  return input;
}

/**
 * @param {Field} field
 * @param {HTMLInputElement} input
 */
function labelOf({ label, note }, input) {
  const node = make("label");
  node.title = note;
  node.append(make("span", "", label), input);
  return node;
}

/**
 * Points and curves in their axes.
 *
 * @param {PaysPoint[]} points
 * @param {Curve[]} curves
 */
function drawing(points, curves) {
  const ends = curves.flatMap((curve) => curve.points.map(([, speed]) => speed));
  const all = [1, ...points.map(({ speedup }) => speedup), ...ends];
  const [low, high] = [Math.min(...all, 0.8), Math.max(...all, 1.4) + 0.1];
  const x = (share) => LEFT + share * (WIDTH - LEFT - RIGHT);
  const y = (speed) => HEIGHT - BOTTOM - ((speed - low) / (high - low)) * (HEIGHT - TOP - BOTTOM);
  return [
    ...axes(x, y, low, high),
    ...curves.map(({ kind, points: line }) => {
      const way = line.map(([share, speed]) => `${x(share)},${y(speed)}`).join(" ");
      return makeSvg("polyline", { points: way, class: `ld-pays-curve ld-pays-${kind}` });
    }),
    ...points.map((point) => {
      const place = { cx: x(point.waits), cy: y(point.speedup), r: 5 };
      return makeSvg("circle", { ...place, class: `ld-pays-dot ld-pays-${point.kind}` }, makeSvg("title", {}, point.words));
    }),
    ...labels(points.map((point) => ({ ...point, x: x(point.waits), y: y(point.speedup) }))),
  ];
}

/**
 * Labels of the points that have a name: the name at the highest of its points, the setting at the leftmost. A label takes
 * the first free place beside its point.
 *
 * @param {(PaysPoint & {x: number, y: number})[]} points
 */
function labels(points) {
  const size = window.matchMedia(NARROW).matches ? TEXT.narrow : TEXT.wide;
  const taken = points.map(({ x, y }) => [x - DOT, y - DOT, x + DOT, y + DOT]);
  const named = points.filter(({ name }) => name);
  const firsts = (key, before) => [...named].sort(before).filter((point, i, all) => all.findIndex((other) => key(other) === key(point)) === i);
  const texts = [
    ...firsts(({ kind, name }) => `${kind} ${name}`, (a, b) => a.y - b.y).map((point) => ({ ...point, text: point.name })),
    ...firsts(({ setting }) => setting, (a, b) => a.x - b.x).map((point) => ({ ...point, text: point.setting })),
  ];
  return texts.flatMap(({ x, y, text = "" }) => {
    const [width, height] = [0.6 * size * text.length, 0.9 * size]; // of capital letters
    const [left, right, near] = [x - DOT - 3 - width, x + DOT + 3, y - height / 2];
    const places = [[x - width / 2, y - DOT - height], [right, near], [left, near], [x - width / 2, y + DOT]];
    const beside = places.length;
    for (const far of [1, 2, 3]) {
      for (const side of [left, right]) places.push([side, near - far * height], [side, near + far * height]);
    }
    const place = places.find(([at, top]) => {
      const isOut = at < LEFT || at + width > WIDTH || top < 0 || top + height > HEIGHT - BOTTOM;
      return !isOut && !taken.some((box) => at < box[2] && at + width > box[0] && top < box[3] && top + height > box[1]);
    });
    if (!place) return [];
    taken.push([place[0], place[1], place[0] + width, place[1] + height]);
    const at = { x: place[0] + width / 2, y: place[1] + 0.9 * height, "text-anchor": "middle", class: "ld-pays-label" };
    const label = makeText(text, at);
    if (places.indexOf(place) < beside) return [label];
    const ends = { x1: x, y1: y, x2: place[0] < x ? place[0] + width : place[0], y2: place[1] + height / 2 };
    return [makeSvg("line", { ...ends, class: "ld-pays-grid" }), label];
  });
}

/**
 * @param {(share: number) => number} x
 * @param {(speed: number) => number} y
 * @param {number} low
 * @param {number} high
 */
function axes(x, y, low, high) {
  const isOne = (speed) => Math.abs(speed - 1) < 1e-9;
  const step = high - low > 2 ? 0.5 : 0.2;
  const ticks = [];
  for (let speed = Math.ceil(low / step) * step; speed <= high; speed += step) ticks.push(speed);
  return [
    ...ticks.flatMap((speed) => [
      makeSvg("line", { x1: x(0), x2: x(1), y1: y(speed), y2: y(speed), class: isOne(speed) ? "ld-pays-one" : "ld-pays-grid" }),
      makeText(`${speed.toFixed(1)}×`, { x: x(0) - 6, y: y(speed) + 4, "text-anchor": "end" }),
    ]),
    ...[0, 0.25, 0.5, 0.75, 1].map((share) =>
      makeText(formatShare(share), { x: x(share), y: HEIGHT - BOTTOM + 16, "text-anchor": "middle" }),
    ),
    makeText("share of a step that waits for weights", { x: x(0.5), y: HEIGHT - 6, "text-anchor": "middle" }),
  ];
}

/**
 * @param {PaysPoint[]} points
 * @param {Curve[]} curves
 */
function legendOf(points, curves) {
  const entries = [
    ...[...new Set(points.map(({ kind }) => kind))].map((kind) => [kind, KINDS[kind]]),
    ...curves.map(({ kind, label }) => [kind, `expected of your model, ${label}`]),
  ];
  return entries.map(([kind, words]) => make("li", `ld-pays-key ld-pays-key-${kind}`, words));
}

/** @param {PaysPoint} point */
function rowOf({ label, kind, waits, speedup }) {
  const name = kind === "here" || kind === "head" ? `${label}, this machine` : label;
  return [name, formatShare(waits), `${speedup.toFixed(2)}×`];
}

