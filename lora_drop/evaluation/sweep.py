"""The grid over drop ratio, period, rule and part: each point's quality, measured speed, bound and KV; one chosen.

A sweep is a folder with `sweep.json` (all of it) and `sweep.csv` (its rows), both whole after every point. Called
again with the same model, data, settings and machine it measures what is missing; with others it refuses.
"""

from __future__ import annotations

import csv
import hashlib
import io
import json
import math
import os
import platform
import statistics
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime, timezone
from importlib import metadata
from pathlib import Path
from typing import Any

import lora_drop
from lora_drop.adapters.find import bank_fingerprint, bank_folder
from lora_drop.errors import LoraDropError
from lora_drop.evaluation.metrics import evaluate
from lora_drop.method.config import LoraDropConfig, default_range
from lora_drop.models.load import LoadedModel
from lora_drop.models.place import describe_device
from lora_drop.run.records import StepRecord
from lora_drop.run.request import BASELINE, LORA_DROP, Request, plan
from lora_drop.run.run import run
from lora_drop.run.trace import Trace, gather

FORMAT, VERSION = "lora-drop-sweep", 1
SPEED_TOKENS = 48  # new tokens of the run that measures a point's speed
MAX_SWEEP = 2**26  # characters of a file; a point takes about a thousand
CSV_NAME, JSON_NAME = "sweep.csv", "sweep.json"
SAME = ("format", "version", "model", "device", "data", "settings", "software")  # of two sweeps that are one
KEY = ("reuse", "part", "adapters", "drop_ratio", "period")  # tells a sweep's rows apart


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
        return (
            *(self.config.reuse, self.config.part, self.adapters),
            *(self.config.drop_ratio, self.config.period),
        )


def grid(
    base: LoraDropConfig,
    ratios: Iterable[float],
    periods: Iterable[int],
    reuses: Iterable[str],
    parts: Iterable[str],
    adapters: Iterable[str],
) -> list[LoraDropConfig]:
    """Every combination, with the other settings of `base`.

    Raises:
        LoraDropError: a value is not allowed.
    """
    ratios, periods, parts, adapters = list(ratios), list(periods), list(parts), list(adapters)
    return [
        base.replace(reuse=reuse, part=part, adapters=bank, drop_ratio=ratio, period=period, drop_layers=None)
        for reuse in reuses
        for part in parts
        for bank in adapters
        for ratio in ratios
        for period in periods
    ]


