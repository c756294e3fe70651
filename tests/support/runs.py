"""Runs that tests look at, of a model and of none."""

from collections.abc import Iterable, Iterator
from dataclasses import replace
from typing import Any

from lora_drop.method.config import LoraDropConfig
from lora_drop.run.report.steps import about_steps
from lora_drop.run.request import Request
from lora_drop.run.run import run
from lora_drop.run.trace.records import BASELINE, LORA_DROP, Record, StepRecord
from lora_drop.run.trace.trace import Trace, gather
from tests.support.made import audit, header, step, summary
from tests.support.page import HOSTILE

# A random model's drafts are kept now and then, also such that the full model would not write itself.
JUDGED = LoraDropConfig(period=4, layers=(1, 4), drop_ratio=1.0, refresh="repair", kv="write", accept=0.6)


def about_step(trace: Trace, lane: str, step: int) -> dict[str, Any]:
    """What the page shows of one step."""
    return about_steps(trace, lane, step, 1)[0]


def timed(records: Iterable[Record], **ms: float) -> list[Record]:
    """The records with the same time for each step of a lane; `each` is that of the lanes that are not named."""
    return [
        replace(record, ms=ms[record.lane if record.lane in ms else "each"])
        if isinstance(record, StepRecord)
        else record
        for record in records
    ]


def taken_back(loaded, tokens: int = 40) -> Trace:
    """A run in which tokens are taken back, and the last drafts judged."""
    return gather(run(loaded, Request("Why?", JUDGED, tokens, ignore_eos=True)))


def hostile_run() -> Iterator[Record]:
    """A hand-made run whose every text tries to be code."""
    hostile = header(prompt=HOSTILE, device={"name": HOSTILE, "type": "cpu"}, sampling={"notes": [HOSTILE]})
    hostile.lanes[0]["label"] = hostile.model["id"] = HOSTILE
    yield hostile
    texts = [HOSTILE, "</script><script>alert(3)</script>", "\ud800", "{{this}}", "\x00\u2028", "](javascript:x)", "Z"]
    for number, text in enumerate(texts):
        yield step(BASELINE, number, "refresh" if number else "prefill", 1.0, text=text)
        yield step(LORA_DROP, number, ("refresh", "lora")[number % 2] if number else "prefill", 1.0, text=text)
        if number:
            yield audit(number, drift=[0.1, None], cosine=[0.9, None], kl=None, agrees=False, argmax_text=HOSTILE)
    own = {"tokens": 7, "prefill_ms": 1.0, "kv_bytes": 1}
    yield summary(own=own, speedup=1.0, bound=1.1, kv_saved=0.1, top1_agreement=0.0)
