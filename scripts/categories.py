"""Make a file of prompts by category from benchmarks' own files, for speeds by kind of text.

    python -m scripts.categories BENCH --out categories.jsonl
    python -m lora_drop compare --data categories.jsonl --methods balanced,fast,prompt-lookup:1:2 --out by-category
    python -m scripts.categories --table by-category    # the table of docs/benchmarks.md

BENCH is the folder of docs/benchmarks.md. Each category has the first `--count` records (default 10) of its files, the
files in turn, and the categories take turns too. For measuring only: the records are other people's, and none may be
trained on or shipped.
"""

from __future__ import annotations

import argparse
import itertools
import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from lora_drop.cli.output import spread
from lora_drop.run.results.compared import reported
from lora_drop.run.results.files import COMPARE

LONGEST = 4000  # characters of a text to summarise
Record = dict[str, Any]


def _asked(record: Record) -> str:
    return str(record["turns"][0])


def _of(*categories: str) -> Callable[[Record], str]:
    return lambda record: _asked(record) if record["category"] in categories else ""


# By category: patterns of files, and the prompt of a record, empty for one that is left out.
CATEGORIES: dict[str, dict[str, Callable[[Record], str]]] = {
    "chat": {"mt_bench/question.jsonl": _of("writing", "roleplay", "humanities", "stem")},
    "code": {
        "humaneval/*.jsonl": lambda record: f"Complete this Python function:\n\n{record['prompt']}",
        "mbpp/*test*.jsonl": lambda record: record["text"],
    },
    "mathematics": {
        "gsm8k/*.jsonl": lambda record: record["question"],
        "math/*.jsonl": lambda record: record["problem"],
    },
    "reasoning": {"bbh/[!p]*.json": lambda record: record["input"]},  # all but the penguins
    "retrieval": {
        "mt_bench/question.jsonl": _of("extraction"),
        "bbh/penguins_in_a_table.json": lambda record: record["input"],
    },
    "summary": {
        "longbench/multi_news*.jsonl": lambda record: f"Summarise this news:\n\n{record['context'][:LONGEST]}",
    },
    "translation": {"xcopa/test.it*.jsonl": lambda record: f"Translate into English: {record['premise']}"},
}


def prompts_of(folder: Path, category: str) -> Iterator[str]:
    """The prompts of a category, one of each of its files in turn."""
    sources = [
        filter(None, map(prompt_of, _records(path)))
        for pattern, prompt_of in CATEGORIES[category].items()
        for path in sorted(folder.glob(pattern))
    ]
    for row in itertools.zip_longest(*sources):
        yield from filter(None, row)


def _records(path: Path) -> Iterator[Record]:
    text = path.read_text(encoding="utf-8")
    return iter(json.loads(text)["examples"]) if path.suffix == ".json" else map(json.loads, text.splitlines())


def table(content: Record) -> Iterator[str]:
    """Lines of Markdown: the speed of each method that was compared, by category."""
    yield f"| | {' | '.join(['all', *CATEGORIES])} |"
    yield "|---" * (len(CATEGORIES) + 2) + "|"
    for row in reported(content):
        parts = [row, *(row["by_kind"][name] for name in CATEGORIES)]
        cells = [f"{part['speedup']:.2f} ({spread(part)})" for part in parts]
        yield f"| `{row['method']}` | {' | '.join(cells)} |"


def main() -> int:
    """Run the script; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, metavar="BENCH", nargs="?", default=Path())
    parser.add_argument("--count", type=int, default=10, metavar="N", help="records of a category (default 10)")
    does = parser.add_mutually_exclusive_group(required=True)
    does.add_argument("--out", type=Path, metavar="FILE.jsonl")
    does.add_argument("--table", type=Path, metavar="DIR", help="of compare; prints its speeds by category")
    args = parser.parse_args()
    if args.table:
        print("\n".join(table(COMPARE.read(args.table / COMPARE.name))))
        return 0
    lists = {name: list(itertools.islice(prompts_of(args.folder, name), args.count)) for name in CATEGORIES}
    in_turn = itertools.zip_longest(*([(name, prompt) for prompt in prompts] for name, prompts in lists.items()))
    records = [{"kind": pair[0], "prompt": pair[1]} for row in in_turn for pair in row if pair]
    print(", ".join(f"{name} {len(prompts)}" for name, prompts in lists.items()))
    if not records:
        print(f"{args.folder} has none of the files that docs/benchmarks.md names.", file=sys.stderr)
        return 1
    args.out.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
