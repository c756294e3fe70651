"""Search for the fastest setting within a limit, by measurement; `recommend.json` has the candidates and the frontier.

Called again, also with other limits or values, it measures only what the file does not hold yet.
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
    describe_data,
    measure,
    within,
)
from lora_drop.evaluation.measure.texts import Answers, own_answers
from lora_drop.method.config import LoraDropConfig, default_range
from lora_drop.method.frontier import frontier
from lora_drop.method.presets import EXACT
from lora_drop.method.schedule import dropped_layers
from lora_drop.models.load import LoadedModel
from lora_drop.run.report.speed import BY_CHANCE
from lora_drop.run.results.bank_presets import presets_of
from lora_drop.run.results.preset_results import credible_speed
from lora_drop.run.results.store import Content, Kind, Row, Shape, Store, is_setting

SEARCH = Kind("recommend.json", "recommend", "a search", "lora-drop-recommend", 1, Shape)
TIMED = 4  # prompts that the speed is measured on: with `accept` it depends on the text
SHARES = (0.15, 0.3, 0.4)  # of the layers that can be skipped: the counts that are tried by default


@dataclass(frozen=True)
class Axes:
    """The values to combine; combinations that are not allowed (`accept` without repair) are left out.

    Args:
        counts: numbers of layers to skip, the first of the drop order; empty is `SHARES`.
        heads: empty is full, and screened if the adapters have a screened head.
        entropies: thresholds for early refreshes, in nats; None is off.
    """

    counts: Sequence[int] = ()
    periods: Sequence[int] = (2, 3, 4, 6)
    refreshes: Sequence[str] = ("repair",)
    accepts: Sequence[float] = (0.0, 0.1, 0.3)
    heads: Sequence[str] = ()
    entropies: Sequence[float | None] = (None, 1.0)


def loss_of(row: Row) -> float | None:
    """What a row's limit is about, in nats per token: KL(full || lane) over all steps of the full model's own answers;
    with `accept`, where that would be the loss of the drafts, the regret of its text."""
    return row.get("free_regret" if row["accept"] else "own_all_steps_kl")


@dataclass(frozen=True)
class Limits:
    """The largest quality loss, and the largest regret of a setting with `accept`, in nats per token (`loss_of`).

    Raises:
        LoraDropError: one is negative or not finite.
    """

    loss: float
    regret: float

    def __post_init__(self) -> None:
        for name, value in asdict(self).items():
            if not (0 <= value < math.inf):
                raise LoraDropError(f"max_{name} must be a finite number from 0 upwards, got {value:g}.")

    def hold(self, row: Row) -> bool:
        """True if a row stays within them."""
        loss = loss_of(row)
        return loss is not None and loss <= (self.regret if row["accept"] else self.loss)


@dataclass
class Search:
    """The state of a search: the rows of its candidates.

    Args:
        content: of the file; it may also have rows of candidates that an earlier call measured.
        rows: of this search's candidates that skip layers.
        head_only: the full model with the screened head, whose gain is not LoRA-Drop's; None without such a head.
    """

    content: Content
    limits: Limits
    rows: list[Row] = field(default_factory=list)
    head_only: Row | None = None

    @property
    def recommended(self) -> Row | None:
        """The fastest row within the limits."""
        return max(filter(self.limits.hold, self.rows), key=credible_speed, default=None)

    @property
    def frontier(self) -> list[Row]:
        """The rows that no other beats in both speed and loss, slowest first."""
        with_loss = [row for row in self.rows if loss_of(row) is not None]
        return frontier(with_loss, lambda row: -(loss_of(row) or 0.0))

    def take(self, row: Row) -> None:
        """Count a row in, and bring the results in the content up to date."""
        if row["layers_dropped"]:
            self.rows.append(row)
        else:
            self.head_only = row
        best = self.recommended
        self.content["recommended"] = best and best["config"]
        self.content["frontier"] = [row["config"] for row in self.frontier]
        self.content["head_only"] = self.head_only and self.head_only["config"]

    def figures(self) -> dict[str, Any]:
        """The content as `frontier_figure` takes it: this search's rows, each with its loss."""
        rows = [*self.rows, *([self.head_only] if self.head_only else [])]
        return self.content | {
            "rows": [row | {"loss": loss_of(row), "head_only": row is self.head_only} for row in rows]
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
    progress: Callable[[float, int], None] = lambda done, total: None,
    answered: Callable[[int, int], None] = lambda done, total: None,
) -> Search:
    """Measure candidates, the one with the highest bound first, and leave out those that cannot be the fastest.

    A candidate is left out if its bound, with a margin for noise, is below the speed of the fastest one within the
    limits. Quality is that on the full model's own answers, and of the candidate's own answers where it has `accept`.

    Args:
        base: settings that all candidates share.
        source: where the prompts come from, for the record.
        order: layers, the cheapest to skip first; empty is the model's order, or evenly spaced layers.
        progress: called with the candidates done and all of them; within a candidate with a fraction.
        answered: called with the full model's answers and all of them.

    Raises:
        LoraDropError: a setting or a bank does not fit the model; the full model answers nothing that can be scored;
            the folder cannot be written, or holds other measurements.
    """
    points = _points(loaded, candidates(loaded, base, axes, order), prompts[0])
    store = Store(SEARCH, folder, _content(loaded, prompts, source, context_tokens, limits, points))
    state, answers = Search(store.content, limits), None
    for done, point in enumerate(points):
        progress(done, len(points))
        row = store.first(point.is_of)
        if row is None:
            if _is_beaten(point, state.recommended):
                store.content["left_out"].append({"config": point.config.differences(), "bound": point.bound})
                continue
            answers = answers or _answers(loaded, prompts, context_tokens, answered)
            asked = answers, point.config.accept > 0, prompts[:TIMED]
            show = within(progress, done, len(points))
            figures = measure(loaded, point, [], context_tokens, *asked, progress=show)
            if figures["speedup"] is None:
                raise LoraDropError("too noisy to time a setting: start again when the machine is idle; it goes on.")
            row = point.key | figures
            # A bank trained further has another fingerprint: its row takes the old one's place.
            others = [old for old in store.rows if not is_setting(old["config"], point.config)]
            state.take(row)
            store.write([*others, row])
        else:
            state.take(row)
    progress(len(points), len(points))
    store.write()
    return state


