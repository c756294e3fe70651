"""Why the charts look as they do: a sentence for each, with the run's figures."""

from __future__ import annotations

from statistics import fmean
from typing import Any

from lora_drop.method.cost import human_bytes
from lora_drop.method.schedule import DRAFTS
from lora_drop.run.report.align import align
from lora_drop.run.report.report import LaneReport, Report
from lora_drop.run.report.speed import makes_claims
from lora_drop.run.report.words import counted
from lora_drop.run.trace.records import BASELINE, StepRecord
from lora_drop.run.trace.trace import Trace

CHARTS = ("answers", "race", "activity", "drift", "drift_map", "memory", "time", "kl", "parts")
QUOTED = 40  # characters of a word
SMALL = 1e9  # parameters; a smaller model is often wrong


def why(report: Report, parts: dict[str, Any] | None) -> dict[str, str | None]:
    """A sentence by chart, None where it has none, about the run's main lane; `parts` is `parts_of` the report."""
    trace, lane = report.trace, report.main
    if not report.lanes[lane].standing:
        return dict.fromkeys(CHARTS)
    return {
        "answers": _answers(report),
        "race": _race(report),
        "activity": _activity(trace, report.lanes[lane]),
        "drift": _drift(trace, lane),
        "drift_map": _drift_map(trace, lane),
        "memory": _memory(report),
        "time": _time(report.lanes[lane]),
        "kl": _kl(report.lanes[lane]),
        "parts": _parts(parts),
    }


def _answers(report: Report) -> str | None:
    if not report.has_baseline:
        return None
    alignment = align(report.trace.text(BASELINE), report.trace.text(report.main))
    if alignment.first is None:
        return f"Both answers have the same words.{_small(report)}"
    piece = next(piece for piece in alignment.pieces if piece.kind == "differ")
    ours, full = (f"\u201c{words[0][:QUOTED]}\u201d" if words else None for words in (piece.right, piece.left))
    if ours is None:
        return f"The first difference is word {alignment.first + 1}: {full} is missing.{_small(report)}"
    there = f"where the full model wrote {full}" if full else "which the full model did not write"
    return f"The first difference is word {alignment.first + 1}: {ours}, {there}.{_small(report)}"


def _small(report: Report) -> str:
    """A warning where the mistakes in the answers may be the model's own."""
    params = report.trace.header.model.get("params")
    if not isinstance(params, int) or not 0 < params < SMALL:
        return ""
    return f" A model of {params / 1e6:.0f} million parameters makes mistakes of its own, with every layer too."


def _race(report: Report) -> str | None:
    if not report.has_baseline or not makes_claims(report.trace.header):
        return None
    if None in (report.lanes[lane].ms_per_token for lane in (report.main, BASELINE)):
        return None
    clocks = [report.trace.clock(lane) for lane in (report.main, BASELINE)]
    least = min(map(len, clocks))
    ours, full = (clock[least - 1] for clock in clocks)
    # The prefill's token counts too, as in the bars.
    did = "finished" if len(clocks[0]) == len(clocks[1]) else f"wrote the first {counted(least + 1, 'token')}"
    gap, summary = abs(full - ours), report.trace.summary
    lead = f"{gap / 1000:.2f} s" if gap >= 10 else _ms(gap)
    prefill = f"The prompt was read once, for all lanes, in {_ms(report.trace.steps[report.main][0].ms)}."
    if summary and summary.prefill_cached:
        prefill = "Prompt cached."
    return f"LoRA-Drop {did} {lead} {'earlier' if ours < full else 'later'}. {prefill}"


def _time(lane: LaneReport) -> str | None:
    lora, full = [[step.ms for step in steps] for steps in (lane.lora + lane.rejected, lane.full)]
    if not full or not lora:
        return None
    text = f"A LoRA step took {_ms(fmean(lora))} on average, a full step {_ms(fmean(full))}"
    rows = [record.rows for record in lane.passes if isinstance(record, StepRecord) and record.rows > 1]
    text += f", since it runs {fmean(rows):.2g} tokens at once" if rows else ""
    if lane.rejected:
        text += f"; {len(lane.rejected)} of {len(lora)} LoRA steps wrote drafts that were rejected"
    return f"{text}."


