"""A run's plan as lanes that decode."""

from __future__ import annotations

from torch import Tensor

from lora_drop.decode import Decoder, Lane, Prefilled, Sampling
from lora_drop.models.load import LoadedModel
from lora_drop.run.records import BASELINE
from lora_drop.run.request import Plan, Request


def make_lanes(
    loaded: LoadedModel, request: Request, checked: Plan, decoder: Decoder, prompt: Tensor | Prefilled
) -> dict[str, Lane]:
    """A lane for each of the plan, by its id; a lane that is audited keeps what the audit compares."""
    return {
        name: Lane(
            decoder,
            prompt,
            lane.schedule,
            lane.bank,
            Sampling(request.temperature, request.top_p, request.seed),
            request.max_new_tokens,
            frozenset() if request.ignore_eos else loaded.stop_ids,
            watch=request.audit and name != BASELINE,
        )
        for name, lane in checked.lanes.items()
    }
