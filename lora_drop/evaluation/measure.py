"""One setting measured: its quality, the speed of a free run with its spread, its bound and its KV."""

from __future__ import annotations

import hashlib
import json
import math
import platform
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib import metadata
from typing import Any

from lora_drop.adapters.find import bank_fingerprint, bank_folder
from lora_drop.evaluation.free import evaluate_free
from lora_drop.evaluation.metrics import GROUPS, evaluate
from lora_drop.evaluation.texts import Answers, given_texts
from lora_drop.evaluation.timing import median_ms
from lora_drop.method.config import LoraDropConfig
from lora_drop.models.load import LoadedModel
from lora_drop.models.place import describe_device
from lora_drop.run.records import BASELINE, LORA_DROP
from lora_drop.run.request import Request, plan
from lora_drop.run.run import run
from lora_drop.run.trace import gather
from lora_drop.runtime import VERSION

SPEED_TOKENS = 97  # new tokens of the run that measures a point's speed
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


def describe_prompts(prompts: Sequence[str]) -> dict[str, Any]:
    """How many prompts are answered by the full model, and the sha256 of them all."""
    return {"prompts": len(prompts), "sha256": hashlib.sha256(json.dumps(list(prompts)).encode()).hexdigest()}


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


def measure(
    loaded: LoadedModel,
    point: Point,
    pairs: list[tuple[str, str]],
    context_tokens: int | None,
    answers: Answers | None = None,
    free: bool = False,
) -> dict[str, Any]:
    """A row: the point's quality on given texts, on the full model's own answers and of its own text; its speed.

    Args:
        pairs: the given texts; the first prompt is also that of the timed run.
        answers: the full model's; without them the row has no columns of own answers.
        free: let the point answer the same prompts too.
    """
    config = point.config
    given = evaluate(loaded, config, given_texts(loaded, pairs, context_tokens))
    row = {
        **config.to_dict(),
        "adapters": point.adapters,  # the bank's name in place of what was asked for
        "adapters_fingerprint": point.fingerprint,
        "rank": given["config"]["rank"],
        "layers_dropped": len(given["config"]["dropped"]),
        "tokens": given["tokens"],
        **_columns(given),
    }
    if answers is not None:
        own = evaluate(loaded, config, answers.texts())
        row |= {f"own_{name}": value for name, value in _columns(own).items()}
        row["own_answers_sha256"] = answers.sha256
        if free:
            row |= {f"free_{name}": value for name, value in evaluate_free(loaded, config, answers).items()}
    row |= _speed(loaded, config, pairs[0][0])
    return {name: None if isinstance(v, float) and not math.isfinite(v) else v for name, v in row.items()}


def _columns(quality: dict[str, Any]) -> dict[str, float | int | None]:
    """The figures of `evaluate`, flat: each group's, its NLL gap, and the ends of the loss's interval."""
    found: dict[str, float | int | None] = {}
    for steps in GROUPS:
        means = quality[steps]
        found |= {f"{steps}_{name}": value for name, value in means.items()}
        found[f"{steps}_nll_gap"] = means["nll_lora_drop"] - means["nll_baseline"] if means["count"] else None
    found["loss_low"], found["loss_high"] = quality["loss_interval"] or (None, None)
    return found


def _speed(loaded: LoadedModel, config: LoraDropConfig, prompt: str) -> dict[str, Any]:
    """What a timed run of both lanes gives, a step each in turn; stop tokens are ignored."""
    trace = gather(run(loaded, _speed_request(config, prompt)))
    summary = trace.summary
    assert summary is not None and summary.speedup is not None  # it ran to its end
    low, high = summary.speedup_interval or (None, None)
    one, two = summary.lanes[BASELINE], summary.lanes[LORA_DROP]
    base_ms, ms = (median_ms(trace.passes[lane]) for lane in (BASELINE, LORA_DROP))
    return {
        "baseline_tokens_per_second": one["tokens_per_second"],
        "lora_drop_tokens_per_second": two["tokens_per_second"],
        "speedup": summary.speedup,
        "speedup_low": low,
        "speedup_high": high,
        "bound": summary.bound,
        "accepted": summary.accepted,
        "ms_baseline": base_ms["refresh"],
        "ms_refresh": ms.get("refresh"),
        "ms_lora": ms.get("lora"),
        "kv_bytes": two["kv_bytes"],
        "kv_bytes_baseline": one["kv_bytes"],
        "kv_saved": summary.kv_saved,
        "decoder": trace.header.device.get("decoder"),
    }


def _speed_request(config: LoraDropConfig, prompt: str) -> Request:
    return Request(prompt, config, SPEED_TOKENS, view="lock-step", audit=False, ignore_eos=True)
