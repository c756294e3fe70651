"""A run as Chrome's trace event JSON: what Perfetto (ui.perfetto.dev) and chrome://tracing open.

The process is the run, its threads are the lanes, and a slice is a pass: a step (also a rejected one), or the last
verification of drafts. A lane's passes are laid end to end on the lane's own clock, as they were measured: lanes took
turns on the device, so slices above each other in the viewer did not run at the same time.
"""

from __future__ import annotations

from typing import Any

from lora_drop.errors import LoraDropError
from lora_drop.run.exports.templates import printable
from lora_drop.run.trace.records import BASELINE, AuditRecord, RewindRecord, StepRecord
from lora_drop.run.trace.trace import Trace, first_divergence

PROCESS = 1
CLOCKS = (
    "Each lane is on its own clock, which starts at 0 with its prefill and runs only during its steps. The lanes took "
    "turns on one device: events of two lanes at the same time did not happen at the same time."
)
LONGEST_MS = 30 * 24 * 3600 * 1000.0  # of a step: a month; sums of longer ones could be infinite


def chrome_trace(trace: Trace) -> dict[str, Any]:
    """The run as a trace event object, ready for `json.dumps`: no NaN, whole microseconds, events in order of time.

    Each lane has a complete event per pass, named by its kind, with the token and its figures in `args`; a counter of
    the bytes of its caches; and instants at early refreshes, at rejections, and at the first token that differs from
    the baseline's.

    Raises:
        LoraDropError: a pass has a duration that no clock shows.
    """
    header = trace.header
    events = [_name("process_name", 0, f"LoRA-Drop: {header.model['id']} on {header.device['name']}")]
    timed: list[dict[str, Any]] = []
    for thread, lane in enumerate(header.lanes, start=1):
        events.append(_name("thread_name", thread, lane["label"]))
        events.append(_metadata("thread_sort_index", thread, {"sort_index": thread}))
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
    events, elapsed, began = [], 0.0, 0
    differs = None
    if lane != BASELINE and BASELINE in trace.steps:
        differs = first_divergence(trace.token_ids(BASELINE), trace.token_ids(lane))
    for step in trace.passes[lane]:
        if isinstance(step, RewindRecord):
            events.append(_instant("tokens taken back", thread, began, {"back_to_step": step.to}))
            continue
        name = f"step {step.step}" if isinstance(step, StepRecord) else "the last verification"
        if not 0 <= step.ms <= LONGEST_MS:
            raise LoraDropError(f"{name} of lane {lane} took {step.ms:g} ms: no clock showed that.")
        elapsed += step.ms
        # The sum is rounded, not each step, so that the steps touch and add up to the lane's time.
        ended = round(1000 * elapsed)
        span: dict[str, Any] = {"dur": ended - began, "cat": "step"}
        if not isinstance(step, StepRecord):
            events.append(_event("X", "judge", thread, began, **span, args={"rows": step.rows, "kept": step.kept}))
            began = ended
            continue
        stands = trace.stands(step)
        name = step.kind if stands else f"{step.kind}, taken back"
        events.append(_event("X", name, thread, began, **span, args=_args(trace, step, stands)))
        if step.trigger is not None:
            events.append(_instant(f"early refresh ({step.trigger})", thread, began, {"step": step.step}))
        if stands and step.step == differs:
            theirs = trace.steps[BASELINE][differs].text
            args = {"step": step.step, "baseline": printable(theirs), "lane": printable(step.text)}
            events.append(_instant("first token that differs from the baseline", thread, began, args))
        # Viewers tell counters apart by process and name only, so the lane is in the name.
        events.append(_event("C", f"KV bytes: {lane}", thread, ended, args={"bytes": step.kv_bytes}))
        began = ended
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
    return args | _audited(audit) if audit else args


def _audited(audit: AuditRecord) -> dict[str, Any]:
    drift = audit.mean_drift
    return {
        "kl": audit.kl,
        "agrees": audit.agrees,
        "full_model_says": printable(audit.argmax_text),
        "mean_drift": drift and round(drift, 6),
    }


def _event(phase: str, name: str, thread: int, at: int, **more: Any) -> dict[str, Any]:
    return {"ph": phase, "name": printable(name), "pid": PROCESS, "tid": thread, "ts": at, **more}


def _instant(name: str, thread: int, at: int, args: dict[str, Any]) -> dict[str, Any]:
    return _event("i", name, thread, at, s="t", cat="mark", args=args)


def _metadata(name: str, thread: int, args: dict[str, Any]) -> dict[str, Any]:
    return {"ph": "M", "name": name, "pid": PROCESS, "tid": thread, "args": args}


def _name(event: str, thread: int, name: str) -> dict[str, Any]:
    return _metadata(event, thread, {"name": printable(name)})
