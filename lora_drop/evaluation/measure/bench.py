"""Tokens per second of the baseline and LoRA-Drop: `python -m lora_drop bench`.

Both run in one process, a step each in turn, so that other load on the machine meets both alike. A round is a whole
run; the first is a warm-up and left out. Rates are medians over the other rounds. The speedup is of what both did at
the same time, with its interval (`speed.paired`).

Measured beside them: the full model with a screened head if the adapters have one, the cost of a repair, the physical
bound for these shapes and lengths, the bytes per second that the baseline reads against those that the device can
read, and transformers' `generate` on the same model (`bench_reference`).

Clocks are coarse, and differences of times are noisy: a figure is None if it comes out at 0 or below, or if a time
that it is computed from does.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from typing import Any

import torch

from lora_drop.adapters.find import find_bank
from lora_drop.decode.clock import Clock
from lora_drop.errors import LoraDropError
from lora_drop.evaluation.measure.pairs import read_prompt_set
from lora_drop.method.config import LoraDropConfig
from lora_drop.method.cost import step_bytes
from lora_drop.method.presets import SCREENED_HEAD
from lora_drop.method.schedule import Schedule, baseline_schedule
from lora_drop.models.load import LoadedModel
from lora_drop.models.tokens import encode_prompt, encode_text
from lora_drop.run.report.report import Report
from lora_drop.run.report.speed import paired, quotient
from lora_drop.run.request import LanePlan, Plan, Request, baseline_lane
from lora_drop.run.run import run
from lora_drop.run.trace.records import BASELINE, LORA_DROP, Header, StepRecord

TEXT = "The lighthouse keeper wrote down the wind, the tide and the names of the ships that passed in the night. "
TEXTS = 4  # prompts of a round for a setting whose speed depends on the text
HEAD_ONLY = "head_only"  # the lane of the full model with the screened head at LoRA steps
BANDWIDTH_BYTES = 512 * 2**20  # well beyond any cache
BANDWIDTH_TRIES = 5
REPAIRS = (3, 4, 8)  # rows of the measured repairs
ROW = 4  # rows of the repair that one more row's cost comes from
REPAIR_TOKENS = 65  # new tokens of a lane that measures it


# ---- timed runs: lanes on one device, a step each in turn, each by its clock ----


def timed_request(config: LoraDropConfig, prompt: str, new_tokens: int, ignore_eos: bool = True) -> Request:
    """A greedy request with nothing beside the lanes: the lanes take turns, and no audit runs."""
    return Request(prompt, config, new_tokens, view="lock-step", audit=False, ignore_eos=ignore_eos)


def time_lanes(
    loaded: LoadedModel,
    lanes: dict[str, LanePlan],
    prompt_ids: list[int],
    new_tokens: int,
    ignore_eos: bool = True,
    should_stop: Callable[[Report], bool] = lambda report: False,
) -> Report:
    """Run any lanes on a prompt's tokens.

    Args:
        ignore_eos: every lane writes `new_tokens`; else a stop token ends it.
        should_stop: called after each step with the report so far, which is returned once it is true.

    Raises:
        LoraDropError: there is no memory for the lanes.
    """
    request = timed_request(LoraDropConfig(), "(tokens)", new_tokens, ignore_eos)
    with closing(run(loaded, request, checked=Plan(lanes, prompt_ids, []))) as records:
        header = next(records)
        assert isinstance(header, Header)
        report = Report(header)
        for record in records:
            report.add(record)
            if should_stop(report):
                break
    return report


def rotated(lanes: Mapping[str, LanePlan], number: int) -> dict[str, LanePlan]:
    """The lanes in the same cycle, another first for each number: none has always the same place."""
    first = number % len(lanes)
    return dict([*lanes.items()][first:] + [*lanes.items()][:first])


def rate_of(runs: Sequence[Report], lane: str) -> float | None:
    """Tokens that stand per second of decoding, over all runs; None without any."""
    lanes = [report.lanes[lane] for report in runs]
    return quotient(
        1000 * sum(lane_report.standing for lane_report in lanes), sum(lane_report.decode_ms for lane_report in lanes)
    )


def beside(runs: Sequence[Report], lane: str) -> dict[str, Any]:
    """A lane beside the baseline, over all runs: see `speed_figures`."""
    return speed_figures([counted(report, lane) for report in runs])


def counted(report: Report, lane: str) -> dict[str, Any]:
    """The counts and times of a lane on one prompt that `speed_figures` reads, as JSON holds them."""
    ours = report.lanes[lane]
    verifies = ours.schedule.verifies
    return {
        "pairs": report.pairs(lane),
        "bound": ours.bound or 1.0,
        "drafts": ours.drafts if verifies else 0,
        "accepted": ours.accepted if verifies else 0,
    }


def speed_figures(counts: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """A lane beside the baseline, from its counts and times on each prompt.

    Returns:
        `speedup` and `speedup_interval`, the median and the 95% interval [low, high] of one bootstrap (`paired`);
        `bound`, the mean of the lane's bounds: the baseline's bytes over the lane's, all its passes included;
        `accepted`, the share of the drafts that the full model accepted, None without a draft that it verified.
    """
    speedup, interval = paired([count["pairs"] for count in counts])
    drafts = sum(count["drafts"] for count in counts)
    return {
        "speedup": speedup,
        "speedup_interval": interval,
        "bound": statistics.mean(count["bound"] for count in counts),
        "accepted": sum(count["accepted"] for count in counts) / drafts if drafts else None,
    }


def median_ms(runs: Sequence[Report], lane: str) -> dict[str, float]:
    """The median milliseconds of each kind of decode step."""
    kinds: dict[str, list[float]] = {}
    for report in runs:
        for record in report.lanes[lane].passes:
            if isinstance(record, StepRecord) and record.step:
                kinds.setdefault(record.kind, []).append(record.ms)
    return {kind: statistics.median(ms) for kind, ms in kinds.items()}


def row_cost(runs: Sequence[Report], lane: str) -> float | None:
    """What one more row costs in a lane's repairs, in full steps of one row; None if it has no repairs."""
    schedule = runs[0].lanes[lane].schedule
    if not (schedule.repairs and schedule.dropped):
        return None
    times = [record.ms for report in runs for record in report.lanes[lane].full if record.rows == schedule.period]
    repair = quotient(statistics.median(times), median_ms(runs, BASELINE).get("refresh")) if times else None
    return one_more_row(repair, schedule.period)


