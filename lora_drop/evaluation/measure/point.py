"""Measure one setting: its quality, its speed with the interval, its bound and its K/V."""

from __future__ import annotations

import hashlib
import itertools
import json
import math
import platform
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib import metadata
from typing import Any

from lora_drop.adapters.find import bank_fingerprint, bank_folder
from lora_drop.adapters.hub import bank_name
from lora_drop.evaluation.measure.bench import beside, median_ms, rate_of, timed_request
from lora_drop.evaluation.measure.metrics import GROUPS, Memo, describe, evaluate, evaluate_free
from lora_drop.evaluation.measure.texts import Answers, Texts, given_texts
from lora_drop.method.config import LoraDropConfig
from lora_drop.method.cost import speed_bound
from lora_drop.models.load import LoadedModel
from lora_drop.models.place import describe_device
from lora_drop.run.report.report import Report
from lora_drop.run.request import plan
from lora_drop.run.results.store import Row, is_setting
from lora_drop.run.run import run
from lora_drop.run.trace.records import BASELINE, LORA_DROP
from lora_drop.run.trace.trace import gather
from lora_drop.runtime import VERSION

SPEED_TOKENS = 97  # new tokens of the run that measures a point's speed


@dataclass(frozen=True)
class Point:
    """A setting checked against the model, and the adapters that it comes to.

    Args:
        adapters: the bank's name, or "none".
        fingerprint: of the bank's files; None without a bank.
        notes: about the adapters.
        bound: of the timed run, if no token is rejected.
        screens: True if LoRA steps read a screened head.
    """

    config: LoraDropConfig
    adapters: str
    fingerprint: str | None
    notes: tuple[str, ...]
    bound: float
    screens: bool

    @property
    def key(self) -> Row:
        """What identifies its row in a file that stores a setting by its differences from the defaults."""
        adapters = {"adapters": self.adapters, "adapters_fingerprint": self.fingerprint}
        return {"config": self.config.differences(), **adapters}

    def is_of(self, row: Row, config: LoraDropConfig | None = None) -> bool:
        """True if a row is this point's, or was measured with its adapters and has the setting `config`."""
        adapters = row.get("adapters"), row.get("adapters_fingerprint")
        return adapters == (self.adapters, self.fingerprint) and is_setting(row["config"], config or self.config)

    @property
    def setting(self) -> dict[str, Any]:
        """The whole setting as a row has it, with the adapters by their name."""
        return self.config.to_dict() | {"adapters": self.adapters, "adapters_fingerprint": self.fingerprint}


