"""Choices among measured rows: the cell of a sweep's map, with its price; the frontier; the stops of the dial.

The break-it dial goes along the frontier, from the full model to skipping nearly all.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Literal, get_args

from lora_drop.errors import LoraDropError
from lora_drop.method.config import LoraDropConfig
from lora_drop.method.fields import SCHEDULE
from lora_drop.method.frontier import frontier
from lora_drop.method.presets import COMPARISONS, PRESETS
from lora_drop.method.quality import READS_WELL_LOSS, SLIPS_LOSS, Reads, loss_words
from lora_drop.method.settings import settings_of
from lora_drop.run.report.speed import GAIN, NOISY, SLOWER, is_wide
from lora_drop.run.report.words import counted
from lora_drop.run.results.calibration import HEAD, HEAD_PERIODS, head_config, with_speed
from lora_drop.run.results.files import REPEATS
from lora_drop.run.results.preset_results import Measured, credible_speed, reads_well, regret_of, row_reads, verdict_of
from lora_drop.run.results.prompts import SAMPLE_PROMPTS
from lora_drop.run.results.rows import Row, is_baseline, value_of
from lora_drop.run.results.store import whole_setting
from lora_drop.run.trace.records import BASELINE

PROMPT = SAMPLE_PROMPTS[0]  # of the samples that the dial shows


@dataclass(frozen=True)
class Band:
    """Values of a measure that have one colour in the map.

    Args:
        end: the highest of them.
        tone: `good` or `bad`, a colour each, or `amount`, which is neither.
        strength: of the colour, 0 to 1.
        words: in the map's scale.
    """

    end: float
    tone: Literal["good", "bad", "amount"]
    strength: float
    words: str


def _loss_bands(well: str, slips: str, badly: str) -> tuple[Band, ...]:
    """Bands of a loss, in the order of `Reads`."""
    return (
        Band(READS_WELL_LOSS, "good", 1.0, well),
        Band(SLIPS_LOSS, "bad", 0.4, slips),
        Band(math.inf, "bad", 1.0, badly),
    )


_FIRST, _SECOND = f"up to {READS_WELL_LOSS:g}", f"up to {SLIPS_LOSS:g}"
_LOSS = _loss_bands(_FIRST, _SECOND, "more")
_REGRET = _loss_bands(f"reads well: {_FIRST}", f"slips: {_SECOND}, or repeats itself", "reads badly: more")
_SPEED = (
    Band(SLOWER, "bad", 1.0, "slower than the full model"),
    Band(GAIN, "amount", 0.4, "as fast"),
    Band(math.inf, "good", 1.0, f"faster: above {GAIN:g}×"),
)
_MEMORY = (
    Band(0.0, "amount", 0.0, "nothing saved"),
    Band(0.1, "amount", 0.35, "up to 10%"),
    Band(0.25, "amount", 0.7, "up to 25%"),
    Band(math.inf, "amount", 1.0, "more"),
)


@dataclass(frozen=True)
class Measure:
    """A figure that the map can show.

    Args:
        name: in the page's scripts.
        label: of the button.
        note: the meaning, and whether higher or lower is better.
        column: of a row.
        form: formats a value.
        bands: its scale of colours, from the lowest value to the highest.
    """

    name: str
    label: str
    note: str
    column: str
    form: Callable[[float], str]
    bands: tuple[Band, ...]

    def band_of(self, row: Row) -> int | None:
        """Index of a row's band; None if it was not measured. Free text goes by how it reads, as its marks do."""
        value = value_of(row, self.column)
        if value is None:
            return None
        if self.name == "free" and (how := row_reads(row)):
            return get_args(Reads).index(how)
        return next(i for i, band in enumerate(self.bands) if value <= band.end)


