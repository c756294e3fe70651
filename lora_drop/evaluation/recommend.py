"""The fastest setting of a sweep whose quality stays within limits."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from lora_drop.errors import LoraDropError
from lora_drop.evaluation.results.sweep_file import JSON_NAME, read_sweep


def recommend(
    path: Path, min_agreement: float | None = None, max_nll_gap: float | None = None
) -> dict[str, Any] | None:
    """The fastest row of a sweep whose quality stays within the limits; None if no row does.

    Args:
        min_agreement: least share of LoRA steps at which the full model has the same next token.
        max_nll_gap: most quality loss over all steps: how much the NLL may grow, in nats per token.

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
