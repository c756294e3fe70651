"""Warm up a GPU: compile and capture what the presets need before anyone waits for it."""

from __future__ import annotations

import sys
import time
from contextlib import closing, suppress

from lora_drop.decode.static.decoder import StaticWeights
from lora_drop.errors import LoraDropError
from lora_drop.models.load import LoadedModel
from lora_drop.run.request import Request
from lora_drop.run.results.bank_presets import presets_of
from lora_drop.run.results.prompts import EXAMPLES
from lora_drop.run.run import run
from lora_drop.run.trace.records import StepRecord

SECONDS = 600.0  # most time of a warm-up, and of what a run compiles and captures before its first token


def warm_up(loaded: LoadedModel, closed: bool = False, seconds: float = SECONDS) -> None:
    """Start a run of each preset, as far as its first step; on a CPU and without graphs do nothing.

    Args:
        closed: afterwards nothing more is compiled: a run that needs it is eager in all its lanes.
        seconds: presets that come later are left out.
    """
    weights = loaded.weights
    if not isinstance(weights, StaticWeights) or not weights.captures:
        return
    end = time.monotonic() + seconds
    line = f"Preparing {loaded.id}: its passes are compiled and captured, {seconds / 60:.0f} minutes at most."
    print(line, file=sys.stderr, flush=True)
    for preset in presets_of(loaded).values():
        if time.monotonic() > end:
            break
        request = Request(next(iter(EXAMPLES.values())), preset.config, ignore_eos=True)
        # Settings that do not fit this model, or its memory: their run will say so.
        with suppress(LoraDropError), closing(run(loaded, request)) as records:
            next(record for record in records if isinstance(record, StepRecord) and record.step)
    weights.closed = closed
