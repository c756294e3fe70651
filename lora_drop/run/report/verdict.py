"""What a run says, in a sentence: a pure function of its trace, also of one that is old or was cut short.

`verdict` gathers the facts (`facts_of`), takes the first kind that fits, and says it; every figure of the text is one
of the facts. What a lane's text is worth is in `lane_facts`, the same for LoRA-Drop's lane and for a third one.
"""

from __future__ import annotations

from typing import Any, Literal

from lora_drop.method.collapse import collapse_at, repeated_share
from lora_drop.method.quality import ABSURD, reads
from lora_drop.run.report.align import align, word_at
from lora_drop.run.report.figures import BY_CHANCE, Figures, schedule_of
from lora_drop.run.report.speed import cycles, makes_claims, speedup_interval
from lora_drop.run.report.verdict_words import said
from lora_drop.run.report.words import speed_of
from lora_drop.run.trace.records import BASELINE, THIRD, JudgeRecord, StepRecord, Verdict
from lora_drop.run.trace.trace import Trace, first_divergence

Kind = Literal["stopped", "nothing_skipped", "lossless", "collapsed", "compared"]


def verdict(trace: Trace) -> Verdict:
    """The verdict of a run: `{"kind", "text", "facts"}`. The same trace gives the same one."""
    facts = facts_of(trace)
    kind = kind_of(facts)
    return {"kind": kind, "text": said(kind, facts), "facts": facts}


def kind_of(facts: dict[str, Any]) -> Kind:
    """The first kind that fits."""
    if facts["stopped"]:
        return "stopped"
    if facts["nothing"]:
        return "nothing_skipped"
    words = facts["words"]
    if facts["accept"] == 1 and words and words["first"] is None:
        return "lossless"
    return "compared" if facts["collapsed_word"] is None else "collapsed"


def facts_of(trace: Trace) -> dict[str, Any]:
    """Every figure of the verdict, by its name; None where one is not known."""
    figures = Figures(trace.header, counts_bytes=trace.summary is None)  # which takes long
    for record in trace.records():
        if record is not trace.header:
            figures.add(record)
    header, now = trace.header, figures.now()
    main = header.main
    config: dict[str, Any] = dict(main["config"])
    has_baseline = BASELINE in trace.steps and main["id"] != BASELINE
    return {
        "lane": main["id"],
        "tokens": {name: len(steps) for name, steps in trace.steps.items()},
        "stopped": _stopped(trace),
        "nothing": _nothing(trace),
        "part": config.get("part", "block"),
        "accept": config.get("accept") or 0,
        "head": config.get("head", "full"),
        "corrections": _corrections(config),
        "skipped_share": skipped_share(trace, main["id"]),
        **_speed(trace, main["id"], now, has_baseline),
        "kv_saved": now["kv_saved"] if has_baseline else None,
        **lane_facts(trace, figures, main["id"]),
        "baseline_collapsed_word": _loop(trace, BASELINE)[1] if has_baseline else None,
        "third": _third(trace, figures, config),
    }


def lane_facts(trace: Trace, figures: Figures, lane: str) -> dict[str, Any]:
    """What a lane's text is beside the baseline's.

    `words` (`Alignment.counts`) and `first_token` say where they differ; `quality_loss` is in nats per token, on the
    text that `loss_of` names; `collapsed_word` is where its loop begins; `absurd_word` holds the first token that the
    full model finds absurd. Words are counted from 0.
    """
    is_beside = BASELINE in trace.steps and lane != BASELINE
    loss, loss_of = figures.loss(lane)
    loop, collapsed_word = _loop(trace, lane)
    ids, usual = trace.token_ids(lane), trace.token_ids(BASELINE) if is_beside else []
    how = reads(loss, repeated_share(ids), repeated_share(usual)) if is_beside else None
    texts = [step.text for step in trace.steps[lane]]
    absurd = None
    if not trace.header.sampling.get("temperature"):  # a sampled token may be one that no argmax would be
        found = (step for step, audit in sorted(trace.audits[lane].items()) if (audit.regret or 0) > ABSURD)
        absurd = next(found, None)
    return {
        "words": align(trace.text(BASELINE), trace.text(lane)).counts if is_beside else None,
        "first_token": first_divergence(usual, ids) if is_beside else None,
        "quality_loss": loss,
        "loss_of": loss_of,
        "reads": "badly" if loop is not None and how else how,
        "collapsed_word": collapsed_word,
        "absurd_word": None if absurd is None else word_at(texts, absurd),
    }


