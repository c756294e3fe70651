"""One setting measured: its quality on given texts, the speed of a free run, its bound and its KV."""

from __future__ import annotations

import hashlib
import json
import math
import platform
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib import metadata
from typing import Any

from lora_drop.adapters.find import bank_fingerprint, bank_folder
from lora_drop.evaluation.metrics import evaluate
from lora_drop.evaluation.texts import given_texts
from lora_drop.method.config import LoraDropConfig
from lora_drop.models.load import LoadedModel
from lora_drop.models.place import describe_device
from lora_drop.run.records import StepRecord
from lora_drop.run.request import BASELINE, LORA_DROP, Request, plan
from lora_drop.run.run import run
from lora_drop.run.trace import Trace, gather
from lora_drop.runtime import VERSION

SPEED_TOKENS = 48  # new tokens of the run that measures a point's speed
KEY = ("reuse", "part", "adapters", "drop_ratio", "period")  # identifies a point within a grid


@dataclass(frozen=True)
class Point:
    """A setting of the grid, checked against the model, and the adapters that it turned out to use."""

    config: LoraDropConfig
    adapters: str  # the bank folder's name, or "none"
    fingerprint: str | None  # of the bank's files; None without
    notes: tuple[str, ...]

    @property
    def key(self) -> tuple:
        """The row's `KEY` values."""
        config = self.config
        return config.reuse, config.part, self.adapters, config.drop_ratio, config.period


def circumstances(loaded: LoadedModel) -> dict[str, Any]:
    """The model, device, software and date of a measurement."""
    return {
        "model": {"id": loaded.id, "revision": loaded.revision, "dtype": str(loaded.dtype).removeprefix("torch.")},
        "device": describe_device(loaded.device),
        "software": {name: metadata.version(name) for name in ("torch", "transformers")}
        | {"lora_drop": VERSION, "python": platform.python_version()},
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def describe_data(pairs: list[tuple[str, str]], source: dict[str, Any]) -> dict[str, Any]:
    """Where the pairs come from, how many they are and the sha256 of them all."""
    return source | {"records": len(pairs), "sha256": hashlib.sha256(json.dumps(pairs).encode()).hexdigest()}


def check_point(loaded: LoadedModel, config: LoraDropConfig, prompt: str) -> Point:
    """A config checked against the model, with the adapters that it comes to.

    Raises:
        LoraDropError: the settings, a bank or the prompt do not fit the model.
    """
    checked = plan(loaded, _speed_request(config, prompt))
    name, fingerprint = "none", None
    if checked.lanes[LORA_DROP].bank is not None:
        folder = bank_folder(loaded, config, checked.lanes[LORA_DROP].schedule)
        assert folder is not None  # there is a bank
        name, fingerprint = folder.resolve().name, bank_fingerprint(folder)
    return Point(config, name, fingerprint, tuple(checked.notes))


def _speed_request(config: LoraDropConfig, prompt: str) -> Request:
    return Request(prompt, config, SPEED_TOKENS, view="lock-step", audit=False, ignore_eos=True)


def measure(
    loaded: LoadedModel, point: Point, pairs: list[tuple[str, str]], context_tokens: int | None
) -> dict[str, Any]:
    """A row: the point's teacher-forced quality over the pairs, its measured speed, its bound and KV."""
    config = point.config
    quality = evaluate(loaded, config, given_texts(loaded, pairs, context_tokens))
    trace = gather(run(loaded, _speed_request(config, pairs[0][0])))
    summary = trace.summary
    assert summary is not None  # it ran to its end
    row = {
        **config.to_dict(),
        "adapters": point.adapters,  # the bank's name in place of what was asked for
        "adapters_fingerprint": point.fingerprint,
        "rank": quality["config"]["rank"],
        "layers_dropped": len(quality["config"]["dropped"]),
        "tokens": quality["tokens"],
    }
    for steps in ("lora_steps", "all_steps"):
        means = quality[steps]
        row |= {f"{steps}_{name}": value for name, value in means.items()}
        row[f"{steps}_nll_gap"] = means["nll_lora_drop"] - means["nll_baseline"] if means["count"] else None
    baseline, ours = median_rates(trace)
    row |= {
        "baseline_tokens_per_second": baseline,
        "lora_drop_tokens_per_second": ours,
        "speedup": ours / baseline,
        "bound": summary.bound,
        "ms_baseline": median_ms(trace.steps[BASELINE])["refresh"],
        "ms_refresh": median_ms(trace.steps[LORA_DROP]).get("refresh"),
        "ms_lora": median_ms(trace.steps[LORA_DROP]).get("lora"),
        "kv_bytes": summary.lanes[LORA_DROP]["kv_bytes"],
        "kv_bytes_baseline": summary.lanes[BASELINE]["kv_bytes"],
        "kv_saved": summary.kv_saved,
        "decoder": trace.header.device.get("decoder"),
    }
    return {name: None if isinstance(v, float) and not math.isfinite(v) else v for name, v in row.items()}


def _by_kind(steps: Sequence[StepRecord]) -> dict[str, list[float]]:
    kinds: dict[str, list[float]] = {}
    for step in steps[1:]:  # prefill is no decode step
        kinds.setdefault(step.kind, []).append(step.ms)
    return kinds


def median_ms(steps: Sequence[StepRecord]) -> dict[str, float]:
    """The median milliseconds of each kind of decode step of a lane."""
    return {kind: statistics.median(ms) for kind, ms in _by_kind(steps).items()}


def median_rates(trace: Trace) -> tuple[float, float]:
    """Tokens per second of both lanes, from the median milliseconds of each kind of step, weighted as they ran."""

    def rate(lane: str) -> float:
        kinds = _by_kind(trace.steps[lane])
        return 1000 * sum(map(len, kinds.values())) / sum(statistics.median(ms) * len(ms) for ms in kinds.values())

    return rate(BASELINE), rate(LORA_DROP)
