"""Do settings go in circles more than the full model does? Free answers, paired prompt by prompt.

    python -m scripts.circles circles.jsonl --out DIR [--settings "balanced" "balanced accept=0.4"] [--limit N]

`scripts.prompt_sets` makes `circles.jsonl`. A setting is a preset with changes. Answers are greedy, of at most 128
tokens, and appended to DIR/answers.jsonl one by one: called again, the script writes only those that are missing, and
prints the table of all that are there for every setting named. Nothing here is timed: `speed` is the cost model of
docs/training-log.md, so the script may run beside other work.
"""

from __future__ import annotations

import argparse
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from lora_drop.adapters.bank import AdapterBank
from lora_drop.adapters.find import config_fingerprint, find_bank
from lora_drop.cli.output import cell
from lora_drop.decode.lane import Lane
from lora_drop.decode.reference import Decoder
from lora_drop.decode.sampling import Sampling
from lora_drop.decode.step import Prefilled, Rewind
from lora_drop.evaluation.measure.metrics import read_target, regrets
from lora_drop.evaluation.measure.pairs import read_prompts
from lora_drop.evaluation.measure.texts import ANSWER_TOKENS, without_end
from lora_drop.method.config import LoraDropConfig
from lora_drop.method.interval import ratio_interval
from lora_drop.method.presets import Presets, config_from
from lora_drop.method.quality import collapse_at, repeated_share
from lora_drop.method.schedule import Schedule, baseline_schedule
from lora_drop.models.load import LoadedModel, load_model
from lora_drop.models.tokens import encode_prompt
from lora_drop.run.results.bank_presets import presets_of
from lora_drop.run.results.store import Lines, Row, Shape
from scripts.prompt_sets import prompt_hash

FULL = "full model"
# Costs in full steps, by `lora-drop bench` on a quiet Zen 4 with two cores (docs/performance.md): a LoRA step that
# skips 8 layers, each layer that it skips more or less (its share of a step's bytes), and a pass over 1 to 4 rows.
LORA_STEP, LAYER, PASS = 0.68, 0.0245, {1: 1.0, 2: 1.03, 3: 1.06, 4: 1.21}


def config_of(setting: str, presets: Presets) -> LoraDropConfig:
    """The config of a preset with changes."""
    preset, *changes = setting.split()
    return config_from({"preset": preset} | dict(change.split("=", 1) for change in changes), presets)


def write_answer(
    loaded: LoadedModel,
    decoder: Decoder,
    schedule: Schedule,
    bank: AdapterBank | None,
    prompt: Prefilled,
    is_read: bool,
) -> Row:
    """A greedy answer: its tokens, its passes by rows, and if `is_read` what the full model makes of it."""
    lane = Lane(decoder, prompt, schedule, bank, Sampling(), ANSWER_TOKENS, loaded.stop_ids)
    next(lane)  # prefill
    passes: Counter[str] = Counter()
    for event in lane:
        if not isinstance(event, Rewind):
            passes["lora" if getattr(event, "kind", "") == "lora" else str(event.rows)] += 1
    answer = {
        "tokens": without_end(loaded, lane.tokens),
        "steps": lane.decode_steps,
        "passes": dict(passes),
        "drafts": lane.drafts,
        "accepted": lane.accepted,
    }
    if is_read:
        logits = read_target(decoder, prompt.tokens[0].tolist(), lane.tokens)
        scores = regrets(logits, torch.tensor(lane.tokens))
        answer |= {"regret": float(scores.sum()), "worst": float(scores.max())}
    return answer


def write_answers(
    loaded: LoadedModel, path: Path, prompts: Sequence[str], settings: Sequence[str], read_first: int
) -> list[Row]:
    """Append the answers that the file lacks, all settings of a prompt together; returns all records.

    Args:
        read_first: of so many prompts, the first ones, the full model reads the answers too.
    """
    decoder = loaded.new_decoder()
    lanes: dict[str, tuple[Schedule, AdapterBank | None, str | None]] = {}
    for setting in settings:
        if setting == FULL:
            lanes[setting] = baseline_schedule(loaded.num_layers), None, None
            continue
        config = config_of(setting, presets_of(loaded))
        schedule = config.schedule_for(loaded.num_layers)
        lanes[setting] = schedule, find_bank(loaded, config, schedule)[0], config_fingerprint(loaded, config)
    lines = Lines(path, Shape)
    done = {(record["prompt"], record["setting"], record["bank"]) for record in lines.records}
    for number, prompt in enumerate(prompts):
        keys = {setting: (prompt_hash(prompt), setting, fingerprint) for setting, (*_, fingerprint) in lanes.items()}
        if missing := {setting: key for setting, key in keys.items() if key not in done}:
            prefilled = decoder.read_prompt(torch.tensor([encode_prompt(loaded.tokenizer, prompt)]))
            for setting, key in missing.items():
                answer = write_answer(
                    loaded, decoder, *lanes[setting][:2], prefilled, is_read=number < read_first and setting != FULL
                )
                lines.append(dict(zip(("prompt", "setting", "bank"), key, strict=True)) | answer)
    banks = {setting: fingerprint for setting, (_, _, fingerprint) in lanes.items()}
    return [record for record in lines.records if banks.get(record["setting"]) == record["bank"]]


