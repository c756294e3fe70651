"""What is told of a run, from its trace: the verdict, why its charts look as they do, where its time goes."""

from __future__ import annotations

import dataclasses
from typing import Any

from lora_drop.run.report.parts import parts_of
from lora_drop.run.report.verdict import verdict
from lora_drop.run.report.why import why
from lora_drop.run.trace.records import Summary
from lora_drop.run.trace.trace import Trace


def told_of(trace: Trace) -> dict[str, Any]:
    """`{"verdict", "why", "parts"}` of a run, also of one that was cut short."""
    told = verdict(trace)
    parts = parts_of(trace, told["facts"]["bound"])
    return {"verdict": told, "why": why(trace, parts), "parts": parts}


def with_told(trace: Trace, summary: Summary) -> Summary:
    """The run's summary with what is told of the run."""
    return dataclasses.replace(summary, **told_of(dataclasses.replace(trace, summary=summary)))
