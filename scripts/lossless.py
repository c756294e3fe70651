"""Compare `accept 1` with the baseline: every token of many answers, greedy and sampled.

    python -m scripts.lossless [--prompts 100] [--tokens 64] [--preset lossless]

Prints the number of answers, the tokens that differ (none, or it exits with 1), and the share of drafts accepted.
"""

from __future__ import annotations

import argparse
import sys

import torch
from tqdm import tqdm

from lora_drop.adapters.find import find_bank
from lora_drop.decode.lane import Lane
from lora_drop.decode.sampling import Sampling
from lora_drop.method.presets import preset_named
from lora_drop.method.schedule import baseline_schedule
from lora_drop.models.load import load_model
from lora_drop.models.tokens import encode_prompt
from lora_drop.training.prompts import seed_prompts


def main() -> int:
    """Run the script; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--prompts", type=int, default=100, help="greedy ones, and as many sampled")
    parser.add_argument("--tokens", type=int, default=64, help="of an answer, at most")
    parser.add_argument("--preset", default="lossless", help="one with accept 1")
    args = parser.parse_args()
    loaded = load_model("bundled")
    config = preset_named(args.preset, "bundled").config
    if config.accept < 1:
        parser.error(f"preset {args.preset} has accept {config.accept:g}: it does not promise the baseline's text")
    schedule = config.schedule_for(loaded.num_layers)
    bank, notes = find_bank(loaded, config, schedule)
    decoder = loaded.new_decoder()
    differ = answers = tokens = drafts = accepted = 0
    prompts = seed_prompts(2 * args.prompts, seed=1)
    for number, prompt in enumerate(tqdm(prompts, disable=None)):
        sampling = Sampling(0.0 if number < args.prompts else 0.8, 0.95, seed=number)
        ids = torch.tensor([encode_prompt(loaded.tokenizer, prompt)])
        plain, ours = (
            Lane(decoder, ids, *rules, sampling, args.tokens, loaded.stop_ids)
            for rules in ((baseline_schedule(loaded.num_layers), None), (schedule, bank))
        )
        for _ in plain:
            pass
        for _ in ours:
            pass
        answers += 1
        tokens += len(plain.tokens)
        differ += sum(a != b for a, b in zip(plain.tokens, ours.tokens, strict=False))
        differ += abs(len(plain.tokens) - len(ours.tokens))
        drafts, accepted = drafts + ours.drafts, accepted + ours.accepted
    for note in notes:
        print(f"note: {note}")
    share = accepted / max(drafts, 1)
    print(f"{answers} answers, {tokens} tokens, {differ} differ; {share:.1%} of {drafts} drafts accepted")
    return int(differ > 0)


if __name__ == "__main__":
    sys.exit(main())
