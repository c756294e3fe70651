"""Tokens a second, honestly: `python -m lora_drop bench`.

Baseline and LoRA-Drop run in one process, a step each in turn, so that whatever else the machine does meets both
alike. A round is a whole run; the first is a warm-up and left out. Rates are medians over the other rounds; the
speedup is all tokens that stand over all time, with an interval from a bootstrap over whole refresh cycles. Beside
them stand the full model with a screened head (where the adapters have one), what a repair costs, the physical bound
for these very shapes and lengths, the bytes a second that the baseline reads against what the device can read, and
transformers' own `generate` on the same model (`bench_reference`).
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from lora_drop.adapters.find import find_bank
from lora_drop.decode.clock import Clock
from lora_drop.decode.step import Decoder
from lora_drop.errors import LoraDropError
from lora_drop.evaluation.measure.timing import Timed, interval_of, median_ms, rate_of, time_lanes
from lora_drop.method.config import LoraDropConfig
from lora_drop.method.cost import step_bytes
from lora_drop.method.schedule import NO_TRIGGERS, baseline_schedule
from lora_drop.models.load import LoadedModel
from lora_drop.models.place import describe_device
from lora_drop.models.tokens import encode_prompt, encode_text
from lora_drop.run.header import decoder_facts
from lora_drop.run.request import LanePlan
from lora_drop.run.results.prompts import HELD_OUT
from lora_drop.run.trace.records import BASELINE, LORA_DROP, StepRecord

TEXT = "The lighthouse keeper wrote down the wind, the tide and the names of the ships that passed in the night. "
TEXTS = 4  # prompts of a round, where the setting depends on what is written and none are given
HEAD_ONLY = "head_only"  # the lane of the full model with the screened head at LoRA steps
BANDWIDTH_BYTES = 512 * 2**20  # well beyond any cache
BANDWIDTH_TRIES = 5
REPAIRS = (4, 8)  # rows of the repairs whose cost is measured
REPAIR_TOKENS = 65  # new tokens of a lane that measures it


def bench(
    loaded: LoadedModel,
    config: LoraDropConfig,
    prompt_tokens: int = 64,
    new_tokens: int = 129,
    rounds: int = 5,
    prompts: Sequence[str] = (),
    progress: Callable[[str], None] = lambda text: None,
) -> dict[str, Any]:
    """Measure the lanes, greedy: `prompt_tokens` tokens of any text in and stop tokens ignored, or real prompts.

    Args:
        prompts: real ones, answered to their stop tokens; then `prompt_tokens` is not read. A setting with a trigger
            or with `accept` is measured on some of the held-out ones where none are given.

    Returns:
        The `bench` object of the contract, without the outside reference (`hf_reference`), and more: the share of the
        measured read bandwidth that the baseline reaches, the time to the first token, allocated KV bytes (of the last
        prompt). Rates are tokens that stand a second, prefill left out.

    Raises:
        LoraDropError: the settings, the adapters or the lengths do not fit the model, there is no memory for them, or
            the setting depends on the text and the model writes none.
    """
    given = {"prompt_tokens": prompt_tokens, "new_tokens": new_tokens, "rounds": rounds}
    plans, notes = _plans(loaded, config)
    prompts = prompts or _prompts_for(loaded, plans[LORA_DROP])
    ids = [torch.tensor([encode_prompt(loaded.tokenizer, text)], device=loaded.device) for text in prompts]
    _check(loaded, given, ids)
    ids = ids or [text_of(loaded, prompt_tokens)]
    stop_ids = loaded.stop_ids if prompts else frozenset()
    decoder = loaded.new_decoder()
    runs: list[list[Timed]] = []
    for number in range(rounds + 1):
        progress(f"round {number} of {rounds}" if number else "warm-up")
        runs.append([time_lanes(loaded, decoder, one, plans, new_tokens, stop_ids) for one in ids])
    last, runs = runs[-1][-1], runs[1:]
    every = [timed for run in runs for timed in run]
    medians = {name: statistics.median(column) for name, column in _columns(runs).items()}
    figures = {name: _beside(loaded, every, name, plan) for name, plan in plans.items() if name != BASELINE}
    progress("repairs")
    costs = rows_cost(loaded, decoder, config, ids[0])
    progress("bandwidth")
    return {
        "device": describe_device(loaded.device) | decoder_facts(decoder),
        "model": {"id": loaded.id, "revision": loaded.revision, "params": loaded.shape.params},
        "dtype": str(loaded.dtype).removeprefix("torch."),
        **medians,
        **figures[LORA_DROP],
        "speedup_over_bound": figures[LORA_DROP]["speedup"] / figures[LORA_DROP]["bound"],
        HEAD_ONLY: figures.get(HEAD_ONLY),
        "rows_cost": costs,
        **_bandwidth(loaded, ids[-1].shape[1], last.lanes[BASELINE].decode_steps, medians),
        **{f"kv_bytes_{name}": last.lanes[name].kv_bytes for name in (BASELINE, LORA_DROP)},
        **{f"kv_allocated_bytes_{name}": last.lanes[name].kv_allocated_bytes for name in (BASELINE, LORA_DROP)},
        "config": _settings(config, plans[LORA_DROP]) | given | {"prompts": list(prompts), "notes": notes},
        "runs": [{name: column[i] for name, column in _columns(runs).items()} for i in range(len(runs))],
    }


def _settings(config: LoraDropConfig, lane: LanePlan) -> dict[str, Any]:
    return config.to_dict() | {"dropped": list(lane.schedule.dropped), "rank": lane.rank}


def _plans(loaded: LoadedModel, config: LoraDropConfig) -> tuple[dict[str, LanePlan], list[str]]:
    """The lanes by name, and what there is to say of the adapters."""
    schedule = config.schedule_for(loaded.num_layers)
    bank, notes = find_bank(loaded, config, schedule)
    plain = LoraDropConfig(period=1, drop_layers=(), adapters="none")
    plans = {
        BASELINE: LanePlan("baseline", plain, baseline_schedule(loaded.num_layers)),
        LORA_DROP: LanePlan("LoRA-Drop", config, schedule, bank),
    }
    if alone := head_only(loaded, config):
        plans[HEAD_ONLY] = alone
    return plans, notes


def head_only(loaded: LoadedModel, config: LoraDropConfig) -> LanePlan | None:
    """The full model with the screened head at a config's LoRA steps; None where its adapters have none."""
    # Everything else as it is, so that `auto` finds the same adapters.
    changes = {"drop_layers": (), "head": "screened", "parts": "auto", "accept": 0.0}
    alone = config.replace(**changes, **NO_TRIGGERS)
    schedule = alone.schedule_for(loaded.num_layers)
    try:
        bank, _ = find_bank(loaded, alone, schedule)
    except LoraDropError:  # the named adapters have no screened head
        return None
    if bank is None or bank.head is None:
        return None
    return LanePlan("full model, screened head", alone, schedule, bank)


