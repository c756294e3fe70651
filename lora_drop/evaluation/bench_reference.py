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
from typing import Any

import torch

from lora_drop.evaluation.bench import text_of, wait
from lora_drop.models.load import LoadedModel, load_model

ROUNDS = 3
SMALL = 500_000_000  # weights up to which transformers is tried in float32 as well as in bfloat16


def hf_reference(model: str, device: str, dtype: str, prompt_tokens: int, new_tokens: int) -> dict[str, Any] | None:
    """`hf_generate` in a process of its own, with torch's own way of waiting; None where it fails."""
    arguments = json.dumps([model, device, dtype, prompt_tokens, new_tokens])
    environment = {"OMP_WAIT_POLICY": "active"} | os.environ
    done = subprocess.run(
        [sys.executable, "-m", "lora_drop.evaluation.bench_reference", arguments],
        env=environment,
        capture_output=True,
        text=True,
    )
    return json.loads(done.stdout) if done.returncode == 0 else None


@torch.inference_mode()
def hf_generate(model: str, device: str, dtype: str, prompt_tokens: int, new_tokens: int) -> dict[str, Any]:
    """transformers' `generate`, greedy: decode steps a second in the number type that is faster, prefill left out.

    The time for one new token is taken off that for all, so what remains is the decode steps.

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
        ids = text_of(loaded, prompt_tokens)

        def timed(count: int, loaded: LoadedModel = loaded, ids: torch.Tensor = ids) -> float:
            model: Any = loaded.model  # Any: PreTrainedModel's type has no `generate`
            wait(loaded.device)
            started = time.perf_counter()
            model.generate(
                ids,
                attention_mask=torch.ones_like(ids),
                max_new_tokens=count,
                min_new_tokens=count,
                do_sample=False,
                pad_token_id=0,
            )
            wait(loaded.device)
            return time.perf_counter() - started

        timed(8)  # warm-up
        rates = [(new_tokens - 1) / (timed(new_tokens) - timed(1)) for _ in range(ROUNDS)]
        found[kind] = statistics.median(rates)
    best = max(found, key=found.__getitem__)
    return {"tokens_per_second": found[best], "dtype": best}


if __name__ == "__main__":
    print(json.dumps(hf_generate(*json.loads(sys.argv[1]))))
