"""Why the charts look as they do: a sentence for each, with the run's own figures. A chart without one has None."""

from __future__ import annotations

from collections import Counter
from typing import Any

from lora_drop.method.cost import human_bytes
from lora_drop.run.report.align import align
from lora_drop.run.report.parts import Times
from lora_drop.run.report.speed import makes_claims
from lora_drop.run.trace.records import BASELINE, StepRecord
from lora_drop.run.trace.trace import Trace

CHARTS = ("answers", "race", "activity", "drift", "drift_map", "memory", "time", "kl", "parts")  # those that have one
SHOWN = 40  # characters of a word that are quoted


def why(trace: Trace, parts: dict[str, Any] | None) -> dict[str, str | None]:
    """The sentences by chart, about the lane that the run is about; `parts` is `parts_of` the trace."""
    lane = trace.header.main["id"]
    if not any(step.step for step in trace.steps[lane]):
        return dict.fromkeys(CHARTS)
    return {
        "answers": _answers(trace, lane),
        "race": _race(trace, lane),
        "activity": _activity(trace, lane),
        "drift": _drift(trace, lane),
        "drift_map": _drift_map(trace, lane),
        "memory": _memory(trace, lane),
        "time": _time(trace, lane),
        "kl": _kl(trace, lane),
        "parts": _parts(parts),
    }


def _answers(trace: Trace, lane: str) -> str | None:
    if BASELINE not in trace.steps or lane == BASELINE:
        return None
    found = align(trace.text(BASELINE), trace.text(lane))
    if found.first is None:
        return "Both answers have the same words."
    piece = next(piece for piece in found.pieces if piece.kind == "differ")
    own, full = (f"\u201c{words[0][:SHOWN]}\u201d" if words else None for words in (piece.other, piece.one))
    if own is None:
        return f"The first difference is word {found.first + 1}: {full} is missing."
    there = f"where the full model wrote {full}" if full else "which the full model did not write"
    return f"The first difference is word {found.first + 1}: {own}, {there}."


def _race(trace: Trace, lane: str) -> str | None:
    if not makes_claims(trace.header):  # its times say nothing
        return None
    own = Times(trace, lane).per_token
    full = Times(trace, BASELINE).per_token if BASELINE in trace.steps and lane != BASELINE else None
    if own is None or full is None:
        return None
    least = min(len(trace.steps[name]) - 1 for name in (BASELINE, lane))
    return (
        f"A kept token took {_ms(own)}, one of the full model {_ms(full)}: after {least} tokens the lanes stand "
        f"{_ms(least * abs(full - own))} apart. {_prefill(trace, lane)}"
    )


def _prefill(trace: Trace, lane: str) -> str:
    """All lanes start from one pass over the prompt."""
    if trace.summary and trace.summary.prefill_cached:
        return "The prompt was not read again: it is kept from an earlier run."
    return f"The prompt was read once for all lanes, in {_ms(trace.steps[lane][0].ms)}."


def _time(trace: Trace, lane: str) -> str | None:
    times = Times(trace, lane)
    if not times.full or not (times.lora or times.taken_back):
        return None
    lora, full = times.lora + times.taken_back, times.full
    text = f"A LoRA step took {_ms(sum(lora) / len(lora))} on average, a full step {_ms(sum(full) / len(full))}"
    rows = [one.rows for one in trace.passes[lane] if isinstance(one, StepRecord) and one.rows > 1]
    text += f", since it runs {sum(rows) / len(rows):.2g} tokens at once" if rows else ""
    if times.taken_back:
        text += f"; {len(times.taken_back)} of {len(lora)} LoRA steps were for tokens that were taken back"
    return f"{text}."


def _activity(trace: Trace, lane: str) -> str | None:
    dropped, layers = trace.header.config_of(lane).get("dropped") or [], trace.header.model["layers"]
    steps = trace.steps[lane][1:]
    lora = sum(step.kind == "lora" for step in steps)
    if not dropped or not lora:
        return "Every layer runs at every step: nothing is skipped."
    early = sum(step.trigger is not None for step in steps)
    text = f"{len(dropped)} of {layers} layers are skipped at {lora} of {len(steps)} steps; "
    text += f"all of them run at {_counted(len(steps) - lora, 'full step')}"
    return f"{text}, {early} of which came early." if early else f"{text}."