def summary(answers: dict[str, Row], full: dict[str, Row], skipped: int) -> dict[str, Any]:
    """A setting's figures over the prompts that it and the full model answered.

    Args:
        answers: the setting's, by the prompt's hash.
        full: the full model's, alike.
        skipped: how many layers a LoRA step skips.
    """
    pairs = [(answers[prompt], full[prompt]) for prompt in sorted(answers.keys() & full.keys())]
    ours, theirs = zip(*pairs, strict=True)
    tokens = sum(len(a["tokens"]) for a in ours)
    differences = [(repeated_share(a["tokens"]) - repeated_share(b["tokens"]), 1.0) for a, b in pairs]
    loops = [((collapse_at(a["tokens"]) is not None) - (collapse_at(b["tokens"]) is not None), 1.0) for a, b in pairs]
    lora = LORA_STEP + LAYER * (8 - skipped)
    cost = sum(
        count * (lora if rows == "lora" else PASS[int(rows)]) for a in ours for rows, count in a["passes"].items()
    )
    drafts = sum(a["drafts"] for a in ours)
    read = [a for a in ours if "regret" in a]
    return {
        "prompts": len(pairs),
        "repeats": sum(repeated_share(a["tokens"]) for a in ours) / len(pairs),
        "above": sum(d for d, _ in differences) / len(pairs),
        "above_interval": ratio_interval(differences),
        "collapsed": sum(collapse_at(a["tokens"]) is not None for a in ours),
        "collapsed_full": sum(collapse_at(b["tokens"]) is not None for b in theirs),
        "collapsed_interval": ratio_interval(loops),
        "length": tokens / sum(len(b["tokens"]) for b in theirs),
        "regret": sum(a["regret"] for a in read) / sum(a["steps"] + 1 for a in read) if read else None,
        "worst": max((a["worst"] for a in read), default=None),
        "accepted": sum(a["accepted"] for a in ours) / drafts if drafts else None,
        "speed": sum(a["steps"] for a in ours) / cost,
    }


def main() -> int:
    """Run the script; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("prompts", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--settings", nargs="+", default=["balanced", "fast"])
    parser.add_argument("--limit", type=int, help="only the first N prompts")
    parser.add_argument("--read", type=int, default=100, help="the full model reads the answers to the first N")
    args = parser.parse_args()
    prompts = read_prompts(args.prompts, "prompt", args.limit)
    args.out.mkdir(parents=True, exist_ok=True)
    loaded = load_model("bundled")
    records = write_answers(loaded, args.out / "answers.jsonl", prompts, [FULL, *args.settings], args.read)
    hashes = set(map(prompt_hash, prompts))
    by_setting: dict[str, dict[str, Row]] = {}
    for record in records:
        if record["prompt"] in hashes:
            by_setting.setdefault(record["setting"], {})[record["prompt"]] = record
    full = by_setting[FULL]
    print("| setting | prompts | repeated 4-grams, above the full model's | collapsed | length | regret | worst "
          "| accepted | speed, computed |\n" + "|---" * 9 + "|")  # fmt: skip
    for setting in args.settings:
        skipped = len(config_of(setting, presets_of(loaded)).schedule_for(loaded.num_layers).dropped)
        row = summary(by_setting[setting], full, skipped)
        low, high = row["above_interval"]
        print(
            f"| {setting} | {row['prompts']} | {row['repeats']:.3f}, {row['above']:+.3f} ({low:+.3f} to {high:+.3f}) "
            f"| {row['collapsed']} ({row['collapsed_full']}) | {row['length']:.3f} | {cell(row['regret'], '.3f')} "
            f"| {cell(row['worst'], '.1f')} | {cell(row['accepted'], '.3f')} | {row['speed']:.2f} |"
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
