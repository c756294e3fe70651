"""Pairs of answers to read blind: a preset's and the full model's, sides and order shuffled, without names.

    python -m scripts.reading sheet reading.jsonl --answers DIR/answers.jsonl --out DIR
    python -m scripts.reading count --out DIR

`sheet` takes the answers that `scripts.circles` wrote to the set `reading`, adds pairs of the full model's answer with
itself as a control, and writes DIR/sheet.md for the reader and DIR/key.json, which the reader does not get. The reader
writes DIR/verdicts.txt, a line a pair: `7: B slightly better; reason`. `count` reads it with the key and prints how
often each preset was better and worse, then every verdict as it was written.
"""

from __future__ import annotations

import argparse
import json
import random
import re
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from lora_drop.evaluation.measure.pairs import read_prompts
from lora_drop.models.load import load_model
from lora_drop.run.results.store import Lines, Shape
from scripts.circles import FULL
from scripts.prompt_sets import prompt_hash

PRESETS = ("balanced", "fast", "memory")
CONTROLS, SEED = 12, 26
VERDICTS = ("A clearly better", "A slightly better", "same", "B slightly better", "B clearly better")
SCALE = ("clearly better", "better", "same", "slightly worse", "clearly worse")  # of the preset
HEAD = f"""# Pairs of answers

A small language model (135 million parameters) answered each prompt; answers are cut at 128 tokens. For each pair say
which answer you would rather read: {", ".join(VERDICTS)}.
Judge sense, truth, whether it does what was asked, and repetition, not where the cut falls. Some pairs may be the same
text. Write a line a pair, with your reason: `7: B slightly better; reason`.
"""


def write_sheet(prompts: list[str], settings: Sequence[str], answers: Path, out: Path) -> None:
    """Write the sheet and its key."""
    tokenizer = load_model("bundled").tokenizer
    by_prompt = {(record["prompt"], record["setting"]): record["tokens"] for record in Lines(answers, Shape).records}
    rng = random.Random(SEED)
    pairs = [(prompt, setting) for prompt in prompts for setting in settings]
    pairs += [(prompt, FULL) for prompt in rng.sample(prompts, CONTROLS)]
    rng.shuffle(pairs)
    key, lines = [], [HEAD]
    for number, (prompt, setting) in enumerate(pairs, start=1):
        sides = [setting, FULL]
        rng.shuffle(sides)
        key.append({"pair": number, "prompt": prompt_hash(prompt), "A": sides[0], "B": sides[1]})
        lines.append(f"## Pair {number}\n\n**Prompt**\n\n{_fence(prompt)}\n")
        for side, lane in zip("AB", sides, strict=True):
            lines.append(f"**{side}**\n\n{_fence(tokenizer.decode(by_prompt[prompt_hash(prompt), lane]))}\n")
    out.mkdir(parents=True, exist_ok=True)
    (out / "sheet.md").write_text("\n".join(lines), encoding="utf-8")
    (out / "key.json").write_text(json.dumps(key, indent=1) + "\n", encoding="utf-8")


def _fence(text: str) -> str:
    marks = "`" * max(3, 1 + max(map(len, re.findall("`+", text)), default=0))
    return f"{marks}text\n{text}\n{marks}"


def count(out: Path) -> int:
    """Print the verdicts by preset; returns how many pairs have none."""
    key = {row["pair"]: row for row in json.loads((out / "key.json").read_text(encoding="utf-8"))}
    settings = sorted({row[side] for row in key.values() for side in "AB"} - {FULL})
    counts: dict[str, Counter[str]] = {setting: Counter() for setting in (*settings, FULL)}
    verbatim = []
    form = re.compile(rf"(\d+): ({'|'.join(VERDICTS)})\b(.*)")
    for line in (out / "verdicts.txt").read_text(encoding="utf-8").splitlines():
        if (match := form.match(line)) and (row := key.pop(int(match[1]), None)):
            setting = next((row[side] for side in "AB" if row[side] != FULL), FULL)
            scale = SCALE if row["A"] == setting else SCALE[::-1]
            verdict = scale[VERDICTS.index(match[2])]
            counts[setting][verdict] += 1
            verbatim.append((setting, f"{row['prompt']} | {verdict} | {match[1]}: {match[2]}{match[3]}"))
    print(f"| against the full model | {' | '.join(SCALE)} |\n" + "|---" * (1 + len(SCALE)) + "|")
    for setting, row_counts in counts.items():
        print(f"| {setting} | " + " | ".join(str(row_counts[verdict]) for verdict in SCALE) + " |")
    for setting in counts:
        print(f"\n{setting}:\n\n| prompt | preset | verdict as written |\n|---|---|---|")
        print("\n".join(f"| {text} |" for lane, text in verbatim if lane == setting))
    return len(key)


def main() -> int:
    """Run the script; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", choices=("sheet", "count"))
    parser.add_argument("prompts", type=Path, nargs="?")
    parser.add_argument("--answers", type=Path)
    parser.add_argument("--settings", nargs="+", default=PRESETS, help="as scripts.circles names them")
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    if args.what == "count":
        return int(count(args.out) > 0)
    if not (args.prompts and args.answers):
        parser.error("sheet needs the prompts and --answers")
    write_sheet(read_prompts(args.prompts, "prompt"), args.settings, args.answers, args.out)
    return 0


if __name__ == "__main__":
    sys.exit(main())