_TIMES = "{:.2f}×".format
GIVEN = "all_steps_kl"
MEASURES = (
    Measure(
        "own",
        "Own answers",
        "KL to the full model on its own answers, nats per token: lower is better. With accept this is the drafts' "
        "KL: look at free text instead.",
        "own_all_steps_kl",
        loss_words,
        _LOSS,
    ),
    Measure("given", "Given text", "KL to the full model on given texts, nats per token.", GIVEN, loss_words, _LOSS),
    Measure(
        "free",
        "Free text",
        "Regret of the text that the setting writes, nats per token: how much less likely each token is than the full "
        "model's favourite. Lower is better.",
        "free_regret",
        loss_words,
        _REGRET,
    ),
    Measure(
        "speed",
        "Speed",
        "Speed measured on this machine, times the full model's: higher is better.",
        "speedup",
        _TIMES,
        _SPEED,
    ),
    Measure(
        "memory",
        "Memory",
        "Share of the K/V memory that is saved: higher is better.",
        "kv_saved",
        "{:.0%}".format,
        _MEMORY,
    ),
)
BOUND = Measure(
    "speed",
    "Speed bound",
    "Bound on the speedup, an estimate from memory traffic: higher is better. No speed was measured on this machine.",
    "bound",
    _TIMES,
    _SPEED,
)


@dataclass(frozen=True)
class Answer:
    """The cell of a map to choose.

    Args:
        text: a sentence or two, with the price.
        row: the cell; None without a measured quality.
        is_safe: true if its text reads well; else the row is the nearest.
    """

    text: str
    row: Row | None
    is_safe: bool


def setting_of(row: Row) -> LoraDropConfig | None:
    """The setting of a row, with the adapters that `auto` takes; None if it cannot run here."""
    names = {setting.name for setting in settings_of(SCHEDULE)}
    values = {name: value for name, value in row.get("config", row).items() if name in names}
    values["adapters"] = "none" if values.get("adapters") == "none" else "auto"
    try:
        return LoraDropConfig(**values)
    except LoraDropError:
        return None


def measures_of(rows: Iterable[Row]) -> list[Measure]:
    """The figures that a map of these rows can show: the bound in place of a speed that was not measured here."""
    has_speed = any(value_of(row, "speedup") is not None for row in rows)
    return [BOUND if measure.name == BOUND.name and not has_speed else measure for measure in MEASURES]


def are_timed(rows: Iterable[Row]) -> bool:
    """Whether every row that skips something has a speed of this machine."""
    return all(value_of(row, "speedup") is not None for row in rows if not is_baseline(row))


def rank_of(row: Row, by_speed: bool) -> float | None:
    """What a row is ranked by: its speed (see `credible_speed`), or its bound, where a row beside it is not timed."""
    speed, bound = value_of(row, "speedup"), value_of(row, "bound")
    if not by_speed:
        return bound
    return speed if speed is None or bound is None else credible_speed(row)


def best_of(rows: Iterable[Row]) -> list[Row]:
    """The rows that no other beats in both speed (or bound) and regret, slowest first; in loss on given texts if only
    that was measured."""
    cells = [row for row in rows if not is_baseline(row)]
    by_speed = are_timed(cells)
    ranked = [row for row in cells if rank_of(row, by_speed) is not None]
    losses = [regret_of(row) for row in ranked]
    if not any(loss is not None for loss in losses):
        losses = [value_of(row, GIVEN) for row in ranked]
    pairs = [(row, loss) for row, loss in zip(ranked, losses, strict=True) if loss is not None]
    points = [{"speedup": rank_of(row, by_speed), "loss": loss, "row": row} for row, loss in pairs]
    return [point["row"] for point in frontier(points, lambda point: -point["loss"])]


