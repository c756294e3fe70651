"""Outside references of `bench`: transformers' `generate` on the same model, and llama.cpp if it is installed.

Each runs in a separate process that waits actively. This package's OpenMP settings are for a machine shared with
a page and a browser; on an idle one they would slow transformers down (docs/openmp.md).
"""

from __future__ import annotations

import importlib.util
import json
import math
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from lora_drop.evaluation.measure.bench import tokens_of_text, wait
from lora_drop.method.cost import step_bytes
from lora_drop.method.schedule import baseline_schedule
from lora_drop.models import bundled
from lora_drop.models.download import GGUF
from lora_drop.models.load import BUNDLED_ID, LoadedModel, load_model
from lora_drop.models.tokens import encode_prompt
from lora_drop.run.report.speed import quotient

ROUNDS = 3
LOOKUP = 10  # most tokens that transformers' prompt lookup drafts
SMALL = 500_000_000  # most weights of a model that is tried both in float32 and in bfloat16


def gguf_of(model_id: str, model: str, device: str) -> Path | None:
    """The GGUF of a model for llama.cpp on a CPU; None if there is none, or llama.cpp is not installed."""
    if device != "cpu" or importlib.util.find_spec("llama_cpp") is None:
        return None
    if model_id == BUNDLED_ID:
        return bundled.ensure() / GGUF.name
    return Path(model).expanduser() if model.endswith(".gguf") else None


def isolated(function: str, *arguments: Any) -> Any:
    """Call `hf_generate` or `llama_generate` in a separate process; None if it fails."""
    done = subprocess.run(
        [sys.executable, "-m", "lora_drop.evaluation.measure.bench_reference", json.dumps([function, *arguments])],
        # A reference has the machine to itself; this process waits passively (`runtime.configure`).
        env=os.environ | {"OMP_WAIT_POLICY": "active"},
        capture_output=True,
        text=True,
    )
    return json.loads(done.stdout.splitlines()[-1]) if done.returncode == 0 else None


def llama_generate(
    gguf: str, model: str, prompt_tokens: int, new_tokens: int, prompts: Sequence[str], threads: int
) -> float | None:
    """Time llama.cpp on the same file, tokens and threads, greedy: tokens per second of its decode steps.

    Args:
        model: its tokenizer makes the tokens, so that both read the same.
    """
    from llama_cpp import Llama

    loaded = load_model(model, "cpu")
    texts = [encode_prompt(loaded.tokenizer, text) for text in prompts] or [tokens_of_text(loaded, prompt_tokens)]
    room = max(map(len, texts)) + new_tokens
    llama = Llama(gguf, n_ctx=room, n_threads=threads, n_threads_batch=threads, verbose=False)
    seconds = []
    for _ in range(1 if prompts else ROUNDS):
        spent = 0.0
        for ids in texts:
            llama.reset()
            llama.eval(ids)
            token = llama.sample(temp=0.0)
            started = time.perf_counter()
            for _ in range(new_tokens - 1):
                llama.eval([token])
                token = llama.sample(temp=0.0)
            spent += time.perf_counter() - started
        seconds.append(spent)
    return quotient((new_tokens - 1) * len(texts), statistics.median(seconds))


@torch.no_grad()  # a model loaded in inference mode stays in it, and torch 2.15's generate leaves it
def hf_generate(
    model: str,
    device: str,
    dtype: str,
    prompt_tokens: int,
    new_tokens: int,
    prompts: Sequence[str] = (),
    lookup: int | None = None,
    read_gb_per_second: float | None = None,
) -> dict[str, Any]:
    """Time transformers' `generate`, greedy: tokens per second in the faster number type, prefill left out.

    The time for one new token is subtracted from that for all: the rest is decode steps.

    Args:
        prompts: real ones; without them `prompt_tokens` tokens of any text.
        lookup: transformers' lossless drafts, `prompt_lookup_num_tokens`; None is plain decoding.
        read_gb_per_second: what the device reads. A step reads each weight once, so no rate is above it; a model that
            fits the cache waits for Python.

    Returns:
        `{"tokens_per_second", "dtype"}`; the rate is None where the difference of the times is too noisy: it is 0 or
        below, or so short that the weights were not read.
    """
    rates: dict[str, float | None] = {}
    loaded = load_model(model, device, dtype)
    kinds = [str(loaded.dtype).removeprefix("torch.")]
    if loaded.device.type == "cpu" and dtype == "auto" and loaded.shape.params <= SMALL:
        kinds = ["bfloat16", "float32"]
    for kind in kinds:
        loaded = load_model(model, device, kind)
        ids = [encode_prompt(loaded.tokenizer, text) for text in prompts] or [tokens_of_text(loaded, prompt_tokens)]
        texts = [torch.tensor([prompt_ids], device=loaded.device) for prompt_ids in ids]
        _timed(loaded, texts[0], 8, lookup)  # warm-up
        seconds = [
            sum(_timed(loaded, ids, new_tokens, lookup) - _timed(loaded, ids, 1, lookup) for ids in texts)
            for _ in range(1 if prompts else ROUNDS)
        ]
        rate = quotient((new_tokens - 1) * len(texts), statistics.median(seconds))
        rates[kind] = None if rate is None or rate > _most(loaded, lookup, read_gb_per_second) else rate
    best = max(rates, key=lambda kind: rates[kind] or 0)
    return {"tokens_per_second": rates[best], "dtype": best}


def _most(loaded: LoadedModel, lookup: int | None, read_gb_per_second: float | None) -> float:
    """Tokens per second of steps that take no longer than reading the weights and accept all drafts."""
    read = step_bytes(loaded.shape, baseline_schedule(loaded.num_layers), 1, 1, loaded.dtype.itemsize)
    return (1 + (lookup or 0)) * (read_gb_per_second or math.inf) * 1e9 / read


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
    name, *arguments = json.loads(sys.argv[1])
    measures: dict[str, Callable[..., Any]] = {"hf_generate": hf_generate, "llama_generate": llama_generate}
    print(json.dumps(measures[name](*arguments)))
