"""Does refreshing early pay? Adaptive against fixed schedules at equal average period, on held-out text.

A threshold is chosen on one half of the text and judged on the other: the best of several is partly luck. Equal
average period is equal cost: the share of steps that are full. The fixed schedules of several periods give a curve of
quality over that share, straight between its points (a mixture of two schedules reaches every point between them).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from lora_drop.decode.refresh import Refresher
from lora_drop.errors import LoraDropError
from lora_drop.evaluation.measure.metrics import evaluate
from lora_drop.evaluation.measure.texts import given_texts
from lora_drop.method.config import LoraDropConfig
from lora_drop.method.schedule import NO_TRIGGERS, TRIGGERS
from lora_drop.models.load import LoadedModel

PERIODS = (2, 3, 4, 5, 6, 8, 12, 16, 24, 32)  # of the fixed schedules, as far as the longest gap
QUANTILES = (0.5, 0.7, 0.85, 0.95)  # of what a trigger watches: a threshold that 1 - q of the steps reach
NEVER = 1e30  # a threshold that measures and does not fire

Pairs = list[tuple[str, str]]


def compare(
    loaded: LoadedModel,
    config: LoraDropConfig,
    pairs: Pairs,
    triggers: Sequence[str] = TRIGGERS,
    quantiles: Sequence[float] = QUANTILES,
    context_tokens: int | None = None,
    progress: Callable[[int], None] = lambda points: None,
) -> dict[str, Any]:
    """Scan thresholds on every other record, and judge the best of them on the records between.

    Args:
        config: the schedule; its period is the longest gap, its thresholds are not set.
        pairs: prompts and targets; a single one can be scanned and not judged.
        quantiles: in [0, 1), of the entropies and norms that the fixed schedule of the longest gap sees.
        progress: called with the number of points measured so far.

    Returns:
        `{"config", "choosing", "judging", "chosen", "wins"}`. `choosing` and `judging` (None for a single record) hold
        `fixed` and `adaptive` points; `chosen` is the threshold with the largest gain in `choosing`; `wins` is whether
        in `judging` its NLL gap is below that of a fixed schedule at its average period, and it agrees no less often.

    Raises:
        LoraDropError: a threshold is set, there is no LoRA step, a trigger or a quantile is none, or see `evaluate`.
    """
    _check(loaded, config, triggers, quantiles)
    scan = _Scan(loaded, config, context_tokens, progress)
    one, other = pairs[0::2], pairs[1::2]
    curve, seen = scan.fixed(one, triggers)
    rows = [
        {"quantile": q, **scan.adaptive(one, curve, trigger, quantile(seen[trigger], q))}
        for trigger in triggers
        for q in quantiles
        if seen[trigger]
    ]
    chosen = max(rows, key=lambda row: row["nll_gain"], default=None)
    judging = None
    if chosen and other:
        curve_there, _ = scan.fixed(other, triggers)
        judged = scan.adaptive(other, curve_there, chosen["trigger"], chosen["threshold"])
        judging = {"fixed": curve_there, "adaptive": [judged]}
    return {
        "config": {**config.to_dict(), "model": loaded.id, "revision": loaded.revision, "notes": scan.notes},
        "choosing": {"fixed": curve, "adaptive": rows},
        "judging": judging,
        "chosen": chosen and {"trigger": chosen["trigger"], "threshold": chosen["threshold"]},
        "wins": judging and judged["nll_gain"] > 0 and judged["agreement_gain"] >= 0,
    }


@dataclass
class _Scan:
    """Evaluates schedules near one, and counts them."""

    loaded: LoadedModel
    config: LoraDropConfig
    context_tokens: int | None
    progress: Callable[[int], None]
    points: int = 0
    notes: list[str] = field(default_factory=list)

    def fixed(self, pairs: Pairs, triggers: Sequence[str]) -> tuple[list[dict[str, Any]], dict[str, list[float]]]:
        """The fixed schedules, and what each trigger would have seen in the one of the longest gap."""
        config = self.config
        rows = [
            {"period": w, **_figures(self._evaluate(pairs, config.replace(period=w)))}
            for w in PERIODS
            if w < config.period
        ]
        seen: dict[str, list[float]] = {name: [] for name in TRIGGERS}

        def take(refresher: Refresher) -> None:
            for name in triggers:
                if (value := getattr(refresher, name)) is not None and math.isfinite(value):
                    seen[name].append(value)

        watching = config.replace(**{f"refresh_{name}": NEVER for name in triggers})
        result = self._evaluate(pairs, watching, take)
        self.notes += [note for note in result["config"]["notes"] if note not in self.notes]
        return [*rows, {"period": config.period, **_figures(result)}], seen

    def adaptive(self, pairs: Pairs, curve: list[dict[str, Any]], trigger: str, threshold: float) -> dict[str, Any]:
        """A threshold, against the fixed schedules of `curve`."""
        figures = _figures(self._evaluate(pairs, self.config.replace(**{f"refresh_{trigger}": threshold})))
        return {"trigger": trigger, "threshold": threshold, **figures, **_against(curve, figures)}

    def _evaluate(
        self, pairs: Pairs, config: LoraDropConfig, after_step: Callable[[Refresher], None] = lambda refresher: None
    ) -> dict[str, Any]:
        texts = given_texts(self.loaded, pairs, self.context_tokens)
        result = evaluate(self.loaded, config, texts, after_step=after_step)
        self.points += 1
        self.progress(self.points)
        return result


def _check(loaded: LoadedModel, config: LoraDropConfig, triggers: Sequence[str], quantiles: Sequence[float]) -> None:
    if config != config.replace(**NO_TRIGGERS):
        raise LoraDropError(f"this command chooses {' and '.join(NO_TRIGGERS)} itself: leave both out.")
    if config.schedule_for(loaded.num_layers).is_baseline:
        raise LoraDropError("these settings skip nothing, or refresh at every step: there is nothing to compare.")
    for trigger in triggers:
        if trigger not in TRIGGERS:
            raise LoraDropError(f"there is no trigger {trigger!r}; the triggers are {', '.join(TRIGGERS)}.")
    for q in quantiles:
        if not 0 <= q < 1:
            raise LoraDropError(f"a quantile lies in [0, 1), got {q}.")


def _figures(result: dict[str, Any]) -> dict[str, Any]:
    """What a point is judged by, over all steps of an evaluation: NLL gap, KL, agreement; and what it costs."""
    every, config = result["all_steps"], result["config"]
    steps, refreshes = config["decode_steps"], config["refreshes"]
    return {
        "tokens": result["tokens"],
        "decode_steps": steps,
        "refreshes": refreshes,
        "full_share": refreshes / steps if steps else 0.0,
        "average_period": config["average_period"],
        "nll_gap": every["nll_lora_drop"] - every["nll_baseline"],
        "kl": every["kl"],
        "agreement": every["top1_agreement"],
    }


def _against(curve: list[dict[str, Any]], figures: dict[str, Any]) -> dict[str, float]:
    """What fixed schedules would give at a point's share of full steps, and how much better the point is."""

    def there(name: str, at_full: float) -> float:
        # A schedule of full steps alone is the plain model: known without measuring.
        return interpolate([*((row["full_share"], row[name]) for row in curve), (1.0, at_full)], figures["full_share"])

    gap, kl, agreement = there("nll_gap", 0.0), there("kl", 0.0), there("agreement", 1.0)
    return {
        "fixed_nll_gap": gap,
        "fixed_kl": kl,
        "fixed_agreement": agreement,
        "nll_gain": gap - figures["nll_gap"],
        "kl_gain": kl - figures["kl"],
        "agreement_gain": figures["agreement"] - agreement,
    }


def interpolate(points: list[tuple[float, float]], x: float) -> float:
    """y at x on the broken line through (x, y) points, with points of the same x averaged; flat beyond its ends."""
    columns: dict[float, list[float]] = {}
    for px, py in points:
        columns.setdefault(px, []).append(py)
    line = sorted((px, sum(ys) / len(ys)) for px, ys in columns.items())
    for (x0, y0), (x1, y1) in zip(line, line[1:], strict=False):
        if x0 <= x <= x1:
            return y0 + (y1 - y0) * (x - x0) / (x1 - x0)
    return line[0][1] if x < line[0][0] else line[-1][1]


def quantile(values: list[float], q: float) -> float:
    """The smallest of the values that at least a share q of them do not exceed."""
    return sorted(values)[max(0, math.ceil(q * len(values)) - 1)]
