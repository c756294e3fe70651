"""The search for the fastest setting within a limit: candidates measured, and what no other beats.

The file `recommend.json` is whole after each row: called again, with other limits too, it measures what is missing.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from lora_drop.errors import LoraDropError
from lora_drop.evaluation.measure.bench import head_only
from lora_drop.evaluation.measure.point import (
    SPEED_TOKENS,
    Point,
    check_point,
    circumstances,
    describe_prompts,
    measure,
)
from lora_drop.evaluation.measure.texts import Answers, own_answers
from lora_drop.evaluation.results.preset_results import credible_speed, is_measured, loss_of
from lora_drop.evaluation.results.store import check_same, is_setting, json_text, read_result, write_texts
from lora_drop.method.config import LoraDropConfig, default_range
from lora_drop.method.frontier import frontier
from lora_drop.method.presets import BUNDLED_ORDER, EXACT
from lora_drop.method.schedule import dropped_layers
from lora_drop.models.load import LoadedModel
from lora_drop.run.report.figures import BY_CHANCE

FORMAT, VERSION = "lora-drop-recommend", 1
JSON_NAME = "recommend.json"
# Of two searches that are one; the limits may differ, and so may the candidates.
SAME = ("format", "version", "model", "device", "decoder", "data", "settings", "software")
TIMED = 4  # prompts that the speed is measured on: where tokens are taken back it depends on the text
SHARES = (0.15, 0.3, 0.4)  # of the layers that can be skipped: how many are, where nothing is said

Row = dict[str, Any]


@dataclass(frozen=True)
class Axes:
    """What is combined; what does not go together (`accept` without exact full steps) is left out.

    Args:
        counts: how many layers are skipped, the first of the drop order; empty is `SHARES`.
        heads: empty is full, and screened where the adapters have one.
        entropies, norms: of the triggers; None is off.
    """

    counts: Sequence[int] = ()
    periods: Sequence[int] = (2, 3, 4, 6)
    refreshes: Sequence[str] = ("repair",)
    accepts: Sequence[float] = (0.0, 0.1, 0.3)
    heads: Sequence[str] = ()
    entropies: Sequence[float | None] = (None, 1.0)
    norms: Sequence[float | None] = (None,)


@dataclass(frozen=True)
class Limits:
    """The most quality loss in nats per token (`loss_of`), and where tokens are taken back the most regret.

    Raises:
        LoraDropError: one is no such number.
    """

    loss: float
    regret: float

    def __post_init__(self) -> None:
        for name, value in asdict(self).items():
            if not (0 <= value < math.inf):
                raise LoraDropError(f"max_{name} must be a finite number from 0 upwards, got {value:g}.")

    def hold(self, row: Row) -> bool:
        """Whether a row stays within them."""
        loss = loss_of(row)
        return loss is not None and loss <= (self.regret if row["accept"] else self.loss)


@dataclass
class Found:
    """What a search found.

    Args:
        content: of the file; it may have rows of other candidates, which a call before this one measured.
        limits: the search's.
        rows: those of its candidates, the one of the screened head alone excluded.
        head_only: the full model with the screened head, which is no gain of LoRA-Drop's; None without such a head.
    """

    content: dict[str, Any]
    limits: Limits
    rows: list[Row] = field(default_factory=list)
    head_only: Row | None = None

    @property
    def recommended(self) -> Row | None:
        """The fastest row within the limits."""
        return max(filter(self.limits.hold, self.rows), key=credible_speed, default=None)

    @property
    def frontier(self) -> list[Row]:
        """The rows that no other beats in speed and loss, slowest first."""
        known = [row for row in self.rows if loss_of(row) is not None]
        return frontier(known, lambda row: -(loss_of(row) or 0.0))

    def take(self, row: Row) -> None:
        """Count a row in."""
        if row["layers_dropped"]:
            self.rows.append(row)
        else:
            self.head_only = row

    def figures(self) -> dict[str, Any]:
        """What `frontier_figure` draws."""
        rows = [*self.rows, *([self.head_only] if self.head_only else [])]
        return self.content | {
            "rows": [row | {"loss": loss_of(row), "head_only": row is self.head_only} for row in rows],
            "recommended": self.recommended and self.recommended["config"],
        }


def search(
    loaded: LoadedModel,
    base: LoraDropConfig,
    axes: Axes,
    limits: Limits,
    prompts: Sequence[str],
    source: dict[str, Any],
    folder: Path,
    order: Sequence[int] = (),
    context_tokens: int | None = None,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Found:
    """Measure candidates, the one with the most to gain first, and leave out those that cannot be the fastest.

    A candidate is left out when its bound, and what may be added by chance, is below the speed of the fastest that
    stays within the limits. Quality is that on the full model's own answers, and of the candidate's own answers where
    it takes tokens back.

    Args:
        base: what all candidates have in common.
        source: where the prompts come from, for the record.
        order: layers, the cheapest to skip first; empty is the bundled model's own, or else evenly spaced ones.
        progress: called with the candidates done and all of them.

    Raises:
        LoraDropError: a setting or a bank does not fit the model; the full model answers nothing that can be scored;
            the folder cannot be written, or holds other measurements.
    """
    points = _points(loaded, candidates(loaded, base, axes, order), prompts[0])
    result = _begin(loaded, prompts, source, context_tokens)
    result["notes"] = list(dict.fromkeys(note for point in points for note in point.notes))
    result["limits"] = asdict(limits)
    if (folder / JSON_NAME).exists():
        before = read_result(folder / JSON_NAME, FORMAT, VERSION, JSON_NAME, "recommend", _is_whole)
        check_same(before, result, SAME, folder, "a search")
        result["rows"] = before["rows"]
    found, answers = Found(result, limits), None
    for done, point in enumerate(points):
        progress(done, len(points))
        row = next((row for row in result["rows"] if _is_of(row, point)), None)
        if row is None:
            if _is_beaten(point, found.recommended):
                result["left_out"].append({"config": point.config.differences(), "bound": point.bound})
                continue
            answers = answers or _answers(loaded, prompts, context_tokens)
            figures = measure(loaded, point, [], context_tokens, answers, point.config.accept > 0, prompts[:TIMED])
            row = {"config": point.config.differences()} | figures
            # A bank trained further has another fingerprint: its row takes the old one's place.
            result["rows"] = [old for old in result["rows"] if not is_setting(old["config"], point.config)] + [row]
        found.take(row)
        _write(found, folder)
    progress(len(points), len(points))
    _write(found, folder)
    return found


def _is_beaten(point: Point, fastest: Row | None) -> bool:
    """Whether a candidate cannot be faster than one that was measured; the screened head alone is always measured."""
    return bool(point.config.drop_layers and fastest and point.bound * BY_CHANCE < credible_speed(fastest))


def _answers(loaded: LoadedModel, prompts: Sequence[str], context_tokens: int | None) -> Answers:
    answers = own_answers(loaded, prompts, context_tokens)
    if not answers.texts().pairs:
        raise LoraDropError(
            "every answer of the full model is empty or goes in circles, so nothing can be scored: take other prompts."
        )
    return answers


def _write(found: Found, folder: Path) -> None:
    best = found.recommended
    found.content["recommended"] = best and best["config"]
    found.content["frontier"] = [row["config"] for row in found.frontier]
    found.content["head_only"] = found.head_only and found.head_only["config"]
    write_texts({JSON_NAME: json_text(found.content)}, folder, "the search")


def _begin(
    loaded: LoadedModel, prompts: Sequence[str], source: dict[str, Any], context_tokens: int | None
) -> dict[str, Any]:
    """A search without rows: where and on what it is measured."""
    own = describe_prompts(prompts)
    return {
        "format": FORMAT,
        "version": VERSION,
        **circumstances(loaded),
        "decoder": loaded.decoder_name,
        "data": source | {"records": own["prompts"], "sha256": own["sha256"]},
        "settings": {"context_tokens": context_tokens, "speed_tokens": SPEED_TOKENS, "timed_prompts": TIMED},
        "left_out": [],
        "rows": [],
    }


def candidates(loaded: LoadedModel, base: LoraDropConfig, axes: Axes, order: Sequence[int]) -> list[LoraDropConfig]:
    """All combinations that go together, and the full model with the screened head if there is one.

    Raises:
        LoraDropError: a value is not allowed, or nothing is left.
    """
    plain = base.replace(layers=None)  # the layers are named one by one
    exact = EXACT if "repair" in axes.refreshes else {}
    alone = head_only(loaded, plain.replace(**exact, period=max(axes.periods)))
    heads = axes.heads or (("full", "screened") if alone else ("full",))
    layers = [
        _first_layers(loaded, base, count, order) for count in axes.counts or _default_counts(loaded, base, order)
    ]
    found = [alone.config] if alone and "screened" in heads else []
    for dropped, period, refresh, accept, head, entropy, norm in itertools.product(
        *(layers, axes.periods, axes.refreshes, axes.accepts, heads, axes.entropies, axes.norms)
    ):
        if accept and refresh != "repair":
            continue
        rules: dict[str, Any] = {"refresh": refresh, "kv": "write" if refresh == "repair" else "skip"}
        rules |= {"accept": accept, "refresh_entropy": entropy, "refresh_norm": norm}
        config = plain.replace(drop_layers=dropped, period=period, head=head, **rules)
        if not config.schedule_for(loaded.num_layers).is_baseline:
            found.append(config)
    if not any(config.drop_layers for config in found):
        raise LoraDropError("no combination skips a layer: take counts from 1, periods from 2, accept with repair.")
    return found


def _range_of(loaded: LoadedModel, base: LoraDropConfig, order: Sequence[int]) -> Sequence[int]:
    """The drop order: as given, the bundled model's own, or none (then all layers that can be skipped)."""
    if order:
        return order
    if base.layers is None and loaded.id.partition(":")[0] == "bundled":
        return BUNDLED_ORDER
    return ()


