"""Write what the full model and each preset answer to `SAMPLE_PROMPTS`: all of them, greedy, none picked.

    python -m scripts.lab.samples --out assets/presets

`samples.json` is for the page, `samples.md` the same for reading. Both are whole after each text, and the script
goes on where it ended.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from lora_drop.cli.arguments import Parser, load
from lora_drop.cli.output import progress
from lora_drop.evaluation.measure.point import Point, check_point, circumstances
from lora_drop.evaluation.sweep import SAMPLE_SETTINGS, sample_trace
from lora_drop.models.load import LoadedModel
from lora_drop.run.results.bank_presets import presets_of
from lora_drop.run.results.files import SAMPLES
from lora_drop.run.results.prompts import SAMPLE_PROMPTS
from lora_drop.run.results.store import Content, Row, Store
from lora_drop.run.trace.records import BASELINE, LORA_DROP
from lora_drop.run.trace.trace import first_divergence
from scripts.lab import exit_code


def sample_presets(
    loaded: LoadedModel, folder: Path, progress: Callable[[int, int], None] = lambda done, total: None
) -> Content:
    """Write the samples that the folder does not hold yet; the files are whole after each.

    A sample of a preset or a bank that has changed is written again. The baseline runs again for a prompt that lacks
    a preset's sample: the two are compared token by token.

    Args:
        progress: called with the texts done and all of them, first with those already there.

    Returns:
        The content of `samples.json`.

    Raises:
        LoraDropError: see `measure_presets`.
    """
    store = Store(SAMPLES, folder, SAMPLES.begin(circumstances(loaded), settings=SAMPLE_SETTINGS), _markdown)
    presets = presets_of(loaded)
    points = {name: check_point(loaded, preset.config, SAMPLE_PROMPTS[0]) for name, preset in presets.items()}
    lanes: dict[str, Point | None] = {BASELINE: None, **points}
    samples = {
        (prompt, lane): _stored(store, prompt, lane, lanes[lane]) for prompt in SAMPLE_PROMPTS for lane in lanes
    }
    progress(sum(sample is not None for sample in samples.values()), len(samples))
    for prompt in SAMPLE_PROMPTS:
        missing = [lane for lane in lanes if samples[prompt, lane] is None]
        # The baseline comes first: the others' first difference is from it.
        base: list[int] = []
        for lane in dict.fromkeys([BASELINE, *missing] if missing else []):
            samples[prompt, lane], tokens = _answer(loaded, prompt, lane, lanes[lane], base)
            base = base or tokens
            store.write(sample for sample in samples.values() if sample)
            progress(len(store.rows), len(samples))
    return store.content | {"samples": list(samples.values())}


def _stored(store: Store, prompt: str, lane: str, point: Point | None) -> Row | None:
    """The store's sample of a lane, if it is of the preset and the bank as they are now."""

    def is_of(sample: Row) -> bool:
        if (sample["prompt"], sample["lane"]) != (prompt, lane) or (sample["config"] is None) != (point is None):
            return False
        return point is None or point.is_of(sample)

    return store.first(is_of)


def _answer(
    loaded: LoadedModel, prompt: str, lane: str, point: Point | None, base: list[int]
) -> tuple[Row, list[int]]:
    """A lane's sample and its tokens.

    Args:
        base: the baseline's tokens, none for the baseline itself.
    """
    trace = sample_trace(loaded, prompt, point.config if point else None)
    name = LORA_DROP if point else BASELINE
    tokens, summary = trace.token_ids(name), trace.summary
    assert summary is not None  # it ran to its end
    sample = {
        "prompt": prompt,
        "lane": lane,
        **(point.key if point else dict.fromkeys(("config", "adapters", "adapters_fingerprint"))),
        "text": trace.text(name),
        "tokens": len(tokens),
        "ended": summary.lanes[name]["ended"],
        "token_ids_sha256": hashlib.sha256(json.dumps(tokens).encode()).hexdigest(),
        "first_divergence": first_divergence(base, tokens) if base else None,
        "collapsed": summary.lanes[name]["collapsed"],
    }
    return sample, tokens


def _markdown(content: Content) -> dict[str, str]:
    """The samples for reading, each text in a fence that it cannot close."""
    settings, model = content["settings"], content["model"]
    lines = [
        "# What the presets write",
        "",
        f"Unpicked: every prompt and every preset, greedy, seed {settings['seed']}, at most "
        f"{settings['max_new_tokens']} new tokens, {model['id']} ({model['dtype']}) on {content['device']['name']}.",
        "What the presets lose is in presets.json.",
    ]
    prompt = None
    for sample in content["samples"]:
        if sample["prompt"] != prompt:
            prompt = sample["prompt"]
            lines += ["", f"## {prompt}"]
        fence = "`" * max(3, 1 + max(map(len, re.findall("`+", sample["text"])), default=0))
        lines += ["", f"**{_title(sample)}**", "", f"{fence}text", sample["text"], fence]
    return {"samples.md": "\n".join(lines) + "\n"}


def _title(sample: Row) -> str:
    loop, differs = sample.get("collapsed"), sample.get("first_divergence")
    circles = "" if loop is None else f", goes in circles from token {loop + 1} on"
    if sample["lane"] == BASELINE:
        return f"full model{circles}"
    difference = "same tokens" if differs is None else f"differs from token {differs + 1} on"
    return f"{sample['lane']}, adapters {sample.get('adapters')}: {difference}{circles}"


def main(argv: Sequence[str] | None = None) -> int:
    """Run the script; returns the exit code."""
    parser = Parser(prog="python -m scripts.lab.samples", description=__doc__.splitlines()[0])
    parser.add_model_options()
    parser.add_out("gets samples.json and samples.md")
    return exit_code(parser, run, argv)


def run(args: argparse.Namespace) -> None:
    """Write the samples that the folder lacks."""
    with SAMPLES.writing(args.out), progress("texts") as show:
        sample_presets(load(args), args.out, show)


if __name__ == "__main__":
    sys.exit(main())
