"""A run in at most 2 kB of JSON, for a program that reads it instead of the trace."""

from __future__ import annotations

import json
from bisect import bisect_right
from typing import Any

from lora_drop.errors import LoraDropError
from lora_drop.run.report.commands import link_of
from lora_drop.run.report.speed import speedup_words
from lora_drop.run.trace.trace import Trace

MOST = 2000  # bytes of all
MOST_LINK, MOST_VERDICT = 700, 400
CUT = " […]"  # after a text that was cut


def brief(trace: Trace) -> dict[str, Any]:
    """Both texts, cut to fit, the speed with its interval, the verdict, and a link that repeats the run on the page.

    Raises:
        LoraDropError: the run has no verdict.
    """
    summary = trace.summary
    if summary is None or summary.verdict is None:
        raise LoraDropError("the run ended without a verdict: run it again.")
    link, facts = link_of(trace.header), summary.verdict["facts"]
    result: dict[str, Any] = {
        "verdict": _cut(summary.verdict["text"], MOST_VERDICT),
        "speed": {
            "speedup": summary.speedup,
            "interval": summary.speedup_interval,
            "bound": summary.bound,
            "note": speedup_words(summary.speedup, summary.speedup_interval),
        },
        "regret": facts["quality_loss"],
        "accepted": summary.accepted,
        "model": _cut(trace.header.model["id"], 80),
        "link": link if len(link) <= MOST_LINK else None,
    }
    for name, lane in summary.lanes.items():
        figures = {key: lane.get(key) for key in ("tokens", "thoughts", "tokens_per_second", "ended")}
        result[name] = {"text": "", "is_cut": False} | {
            key: value for key, value in figures.items() if value is not None
        }
    room = (MOST - _size(result)) // len(summary.lanes)
    for name in summary.lanes:
        answer = trace.answer(name)
        result[name]["text"] = _cut(answer, room)
        result[name]["is_cut"] = result[name]["text"] != answer
    return result


def as_json(result: Any) -> str:
    """JSON as a program gets it; half a character becomes a question mark."""
    return json.dumps(result, ensure_ascii=False).encode("utf-8", "replace").decode()


def _size(value: Any) -> int:
    return len(as_json(value).encode())


def _cut(text: str, most: int) -> str:
    """The text, or its beginning with a mark, in at most `most` bytes of JSON without the quotes."""
    text = text.encode("utf-8", "replace").decode()
    if _size(text) - 2 <= most:
        return text
    return text[: bisect_right(range(most), most + 2, key=lambda end: _size(text[:end] + CUT)) - 1] + CUT
