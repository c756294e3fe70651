"""The grid over drop ratio and period: quality, measured speed, bound and KV bytes of each point; a choice of one."""

from __future__ import annotations

import csv
import json
import statistics
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from lora_drop.config import LoraDropConfig
from lora_drop.errors import LoraDropError
from lora_drop.evaluation.metrics import evaluate
from lora_drop.models import LoadedModel
from lora_drop.session import BASELINE, LORA_DROP, Request, describe_device, run
from lora_drop.trace import Trace, gather

SPEED_TOKENS = 48  # new tokens of the run that measures a point's speed
CSV_NAME, JSON_NAME = "sweep.csv", "sweep.json"


def sweep(
    loaded: LoadedModel,
    base: LoraDropConfig,
    ratios: Sequence[float],
    periods: Sequence[int],
    pairs: list[tuple[str, str]],
    context_tokens: int | None = None,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> dict[str, Any]:
    """Measure every (drop ratio, period) with the other settings of `base`.

    Quality is teacher-forced over `pairs` through the real decode schedule. Speed is that of a free run on the first
    prompt, baseline and LoRA-Drop a step each in turn, from the median milliseconds of each kind of step.

    Returns:
        `{"model", "device", "rows": [...]}`; the rows are flat, as in the CSV.

    Raises:
        LoraDropError: a setting or a record does not fit the model.
    """
    configs = [base.replace(drop_ratio=r, period=w, drop_layers=None) for r in ratios for w in periods]
    for config in configs:
        config.schedule_for(loaded.num_layers)  # told before hours are spent on the first points
    rows = []
    for config in configs:
        rows.append(_point(loaded, config, pairs, context_tokens))
        progress(len(rows), len(configs))
    return {
        "model": {"id": loaded.id, "revision": loaded.revision, "dtype": str(loaded.dtype).removeprefix("torch.")},
        "device": describe_device(loaded.device),
        "rows": rows,
    }


def _point(
    loaded: LoadedModel, config: LoraDropConfig, pairs: list[tuple[str, str]], context_tokens: int | None
) -> dict[str, Any]:
    quality = evaluate(loaded, config, iter(pairs), context_tokens)
    request = Request(pairs[0][0], config, SPEED_TOKENS, view="lock-step", audit=False, ignore_eos=True)
    trace = gather(run(loaded, request))
    figures = trace.summary.lanes[LORA_DROP]
    row = {
        "drop_ratio": config.drop_ratio,
        "period": config.period,
        "reuse": config.reuse,
        "part": config.part,
        "kv": config.kv,
        "layers_dropped": len(quality["config"]["dropped"]),
        "rank": quality["config"]["rank"],
        "tokens": quality["tokens"],
    }
    for steps in ("lora_steps", "all_steps"):
        row |= {f"{steps}_{name}": value for name, value in quality[steps].items()}
    baseline, ours = median_rates(trace)
    return row | {
        "baseline_tokens_per_second": baseline,
        "lora_drop_tokens_per_second": ours,
        "speedup": ours / baseline,
        "bound": trace.summary.bound,
        "kv_bytes": figures["kv_bytes"],
        "kv_saved": trace.summary.kv_saved,
    }


def median_rates(trace: Trace) -> tuple[float, float]:
    """Tokens per second of both lanes, from the median milliseconds of each kind of step, weighted as they ran."""

    def rate(lane: str) -> float:
        by_kind: dict[str, list[float]] = {}
        for step in trace.steps[lane][1:]:
            by_kind.setdefault(step.kind, []).append(step.ms)
        steps = sum(map(len, by_kind.values()))
        return 1000 * steps / sum(statistics.median(ms) * len(ms) for ms in by_kind.values())

    return rate(BASELINE), rate(LORA_DROP)


def write_sweep(result: dict[str, Any], folder: Path) -> None:
    """Write `sweep.json` (all of it) and `sweep.csv` (the rows).

    Raises:
        LoraDropError: the folder cannot be written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / JSON_NAME).write_text(json.dumps(result, indent=1, allow_nan=False) + "\n", encoding="utf-8")
        with (folder / CSV_NAME).open("w", encoding="utf-8", newline="") as file:
            writer = csv.DictWriter(file, result["rows"][0])
            writer.writeheader()
            writer.writerows(result["rows"])
    except OSError as error:
        raise LoraDropError(f"cannot write the sweep to {folder.name}: {error.strerror or error}.") from None


def recommend(
    path: Path, min_agreement: float | None = None, max_nll_gap: float | None = None
) -> dict[str, Any] | None:
    """The fastest row of a sweep whose quality stays within the limits; None if no row does.

    Args:
        min_agreement: least share of LoRA steps at which the full model has the same top token.
        max_nll_gap: most nats over all steps that LoRA-Drop may lose against the full model.

    Raises:
        LoraDropError: the file is not a sweep.
    """
    try:
        rows = json.loads(path.read_text(encoding="utf-8"))["rows"]
        fitting = [
            row
            for row in rows
            if (min_agreement is None or (row["lora_steps_top1_agreement"] or 0) >= min_agreement)
            and (max_nll_gap is None or row["all_steps_nll_lora_drop"] - row["all_steps_nll_baseline"] <= max_nll_gap)
        ]
        return max(fitting, key=lambda row: row["speedup"], default=None)
    except OSError as error:
        raise LoraDropError(f"cannot read the sweep {path.name}: {error.strerror or error}.") from None
    except (ValueError, KeyError, TypeError):
        raise LoraDropError(f"{path.name} is not a {JSON_NAME} of the sweep command.") from None