def answer_of(rows: Iterable[Row], prompts: int | None = None) -> Answer:
    """Choose among the rows of a map: the fastest that reads well, or the one that comes nearest.

    Without speeds of this machine, the one with the highest bound.

    Args:
        prompts: that each row's text answers.
    """
    cells = [row for row in rows if not is_baseline(row)]
    if safe := [row for row in cells if reads_well(row)]:
        by_speed = are_timed(cells)
        row = max(safe, key=lambda row: (rank_of(row, by_speed) or 0.0, -(regret_of(row) or 0.0)))
        best = "the fastest here that reads well" if by_speed else "the highest bound of those that read well"
        text = (
            f"Choose {place_of(row)}: {best} on average{_over(prompts)}; a single answer may slip. The price is a "
            f"regret of {_regret(row)} nats per token; it {gain_of(row)}."
        )
        return Answer(text, row, True)
    if scored := [row for row in cells if regret_of(row) is not None]:
        row = min(scored, key=lambda row: regret_of(row) or 0.0)
        text = (
            f"No setting of this map is safe. The nearest is {place_of(row)}: its regret is {_regret(row)} nats "
            f"per token ({_fault(row)}), and it {gain_of(row)}."
        )
        return Answer(text, row, False)
    if read := [row for row in cells if value_of(row, GIVEN) is not None]:
        row = min(read, key=lambda row: row[GIVEN])
        text = (
            "Own answers and free text were not measured here, so no setting can be called safe. The nearest on given "
            f"texts is {place_of(row)}: it loses {loss_words(row[GIVEN])} nats per token there and {gain_of(row)}."
        )
        return Answer(text, row, False)
    return Answer("No setting of this map has a measured quality.", None, False)


def head_words(row: Row | None, head: Row | None) -> str:
    """How much of a row's speed the screened head gives by itself, as a further sentence; empty where it has none.

    Args:
        head: of this machine's calibration.
    """
    timed = with_speed({}, head)
    if row is None or row.get("head") != "screened" or not timed or value_of(row, "speedup") is None:
        return ""
    return f" The full model with the screened head alone runs at {timed['speedup']:.2f}× here."


def prompts_of(about: dict[str, Any]) -> int | None:
    """The number of prompts that the rows of a file answer; None if it does not say."""
    answers = about.get("data", {}).get("own")
    prompts = answers.get("prompts") if isinstance(answers, dict) else None
    return prompts if isinstance(prompts, int) else None


def _over(prompts: int | None) -> str:
    return "" if prompts is None else f" over {counted(prompts, 'prompt')}"


def place_of(row: Row) -> str:
    """A cell in words."""
    return f"drop ratio {row['drop_ratio']:g}, period {row['period']:g}"


def gain_of(row: Row) -> str:
    """The row's gain in time and memory, as the end of a sentence about it."""
    speed, bound, saved = (value_of(row, name) for name in ("speedup", "bound", "kv_saved"))
    low, high = (value_of(row, name) for name in ("speedup_low", "speedup_high"))
    limit = "" if bound is None else f" (bound {bound:.2f}×)"
    if speed is None:
        words = "has no speed measured on this machine" + limit
    elif high is not None and high < GAIN:
        words = f"gains no time here: {speed:.2f}×{limit}"
    elif low is not None and high is not None and is_wide(speed, (low, high)):
        noisy = "" if low > GAIN else f"; {NOISY}"
        words = f"runs at {low:.2f}× to {high:.2f}× the full model's speed{noisy}{limit}"
    else:
        words = f"runs at {speed:.2f}× the full model's speed{limit}"
    return words if saved is None else f"{words}, with {saved:.0%} of the K/V memory saved"


def _regret(row: Row) -> str:
    return loss_words(regret_of(row) or 0.0)


def _fault(row: Row) -> str:
    """Why a row does not read well."""
    if (regret_of(row) or 0.0) > READS_WELL_LOSS:
        return f"up to {READS_WELL_LOSS:g} reads well"
    repeats, usual = (value_of(row, name) for name in REPEATS)
    if repeats is None or usual is None:
        return "its own text was not measured"
    return f"but {repeats:.0%} of its 4-grams are repeats, {usual:.0%} in the full model's texts"


@dataclass(frozen=True)
class Stop:
    """A stop of the dial.

    Args:
        words: its loss and speed, in a sentence.
        config: of a run.
        sample: its answer to `PROMPT`; None if that is not stored.
        reads_well: on average, as measured.
    """

    label: str
    words: str
    config: LoraDropConfig
    sample: str | None
    reads_well: bool