def one_more_row(repair: float | None, rows: int) -> float | None:
    """What one more row costs in a repair, in full steps of one row.

    Args:
        repair: the cost of a repair of `rows` rows, in full steps of one row.
    """
    return None if repair is None else quotient(repair - 1, rows - 1)


def outside_share(runs: Sequence[Report]) -> float | None:
    """Share of the full model's decode steps that was spent outside the kernels; None where they are not counted."""
    steps = [step for report in runs for step in report.lanes[BASELINE].full]
    times, ms = [step.outside for step in steps if step.outside is not None], sum(step.ms for step in steps)
    return quotient(sum(times), ms) if len(times) == len(steps) else None


# ---- the command ----


def bench(
    loaded: LoadedModel,
    config: LoraDropConfig,
    prompt_tokens: int = 64,
    new_tokens: int = 129,
    rounds: int = 5,
    prompts: Sequence[str] = (),
    progress: Callable[[str], None] = lambda text: None,
) -> dict[str, Any]:
    """Measure the lanes, greedy: on `prompt_tokens` tokens of any text with stop tokens ignored, or on real prompts.

    Args:
        prompts: real ones, answered to their stop tokens; `prompt_tokens` has no effect then. By default a setting
            with a trigger or with `accept` is measured on the first report prompts.

    Returns:
        The `bench` object of the contract, without the references (`bench_reference`), and more: the baseline's
        share of the measured read bandwidth, the time to the first token, allocated K/V bytes (of the last prompt).
        Rates are tokens that stand per second, prefill left out.

    Raises:
        LoraDropError: the settings, the adapters or the lengths do not fit the model, memory runs out, or the speed
            depends on the text and the model's weights are random.
    """
    lengths = {"prompt_tokens": prompt_tokens, "new_tokens": new_tokens, "rounds": rounds}
    lanes, notes = _lanes(loaded, config)
    prompts = prompts or _prompts_for(loaded, config)
    texts = [encode_prompt(loaded.tokenizer, text) for text in prompts]
    _check(loaded, lengths, texts)
    texts = texts or [tokens_of_text(loaded, prompt_tokens)]
    runs: list[list[Report]] = []
    for number in range(rounds + 1):
        progress(f"round {number} of {rounds}" if number else "warm-up")
        turns = rotated(lanes, number)
        runs.append([time_lanes(loaded, turns, ids, new_tokens, ignore_eos=not prompts) for ids in texts])
    del runs[0]
    reports = [report for of_round in runs for report in of_round]
    columns = _columns(runs)
    medians = {name: _median(column) for name, column in columns.items()}
    figures = {name: beside(reports, name) for name in lanes if name != BASELINE}
    last = reports[-1].trace
    assert last.summary is not None  # it ran to its end
    progress("repairs")
    costs = rows_cost(loaded, config, texts[0])
    progress("bandwidth")
    return {
        "device": last.header.device,
        "model": {"id": loaded.id, "revision": loaded.revision, "params": loaded.shape.params},
        "dtype": last.header.model["dtype"],
        **medians,
        **figures[LORA_DROP],
        "speedup_over_bound": quotient(figures[LORA_DROP]["speedup"], figures[LORA_DROP]["bound"]),
        HEAD_ONLY: figures.get(HEAD_ONLY),
        "rows_cost": costs,
        **_floor(lanes[LORA_DROP].schedule, reports, costs),
        **_bandwidth(loaded, len(texts[-1]), reports[-1].lanes[BASELINE].standing, medians),
        **{
            f"{size}_{name}": last.summary.lanes[name][size]
            for size in ("kv_bytes", "kv_allocated_bytes")
            for name in (BASELINE, LORA_DROP)
        },
        "config": {
            **config.to_dict(),
            "dropped": list(lanes[LORA_DROP].schedule.dropped),
            "rank": lanes[LORA_DROP].corrections(loaded.shape).rank,
            **lengths,
            "prompts": list(prompts),
            "notes": notes,
        },
        "runs": [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)],
    }