def sweep(
    loaded: LoadedModel,
    configs: Sequence[LoraDropConfig],
    pairs: list[tuple[str, str]],
    source: dict[str, Any],
    folder: Path | None = None,
    context_tokens: int | None = None,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> dict[str, Any]:
    """Measure every config; two that come to the same (no bank is shipped, so `auto` is `none`) are one point.

    Quality is teacher-forced over `pairs` through the real decode schedule. Speed is that of a free run on the first
    prompt, baseline and LoRA-Drop a step each in turn, from the median milliseconds of each kind of step.

    Args:
        configs: see `grid`; they differ in the grid's axes only.
        source: where `pairs` come from, for the record: file, fields, limit.
        folder: written after each point; points that it already holds are not measured again.
        progress: told the points done and all of them, first with those already there.

    Returns:
        The content of `sweep.json`: `{"model", "device", "data", "settings", "software", "date", "notes", "rows"}`;
        the rows are flat, as in the CSV.

    Raises:
        LoraDropError: a setting, a bank or a record does not fit the model; the folder cannot be written, or holds
            another sweep. All but a record too long is told before anything is measured.
    """
    points = _points(loaded, configs, pairs[0][0])
    result = {
        "format": FORMAT,
        "version": VERSION,
        **circumstances(loaded),
        "data": describe_data(pairs, source),
        "settings": {name: value for name, value in configs[0].to_dict().items() if name not in (*KEY, "drop_layers")}
        | {
            "layers": list(configs[0].layers or default_range(loaded.num_layers)),
            "context_tokens": context_tokens,
            "speed_tokens": SPEED_TOKENS,
        },
        "notes": [],
        "rows": [],
    }
    if folder is not None and (folder / JSON_NAME).exists():
        before = read_sweep(folder / JSON_NAME)
        check_same(before, result, SAME, folder, "a sweep")
        result["rows"], result["notes"] = before["rows"], before["notes"]
    result["notes"] = list(dict.fromkeys([*result["notes"], *(note for point in points for note in point.notes)]))
    known = {(*_key(row), row.get("adapters_fingerprint")) for row in result["rows"]}
    missing = [point for point in points if (*point.key, point.fingerprint) not in known]
    there = len(points) - len(missing)
    progress(there, len(points))
    for done, point in enumerate(missing, start=there + 1):
        row = measure(loaded, point, pairs, context_tokens)
        # A bank trained further under the same name has another fingerprint: its new row takes the old one's place.
        result["rows"] = [old for old in result["rows"] if _key(old) != point.key] + [row]
        if folder is not None:
            write_sweep(result, folder)
        progress(done, len(points))
    return result


def _key(row: dict[str, Any]) -> tuple:
    return tuple(row.get(name) for name in KEY)


def circumstances(loaded: LoadedModel) -> dict[str, Any]:
    """The model, device, software and date of a measurement."""
    return {
        "model": {"id": loaded.id, "revision": loaded.revision, "dtype": str(loaded.dtype).removeprefix("torch.")},
        "device": describe_device(loaded.device),
        "software": {name: metadata.version(name) for name in ("torch", "transformers")}
        | {"lora_drop": lora_drop.__version__, "python": platform.python_version()},
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
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
        name, fingerprint = folder.resolve().name, bank_fingerprint(folder)
    return Point(config, name, fingerprint, tuple(checked.notes))


def _points(loaded: LoadedModel, configs: Sequence[LoraDropConfig], prompt: str) -> list[Point]:
    """The configs checked against the model and told apart by what they really are."""
    points: dict[tuple, Point] = {}
    for config in configs:
        point = check_point(loaded, config, prompt)
        if points.setdefault(point.key, point).fingerprint != point.fingerprint:
            raise LoraDropError(f"two different adapter folders are called {point.adapters}: rename one of them.")
    return list(points.values())


def _speed_request(config: LoraDropConfig, prompt: str) -> Request:
    return Request(prompt, config, SPEED_TOKENS, view="lock-step", audit=False, ignore_eos=True)


def check_same(before: dict[str, Any], now: dict[str, Any], names: Iterable[str], folder: Path, what: str) -> None:
    """Refuse to go on with a file that was measured in other circumstances.

    Raises:
        LoraDropError: says which of `names` differ.
    """
    if differing := [name for name in names if before.get(name) != now[name]]:
        raise LoraDropError(
            f"{folder.resolve().name} already holds {what} of another {' and '.join(differing)}: "
            "name another --out, or delete it."
        )


def measure(
    loaded: LoadedModel, point: Point, pairs: list[tuple[str, str]], context_tokens: int | None
) -> dict[str, Any]:
    """A row: the point's teacher-forced quality over the pairs, its measured speed, its bound and KV."""
    config = point.config
    quality = evaluate(loaded, config, iter(pairs), context_tokens)
    trace = gather(run(loaded, _speed_request(config, pairs[0][0])))
    row = {
        "drop_ratio": config.drop_ratio,
        "period": config.period,
        "reuse": config.reuse,
        "part": config.part,
        "kv": config.kv,
        "adapters": point.adapters,
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
        "bound": trace.summary.bound,
        "ms_baseline": median_ms(trace.steps[BASELINE])["refresh"],
        "ms_refresh": median_ms(trace.steps[LORA_DROP]).get("refresh"),
        "ms_lora": median_ms(trace.steps[LORA_DROP]).get("lora"),
        "kv_bytes": trace.summary.lanes[LORA_DROP]["kv_bytes"],
        "kv_bytes_baseline": trace.summary.lanes[BASELINE]["kv_bytes"],
        "kv_saved": trace.summary.kv_saved,
        "decoder": trace.header.device["decoder"],
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


def write_sweep(result: dict[str, Any], folder: Path) -> None:
    """Write `sweep.json` and `sweep.csv`, each whole or not at all: a killed sweep leaves the last point's files.

    Raises:
        LoraDropError: the folder cannot be written.
    """
    table = io.StringIO()
    writer = csv.DictWriter(table, result["rows"][0], lineterminator="\n")
    writer.writeheader()
    writer.writerows(result["rows"])
    # The JSON last: a sweep goes on from it, so what it holds must be in the table already.
    write_texts({CSV_NAME: table.getvalue(), JSON_NAME: json_text(result)}, folder, "the sweep")


def json_text(result: dict[str, Any]) -> str:
    """A result as the text of its file."""
    return json.dumps(result, indent=1, allow_nan=False) + "\n"


def write_texts(texts: dict[str, str], folder: Path, what: str) -> None:
    """Write files by name, each whole or not at all.

    Raises:
        LoraDropError: the folder cannot be written; `what` is for the message.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name, text in texts.items():
            draft = folder / f"{name}.part"
            draft.write_text(text, encoding="utf-8", errors="backslashreplace")
            os.replace(draft, folder / name)
    except OSError as error:
        for name in texts:
            with suppress(OSError):
                (folder / f"{name}.part").unlink()
        raise LoraDropError(f"cannot write {what} to {folder.name}: {error.strerror or error}.") from None


def read_sweep(path: Path) -> dict[str, Any]:
    """A sweep from its JSON file.

    Raises:
        LoraDropError: the file cannot be read or is not a sweep.
    """
    try:
        with path.open(encoding="utf-8") as file:
            text = file.read(MAX_SWEEP + 1)  # a device or a pipe may have no end
        if len(text) > MAX_SWEEP:
            raise LoraDropError(f"{path.name} is too long to be a {JSON_NAME} of the sweep command.")
        result = json.loads(text)
        if not isinstance(result, dict):
            raise ValueError
        parts_fit = all(isinstance(result.get(name, {}), dict) for name in ("model", "device", "data", "settings"))
        if not parts_fit or not all(map(_is_row, result["rows"])):
            raise ValueError
    except LoraDropError:
        raise
    except OSError as error:
        raise LoraDropError(f"cannot read the sweep {path.name}: {error.strerror or error}.") from None
    except (ValueError, KeyError, TypeError, RecursionError):
        raise LoraDropError(f"{path.name} is not a {JSON_NAME} of the sweep command.") from None
    return {"notes": []} | result


_TEXTS = {"reuse", "part", "kv", "adapters", "adapters_fingerprint", "decoder"}


def _is_row(row: Any) -> bool:
    """A row of the sweep's columns: texts and finite numbers, None where there is no value."""
    return (
        isinstance(row, dict)
        and all(isinstance(row[name], str) for name in ("reuse", "part"))
        and all(row[name] is not None for name in ("drop_ratio", "period"))
        and all(
            value is None
            or (
                isinstance(value, str)
                if name in _TEXTS
                else isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
            )
            for name, value in row.items()
        )
    )


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

    def fits(row: dict[str, Any]) -> bool:
        full, ours = row["all_steps_nll_baseline"], row["all_steps_nll_lora_drop"]
        return (
            row["speedup"] is not None
            and (min_agreement is None or (row["lora_steps_top1_agreement"] or 0) >= min_agreement)
            and (max_nll_gap is None or (None not in (full, ours) and ours - full <= max_nll_gap))
        )

    try:
        return max(filter(fits, read_sweep(path)["rows"]), key=lambda row: row["speedup"], default=None)
    except KeyError:
        raise LoraDropError(f"{path.name} is not a {JSON_NAME} of the sweep command.") from None
