"""Where LoRA-Drop pays: measured speedups by the share of a step that waits for weights, and a calculator.

Every figure is measured or computed (`cost.expected_speedup`): this model on this machine by its calibration, others
from the stored file of shapes, with their device.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from lora_drop.errors import LoraDropError
from lora_drop.method import paper
from lora_drop.method.config import LoraDropConfig
from lora_drop.method.cost import Corrections, ModelShape, cycle_of, expected_speedup, speed_bound, step_bytes
from lora_drop.method.presets import COMPARISONS
from lora_drop.method.schedule import baseline_schedule
from lora_drop.models.load import LoadedModel, ModelInfo
from lora_drop.models.place import describe_device
from lora_drop.paths import SHIPPED_SHAPES
from lora_drop.run.results.bank_presets import presets_of
from lora_drop.run.results.calibration import HEAD, gain_here, speeds_here
from lora_drop.run.results.files import SHAPES
from lora_drop.run.results.store import Content, Row

LIKE = "LLaMA3-8B"  # the calculator gives the user's model its proportions and vocabulary
NAMES = {  # of the shapes, by their names in `random:...`
    "random:llama2-7b": "LLaMA2-7B",
    "random:llama3-8b": "LLaMA3-8B",
    "random:qwen2.5-7b": "Qwen2.5-7B",
    "random:qwen2.5-14b": "Qwen2.5-14B",
}
ITEMSIZE = 2  # bytes of an activation
STEPS = 50  # points of a curve


@dataclass(frozen=True)
class Field:
    """A number of the calculator.

    Args:
        low: its lower limit.
        high: its upper limit.
        step: of the page's field.
    """

    name: str
    label: str
    note: str
    low: float
    high: float
    step: float


FIELDS = (
    Field("layers", "Layers", "Of the model", 4, 1000, 1),
    Field("width", "Width", "Hidden size", 64, 65_536, 64),
    Field("bits", "Bits a weight", "As the weights are in memory", 1, 32, 0.5),
    Field("bandwidth", "Memory, GB/s", "What the machine reads: bench measures it", 0.1, 100_000, 1),
    Field(
        "row_cost", "One more row, %", "Of a full step's time: bench measures it by repairs of several rows", 0, 100, 1
    ),
    Field("outside", "Outside, %", "Of a full step's time that is spent outside the kernels", 0, 90, 1),
    Field("drop_ratio", "Drop ratio p", "Share of the layers that LoRA steps skip", 0, 1, 0.05),
    Field("period", "Period w", "Every w-th step is full", 2, 64, 1),
    Field("accepted", "Accepted, of 100", "Guesses that the full model accepts, where it checks them", 0, 100, 1),
)


def stored_shapes(folder: Path = SHIPPED_SHAPES) -> list[Content]:
    """The stored files, one for each device that was measured; one that cannot be read is left out."""
    files = []
    for path in sorted(folder.glob("*.json")):
        with suppress(LoraDropError):
            files.append(SHAPES.read(path))
    return files


def where_it_pays(loaded: LoadedModel | ModelInfo, values: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """The picture's points and the calculator's result.

    Args:
        values: of the calculator, by name; None: its defaults.

    Returns:
        - points: what was measured: `kind` (here, head, same: this model in another number type, shape, card),
          `label`, `waits`, `speedup` and `words`; those of shapes also `name` and `setting`, their labels in it;
        - fields: of the calculator, each with its `value`;
        - result: `text`, and `curves` and `own`, the calculator's point; or the text alone of values that do not fit.
    """
    stored = stored_shapes()
    points = [*_points_here(loaded), *(point for shape in stored for point in _stored_points(loaded, shape))]
    chosen = _defaults(stored) if values is None else dict(values)
    fields = [vars(field) | {"value": chosen.get(field.name)} for field in FIELDS]
    try:
        result = calculated(chosen)
    except LoraDropError as error:
        result = {"text": str(error)}
    return {"points": points, "fields": fields, "result": result}


def waits_of(row_cost: float, outside: float = 0.0) -> float:
    """Share of a full step that waits for weights: neither what one more row in the same pass costs, nor what is spent
    outside the kernels."""
    return min(max(1 - row_cost - outside, 0.0), 1.0)


def _points_here(loaded: LoadedModel | ModelInfo) -> Iterator[dict[str, Any]]:
    """The presets on this machine, and the screened head alone; none before a calibration."""
    speeds = speeds_here(loaded)
    costs = [row["row_cost"] for row in speeds.values() if row.get("row_cost") is not None]
    if not costs:
        return
    outside = next((row["outside"] for row in speeds.values() if row.get("outside") is not None), 0.0)
    waits, device = waits_of(statistics.median(costs), outside), describe_device(loaded.device)["name"]
    labels = {name: preset.label for name, preset in presets_of(loaded).items()}
    for name, row in speeds.items():
        if gain_here(row):
            label = COMPARISONS[HEAD].lane if name == HEAD else labels[name]
            about = f"this machine, {device}"
            yield _point("head" if name == HEAD else "here", label, waits, row, about)


def _stored_points(loaded: LoadedModel | ModelInfo, stored: Content) -> Iterator[dict[str, Any]]:
    """This model in another number type, and the paper's shapes, where the share that waits was measured too."""
    about = f"{stored['device']['name']}, {stored['date']}"
    for row in stored["rows"]:
        if row["row_cost"] is None or row["period"] != paper.SAFE_K + 1:  # the period of the paper's figures
            continue
        if row["model"] not in NAMES and row["model"] != loaded.id:
            continue
        name = NAMES.get(row["model"], f"this model in {row['dtype']}")
        label = f"{name}, p {row['drop_ratio']:g}, w {row['period']:g}"
        kind = "same" if row["model"] == loaded.id else "shape" if stored["device"]["type"] == "cpu" else "card"
        point = _point(kind, label, waits_of(row["row_cost"]), row, about)
        yield point if kind == "same" else point | {"name": name, "setting": f"p {row['drop_ratio']:g}"}