def _lanes(loaded: LoadedModel, config: LoraDropConfig) -> tuple[dict[str, LanePlan], list[str]]:
    """The lanes by name, and notes about the adapters."""
    schedule = config.schedule_for(loaded.num_layers)
    bank, notes = find_bank(loaded, config, schedule)
    lanes = {BASELINE: baseline_lane(loaded.num_layers), LORA_DROP: LanePlan("LoRA-Drop", config, schedule, bank)}
    if screened := head_only(loaded, config):
        lanes[HEAD_ONLY] = screened
    return lanes, notes


def head_only(loaded: LoadedModel, config: LoraDropConfig) -> LanePlan | None:
    """The full model with the screened head at a config's LoRA steps; None where its adapters have none."""
    # The other settings stay as they are, so that `auto` finds the same adapters.
    screened = config.replace(**SCREENED_HEAD, corrections=True, accept=0.0)
    schedule = screened.schedule_for(loaded.num_layers)
    try:
        bank, _ = find_bank(loaded, screened, schedule)
    except LoraDropError:  # the named adapters have no screened head
        return None
    if bank is None or bank.head is None:
        return None
    return LanePlan("full model, screened head", screened, schedule, bank)


def _prompts_for(loaded: LoadedModel, config: LoraDropConfig) -> Sequence[str]:
    """Real prompts for a setting whose speed depends on the text; none for another.

    Raises:
        LoraDropError: the model's weights are random.
    """
    schedule = config.schedule_for(loaded.num_layers)
    if not (schedule.is_adaptive or schedule.verifies):
        return ()
    if loaded.id.startswith("random:"):
        raise LoraDropError(
            f"the speed of a setting with a trigger or with accept depends on the text, and {loaded.id} has random "
            "weights: take a trained model, or leave both off."
        )
    return read_prompt_set(limit=TEXTS).texts


def _check(loaded: LoadedModel, lengths: dict[str, int], texts: list[list[int]]) -> None:
    for name, low in (("prompt_tokens", 1), ("new_tokens", 2), ("rounds", 1)):
        if lengths[name] < low:
            raise LoraDropError(f"{name} must be at least {low}, got {lengths[name]}.")
    longest = max(map(len, texts), default=lengths["prompt_tokens"])
    if longest + lengths["new_tokens"] > loaded.context:
        raise LoraDropError(
            f"{longest} + {lengths['new_tokens']} tokens are more than the context of {loaded.context} of "
            f"{loaded.id}: lower prompt_tokens or new_tokens, or shorten the prompts."
        )