def _is_beaten(point: Point, fastest: Row | None) -> bool:
    """True if a candidate cannot be faster than a measured one; the screened head alone is always measured."""
    return bool(point.config.drop_layers and fastest and point.bound * BY_CHANCE < credible_speed(fastest))


def _answers(
    loaded: LoadedModel,
    prompts: Sequence[str],
    context_tokens: int | None,
    answered: Callable[[int, int], None],
) -> Answers:
    answers = own_answers(loaded, prompts, context_tokens, lambda count: answered(count, len(prompts)))
    if not answers.texts().pairs:
        raise LoraDropError(
            "every answer of the full model is empty or goes in circles, so nothing can be scored: take other prompts."
        )
    return answers


def _content(
    loaded: LoadedModel,
    prompts: Sequence[str],
    source: dict[str, Any],
    context_tokens: int | None,
    limits: Limits,
    points: Sequence[Point],
) -> Content:
    """A search without rows: where and on what it is measured."""
    return SEARCH.begin(
        circumstances(loaded),
        decoder=loaded.decoder_name,
        data=describe_data(prompts, source),
        settings={"context_tokens": context_tokens, "speed_tokens": SPEED_TOKENS, "timed_prompts": TIMED},
        left_out=[],
        notes=list(dict.fromkeys(note for point in points for note in point.notes)),
        limits=asdict(limits),
    )


def candidates(loaded: LoadedModel, base: LoraDropConfig, axes: Axes, order: Sequence[int]) -> list[LoraDropConfig]:
    """All allowed combinations, and the full model with the screened head if there is one.

    Raises:
        LoraDropError: a value is not allowed, or nothing is left.
    """
    plain = base.replace(layers=None)  # the layers are named one by one
    exact = EXACT if "repair" in axes.refreshes else {}
    alone = head_only(loaded, plain.replace(**exact, period=max(axes.periods)))
    heads = axes.heads or (("full", "screened") if alone else ("full",))
    layers = _layers(loaded, base, axes.counts, order)
    configs = [alone.config] if alone and "screened" in heads else []
    for dropped, period, refresh, accept, head, entropy in itertools.product(
        *(layers, axes.periods, axes.refreshes, axes.accepts, heads, axes.entropies)
    ):
        if accept and refresh != "repair":
            continue
        rules: dict[str, Any] = {"refresh": refresh, "kv": "write" if refresh == "repair" else "skip"}
        rules |= {"accept": accept, "refresh_entropy": entropy}
        config = plain.replace(drop_layers=dropped, period=period, head=head, **rules)
        if not config.schedule_for(loaded.num_layers).is_baseline:
            configs.append(config)
    if not any(config.drop_layers for config in configs):
        raise LoraDropError("no combination skips a layer: take counts from 1, periods from 2, accept with repair.")
    return configs


def _layers(
    loaded: LoadedModel, base: LoraDropConfig, counts: Sequence[int], order: Sequence[int]
) -> list[tuple[int, ...]]:
    """The layers to skip for each count: the first of the drop order, or evenly spaced ones where there is none.

    Raises:
        LoraDropError: a count is larger than the layers to choose from.
    """
    low, high = base.layers or default_range(loaded.num_layers)
    if not order and base.layers is None:
        order = presets_of(loaded).order
    span = high - low + 1
    most = len(order) or span
    for count in counts:
        if not 1 <= count <= most:
            raise LoraDropError(f"counts must lie between 1 and {most}, the layers to choose from; got {count}.")
    counts = counts or sorted({min(most, max(1, round(share * span))) for share in SHARES})
    return [tuple(order[:count]) if order else dropped_layers(low, high, count / most) for count in counts]


def _points(loaded: LoadedModel, configs: Sequence[LoraDropConfig], prompt: str) -> list[Point]:
    """The candidates checked against the model: the screened head alone first, then by their bounds."""
    points = [check_point(loaded, config, prompt) for config in configs]
    # Without a screened head in the adapters, `screened` reads the full head: another candidate does that already.
    points = [point for point in points if point.screens or point.config.head == "full"]
    if not points:
        raise LoraDropError("these adapters have no screened head: take heads full.")
    return sorted(points, key=lambda point: (bool(point.config.drop_layers), -point.bound))
