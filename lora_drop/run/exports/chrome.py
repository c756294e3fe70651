"""A run as Chrome's trace event JSON: what Perfetto (ui.perfetto.dev) and chrome://tracing open.

The process is the run, a thread is a lane, and a slice is a pass: a step (rejected or not), or the last verification
of drafts. A lane's slices follow each other on the lane's clock, without gaps. Lanes took turns on the device, so
slices above each other in the viewer did not run at the same time.
"""

from __future__ import annotations

from typing import Any

from lora_drop.errors import LoraDropError
from lora_drop.run.exports.templates import printable
from lora_drop.run.trace.records import BASELINE, RewindRecord, StepRecord, number
from lora_drop.run.trace.trace import Trace, first_divergence

PROCESS = 1
CLOCKS = (
    "Each lane is on its own clock, which starts at 0 with its prefill and runs only during its steps. The lanes took "
    "turns on one device: events of two lanes at the same time did not happen at the same time."
)
LONGEST_MS = 30 * 24 * 3600 * 1000.0  # of a step: a month; sums of longer ones could be infinite


def chrome_trace(trace: Trace) -> dict[str, Any]:
    """The run as a trace event object, ready for `json.dumps`: no NaN, whole microseconds, events in order of time.

    A lane's pass is a complete event, named by its kind, with the token and its figures in `args`. A counter shows the
    bytes of the lane's caches. Instants mark early refreshes, rejections, and the first token that differs from the
    baseline's.

    Raises:
        LoraDropError: the time of a pass is negative, or longer than a month.
    """
    header = trace.header
    process = printable(f"LoRA-Drop: {header.model['id']} on {header.device['name']}")
    events = [_metadata("process_name", 0, name=process)]
    timed: list[dict[str, Any]] = []
    for thread, lane in enumerate(header.lanes, start=1):
        events.append(_metadata("thread_name", thread, name=printable(lane["label"])))
        events.append(_metadata("thread_sort_index", thread, sort_index=thread))
        timed += _lane_events(trace, lane["id"], thread)
    # The sort is stable: an instant stays behind its slice, and viewers nest it there.
    timed.sort(key=lambda event: event["ts"])
    return {
        "traceEvents": events + timed,
        "displayTimeUnit": "ms",
        "otherData": {
            "clocks": CLOCKS,
            "model": printable(header.model["id"]),
            "dtype": printable(header.model["dtype"]),
            "device": printable(header.device["name"]),
            "prompt": printable(header.prompt),
            "prompt_tokens": header.prompt_tokens,
            "seed": header.seed,
            "complete": trace.summary is not None,
        },
    }


def _lane_events(trace: Trace, lane: str, thread: int) -> list[dict[str, Any]]:
    events, elapsed, ended = [], 0.0, 0  # in ms, in whole microseconds
    differs = None
    if lane != BASELINE and BASELINE in trace.steps:
        differs = first_divergence(trace.token_ids(BASELINE), trace.token_ids(lane))
    for record in trace.passes[lane]:
        began = ended
        if isinstance(record, RewindRecord):
            events.append(_instant("tokens taken back", thread, began, {"back_to_step": record.to}))
            continue
        name = f"step {record.step}" if isinstance(record, StepRecord) else "the last verification"
        if not 0 <= record.ms <= LONGEST_MS:
            raise LoraDropError(f"{name} of lane {lane} took {record.ms:g} ms: no clock showed that.")
        elapsed += record.ms
        # The sum is rounded, not each pass, so that the passes touch and add up to the lane's time.
        ended = round(1000 * elapsed)
        span: dict[str, Any] = {"dur": ended - began, "cat": "step"}
        if not isinstance(record, StepRecord):
            events.append(_event("X", "judge", thread, began, **span, args={"rows": record.rows, "kept": record.kept}))
            continue
        stands = trace.stands(record)
        name = record.kind if stands else f"{record.kind}, taken back"
        events.append(_event("X", name, thread, began, **span, args=_args(trace, record, stands)))
        if record.trigger is not None:
            events.append(_instant(f"early refresh ({record.trigger})", thread, began, {"step": record.step}))
        if stands and record.step == differs:
            theirs = trace.steps[BASELINE][differs].text
            args = {"step": record.step, "baseline": printable(theirs), "lane": printable(record.text)}
            events.append(_instant("first token that differs from the baseline", thread, began, args))
        # Viewers tell counters apart by process and name only, so the lane is in the name.
        events.append(_event("C", f"KV bytes: {lane}", thread, ended, args={"bytes": record.kv_bytes}))
    return events


def _args(trace: Trace, step: StepRecord, stands: bool) -> dict[str, Any]:
    args = {
        "token": printable(step.text),
        "token_id": step.token_id,
        "step": step.step,
        "layers_run": sum(step.active),
        "entropy": step.entropy,
        "kv_bytes": step.kv_bytes,
        **({"rows": step.rows} if step.rows > 1 else {}),
    }
    audit = trace.audits[step.lane].get(step.step) if stands else None
    if audit is None:
        return args
    return args | {
        "kl": audit.kl,
        "agrees": audit.agrees,
        "full_model_says": printable(audit.argmax_text),
        "mean_drift": number(audit.mean_drift, 6),
    }


def _event(phase: str, name: str, thread: int, at: int, **more: Any) -> dict[str, Any]:
    return {"ph": phase, "name": printable(name), "pid": PROCESS, "tid": thread, "ts": at, **more}


def _instant(name: str, thread: int, at: int, args: dict[str, Any]) -> dict[str, Any]:
    return _event("i", name, thread, at, s="t", cat="mark", args=args)


def _metadata(event: str, thread: int, **args: Any) -> dict[str, Any]:
    return {"ph": "M", "name": event, "pid": PROCESS, "tid": thread, "args": args}
