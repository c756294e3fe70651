"""Runs made by hand, of a model of four layers: every figure of their reports can be computed on paper."""

import dataclasses
from typing import Any

from lora_drop.method.cost import ModelShape
from lora_drop.run.trace.records import (
    BASELINE,
    LORA_DROP,
    AuditRecord,
    Header,
    JudgeRecord,
    Record,
    RewindRecord,
    StepRecord,
    Summary,
)
from lora_drop.run.trace.trace import Trace

SHAPE = ModelShape(
    num_layers=4,
    hidden_size=8,
    num_heads=2,
    num_kv_heads=1,
    head_dim=4,
    intermediate_size=16,
    vocab_size=32,
    tied=True,
)
DROPPED = [1, 2]
WORDS = "a b c d e f g h i j k l m n o p".split()
FULL = {"period": 1, "dropped": [], "rank": 0, "adapters": "none"}
RULES = {"period": 3, "dropped": DROPPED, "rank": 2, "reuse": "residual", "kv": "skip", "adapters": "auto"}


def header(rules: dict[str, Any] | None = None, third: dict[str, Any] | None = None, **more: Any) -> Header:
    """The header of a run in two lanes, or three; `rules` changes LoRA-Drop's settings, `more` the header."""
    configs = {BASELINE: FULL, LORA_DROP: RULES | (rules or {})}
    if third is not None:
        configs["third"] = RULES | third
    lanes: list[Any] = [
        {"id": name, "label": f"{name}: of a test", "config": config} for name, config in configs.items()
    ]
    model = {"id": "made", "dtype": "float32", "layers": 4, "shape": dataclasses.asdict(SHAPE)}
    fields: dict[str, Any] = {
        "lanes": lanes,
        "model": model,
        "device": {"name": "a CPU", "decoder": "native"},
        "prompt": "Why?",
    }
    return Header(**{**fields, "prompt_tokens": 5, "seed": 0, "software": {}} | more)


def step(lane: str, number: int, kind: Any, ms: float, **more: Any) -> StepRecord:
    """A step. Its token is the step's number and its word, unless `more` says otherwise; its caches hold 100 bytes a
    step, of LoRA-Drop's lane 60."""
    skips = kind == "lora"
    values = {
        "token_id": number,
        "text": f"{WORDS[number % len(WORDS)]} ",
        "active": [int(not (skips and layer in DROPPED)) for layer in range(4)],
        "kv_bytes": (100 if lane == BASELINE else 60) * (number + 1),
        "entropy": None,
    }
    return StepRecord(lane, number, kind=kind, ms=ms, **values | more)


def steps(lane: str, kinds: str, ms: dict[str, float], **more: Any) -> list[StepRecord]:
    """Steps by their kinds, `p`refill, `l`ora and `r`efresh, each kind with its time."""
    names = {"p": "prefill", "l": "lora", "r": "refresh"}
    return [step(lane, number, names[kind], ms[kind], **more) for number, kind in enumerate(kinds)]


def audit(step: int, lane: str = LORA_DROP, drift: list[float] | None = None, **more: Any) -> AuditRecord:
    """An audit of a lane's own token, or with `kind` of the baseline's."""
    quality: dict[str, Any] = {"audit": "quality", "drift": [], "cosine": []} if "kind" in more else {}
    values = {"drift": drift or [0.0, 0.0], "cosine": [1.0, 1.0], "kl": 0.0, "agrees": True, "argmax_text": "x"}
    return AuditRecord(lane, step, **values | quality | more)


def summary(lanes: tuple[str, ...] = (BASELINE, LORA_DROP), own: dict[str, Any] | None = None, **more: Any) -> Summary:
    """A summary with few figures: a speed for each lane, and what `own` adds."""
    values = {name: None for name in ("speedup", "bound", "kv_saved", "first_divergence", "top1_agreement")}
    own = {"tokens_per_second": 100.0, "ended": "length"} | (own or {})
    return Summary(**{"lanes": dict.fromkeys(lanes, own), **values} | more)


def hostile(trace: Trace, text: str) -> Trace:
    """The trace with `text` for each of its texts that others can write."""
    written = Trace(
        dataclasses.replace(
            trace.header,
            prompt=text,
            lanes=[lane | {"label": f"{text}: {text}"} for lane in trace.header.lanes],
            model=trace.header.model | {"id": text},
            device=trace.header.device | {"name": text, "decoder": text},
            sampling=trace.header.sampling | {"notes": [text, text], "view": text},
        )
    )
    for record in list(trace.records())[1:]:
        changes = {name: text for name in ("text", "argmax_text") if hasattr(record, name)}
        written.add(dataclasses.replace(record, **changes))
    return written


def gathered(header: Record, *records: Record) -> Trace:
    """A trace of these records."""
    assert isinstance(header, Header)
    trace = Trace(header)
    for record in records:
        trace.add(record)
    return trace


REPAIR = {"refresh": "repair", "kv": "write", "accept": 0.5}
X = {"token_id": 99, "text": "x "}  # a token that the baseline does not write


def rejecting() -> list[Record]:
    """A run in which one draft is rejected and the last two are verified at the end.

    Of the 7 decode tokens that stand 5 are drafts, in 57 ms; the baseline takes 10 ms for each of its 8.
    """
    lane = LORA_DROP
    return [
        header(REPAIR),
        *steps(BASELINE, "prrrrrrrr", {"p": 20.0, "r": 10.0}),
        step(lane, 0, "prefill", 20.0),
        step(lane, 1, "lora", 4.0),
        step(lane, 2, "lora", 4.0),
        step(lane, 3, "refresh", 12.0, rows=3),
        step(lane, 4, "lora", 5.0),
        step(lane, 5, "lora", 5.0, text="y ", token_id=98),
        audit(4, regret=0.25),
        audit(5, regret=9.0),
        RewindRecord(lane, 4),
        step(lane, 5, "refresh", 13.0, rows=2, **X),
        audit(5, regret=0.0, drift=[0.0, 0.0]),
        step(lane, 6, "lora", 4.0),
        step(lane, 7, "lora", 4.0),
        JudgeRecord(lane, 2, 6.0, 2),
        audit(6, regret=0.5),
        audit(7, regret=1.25),
    ]