def stops_of(
    measured: Measured,
    samples: list[dict[str, Any]],
    sweep: dict[str, Any] | None,
    speeds: dict[str, Row] | None = None,
    has_head: bool = False,
) -> list[Stop]:
    """The stops of the dial: the full model, the same with the screened head, then the frontier from slow and good to
    fast and bad; none without rows.

    Args:
        measured: the presets' rows; speeds of another machine are left out (`timed_here`), there and in the sweep.
        samples: of `samples.json`, written with the same weights.
        sweep: of the same weights; left out if it is of another machine or number type than the presets.
        speeds: of this machine's calibration.
        has_head: whether the adapters have a screened head.
    """
    speeds = speeds or {}
    presets = _of_presets(measured, samples, speeds)
    rows = [row | {"prompts": prompts_of(measured.about)} for row in presets]
    rows += [row | {"prompts": prompts_of(sweep or {})} for row in _of_sweep(measured, sweep)]
    front = best_of([row for row in rows if regret_of(row) is not None])
    if not front:
        return []
    full = _sample(samples, BASELINE, None)
    if full is None and sweep and isinstance(text := _same_sample(sweep).get("text"), str):
        full = text
    never = Stop("Never skip", "The full model: no loss, 1.00×.", LoraDropConfig(period=1), full, True)
    head = [_head_stop(speeds.get(HEAD), full)] if has_head else []
    return [never, *head, *(stop for row in front if (stop := _stop(row)) is not None)]


def _head_stop(here: Row | None, full: str | None) -> Stop:
    """The full model with the screened head: the part of the other stops' speed that is not LoRA-Drop's.

    Args:
        here: its row of the calibration.
        full: the full model's text, which is its text too.
    """
    row = with_speed({"bound": here["bound"] if here else None}, here)
    period = whole_setting(here["config"])["period"] if here else HEAD_PERIODS[0]
    words = f"No layer is skipped and every guess is checked: the full model's own text. It {gain_of(row)}."
    return Stop(COMPARISONS[HEAD].lane, words, head_config(period), full, True)


def _of_presets(measured: Measured, samples: list[dict[str, Any]], speeds: dict[str, Row]) -> Iterator[Row]:
    for name, row in measured.rows.items():
        sample = _sample(samples, name, row["config"])
        yield with_speed(row, speeds.get(name)) | {"label": PRESETS[name].label, "sample": sample}


def _of_sweep(measured: Measured, sweep: dict[str, Any] | None) -> Iterator[Row]:
    if not sweep or (measured.rows and _where(sweep) != _where(measured.about)):
        return
    for row in sweep["rows"]:
        label = place_of(row).replace("drop", "Drop", 1)
        yield row | {"label": label, "sample": row.get("sample") if _same_sample(sweep) else None}


def _same_sample(sweep: dict[str, Any]) -> dict[str, Any]:
    """The full model's sample in a sweep; empty if its prompt is not `PROMPT`."""
    sample = sweep.get("sample", {})
    return sample if sample.get("prompt") == PROMPT else {}


def _where(about: dict[str, Any]) -> tuple[Any, ...]:
    return about.get("device", {}).get("name"), about.get("model", {}).get("dtype")


def _stop(row: Row) -> Stop | None:
    config = setting_of(row)
    if config is None:
        return None
    count = value_of(row, "layers_dropped")
    skipped = "" if count is None else f"{count:g} layers skipped. "
    average = f"on average{_over(row['prompts'])}"
    words = f"{skipped}Regret {_regret(row)} nats per token {average}: {verdict_of(row)}. It {gain_of(row)}."
    return Stop(row["label"], words, config, row["sample"], reads_well(row))


def _sample(samples: list[dict[str, Any]], lane: str, config: dict[str, Any] | None) -> str | None:
    """A lane's stored answer to `PROMPT`, if it is of the same setting."""
    for sample in samples:
        if (sample["prompt"], sample["lane"]) == (PROMPT, lane):
            stored = sample["config"]
            if config is None or (stored is not None and whole_setting(stored) == whole_setting(config)):
                return str(sample["text"])
    return None
