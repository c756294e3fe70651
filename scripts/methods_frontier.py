"""Measure the frontier of methods on the bundled model, and put it into assets/methods and README.md.

    python -m scripts.methods_frontier            # measure; 96 prompts, --limit N for fewer
    python -m scripts.methods_frontier --write    # only write README.md from the stored figures

It runs `lora-drop compare` (other options go there), from the start unless `--go-on` takes an interrupted measurement
up again. Parameters are searched on the prompts that settings are chosen on. Leave the machine idle.
"""

from __future__ import annotations

import argparse
import re
import sys
import textwrap
from collections.abc import Iterator
from typing import Any

from lora_drop.cli.main import main as lora_drop
from lora_drop.cli.output import spread
from lora_drop.evaluation.measure.pairs import read_prompt_set
from lora_drop.evaluation.measure.protocol import OFF
from lora_drop.method.methods import HYBRIDS
from lora_drop.method.presets import PRESETS
from lora_drop.method.quality import READS_WELL_LOSS, REPETITION
from lora_drop.paths import CHECKOUT, SHIPPED_METHODS
from lora_drop.run.exports.figures.methods import PICTURE
from lora_drop.run.results.compared import is_lossless, label_of, reported, winner_words
from lora_drop.run.results.files import COMPARE

BETWEEN = re.compile(r"(<!-- methods -->\n).*?(<!-- /methods -->)", re.DOTALL)
WHAT = {
    "balanced": "layers 4 to 17, every other step; accept 0.15",
    "copying": "the same, with prompt lookup",
    "fast": "as `balanced`; accept 0.05",
    "lossless": "4 layers, every other step; accept 1",
    "memory": "8 layers, 2 of 3 steps; no K/V of theirs",
    "paper": "13 layers, the paper's rule",
    "screened-head": "the head alone, 7 of 8 steps; accept 1",
}


def lines(content: dict[str, Any]) -> str:
    """What README.md says of it: how it was measured, the table, who wins."""
    data, device = content["data"], content["device"]
    tokens = content["settings"]["tokens"]
    about = (
        f"{content['model']['id'].removeprefix('bundled:')} on {device['threads']} threads of {device['name']}, "
        f"{content['date'][:10]}: {data['prompts']} prompts of `{data['file']}` (sha256 {data['sha256'][:16]}), "
        f"greedy answers, at most {tokens} tokens."
    )
    if data["sha256"] == read_prompt_set().about["sha256"]:
        about += " Nothing was chosen on them."
    rates = [row["baseline_tokens_per_second"] for row in reported(content)]
    if max(rates) > (1 + OFF) * min(rates):
        about += (
            f" The full model ran at {min(rates):.0f} to {max(rates):.0f} tokens/s beside them: they compare roughly."
        )
    address = (SHIPPED_METHODS.relative_to(SHIPPED_METHODS.parents[1]) / PICTURE).as_posix()
    words = f"**{winner_words(content)}** ([All methods]({address}).)"
    return "\n\n".join([_filled(about), "\n".join(table(content)), _filled(words)]) + "\n"


def table(content: dict[str, Any]) -> Iterator[str]:
    """The presets, the screened head, and the fastest of all that keep the full model's text, and that read well."""
    rows = {row["method"]: row for row in reported(content)}
    names = [name for name in (*PRESETS, *WHAT) if name in rows]
    others = {name: row for name, row in rows.items() if name not in WHAT}  # the fastest first
    names += [name for name, row in others.items() if is_lossless(row)][:1]
    names += [name for name, row in rows.items() if row["regret"] <= READS_WELL_LOSS][:1]
    is_split = any("by_repeats" in row for row in rows.values())
    yield (
        "| | what is skipped | regret/worst | speed (95% interval)/bound |"
        + (f" by repeats: {'/'.join(REPETITION)} |" if is_split else "")
        + " KV saved |"
    )
    yield "|---|---|---|---|---|" + "---|" * is_split
    for name in dict.fromkeys(names):
        row = rows[name]
        label = label_of(row) if name == "screened-head" else f"`{name}`"  # a command's word: a label is long
        worst = f"/{row['worst']:.1f}" if "worst" in row else ""
        speed = f"{row['speedup']:.2f} ({spread(row)})/{row['bound']:.2f}"
        plain = name.partition(":")[0]
        what = f"as `{HYBRIDS[plain]}`, with prompt lookup" if plain in HYBRIDS else "no layer"
        cells = [label, WHAT.get(name, what), f"{row['regret']:.2f}{worst}", speed]
        if is_split:
            parts = (row["by_repeats"].get(part, {}).get("speedup") for part in REPETITION)
            cells.append("/".join("–" if value is None else f"{value:.2f}" for value in parts))
        yield f"| {' | '.join(cells)} | {row['kv_saved']:.0%} |"


def _filled(text: str) -> str:
    return textwrap.fill(text, 119, break_long_words=False, break_on_hyphens=False)


def main(argv: list[str]) -> int:
    """Measure, and write the files."""
    assert CHECKOUT is not None, "this writes README.md: run it in a checkout"
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", action="store_true")
    parser.add_argument("--go-on", action="store_true")
    options, others = parser.parse_known_args(argv)
    if not options.write:
        if not options.go_on:
            (SHIPPED_METHODS / COMPARE.name).unlink(missing_ok=True)
        code = lora_drop(["compare", "--out", str(SHIPPED_METHODS), *others])
        if code:
            return code
    readme = CHECKOUT / "README.md"
    words = lines(COMPARE.read(SHIPPED_METHODS / COMPARE.name))
    readme.write_text(BETWEEN.sub(lambda at: at[1] + words + at[2], readme.read_text("utf-8")), "utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
