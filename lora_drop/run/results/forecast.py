"""Measured settings for the page's forecast: it shows the nearest one to the settings of the controls."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from typing import Any

from lora_drop.errors import LoraDropError
from lora_drop.method.config import default_range
from lora_drop.method.cost import chance_of
from lora_drop.method.presets import PRESETS
from lora_drop.run.report.speed import SLOWER
from lora_drop.run.results.preset_results import Measured, regret_of, verdict_of
from lora_drop.run.results.rows import Row
from lora_drop.run.results.safe_zone import place_of, setting_of

# A measured setting further away is no neighbour. 1 is a quarter of the layers, two doublings of the period or 0.5 of
# accept.
NEAR = 1.0


def forecast_facts(measured: Measured, sweep: list[Row], num_layers: int) -> dict[str, Any]:
    """What the page's forecast (`assets/js/controls/expected.js`) chooses from, and its limits.

    Args:
        measured: the presets' rows.
        sweep: rows measured with the same weights.

    Returns:
        `{"rows", "near", "slower"}`. A row has `label`; what it must share with a setting: `reuse`, `part`, `refresh`,
        `corrected`, `early`; what may be near: `layers` (those skipped), `range` (that they are spread over; None if
        they were chosen), `period`, `accept`; and its results: `regret`, `reads` in words, and `chance`, that a draft
        is accepted if those before it were. None where it was not measured.
    """
    presets = [
        row | {"label": PRESETS[name].label} for rows in (measured.rows, measured.bare) for name, row in rows.items()
    ]
    return {
        "rows": [fact for row in [*presets, *sweep] for fact in _fact(row, num_layers)],
        "near": NEAR,
        "slower": SLOWER,
    }


def _label(row: Row) -> str:
    chosen = ", chosen layers" if row.get("drop_layers") else ""
    return place_of(row) + chosen + (f", accept {row['accept']:g}" if row.get("accept") else "")


def _fact(row: Row, num_layers: int) -> Iterator[dict[str, Any]]:
    config = setting_of(row)
    if config is None:
        return
    with suppress(LoraDropError):  # of another model
        schedule = config.schedule_for(num_layers)
        if not (schedule.has_lora_steps and schedule.dropped) or schedule.lookup:
            return
        accepted = row.get("accepted") if schedule.verifies else None
        is_corrected = row.get("adapters") not in (None, "none") and row.get("corrections", True)
        yield {
            "label": row.get("label") or _label(row),
            "reuse": schedule.reuse,
            "part": schedule.part,
            "refresh": schedule.refresh,
            "corrected": is_corrected,
            "early": schedule.is_adaptive,
            "layers": list(schedule.dropped),
            "range": None if config.drop_layers else list(config.layers or default_range(num_layers)),
            "period": schedule.period,
            "accept": schedule.accept,
            "regret": regret_of(row),
            "reads": None if regret_of(row) is None else verdict_of(row),
            "chance": None if accepted is None else chance_of(accepted, schedule.period - 1),
        }