def _activity(trace: Trace, lane: LaneReport) -> str | None:
    dropped, layers = lane.schedule.dropped, trace.header.model["layers"]
    steps = lane.steps[1:]
    lora = sum(step.kind in DRAFTS for step in steps)
    if not dropped or not lora:
        return "Every layer runs at every step: nothing is skipped."
    early = sum(step.trigger is not None for step in steps)
    text = f"{len(dropped)} of {layers} layers are skipped at {lora} of {len(steps)} steps; "
    text += f"all of them run at {counted(len(steps) - lora, 'full step')}"
    text += f", {early} of which came early." if early else "."
    if lane.schedule.repairs and lane.layer_rows:
        rows = f"{lane.layer_rows:.1f} layer rows per token, {layers} in the full model"
        text += f" These run earlier tokens again: {rows}."
    return text


def _drift(trace: Trace, lane: str) -> str | None:
    """The usual gap between two refreshes: mean drift at its last LoRA step, and at the refresh after it."""
    means = {step: audit.mean_drift for step, audit in trace.audits[lane].items()}
    gaps: dict[int, list[tuple[float, float]]] = {}  # by LoRA steps
    run = 0
    for step in trace.steps[lane][1:]:
        if step.kind in DRAFTS:
            run += 1
            continue
        before, after = means.get(step.step - 1), means.get(step.step)
        if run and before is not None and after is not None:
            gaps.setdefault(run, []).append((before, after))
        run = 0
    if not gaps:
        return None
    usual = max(gaps, key=lambda length: len(gaps[length]))
    grown, left = map(fmean, zip(*gaps[usual], strict=True))
    text = f"On average drift grew to {grown:.2f} in {counted(usual, 'LoRA step')}, then the refresh brought it to "
    if left < 0.005:
        return f"{text}0: it repaired the caches."
    return f"{text}{left:.2f}: it runs every layer, but reads caches that LoRA steps wrote."


def _drift_map(trace: Trace, lane: str) -> str | None:
    dropped = trace.header.config_of(lane).get("dropped") or []
    lora = [step.step for step in trace.steps[lane] if step.kind == "lora" and step.step in trace.audits[lane]]
    means = []
    for i, layer in enumerate(dropped):
        drifts = [x for step in lora if (x := trace.audits[lane][step].drift[i]) is not None]
        if drifts:
            means.append((fmean(drifts), layer))
    if len(means) < 2:
        return None
    (least, low), (most, high) = min(means), max(means)
    return f"Layer {high} drifts most at LoRA steps, {most:.2f} on average, and layer {low} least, {least:.2f}."


def _memory(report: Report) -> str | None:
    if not report.has_baseline:
        return None
    lanes = report.lanes[report.main], report.lanes[BASELINE]
    last = min(len(lane.steps) for lane in lanes) - 1
    if last < 0:  # a file that was cut short
        return None
    ours, full = (lane.steps[last].kv_bytes for lane in lanes)
    text = f"After {counted(last, 'step')} the caches hold {human_bytes(ours)}, the full model's {human_bytes(full)}"
    config = report.trace.header.config_of(report.main)
    if not config.get("dropped"):
        return f"{text}."
    if config.get("kv") == "write":
        return f"{text}: the K/V of skipped layers are written too, so no memory is saved."
    return f"{text}: skipped layers keep K/V of the prompt and of full steps only."


def _kl(lane: LaneReport) -> str | None:
    agreed, loss = (lane.quality.mean("lora_steps", name) for name in ("top1_agreement", "kl"))
    if agreed is None or loss is None:
        return None
    return (
        f"On the full model's own answer, {agreed:.0%} of LoRA steps ranked its favourite token first; their KL was "
        f"{loss:.2f} nats per token."
    )


def _parts(parts: dict[str, Any] | None) -> str | None:
    if parts is None:
        return None
    full, *others = parts["parts"]
    changes = ", ".join(_change(part, full["ms"]) for part in others)
    return f"A token took {_ms(parts['total'])}, the full model's {_ms(full['ms'])}: {changes}."


def _change(part: dict[str, Any], full: float) -> str:
    label, ms = part["label"], part["ms"]
    if part["id"] == "outside":
        return f"{_ms(abs(ms))} {'less' if ms < 0 else 'more'} outside the kernels"
    subject, s = (f"the {label}", "s") if part["id"] == "head" else (label, "")
    if abs(ms) < full / 200:
        return f"{subject} change{s} nothing"
    return f"{subject} {'save' if ms < 0 else 'cost'}{s} {_ms(abs(ms))}"


def _ms(value: float) -> str:
    return f"{value / 1000:.2f} s" if value >= 1000 else f"{value:.0f} ms" if value >= 100 else f"{value:.2f} ms"
