"""Both lanes on one prompt, a step each in turn: what the clocks say.

A lane's speed is the tokens that it keeps over the time of all its passes, those for tokens taken back included.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from lora_drop.adapters.bank import AdapterBank
from lora_drop.decode import Decoder, Judged, Lane, Rewind, Sampling, StepResult
from lora_drop.errors import LoraDropError
from lora_drop.method.cost import speed_bound
from lora_drop.method.interval import cycles
from lora_drop.method.schedule import Schedule, baseline_schedule
from lora_drop.models.load import LoadedModel
from lora_drop.run.request import BASELINE, LORA_DROP

Event = StepResult | Rewind | Judged


@dataclass(frozen=True)
class Pass:
    """What is kept of an event of a lane: its step, kind, milliseconds and rows; a last judging has no step."""

    step: int | None
    kind: str
    ms: float
    rows: int


@dataclass(frozen=True)
class Timed:
    """The baseline and other lanes, run to their ends, and each one's passes after prefill."""

    lanes: dict[str, Lane]
    passes: dict[str, list[Pass]]

    def cycles(self, name: str = LORA_DROP) -> list[tuple[float, float]]:
        """The milliseconds of the baseline and of a lane for the same tokens, of each whole refresh cycle."""
        last, taken = 0, []
        for one in self.passes[name]:
            step = last if one.step is None else one.step
            taken.append((one.ms, step - last, one.kind != "lora"))
            last = step
        return cycles([one.ms for one in self.passes[BASELINE]], taken)

    def median_ms(self, name: str) -> dict[str, float]:
        """The median milliseconds of each kind of a lane's passes: `refresh`, `lora`, `judge`."""
        kinds: dict[str, list[float]] = {}
        for one in self.passes[name]:
            kinds.setdefault(one.kind, []).append(one.ms)
        return {kind: statistics.median(ms) for kind, ms in kinds.items()}

    def refreshes(self, name: str = LORA_DROP) -> list[int]:
        """The decode steps of a lane's text that were full."""
        kinds = {one.step: one.kind for one in self.passes[name] if one.step is not None}
        return [step for step, kind in kinds.items() if kind == "refresh" and step <= self.lanes[name].decode_steps]


def time_lanes(
    loaded: LoadedModel,
    decoder: Decoder,
    prompt: Tensor,
    kinds: dict[str, tuple[Schedule, AdapterBank | None]],
    new_tokens: int,
    stop_ids: frozenset[int] = frozenset(),
) -> Timed:
    """Run the baseline and other lanes greedily, a step each in turn, each turn begun by another lane.

    Args:
        prompt: (1, P).
        kinds: the schedule and the bank of each lane beside the baseline, by name.
        stop_ids: tokens that end a text; none runs to `new_tokens`.

    Raises:
        LoraDropError: there is no memory for the lanes.
    """
    kinds = {BASELINE: (baseline_schedule(loaded.num_layers), None), **kinds}
    try:
        lanes = {name: Lane(decoder, prompt, *kind, Sampling(), new_tokens, stop_ids) for name, kind in kinds.items()}
        passes: dict[str, list[Pass]] = {name: [] for name in lanes}
        order = list(lanes)
        while any(not lane.ended for lane in lanes.values()):
            for name in order:
                if not lanes[name].ended:
                    passes[name] += _passes([next(lanes[name])])
            order = order[1:] + order[:1]
    except torch.OutOfMemoryError:
        raise LoraDropError(
            f"{loaded.id} does not fit into the memory of {loaded.device} with {prompt.shape[1]} + {new_tokens} "
            "tokens: lower them, or take a smaller model."
        ) from None
    return Timed(lanes, passes)


def bound_of(
    loaded: LoadedModel, schedule: Schedule, bank: AdapterBank | None, prompt_tokens: int, timed: Timed
) -> float:
    """The bound of a timed lane, with the refreshes that happened."""
    rank, corrected = (bank.rank, bank.layers) if bank else (0, None)
    steps = timed.lanes[LORA_DROP].decode_steps
    return speed_bound(loaded.shape, schedule, steps, prompt_tokens, rank, corrected, timed.refreshes())


def _passes(events: Iterable[Event]) -> list[Pass]:
    """The passes among events; a rewind is none, the refresh after it has the pass's time."""
    found = []
    for event in events:
        if isinstance(event, StepResult) and event.kind != "prefill":
            found.append(Pass(event.step, event.kind, event.ms, event.rows))
        elif isinstance(event, Judged):
            found.append(Pass(None, "judge", event.ms, event.rows))
    return found
