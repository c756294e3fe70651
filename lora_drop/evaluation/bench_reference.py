"""The outside reference of `bench`: transformers' own `generate` on the same model.

It runs in a process of its own, with torch's OpenMP as it comes: this package sets it for a machine that is shared
with a page and a browser, which on an idle one would slow transformers down (docs/openmp.md).
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from typing import Any

import torch

from lora_drop.evaluation.bench import text_of, wait
from lora_drop.models.load import LoadedModel, load_model
from lora_drop.models.tokens import encode_prompt

ROUNDS = 3
LOOKUP = 10  # tokens that transformers' prompt lookup drafts at most
SMALL = 500_000_000  # weights up to which transformers is tried in float32 as well as in bfloat16


def hf_reference(
    model: str,
    device: str,
    dtype: str,
    prompt_tokens: int,
    new_tokens: int,
    prompts: Sequence[str] = (),
    lookup: int | None = None,
) -> dict[str, Any] | None:
    """`hf_generate` in a process of its own, with torch's own way of waiting; None where it fails."""
    arguments = json.dumps([model, device, dtype, prompt_tokens, new_tokens, list(prompts), lookup])
    environment = {"OMP_WAIT_POLICY": "active"} | os.environ
    done = subprocess.run(
        [sys.executable, "-m", "lora_drop.evaluation.bench_reference", arguments],
        env=environment,
        capture_output=True,
        text=True,
    )
    return json.loads(done.stdout) if done.returncode == 0 else None


@torch.inference_mode()
def hf_generate(
    model: str,
    device: str,
    dtype: str,
    prompt_tokens: int,
    new_tokens: int,
    prompts: Sequence[str] = (),
    lookup: int | None = None,
) -> dict[str, Any]:
    """transformers' `generate`, greedy: tokens a second in the number type that is faster, prefill left out.

    The time for one new token is taken off that for all, so what remains is the decode steps.

    Args:
        prompts: real ones; without them `prompt_tokens` tokens of any text.
        lookup: transformers' own lossless drafts, `prompt_lookup_num_tokens`; None is plain decoding.

    Returns:
        `{"tokens_per_second", "dtype"}`.
    """
    found = {}
    loaded = load_model(model, device, dtype)
    kinds = [str(loaded.dtype).removeprefix("torch.")]
    if loaded.device.type == "cpu" and dtype == "auto" and loaded.shape.params <= SMALL:
        kinds = ["bfloat16", "float32"]
    for kind in kinds:
        loaded = load_model(model, device, kind)
        texts = [torch.tensor([encode_prompt(loaded.tokenizer, text)], device=loaded.device) for text in prompts]
        texts = texts or [text_of(loaded, prompt_tokens)]
        _timed(loaded, texts[0], 8, lookup)  # warm-up
        rates = []
        for _ in range(1 if prompts else ROUNDS):
            spent = sum(_timed(loaded, ids, new_tokens, lookup) - _timed(loaded, ids, 1, lookup) for ids in texts)
            rates.append((new_tokens - 1) * len(texts) / spent)
        found[kind] = statistics.median(rates)
    best = max(found, key=found.__getitem__)
    return {"tokens_per_second": found[best], "dtype": best}


def _timed(loaded: LoadedModel, ids: torch.Tensor, count: int, lookup: int | None) -> float:
    """Seconds for `count` new tokens after ids (1, P)."""
    model: Any = loaded.model  # Any: PreTrainedModel's type has no `generate`
    drafts = {"prompt_lookup_num_tokens": lookup} if lookup and count > 1 else {}
    wait(loaded.device)
    started = time.perf_counter()
    model.generate(
        ids,
        attention_mask=torch.ones_like(ids),
        max_new_tokens=count,
        min_new_tokens=count,
        do_sample=False,
        pad_token_id=0,
        **drafts,
    )
    wait(loaded.device)
    return time.perf_counter() - started


if __name__ == "__main__":
    print(json.dumps(hf_generate(*json.loads(sys.argv[1]))))