def _default_counts(loaded: LoadedModel, base: LoraDropConfig, order: Sequence[int]) -> list[int]:
    low, high = base.layers or default_range(loaded.num_layers)
    most = len(_range_of(loaded, base, order)) or high - low + 1
    return sorted({min(most, max(1, round(share * (high - low + 1)))) for share in SHARES})


def _first_layers(loaded: LoadedModel, base: LoraDropConfig, count: int, order: Sequence[int]) -> tuple[int, ...]:
    """So many layers of the drop order, or evenly spaced ones where there is none.

    Raises:
        LoraDropError: there are fewer.
    """
    low, high = base.layers or default_range(loaded.num_layers)
    order = _range_of(loaded, base, order)
    most = len(order) or high - low + 1
    if not 1 <= count <= most:
        raise LoraDropError(f"counts must lie between 1 and {most}, the layers to choose from; got {count}.")
    return tuple(order[:count]) if order else dropped_layers(low, high, count / most)


def _points(loaded: LoadedModel, configs: Sequence[LoraDropConfig], prompt: str) -> list[Point]:
    """The candidates checked against the model: the screened head alone first, then those with the most to gain."""
    points = [check_point(loaded, config, prompt) for config in configs]
    # Adapters without a screened head: the whole one is read, as another candidate says already.
    points = [point for point in points if point.screens or point.config.head == "full"]
    if not points:
        raise LoraDropError("these adapters have no screened head: take heads full.")
    return sorted(points, key=lambda point: (bool(point.config.drop_layers), -point.bound))


def _is_of(row: Row, point: Point) -> bool:
    same = (row["adapters"], row["adapters_fingerprint"]) == (point.adapters, point.fingerprint)
    return same and is_setting(row["config"], point.config)


def _is_whole(content: dict[str, Any]) -> bool:
    about = all(isinstance(content[name], dict) for name in ("model", "device", "data", "settings"))
    numbers = ("speedup", "bound", "accept", "period", "layers_dropped")
    return about and all(
        is_measured(row) and all(isinstance(row[name], (int, float)) for name in numbers) for row in content["rows"]
    )
