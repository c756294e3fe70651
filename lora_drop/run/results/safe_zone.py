"""What a sweep says is safe: the measures of its map, the cell to choose with its price, and what no cell beats."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from lora_drop.errors import LoraDropError
from lora_drop.method.config import LoraDropConfig
from lora_drop.method.fields import SCHEDULE
from lora_drop.method.frontier import frontier
from lora_drop.method.quality import READS_WELL_LOSS
from lora_drop.method.settings import settings_of
from lora_drop.run.report.speed import GAIN, NOISE
from lora_drop.run.results.preset_results import REPEATS, credible_speed, loss_of, reads_well
from lora_drop.run.results.rows import is_baseline, value_of

Row = dict[str, Any]


@dataclass(frozen=True)
class Measure:
    """A figure that the map can show.

    Args:
        name: short, for the page.
        label: of the switch.
        note: what it is, and which way is better.
        column: of a row.
        form: a value as it is written.
    """

    name: str
    label: str
    note: str
    column: str
    form: Callable[[float], str]


_NATS = "{:.2f}".format
GIVEN = "all_steps_kl"
MEASURES = (
    Measure(
        "own",
        "Own answers",
        "Quality loss on the full model's own answers, nats per token: lower is better. Where tokens are taken back "
        "(accept) it is that of the drafts; look at free text then.",
        "own_all_steps_kl",
        _NATS,
    ),
    Measure("given", "Given text", "Quality loss on given texts, nats per token: lower is better.", GIVEN, _NATS),
    Measure(
        "free",
        "Free text",
        "Regret of the text that the setting writes by itself, nats per token: how much less likely each token is to "
        "the full model than its favourite. Lower is better.",
        "free_regret",
        _NATS,
    ),
    Measure(
        "speed", "Speed", "Measured speed, times the full model's: higher is better.", "speedup", "{:.2f}×".format
    ),
    Measure(
        "memory", "Memory", "Share of the K/V memory that is saved: higher is better.", "kv_saved", "{:.0%}".format
    ),
)


@dataclass(frozen=True)
class Answer:
    """Which cell of a map to choose.

    Args:
        text: a sentence or two, with the price.
        row: the cell; None where nothing can be said.
        is_safe: whether its text reads well; else the row is the nearest.
    """

    text: str
    row: Row | None
    is_safe: bool


def judged(row: Row) -> Row:
    """A row as the presets' judges read it: with its setting."""
    return row if "config" in row else row | {"config": row}


def is_safe(row: Row) -> bool:
    """Whether a text of such a row reads well: measured, on the full model's own answers and on its own text."""
    return reads_well(judged(row))


def setting_of(row: Row) -> LoraDropConfig | None:
    """The setting of a row, with the adapters that `auto` takes; None where it is none that can run here."""
    known = {one.name for one in settings_of(SCHEDULE)}
    values = {name: value for name, value in row.get("config", row).items() if name in known}
    bank = values.get("adapters")
    try:
        return LoraDropConfig.from_dict(values | {"adapters": "none" if bank == "none" else "auto"})
    except LoraDropError:
        return None


def speed_of(row: Row) -> float | None:
    """The speed that a row is chosen by: see `credible_speed`."""
    speed = value_of(row, "speedup")
    return speed if speed is None or value_of(row, "bound") is None else credible_speed(row)


def best_of(rows: Iterable[Row]) -> list[Row]:
    """The rows that no other beats in speed and quality loss, slowest first; on given texts where no loss is known."""
    found = [row for row in rows if not is_baseline(row) and speed_of(row) is not None]
    losses = _losses(found)
    known = [(row, loss) for row, loss in zip(found, losses, strict=True) if loss is not None]
    front = frontier(
        [{"speedup": speed_of(row), "loss": loss, "row": row} for row, loss in known], lambda r: -r["loss"]
    )
    return [each["row"] for each in front]


def _losses(rows: Sequence[Row]) -> list[float | None]:
    losses = [loss_of(judged(row)) for row in rows]
    return losses if any(loss is not None for loss in losses) else [value_of(row, GIVEN) for row in rows]


def answer_of(rows: Iterable[Row]) -> Answer:
    """The cell to choose among the rows of a map: the fastest that reads well, or the one that comes nearest."""
    cells = [row for row in rows if not is_baseline(row)]
    safe = [row for row in cells if is_safe(row)]
    if safe:
        row = max(safe, key=lambda row: (speed_of(row) or 0.0, -_loss(row)))
        text = (
            f"Choose {place_of(row)}: the fastest here that reads well. The price is {_named(row)} of "
            f"{_loss(row):.2f} nats per token; it {gain_of(row)}."
        )
        return Answer(text, row, True)
    known = [row for row in cells if loss_of(judged(row)) is not None]
    if known:
        row = min(known, key=_loss)
        text = (
            f"No setting of this map is safe. The nearest is {place_of(row)}: it loses {_loss(row):.2f} nats per "
            f"token ({_fault(row)}) and {gain_of(row)}."
        )
        return Answer(text, row, False)
    given = [row for row in cells if value_of(row, GIVEN) is not None]
    if given:
        row = min(given, key=lambda row: row[GIVEN])
        text = (
            "Own answers and free text were not measured here, so no setting can be called safe. The nearest on given "
            f"texts is {place_of(row)}: it loses {row[GIVEN]:.2f} nats per token there and {gain_of(row)}."
        )
        return Answer(text, row, False)
    return Answer("No setting of this map has a measured quality.", None, False)


def _named(row: Row) -> str:
    """What `_loss` of a row is: where tokens are taken back, the free text counts."""
    return "a regret of its free text" if judged(row)["config"].get("accept") else "a quality loss"


def place_of(row: Row) -> str:
    """A cell in words."""
    return f"drop ratio {row['drop_ratio']:g}, period {row['period']:g}"


def gain_of(row: Row) -> str:
    """What a row gains in time and memory, as the end of a sentence about it."""
    speed, bound, saved = (value_of(row, name) for name in ("speedup", "bound", "kv_saved"))
    low, high = (value_of(row, name) for name in ("speedup_low", "speedup_high"))
    allowed = "" if bound is None else f" (its bytes allow {bound:.2f}×)"
    if speed is None:
        words = "has no measured speed"
    elif high is not None and high < GAIN:
        words = f"gains no time here: {speed:.2f}×{allowed}"
    elif low is not None and high is not None and high - low > NOISE * speed:
        noisy = "" if low > GAIN else ", too noisy here to tell"
        words = f"runs at {low:.2f}× to {high:.2f}× the full model's speed{noisy}{allowed}"
    else:
        words = f"runs at {speed:.2f}× the full model's speed{allowed}"
    return words if saved is None else f"{words}, with {saved:.0%} of the K/V memory saved"


def _loss(row: Row) -> float:
    return loss_of(judged(row)) or 0.0


def _fault(row: Row) -> str:
    """Why a row with a loss does not read well."""
    if _loss(row) > READS_WELL_LOSS:
        return f"up to {READS_WELL_LOSS:g} reads well"
    repeats, usual = (value_of(row, name) for name in REPEATS)
    if repeats is None or usual is None:
        return "what it writes by itself was not measured"
    return f"but it goes in circles: {repeats:.0%} of its 4-grams are repeats, the full model's {usual:.0%}"