def tokens_of_text(loaded: LoadedModel, count: int) -> list[int]:
    """The first `count` tokens of `TEXT` repeated."""
    tokens = encode_text(loaded.tokenizer, TEXT)
    return (tokens * (count // len(tokens) + 1))[:count]


def _columns(runs: list[list[Report]]) -> dict[str, list[float | None]]:
    """Rates and time to the first token, a value a round."""
    columns = {
        f"{name}_tokens_per_second": [rate_of(reports, name) for reports in runs] for name in (BASELINE, LORA_DROP)
    }
    # The lanes start from one reading of the prompt: step 0 of each has its time.
    first_token = [statistics.mean(report.lanes[BASELINE].steps[0].ms for report in reports) for reports in runs]
    return columns | {"first_token_ms": [ms if ms > 0 else None for ms in first_token]}


def _median(column: Sequence[float | None]) -> float | None:
    """The median of a figure over the rounds; None unless each has it."""
    values = [value for value in column if value is not None]
    return statistics.median(values) if len(values) == len(column) else None


def rows_cost(loaded: LoadedModel, config: LoraDropConfig, prompt_ids: list[int]) -> dict[str, float | None]:
    """The cost of repairs of `REPAIRS` rows, in full steps of one row: medians of lanes that take turns.

    The layers skipped are the config's, or the default ones where it skips none.
    """
    dropped = config.schedule_for(loaded.num_layers).dropped or None  # None: the default ones
    repairing = LoraDropConfig(drop_layers=dropped, refresh="repair", kv="write", adapters="none")
    lanes = {BASELINE: baseline_lane(loaded.num_layers)}
    for rows in REPAIRS:
        repair = repairing.replace(period=rows)
        lanes[f"rows_{rows}"] = LanePlan(f"{rows} rows", repair, repair.schedule_for(loaded.num_layers))
    timed = time_lanes(loaded, lanes, prompt_ids, REPAIR_TOKENS)
    full_step = median_ms([timed], BASELINE)["refresh"]

    def cost(rows: int) -> float | None:
        times = [step.ms for step in timed.lanes[f"rows_{rows}"].steps if step.step and step.rows == rows]
        return quotient(statistics.median(times), full_step) if times else None

    return {str(rows): cost(rows) for rows in REPAIRS}


def _floor(schedule: Schedule, runs: Sequence[Report], costs: Mapping[str, float | None]) -> dict[str, float | None]:
    """What a token costs at least where full steps repair, in full steps.

    An exact repair computes each token in full once, so with a period of w a token costs at least
    l (w - 1) / w + (1 + m (w - 1)) / w.

    Returns:
        `lora_cost`, l: a LoRA step; None without one. `row_cost`, m: one more row of a repair; None if none was timed.
        `token_cost`: that sum; None where full steps repair nothing.
    """
    ours, base = median_ms(runs, LORA_DROP), median_ms(runs, BASELINE)
    lora = quotient(ours.get("lora"), base["refresh"])
    row, token, w = one_more_row(costs[str(ROW)], ROW), None, schedule.period
    if schedule.repairs and lora is not None and row is not None:
        token = (lora * (w - 1) + 1 + row * (w - 1)) / w
    return {"lora_cost": lora, "row_cost": row, "token_cost": token}


def _bandwidth(
    loaded: LoadedModel, prompt_tokens: int, steps: int, medians: dict[str, float | None]
) -> dict[str, float | None]:
    """The device's bandwidth, and the share of it that the baseline reaches."""
    plain, size = baseline_schedule(loaded.num_layers), loaded.dtype.itemsize
    read = sum(step_bytes(loaded.shape, plain, s, prompt_tokens, size) for s in range(1, steps + 1)) / steps
    bandwidth, rate = read_bandwidth(loaded.device), medians["baseline_tokens_per_second"]
    reached = rate and read * rate / 1e9
    return {
        "baseline_bytes_per_step": read,
        "baseline_gb_per_second": reached,
        "read_gb_per_second": bandwidth,
        "baseline_share_of_read_bandwidth": quotient(reached, bandwidth),
    }


def read_bandwidth(device: torch.device) -> float | None:
    """GB per second that the device reads in a sum: the best of some tries.

    Measured by a lane's clock: on a GPU neither launching nor waiting counts.
    """
    source, times = torch.ones(BANDWIDTH_BYTES // 4, device=device), []
    for _ in range(BANDWIDTH_TRIES):
        clock = Clock(device)  # a new clock for each try, since a clock adds up its intervals
        wait(device)
        clock.start()
        source.sum()
        times.append(clock.stop())
    return quotient(source.nbytes / 1e6, min(times))


def wait(device: torch.device) -> None:
    """Wait until the device is idle."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
