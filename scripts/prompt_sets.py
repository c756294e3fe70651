"""Make the sets of prompts that figures are reported on, from public files, by hash.

    python -m scripts.prompt_sets --out DIR FILE.jsonl...

Settings and adapters are chosen on `HELD_OUT` (64 prompts, assets/prompts/held-out.txt); `report` (96; figures
until 2026-12-02, since then those of assets/prompts) and `circles` (500) are for reporting alone. `reading` are the
first 24 of `circles` that are Vicuna's or MT-bench's: a small model's programs are hard to judge by reading.
`prompt_sets.json` has 16 digits of each prompt's sha256, in order, not the prompts: these are of other people, drawn
once at random from the first turns of FastChat's Vicuna and MT-bench questions and from the prompts of Arena-Hard v0.1
and v2.0 with at most 400 characters. Left out were prompts that mostly are not ASCII, and those that a text for
training holds or shares ten words in a row with.

| file | repository, path, commit | licence |
|---|---|---|
| vicuna | lm-sys/FastChat `fastchat/llm_judge/data/vicuna_bench/question.jsonl` @ 0e6d3e4b | Apache-2.0 |
| mt-bench | lm-sys/FastChat `fastchat/llm_judge/data/mt_bench/question.jsonl` @ 0e6d3e4b | Apache-2.0 |
| arena-hard-v0.1 | lmarena/arena-hard-auto `data/arena-hard-v0.1/question.jsonl` @ 196f6b82 | Apache-2.0 |
| arena-hard-v2.0 | lmarena/arena-hard-auto `data/arena-hard-v2.0/question.jsonl` @ 196f6b82 | Apache-2.0 |
"""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
from collections.abc import Iterator
from pathlib import Path

SETS: dict[str, list[str]] = json.loads(Path(__file__).with_suffix(".json").read_text(encoding="utf-8"))


def prompt_hash(prompt: str) -> str:
    """A prompt's name in files that do not hold its text."""
    return hashlib.sha256(prompt.encode()).hexdigest()[:16]


def prompts_in(path: Path) -> Iterator[str]:
    """The prompts of a file of Vicuna, MT-bench or Arena-Hard questions."""
    with path.open(encoding="utf-8") as lines:
        for line in lines:
            record = json.loads(line)
            yield record["prompt"] if "prompt" in record else record["turns"][0]


def main() -> int:
    """Run the script; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("files", type=Path, nargs="+")
    parser.add_argument("--out", type=Path, required=True, help="folder that gets a file of JSON Lines for each set")
    args = parser.parse_args()
    by_hash = {prompt_hash(prompt): prompt for path in args.files for prompt in prompts_in(path)}
    args.out.mkdir(parents=True, exist_ok=True)
    missing = 0
    for name, hashes in SETS.items():
        prompts = [by_hash[digest] for digest in hashes if digest in by_hash]
        lines = "".join(json.dumps({"prompt": prompt}) + "\n" for prompt in prompts)
        (args.out / f"{name}.jsonl").write_text(lines, encoding="utf-8")
        print(f"{name}: {len(prompts)} of {len(hashes)} prompts")
        missing += len(hashes) - len(prompts)
    return int(missing > 0)


if __name__ == "__main__":
    sys.exit(main())