def _prompts_for(loaded: LoadedModel, plan: LanePlan) -> Sequence[str]:
    """Real prompts for a setting whose steps depend on what is written.

    Raises:
        LoraDropError: the model's weights are random.
    """
    if not (plan.schedule.is_adaptive or plan.schedule.verifies):
        return ()
    if loaded.id.startswith("random:"):
        raise LoraDropError(
            f"how fast a setting with a trigger or with accept is depends on the text, and {loaded.id} writes none: "
            "take a trained model, or leave both off."
        )
    return HELD_OUT[:TEXTS]


def _check(loaded: LoadedModel, given: dict[str, int], prompts: list[Tensor]) -> None:
    for name, low in (("prompt_tokens", 1), ("new_tokens", 2), ("rounds", 1)):
        if given[name] < low:
            raise LoraDropError(f"{name} must be at least {low}, got {given[name]}.")
    longest = max((ids.shape[1] for ids in prompts), default=given["prompt_tokens"])
    if longest + given["new_tokens"] > loaded.context:
        raise LoraDropError(
            f"{longest} + {given['new_tokens']} tokens are more than the context of {loaded.context} of {loaded.id}: "
            "lower prompt_tokens or new_tokens, or shorten the prompts."
        )


def text_of(loaded: LoadedModel, count: int) -> Tensor:
    """`TEXT` again and again: (1, count) tokens."""
    words = encode_text(loaded.tokenizer, TEXT)
    return torch.tensor([(words * (count // len(words) + 1))[:count]], device=loaded.device)


def _columns(runs: list[list[Timed]]) -> dict[str, list[float]]:
    """Each round's rates and time to the first token."""
    found: dict[str, list[float]] = {}
    for name in (BASELINE, LORA_DROP):
        found[f"{name}_tokens_per_second"] = [rate_of(run, name) for run in runs]
    # The lanes start from one reading of the prompt.
    found["first_token_ms"] = [statistics.mean(one.lanes[BASELINE].prefill_ms for one in run) for run in runs]
    return found


def _beside(loaded: LoadedModel, runs: list[Timed], name: str, plan: LanePlan) -> dict[str, Any]:
    """A lane beside the baseline, over all rounds."""
    lanes = [run.lanes[name] for run in runs]
    drafts = sum(lane.drafts for lane in lanes)
    return {
        "speedup": rate_of(runs, name) / rate_of(runs, BASELINE),
        "speedup_interval": interval_of(runs, name),
        "bound": statistics.mean(run.bound(name, plan, loaded.shape) for run in runs),
        "accepted": sum(lane.accepted for lane in lanes) / drafts if drafts else None,
    }


def rows_cost(
    loaded: LoadedModel, decoder: Decoder, config: LoraDropConfig, prompt: Tensor
) -> dict[str, float | None]:
    """What a repair of 4 and of 8 rows costs, in full steps of one: medians of lanes that take turns.

    The layers skipped are the config's, or the default ones where it skips none.
    """
    dropped = config.schedule_for(loaded.num_layers).dropped or None  # None: the default ones
    repairing = LoraDropConfig(drop_layers=dropped, refresh="repair", kv="write", adapters="none")
    plans = {}
    for rows in REPAIRS:
        each = repairing.replace(period=rows)
        plans[str(rows)] = LanePlan(f"{rows} rows", each, each.schedule_for(loaded.num_layers))
    plans[BASELINE] = LanePlan("baseline", config, baseline_schedule(loaded.num_layers))
    timed = time_lanes(loaded, decoder, prompt, plans, REPAIR_TOKENS)
    whole = median_ms(timed.passes[BASELINE])["refresh"]

    def cost(rows: int) -> float | None:
        passes = [one for one in timed.passes[str(rows)] if isinstance(one, StepRecord) and one.rows == rows]
        return statistics.median(one.ms for one in passes) / whole if passes else None

    return {str(rows): cost(rows) for rows in REPAIRS}


def _bandwidth(loaded: LoadedModel, prompt_tokens: int, steps: int, medians: dict[str, float]) -> dict[str, float]:
    """The device's bandwidths, and how near the baseline comes to them."""
    plain, size = baseline_schedule(loaded.num_layers), loaded.dtype.itemsize
    read = sum(step_bytes(loaded.shape, plain, s, prompt_tokens, size) for s in range(1, steps + 1)) / steps
    bandwidth = bandwidths(loaded.device)
    reached = read * medians["baseline_tokens_per_second"] / 1e9
    return {
        "baseline_bytes_per_step": read,
        "baseline_gb_per_second": reached,
        **bandwidth,
        "baseline_share_of_read_bandwidth": reached / bandwidth["read_gb_per_second"],
        "baseline_share_of_copy_bandwidth": reached / bandwidth["copy_gb_per_second"],
    }


def bandwidths(device: torch.device) -> dict[str, float]:
    """Bytes a second in GB that the device reads (a sum), and reads and writes together (a copy): the best of five.

    By a lane's clock: on a GPU neither launching nor waiting counts.
    """
    clock = Clock(device)
    source = torch.ones(BANDWIDTH_BYTES // 4, device=device)
    target = torch.empty_like(source)

    def best(work: Callable[[], Any], size: int) -> float:
        times = []
        for _ in range(BANDWIDTH_TRIES):
            wait(device)
            clock.start()
            work()
            times.append(clock.stop() / 1000)
        return size / min(times) / 1e9

    return {
        "read_gb_per_second": best(source.sum, source.nbytes),
        "copy_gb_per_second": best(lambda: target.copy_(source), 2 * source.nbytes),
    }


def wait(device: torch.device) -> None:
    """Until the device has done what it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