def _means(trace: Trace, lane: str) -> dict[int, float]:
    """Mean drift of the skipped layers, by step."""
    known = {step: [x for x in audit.drift if x is not None] for step, audit in trace.audits[lane].items()}
    return {step: sum(values) / len(values) for step, values in known.items() if values}


def _drift(trace: Trace, lane: str) -> str | None:
    """The usual gap between two refreshes: mean drift at its last LoRA step, and at the refresh after it."""
    means = _means(trace, lane)
    gaps: list[tuple[int, float, float]] = []
    run = 0
    for step in trace.steps[lane][1:]:
        if step.kind == "lora":
            run += 1
            continue
        if run and step.step in means and step.step - 1 in means:
            gaps.append((run, means[step.step - 1], means[step.step]))
        run = 0
    if not gaps:
        return None
    usual = Counter(run for run, _, _ in gaps).most_common(1)[0][0]
    found = [gap for gap in gaps if gap[0] == usual]
    grown, left = (sum(gap[i] for gap in found) / len(found) for i in (1, 2))
    text = f"On average drift grew to {grown:.2f} in {_counted(usual, 'LoRA step')}, then the refresh brought it to "
    if left < 0.005:
        return f"{text}0: it repaired the caches."
    return f"{text}{left:.2f}: it runs every layer, but reads caches that LoRA steps wrote."


def _drift_map(trace: Trace, lane: str) -> str | None:
    dropped = trace.header.config_of(lane).get("dropped") or []
    lora = [step.step for step in trace.steps[lane] if step.kind == "lora" and step.step in trace.audits[lane]]
    means = []
    for i, layer in enumerate(dropped):
        known = [x for step in lora if (x := trace.audits[lane][step].drift[i]) is not None]
        if known:
            means.append((sum(known) / len(known), layer))
    if len(means) < 2:
        return None
    (least, low), (most, high) = min(means), max(means)
    return f"Layer {high} drifts most at LoRA steps, {most:.2f} on average, and layer {low} least, {least:.2f}."


def _memory(trace: Trace, lane: str) -> str | None:
    if BASELINE not in trace.steps or lane == BASELINE:
        return None
    last = min(len(trace.steps[name]) for name in (BASELINE, lane)) - 1
    own, full = (trace.steps[name][last].kv_bytes for name in (lane, BASELINE))
    text = f"After {_counted(last, 'step')} the caches hold {human_bytes(own)}, the full model's {human_bytes(full)}"
    config = trace.header.config_of(lane)
    if not config.get("dropped"):
        return f"{text}."
    if config.get("kv") == "write":
        return f"{text}: the K/V of skipped layers are written too, so no memory is saved."
    return f"{text}: skipped layers keep K/V of the prompt and of full steps only."


def _kl(trace: Trace, lane: str) -> str | None:
    audits = [audit for audit in trace.quality[lane].values() if audit.kind == "lora" and audit.kl is not None]
    if not audits:
        return None
    agreed = sum(audit.agrees for audit in audits) / len(audits)
    loss = sum(audit.kl or 0.0 for audit in audits) / len(audits)
    return (
        f"On the full model's own answer LoRA steps had its favourite token in {agreed:.0%} of cases and lost "
        f"{loss:.2f} nats per token."
    )


def _parts(parts: dict[str, Any] | None) -> str | None:
    if parts is None:
        return None
    own = {part["id"]: part["ms"] for part in parts["parts"]}
    repairs = "repairs" if parts["bound_with_repairs"] is not None else "full steps"
    names = {
        "layers": "skipped layers",
        "head": "the screened head",
        "refreshes": repairs,
        "taken_back": "tokens taken back",
    }
    changes = [_change(names[name], ms, own["full"]) for name, ms in own.items() if name in names]
    return f"A kept token took {_ms(parts['total'])}, the full model's {_ms(own['full'])}: {', '.join(changes)}."


def _change(what: str, ms: float, full: float) -> str:
    s = "s" if what.endswith("head") else ""
    if abs(ms) < full / 200:
        return f"{what} change{s} nothing"
    return f"{what} {'save' if ms < 0 else 'cost'}{s} {_ms(abs(ms))}"


def _ms(value: float) -> str:
    return f"{value / 1000:.2f} s" if value >= 1000 else f"{value:.0f} ms" if value >= 100 else f"{value:.2f} ms"


def _counted(number: int, what: str) -> str:
    return f"{number} {what}" if number == 1 else f"{number} {what}s"