def circumstances(loaded: LoadedModel) -> dict[str, Any]:
    """Model, device, software and date of a measurement, for a file of results."""
    return {
        "model": {"id": loaded.id, "revision": loaded.revision, "dtype": str(loaded.dtype).removeprefix("torch.")},
        "device": describe_device(loaded.device),
        "software": {name: metadata.version(name) for name in ("torch", "transformers")}
        | {"lora_drop": VERSION, "python": platform.python_version()},
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def describe_data(records: Sequence[Any], source: dict[str, Any]) -> dict[str, Any]:
    """The source of pairs or prompts, their number, and the sha256 of them all."""
    return source | {"records": len(records), "sha256": sha256_of(records)}


def describe_prompts(prompts: Sequence[str]) -> dict[str, Any]:
    """The number of prompts that the full model answers, and the sha256 of them all."""
    return {"prompts": len(prompts), "sha256": sha256_of(prompts)}


def sha256_of(parts: Sequence[Any]) -> str:
    """Of what JSON makes of them."""
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


def check_point(loaded: LoadedModel, config: LoraDropConfig, prompt: str) -> Point:
    """Check a config against the model, and find its adapters.

    Raises:
        LoraDropError: the settings, a bank or the prompt do not fit the model.
    """
    checked = plan(loaded, timed_request(config, prompt, SPEED_TOKENS))
    lane = checked.lanes[LORA_DROP]
    name, fingerprint = "none", None
    if lane.bank is not None:
        folder = bank_folder(loaded, config, lane.schedule)
        assert folder is not None  # there is a bank
        name, fingerprint = bank_name(folder.resolve()), bank_fingerprint(folder)
    corrections = lane.corrections(loaded.shape)
    bound = speed_bound(loaded.shape, lane.schedule, SPEED_TOKENS - 1, len(checked.prompt_ids), corrections)
    return Point(config, name, fingerprint, tuple(checked.notes), bound, corrections.head_rank > 0)


def measure(
    loaded: LoadedModel,
    point: Point,
    pairs: list[tuple[str, str]],
    context_tokens: int | None,
    answers: Answers | None = None,
    free: bool = False,
    prompts: Sequence[str] | None = (),
    should_stop: Callable[[], bool] = lambda: False,
    progress: Callable[[float], None] = lambda share: None,
    memo: Callable[[str], Memo] = lambda kind: lambda number, compute: compute(),
) -> dict[str, Any]:
    """Measure a row: quality on given texts, on the full model's own answers and of the text the point writes; speed.

    Args:
        pairs: prompts and given targets; without them the row has no columns of given texts.
        answers: of the full model; without them the row has no columns of own answers.
        free: let the point answer the same prompts too.
        prompts: of the timed runs; if empty there is one run, on the first prompt of `pairs`. None: no speed, which
            `protocol.py` measures.
        should_stop: asked after each step of the point and each text that the full model reads.
        progress: called as often, but in timed runs, with the share of the row that is measured, by its texts' tokens.
        memo: makes that of `evaluate` for the `given` texts and for the full model's `own`.

    Raises:
        Stopped: `should_stop` was true.
    """

    config = point.config
    given = given_texts(loaded, pairs, context_tokens) if pairs else Texts([])
    own = answers.texts() if answers else Texts([])
    steps = sum(len(target) for _, target in given.pairs + own.pairs * (1 + free))
    count = itertools.count(1)

    def check(done: Any = None) -> None:
        progress(min(next(count) / max(steps, 1), 0.99))
        if should_stop():
            raise Stopped

    about = describe(loaded, config, loaded.decoder_name)
    row = {**point.setting, "rank": about["rank"], "layers_dropped": len(about["dropped"])}
    if pairs:
        quality = evaluate(loaded, config, given, check, check, memo("given"))
        row |= {"tokens": quality["tokens"], **_columns(quality)}
    if answers is not None:
        quality = evaluate(loaded, config, own, check, check, memo("own"))
        row |= {f"own_{name}": value for name, value in _columns(quality).items()}
        row["own_answers_sha256"] = answers.sha256
        if free:
            text = evaluate_free(loaded, config, answers, check, check)
            row |= {f"free_{name}": value for name, value in text.items()}
    if prompts is not None:
        requests = [timed_request(config, prompt, SPEED_TOKENS) for prompt in prompts or [pairs[0][0]]]
        runs = [Report.of(gather(run(loaded, request, should_stop))) for request in requests]
        check()  # a stopped run is too short to be timed
        row |= _speed(runs)
    return {name: None if isinstance(v, float) and not math.isfinite(v) else v for name, v in row.items()}


def within(progress: Callable[[float, int], None], done: int, total: int) -> Callable[[float], None]:
    """The `progress` of `measure` for a row of many: `done` of `total` are measured."""
    return lambda share: progress(done + share, total)


class Stopped(Exception):
    """The measurement of a point was stopped."""


def _columns(quality: dict[str, Any]) -> dict[str, float | int | None]:
    """The figures of `evaluate` as columns: each group's, its NLL gap, and the ends of the loss's interval."""
    columns: dict[str, float | int | None] = {}
    for steps in GROUPS:
        means = quality[steps]
        columns |= {f"{steps}_{name}": value for name, value in means.items()}
        columns[f"{steps}_nll_gap"] = means["nll_lora_drop"] - means["nll_baseline"] if means["count"] else None
    columns["loss_low"], columns["loss_high"] = quality["loss_interval"] or (None, None)
    return columns


def _speed(runs: list[Report]) -> dict[str, Any]:
    """Figures of timed runs of both lanes, one a prompt."""
    figures = beside(runs, LORA_DROP)
    low, high = figures["speedup_interval"] or (None, None)
    base_ms, ms = (median_ms(runs, lane) for lane in (BASELINE, LORA_DROP))
    last = runs[-1].trace
    assert last.summary is not None  # it ran to its end
    return {
        **{f"{lane}_tokens_per_second": rate_of(runs, lane) for lane in (BASELINE, LORA_DROP)},
        "speedup": figures["speedup"],
        "speedup_low": low,
        "speedup_high": high,
        "bound": figures["bound"],
        "accepted": figures["accepted"],
        "ms_baseline": base_ms["refresh"],
        "ms_refresh": ms.get("refresh"),
        "ms_lora": ms.get("lora"),
        "kv_bytes": last.summary.lanes[LORA_DROP]["kv_bytes"],
        "kv_bytes_baseline": last.summary.lanes[BASELINE]["kv_bytes"],
        "kv_saved": last.summary.kv_saved,
        "decoder": last.header.device.get("decoder"),
    }
