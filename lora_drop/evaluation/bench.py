"""Tokens a second, honestly: `python -m lora_drop bench`.

Baseline and LoRA-Drop run in one process, a step each in turn, so that whatever else the machine does meets both
alike. A round is a whole run; the first is a warm-up and left out; the figures are medians over the others, and the
speedup is the median of each round's own ratio. Beside them stand the physical bound for these very shapes and
lengths, the bytes a second that the baseline reads against what the device can read, and transformers' own `generate`
on the same model.

That reference runs in a process of its own, with torch's OpenMP as it comes: this package sets it for a machine that
is shared with a page and a browser, which on an idle one would slow transformers down (docs/openmp.md).
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

import torch

from lora_drop.adapters.find import find_bank
from lora_drop.decode import Lane, Sampling
from lora_drop.errors import LoraDropError
from lora_drop.method.config import LoraDropConfig
from lora_drop.method.cost import speed_bound, step_bytes
from lora_drop.method.schedule import baseline_schedule
from lora_drop.models.load import LoadedModel, load_model
from lora_drop.models.place import describe_device
from lora_drop.models.tokens import encode_text
from lora_drop.run.race import take_turns
from lora_drop.run.request import BASELINE, LORA_DROP

TEXT = "The lighthouse keeper wrote down the wind, the tide and the names of the ships that passed in the night. "
BANDWIDTH_BYTES = 512 * 2**20  # well beyond any cache
BANDWIDTH_TRIES = 5
HF_ROUNDS = 3
SMALL = 500_000_000  # weights up to which transformers is tried in float32 as well as in bfloat16


def bench(
    loaded: LoadedModel,
    config: LoraDropConfig,
    prompt_tokens: int = 64,
    new_tokens: int = 129,
    rounds: int = 5,
    progress: Callable[[str], None] = lambda text: None,
) -> dict[str, Any]:
    """Measure both lanes: `prompt_tokens` tokens in, `new_tokens` new ones each, greedy, stop tokens ignored.

    Returns:
        The `bench` object of the contract, without the outside reference (`hf_reference`), and more: the share of the
        measured read bandwidth that the baseline reaches, times to the first token, allocated KV bytes. Rates are
        decode steps a second, prefill left out.

    Raises:
        LoraDropError: the settings, the adapters or the lengths do not fit the model, or there is no memory for them.
    """
    given = {"prompt_tokens": prompt_tokens, "new_tokens": new_tokens, "rounds": rounds}
    for name, low in (("prompt_tokens", 1), ("new_tokens", 2), ("rounds", 1)):
        if given[name] < low:
            raise LoraDropError(f"{name} must be at least {low}, got {given[name]}.")
    if prompt_tokens + new_tokens > loaded.context:
        raise LoraDropError(
            f"{prompt_tokens} + {new_tokens} tokens are more than the context of {loaded.context} of {loaded.id}: "
            "lower prompt_tokens or new_tokens."
        )
    schedule = config.schedule_for(loaded.num_layers)
    bank, notes = find_bank(loaded, config, schedule)
    words = encode_text(loaded.tokenizer, TEXT)
    prompt = torch.tensor([(words * (prompt_tokens // len(words) + 1))[:prompt_tokens]], device=loaded.device)
    plain = baseline_schedule(loaded.num_layers)
    runs, lanes = [], {}
    for number in range(rounds + 1):
        progress(f"round {number} of {rounds}" if number else "warm-up")
        decoder = loaded.new_decoder()
        lanes = {
            name: Lane(decoder, prompt, its, adapters, Sampling(), new_tokens)
            for name, its, adapters in ((BASELINE, plain, None), (LORA_DROP, schedule, bank))
        }
        try:
            for _ in take_turns(lanes, "lock-step"):
                pass
        except torch.OutOfMemoryError:
            raise LoraDropError(
                f"{loaded.id} does not fit into the memory of {loaded.device} with {prompt_tokens} + {new_tokens} "
                "tokens: lower them, or take a smaller model."
            ) from None
        if number:
            one, two = (lanes[name] for name in (BASELINE, LORA_DROP))
            runs.append(
                {
                    "baseline_tokens_per_second": one.tokens_per_second,
                    "lora_drop_tokens_per_second": two.tokens_per_second,
                    "speedup": two.tokens_per_second / one.tokens_per_second,
                    "baseline_first_token_ms": one.prefill_ms,
                    "lora_drop_first_token_ms": two.prefill_ms,
                }
            )
    medians = {name: statistics.median(run[name] for run in runs) for name in runs[0]}
    steps, size = new_tokens - 1, loaded.dtype.itemsize
    rank, corrected = (bank.rank, bank.layers) if bank else (0, None)
    bound = speed_bound(loaded.shape, schedule, steps, prompt_tokens, rank, corrected)
    read = sum(step_bytes(loaded.shape, plain, s, prompt_tokens, size) for s in range(1, steps + 1)) / steps
    progress("bandwidth")
    bandwidth = bandwidths(loaded.device)
    reached = read * medians["baseline_tokens_per_second"] / 1e9
    return {
        "device": describe_device(loaded.device) | {"decoder": decoder.name},
        "model": {"id": loaded.id, "revision": loaded.revision, "params": loaded.shape.params},
        "dtype": str(loaded.dtype).removeprefix("torch."),
        **medians,
        "bound": bound,
        "speedup_over_bound": medians["speedup"] / bound,
        "baseline_bytes_per_step": read,
        "baseline_gb_per_second": reached,
        **bandwidth,
        "baseline_share_of_read_bandwidth": reached / bandwidth["read_gb_per_second"],
        "baseline_share_of_copy_bandwidth": reached / bandwidth["copy_gb_per_second"],
        **{f"kv_bytes_{name}": lane.state.kv.nbytes for name, lane in lanes.items()},
        **{f"kv_allocated_bytes_{name}": lane.state.kv.allocated_bytes for name, lane in lanes.items()},
        "config": {
            **config.to_dict(),
            "dropped": list(schedule.dropped),
            "rank": rank,
            **given,
            "notes": notes,
        },
        "runs": runs,
    }


def bandwidths(device: torch.device) -> dict[str, float]:
    """Bytes a second in GB that the device reads (a sum), and reads and writes together (a copy): the best of five."""
    source = torch.ones(BANDWIDTH_BYTES // 4, device=device)
    target = torch.empty_like(source)

    def best(work: Callable[[], Any], size: int) -> float:
        times = []
        for _ in range(BANDWIDTH_TRIES):
            _wait(device)
            started = time.perf_counter()
            work()
            _wait(device)
            times.append(time.perf_counter() - started)
        return size / min(times) / 1e9

    return {
        "read_gb_per_second": best(source.sum, source.nbytes),
        "copy_gb_per_second": best(lambda: target.copy_(source), 2 * source.nbytes),
    }


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


# ---- the outside reference ------------------------------------------------------------------------------------------


def hf_reference(model: str, device: str, dtype: str, prompt_tokens: int, new_tokens: int) -> dict[str, Any] | None:
    """`hf_generate` in a process of its own, with torch's own way of waiting; None where it fails."""
    arguments = json.dumps([model, device, dtype, prompt_tokens, new_tokens])
    environment = os.environ | {"OMP_WAIT_POLICY": os.environ.get("OMP_WAIT_POLICY", "active")}
    done = subprocess.run(
        [sys.executable, "-m", "lora_drop.evaluation.bench", arguments],
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
        words = encode_text(loaded.tokenizer, TEXT)
        ids = torch.tensor([(words * (prompt_tokens // len(words) + 1))[:prompt_tokens]], device=loaded.device)

        def timed(count: int, loaded: LoadedModel = loaded, ids: torch.Tensor = ids) -> float:
            _wait(loaded.device)
            started = time.perf_counter()
            loaded.model.generate(
                ids,
                attention_mask=torch.ones_like(ids),
                max_new_tokens=count,
                min_new_tokens=count,
                do_sample=False,
                pad_token_id=0,
            )
            _wait(loaded.device)
            return time.perf_counter() - started

        timed(8)  # warm-up
        rates = [(new_tokens - 1) / (timed(new_tokens) - timed(1)) for _ in range(HF_ROUNDS)]
        found[kind] = statistics.median(rates)
    best = max(found, key=found.get)
    return {"tokens_per_second": found[best], "dtype": best}


if __name__ == "__main__":
    print(json.dumps(hf_generate(*json.loads(sys.argv[1]))))
