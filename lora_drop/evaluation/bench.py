"""Tokens a second, honestly: `python -m lora_drop bench`.

Baseline and LoRA-Drop run in one process, a step each in turn, so that whatever else the machine does meets both
alike. A round is a whole run; the first is a warm-up and left out; the figures are medians over the others, and the
speedup is the median of each round's own ratio. Beside them stand the physical bound for these very shapes and
lengths, the bytes a second that the baseline reads against what the device can read, and transformers' own `generate`
on the same model (`bench_reference`).
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from lora_drop.adapters.bank import AdapterBank
from lora_drop.adapters.find import find_bank
from lora_drop.decode import Lane, Sampling
from lora_drop.errors import LoraDropError
from lora_drop.method.config import LoraDropConfig
from lora_drop.method.cost import speed_bound, step_bytes
from lora_drop.method.schedule import Schedule, baseline_schedule
from lora_drop.models.load import LoadedModel
from lora_drop.models.place import describe_device
from lora_drop.models.tokens import encode_text
from lora_drop.run.race import take_turns
from lora_drop.run.request import BASELINE, LORA_DROP

TEXT = "The lighthouse keeper wrote down the wind, the tide and the names of the ships that passed in the night. "
BANDWIDTH_BYTES = 512 * 2**20  # well beyond any cache
BANDWIDTH_TRIES = 5


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
    _check(loaded, given)
    schedule = config.schedule_for(loaded.num_layers)
    bank, notes = find_bank(loaded, config, schedule)
    kinds = {BASELINE: (baseline_schedule(loaded.num_layers), None), LORA_DROP: (schedule, bank)}
    prompt = text_of(loaded, prompt_tokens)
    runs, lanes = [], {}
    for number in range(rounds + 1):
        progress(f"round {number} of {rounds}" if number else "warm-up")
        decoder = loaded.new_decoder()
        lanes = {name: Lane(decoder, prompt, *kind, Sampling(), new_tokens) for name, kind in kinds.items()}
        figures = _round(loaded, lanes, given)
        if number:
            runs.append(figures)
    medians = {name: statistics.median(run[name] for run in runs) for name in runs[0]}
    progress("bandwidth")
    return {
        "device": describe_device(loaded.device) | {"decoder": decoder.name},
        "model": {"id": loaded.id, "revision": loaded.revision, "params": loaded.shape.params},
        "dtype": str(loaded.dtype).removeprefix("torch."),
        **medians,
        **_limits(loaded, schedule, bank, given, medians),
        **{f"kv_bytes_{name}": lane.state.kv.nbytes for name, lane in lanes.items()},
        **{f"kv_allocated_bytes_{name}": lane.state.kv.allocated_bytes for name, lane in lanes.items()},
        "config": {
            **config.to_dict(),
            "dropped": list(schedule.dropped),
            "rank": bank.rank if bank else 0,
            **given,
            "notes": notes,
        },
        "runs": runs,
    }


def _check(loaded: LoadedModel, given: dict[str, int]) -> None:
    for name, low in (("prompt_tokens", 1), ("new_tokens", 2), ("rounds", 1)):
        if given[name] < low:
            raise LoraDropError(f"{name} must be at least {low}, got {given[name]}.")
    if given["prompt_tokens"] + given["new_tokens"] > loaded.context:
        raise LoraDropError(
            f"{given['prompt_tokens']} + {given['new_tokens']} tokens are more than the context of {loaded.context} "
            f"of {loaded.id}: lower prompt_tokens or new_tokens."
        )


def text_of(loaded: LoadedModel, count: int) -> Tensor:
    """`TEXT` again and again: (1, count) tokens."""
    words = encode_text(loaded.tokenizer, TEXT)
    return torch.tensor([(words * (count // len(words) + 1))[:count]], device=loaded.device)


def _round(loaded: LoadedModel, lanes: dict[str, Lane], given: dict[str, int]) -> dict[str, float]:
    """Both lanes from prefill to end, a step each in turn."""
    try:
        for _ in take_turns(lanes, "lock-step"):
            pass
    except torch.OutOfMemoryError:
        raise LoraDropError(
            f"{loaded.id} does not fit into the memory of {loaded.device} with {given['prompt_tokens']} + "
            f"{given['new_tokens']} tokens: lower them, or take a smaller model."
        ) from None
    one, two = lanes[BASELINE], lanes[LORA_DROP]
    full, ours = one.tokens_per_second, two.tokens_per_second
    assert full is not None and ours is not None  # of two tokens one is a decode step's
    return {
        "baseline_tokens_per_second": full,
        "lora_drop_tokens_per_second": ours,
        "speedup": ours / full,
        "baseline_first_token_ms": one.prefill_ms,
        "lora_drop_first_token_ms": two.prefill_ms,
    }


def _limits(
    loaded: LoadedModel,
    schedule: Schedule,
    bank: AdapterBank | None,
    given: dict[str, int],
    medians: dict[str, float],
) -> dict[str, float]:
    """The bound and the device's bandwidths, and how near the medians come to them."""
    prompt_tokens, steps = given["prompt_tokens"], given["new_tokens"] - 1
    plain, size = baseline_schedule(loaded.num_layers), loaded.dtype.itemsize
    rank, corrected = (bank.rank, bank.layers) if bank else (0, None)
    bound = speed_bound(loaded.shape, schedule, steps, prompt_tokens, rank, corrected)
    read = sum(step_bytes(loaded.shape, plain, s, prompt_tokens, size) for s in range(1, steps + 1)) / steps
    bandwidth = bandwidths(loaded.device)
    reached = read * medians["baseline_tokens_per_second"] / 1e9
    return {
        "bound": bound,
        "speedup_over_bound": medians["speedup"] / bound,
        "baseline_bytes_per_step": read,
        "baseline_gb_per_second": reached,
        **bandwidth,
        "baseline_share_of_read_bandwidth": reached / bandwidth["read_gb_per_second"],
        "baseline_share_of_copy_bandwidth": reached / bandwidth["copy_gb_per_second"],
    }


def bandwidths(device: torch.device) -> dict[str, float]:
    """Bytes a second in GB that the device reads (a sum), and reads and writes together (a copy): the best of five."""
    source = torch.ones(BANDWIDTH_BYTES // 4, device=device)
    target = torch.empty_like(source)

    def best(work: Callable[[], Any], size: int) -> float:
        times = []
        for _ in range(BANDWIDTH_TRIES):
            wait(device)
            started = time.perf_counter()
            work()
            wait(device)
            times.append(time.perf_counter() - started)
        return size / min(times) / 1e9

    return {
        "read_gb_per_second": best(source.sum, source.nbytes),
        "copy_gb_per_second": best(lambda: target.copy_(source), 2 * source.nbytes),
    }


def wait(device: torch.device) -> None:
    """Until the device has done what it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