def skipped_share(trace: Trace, lane: str) -> float | None:
    """The share of layer runs that the lane spared, of those that the full model makes for the tokens that stand.

    A run of a layer is one pass over its weights, of however many rows; those for tokens that were taken back count.
    None without a decode step.
    """
    layers, kept = trace.header.model["layers"], len(trace.steps[lane]) - 1
    if kept < 1:
        return None
    first = min(trace.header.config_of(lane).get("dropped") or [layers])
    passes = trace.passes[lane]
    ran = sum(sum(one.active) for one in passes if isinstance(one, StepRecord) and one.step)
    ran += sum(layers - first for one in passes if isinstance(one, JudgeRecord))
    return 1 - ran / (layers * kept)


def _stopped(trace: Trace) -> str | None:
    """Why a run has no end: it was `stopped`, or its file was `cut`."""
    if trace.summary is None:
        return "cut"
    return "stopped" if any(lane.get("ended") == "stopped" for lane in trace.summary.lanes.values()) else None


def _nothing(trace: Trace) -> str | None:
    """Why nothing was skipped: `period`, no `layers`, the `head` alone is screened, or no `step` was a LoRA step."""
    main = trace.header.main
    schedule = schedule_of(trace.header, dict(main["config"]))
    if schedule.is_baseline:
        return "period" if schedule.dropped else "layers"
    if not schedule.dropped:
        return "head"
    passes = trace.passes[main["id"]]
    return None if any(isinstance(one, StepRecord) and one.kind == "lora" for one in passes) else "steps"


def _corrections(config: dict[str, Any]) -> str | None:
    """None where corrections ran; else `off`, as was asked for, or `missing`. A trace that does not say has some."""
    if config.get("rank") or "rank" not in config:
        return None
    return "off" if config.get("adapters") == "none" else "missing"


def _speed(trace: Trace, lane: str, now: dict[str, Any], has_baseline: bool) -> dict[str, Any]:
    speedup, bound = (now["speedup"], now["bound"]) if has_baseline else (None, None)
    interval: list[float] | None = None
    speed = None
    if has_baseline and not makes_claims(trace.header):
        speed = "reference"
    elif speedup is not None:
        known = trace.summary.speedup_interval if trace.summary else None
        interval = known or speedup_interval(cycles(trace.passes[BASELINE]), cycles(trace.passes[lane]))
        speed = speed_of(speedup, interval) or "short"
    return {
        "speed": speed,
        "speedup": speedup,
        "speedup_interval": interval,
        "bound": bound,
        "by_chance": bool(speedup and bound and speedup > BY_CHANCE * bound),
        "idle": trace.header.idle,
    }


def _loop(trace: Trace, lane: str) -> tuple[int | None, int | None]:
    """The token where the loop begins in which a lane's text ends, and its word; None where it does not."""
    ids = trace.token_ids(lane)
    ended = trace.summary.lanes[lane].get("ended") if trace.summary else None
    at = collapse_at(ids[:-1] if ended == "stop" else ids)
    return at, None if at is None else word_at([step.text for step in trace.steps[lane]], at)


def _third(trace: Trace, figures: Figures, config: dict[str, Any]) -> dict[str, Any] | None:
    """The facts of a third lane, with `breaks_after`: the words before its loop or its first absurd word begin."""
    lane = next((one for one in trace.header.lanes if one["id"] == THIRD), None)
    if lane is None or BASELINE not in trace.steps:
        return None
    own: dict[str, Any] = dict(lane["config"])
    found = lane_facts(trace, figures, THIRD)
    breaks = [(found["collapsed_word"], "loop"), (found["absurd_word"], "absurd")]
    after, how = min(((at, how) for at, how in breaks if at is not None), default=(None, None))
    is_bare = bool(config.get("rank")) and not own.get("rank") and own.get("reuse") == config.get("reuse")
    return {"lane": THIRD, "label": lane["label"], "is_bare": is_bare, "breaks_after": after, "how": how, **found}