def _point(kind: str, label: str, waits: float, row: Row, about: str) -> dict[str, Any]:
    words = f"{label}: {row['speedup']:.2f}× of a bound of {row['bound']:.2f}×, {waits:.0%} waits ({about})"
    return {"kind": kind, "label": label, "waits": round(waits, 4), "speedup": row["speedup"], "words": words}


def _defaults(stored: list[Content]) -> dict[str, float | None]:
    """The calculator's first values: the paper's setting on a shape and a machine that were measured."""
    shape = paper.SHAPES[LIKE]
    measured = [
        (content["read_gb_per_second"], round(100 * row["row_cost"]))
        for content in stored
        for row in content["rows"]
        if NAMES.get(row["model"]) == LIKE and row["row_cost"] is not None
    ]
    bandwidth, cost = measured[0] if measured else (None, None)
    return {
        "layers": shape.num_layers,
        "width": shape.hidden_size,
        "bits": 8 * ITEMSIZE,
        "bandwidth": bandwidth,
        "row_cost": cost,
        "outside": 0,
        "drop_ratio": paper.SAFE_DROP_RATIO,
        "period": paper.SAFE_K + 1,
        "accepted": 100,
    }


def calculated(values: Mapping[str, Any]) -> dict[str, Any]:
    """The calculator's result for the user's model.

    Raises:
        LoraDropError: a value is missing or outside its limits, or the layers cannot be skipped so.
    """
    numbers = {field.name: _read(field, values.get(field.name)) for field in FIELDS}
    period, accepted = int(numbers["period"]), numbers["accepted"] / 100
    shape = _shape(int(numbers["layers"]), int(numbers["width"]), numbers["bits"])
    schedule = LoraDropConfig(period=period, drop_ratio=numbers["drop_ratio"], reuse="state").schedule_for(
        shape.num_layers
    )
    bound = speed_bound(shape, schedule, corrections=Corrections(paper.RANK))
    checked = bound * (1 + accepted * (period - 1)) / period  # a cycle reads the same, for fewer tokens
    row_cost, outside = numbers["row_cost"] / 100, numbers["outside"] / 100
    waits = waits_of(row_cost, outside)
    plain, repaired = cycle_of(period, False), cycle_of(period, True, accepted)
    expected = expected_speedup(bound, plain, row_cost, outside)
    expected_checked = expected_speedup(checked, repaired, row_cost, outside)
    whole = step_bytes(shape, baseline_schedule(shape.num_layers), 1, 0, ITEMSIZE, kv=False)
    rate = waits * numbers["bandwidth"] * 1e9 / whole
    text = (
        f"Bound {bound:.2f}×, expected {expected:.2f}×: {_rate(rate)} tokens a second become "
        f"{_rate(rate * expected)}. "
        f"With every guess checked and {numbers['accepted']:g} of 100 accepted: "
        f"{expected_checked:.2f}×; {_from(checked, repaired, outside)}."
    )
    curves = [
        {"kind": "plain", "label": "nothing checked", "points": _curve(bound, plain, outside)},
        {"kind": "checked", "label": "every guess checked", "points": _curve(checked, repaired, outside)},
    ]
    point = {"kind": "own", "label": "your model", "waits": waits, "speedup": expected, "words": text}
    return {"text": text, "curves": curves, "own": point}


def _read(field: Field, value: Any) -> float:
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
    if not is_number or not field.low <= value <= field.high:
        raise LoraDropError(f"{field.label} must be a number from {field.low:g} to {field.high:g}.")
    return float(value)


def _shape(layers: int, width: int, bits: float) -> ModelShape:
    """The user's model: the proportions and the vocabulary of `LIKE`, all matrices with so many bits."""
    like = paper.SHAPES[LIKE]
    heads = max(1, round(like.num_heads * width / like.hidden_size))
    size = bits / 8 / ITEMSIZE
    return replace(
        like,
        num_layers=layers,
        hidden_size=width,
        num_heads=heads,
        num_kv_heads=max(1, round(heads * like.num_kv_heads / like.num_heads)),
        intermediate_size=round(like.intermediate_size * width / like.hidden_size),
        matrix_size=size,
        head_size=size,
    )


def _curve(bound: float, cycle: tuple[float, float], outside: float) -> list[list[float]]:
    """Expected speedups by the share that waits; the rest of the kernels' time computes a row."""
    shares = [(1 - outside) * i / STEPS for i in range(STEPS + 1)]
    return [[share, round(expected_speedup(bound, cycle, 1 - outside - share, outside), 4)] for share in shares]


def _from(bound: float, cycle: tuple[float, float], outside: float) -> str:
    """From which share on a checked setting gains, as the end of a sentence."""
    passes, extra_rows = cycle
    row_cost = (1 - outside * passes - (1 - outside) / bound) / extra_rows  # at which it breaks even
    if row_cost <= 0:
        return "it gains nowhere"
    return f"it pays where more than {waits_of(row_cost, outside):.0%} of a step waits for weights"


def _rate(rate: float) -> str:
    return f"{rate:.3g}" if rate < 1000 else f"{rate:,.0f}"
