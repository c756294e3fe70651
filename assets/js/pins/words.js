/* Two answers word by word. Python aligns them (lora_drop/run/report/align.py), as for the verdict. */

import { find, make, makeStatus } from "../dom.js";

/** @typedef {{text: string, pieces: ["same" | "differ", string, string][], error?: undefined}} Aligned */
/** @typedef {{key: string, label: string}} Choice an answer */

/**
 * Two menus of answers, a sentence on their difference, and the words.
 *
 * @param {Choice[]} choices at least two
 * @param {[number, number]} chosen indices of the two answers to begin with
 * @param {(first: string, second: string) => Promise<Aligned | {error: string}>} ask aligns two answers, by their keys
 */
export function wordsView(choices, chosen, ask) {
  const view = make("section", "ld-diff");
  view.setAttribute("aria-label", "Two answers word by word");
  const menus = chosen.map((place, at) => menuOf(choices, place, ["First answer", "Second answer"][at]));
  const sentence = makeStatus("ld-diff-said");
  const words = make("div", "ld-diff-text");
  const head = make("p");
  head.append(menus[0], " beside ", menus[1]);
  view.append(make("h3", "", "Two answers word by word"), head, sentence, keyOf(), words);
  let asked = 0;

  async function show() {
    const mine = ++asked;
    const answer = await ask(menus[0].value, menus[1].value).catch(() => ({ error: "The server does not answer." }));
    if (mine !== asked) return; // the reader chose another pair since
    sentence.textContent = answer.error ?? answer.text;
    words.replaceChildren(...(answer.error === undefined ? answer.pieces.flatMap(pieceOf) : []));
  }

  for (const menu of menus) menu.addEventListener("change", show);
  show();
  return view;
}

/**
 * Mount the words of a replay's lanes, which its file has.
 *
 * @param {HTMLElement} root
 * @param {import("../store.js").Store} store
 */
export function mountRecordedWords(root, store) {
  const part = make("details", "ld-pins");
  part.append(make("summary", "", "Two answers word by word"));
  part.hidden = true;
  root.append(part);
  store.subscribe(["run", "revision"], ({ run }) => {
    const pairs = run?.answers ?? [];
    if (!run || !pairs.length || !part.hidden) return;
    part.hidden = false;
    const ids = [...new Set(pairs.flatMap(({ lanes }) => lanes))];
    const nameOf = (id) => run.lanes.find((lane) => lane.id === id)?.label.split(":")[0] ?? id;
    const ask = async (first, second) => {
      const pair = pairs.find(({ lanes }) => lanes.includes(first) && lanes.includes(second) && first !== second);
      if (!pair) return { error: "Both menus name the same answer." };
      return pair.lanes[0] === first ? pair : { ...pair, pieces: pair.pieces.map(swapped) };
    };
    part.append(wordsView(ids.map((id) => ({ key: id, label: nameOf(id) })), [0, 1], ask));
    find(part, "h3").remove(); // the summary says it
  });
}

function menuOf(choices, place, label) {
  const menu = make("select");
  menu.setAttribute("aria-label", label);
  for (const { key, label: text } of choices) menu.append(Object.assign(make("option", "", text), { value: key }));
  menu.selectedIndex = place;
  return menu;
}

function keyOf() {
  const key = make("p", "ld-diff-key");
  key.append(make("del", "", "only in the first"), " ", make("ins", "", "only in the second"));
  return key;
}

/** @param {Aligned["pieces"][number]} piece @returns {Aligned["pieces"][number]} the piece with its answers swapped */
const swapped = ([kind, first, second]) => [kind, second, first];

/** @param {Aligned["pieces"][number]} piece */
function pieceOf([kind, first, second]) {
  if (kind === "same") return [make("span", "", first), " "];
  return [first && make("del", "", first), second && make("ins", "", second)].filter(Boolean).flatMap((node) => [node, " "]);
}
