"""Print a run, for programs and for people; `run` and `replay` print the same."""

from __future__ import annotations

import re
import shutil
import textwrap
from typing import Any

from lora_drop.cli.output import Column, cell, print_json, print_table, spread
from lora_drop.method.cost import human_bytes
from lora_drop.run.report.report import Report
from lora_drop.run.report.speed import speedup_words
from lora_drop.run.report.verdict import conclusions
from lora_drop.run.trace.records import FREE, TOGETHER, Header
from lora_drop.run.trace.trace import Trace

COLUMNS: dict[str, Column] = {
    "method": lambda row: row["method"] or row["label"],
    "tokens/s": ("tokens_per_second", ".1f"),
    "speedup": ("speedup", ".2f", "x"),
    "95%": spread,
    "layer reads": ("layer_runs", ".1f"),
    "layer rows": ("layer_rows", ".1f"),
    "bytes a token": lambda row: "-" if row["bytes"] is None else human_bytes(row["bytes"]),
    "accepted": ("accepted", ".1%"),
    "text": ("text",),
    "K/V": lambda row: human_bytes(row["kv_bytes"]),
}


def run_object(report: Report, concluded: dict[str, Any]) -> dict[str, Any]:
    """The JSON object of a run; other programs read its keys.

    A run with a list of methods also has `lanes`: by the method, the lane's object with the figures of `lane_table`.

    Args:
        concluded: `conclusions` of the report.
    """
    verdict, table = concluded["verdict"], concluded["table"]
    trace, summary = report.trace, report.trace.summary
    lanes: dict[str, Any] = {"baseline": None, "lora_drop": None}
    main = trace.header.main
    for name in trace.steps:
        figures = summary.lanes[name] if summary else {}
        beside = {key: figures.get(key) for key in (*TOGETHER, *FREE)} if name not in lanes else {}
        lanes[name] = {
            "text": trace.text(name),
            "answer": trace.answer(name),
            "thoughts": trace.thoughts(name),
            "token_ids": trace.token_ids(name),
            "tokens_per_second": figures.get("tokens_per_second"),
            "kv_bytes": figures.get("kv_bytes", trace.steps[name][-1].kv_bytes if trace.steps[name] else 0),
            "kv_allocated_bytes": figures.get("kv_allocated_bytes"),
            "collapsed": figures.get("collapsed"),
            **beside,
        }
    methods = {row["method"]: {**lanes[row["lane"]], **row} for row in table if row["method"]}
    return {
        **lanes,
        **({"lanes": methods} if methods else {}),
        **{name: getattr(summary, name) if summary else None for name in (*TOGETHER, *FREE)},
        "config": {
            **main["config"],
            **trace.header.sampling,
            **report.lanes[report.main].refresh_counts,
            "seed": trace.header.seed,
            "model": trace.header.model,
        },
        "device": trace.header.device,
        "verdict": {name: verdict[name] for name in ("kind", "text", "facts")},
    }


def show_run(trace: Trace, as_json: bool, drawn: bool = False) -> None:
    """Print a run, as JSON or as text; for a terminal where the answers are `drawn` already, the rest in its width."""

    def show(text: str) -> None:
        print(textwrap.fill(text, shutil.get_terminal_size().columns) if drawn else text)

    report = Report.of(trace)
    concluded = conclusions(report)
    result = run_object(report, concluded)
    if as_json:
        print_json(result)
        return
    if not drawn:
        show_head(trace.header)
        _show_lanes(trace, result)
    if concluded["table"]:
        print()
        print_table(concluded["table"], COLUMNS)
    print()
    show(plain(concluded["verdict"]["text"]))
    if concluded["table"] and result["lora_drop"] is None:
        return
    if trace.summary is None:
        print("\nThe trace was cut short: it has no summary.")
        return
    early = sum(step.trigger is not None for step in trace.steps[trace.header.main["id"]])
    if early:
        config = result["config"]
        print(
            f"\n{early} of {config['refreshes']} full steps came early: "
            f"one decode step in {config['average_period']:.2f} was full"
        )
    print()
    for label, text in figures(result).items():
        show(f"{label}: {text}")
    if why := concluded["why"]["parts"]:
        show(f"where the time goes: {why}")


def figures(result: dict[str, Any]) -> dict[str, str]:
    """The figures of a run as texts, by their labels, from its JSON object."""
    differs = result["first_divergence"]  # counted from 0; in texts from 1
    words = speedup_words(result["speedup"], result["speedup_interval"])
    return {
        "speedup": words or cell(result["speedup"], ".2f", "x"),
        "bound, estimated from memory traffic": cell(result["bound"], ".2f", "x"),
        "K/V memory saved": cell(result["kv_saved"], ".1%"),
        "regret of its text, nats per token": cell(result["verdict"]["facts"]["quality_loss"], ".3f"),
        "same next token as the full model there, at LoRA steps": cell(result["top1_agreement"], ".1%"),
        "drafts that the full model accepted": cell(result["accepted"], ".1%"),
        "first differing token": cell(None if differs is None else differs + 1),
    }


def show_head(header: Header) -> None:
    """Print where a run runs, and its notes."""
    model, device = header.model, header.device
    print(plain(f"{model['id']} ({model['dtype']}) on {device['name']}, {header.prompt_tokens} tokens in"))
    for note in header.sampling.get("notes", []):
        print(plain(f"note: {note}"))


def _show_lanes(trace: Trace, result: dict[str, Any]) -> None:
    for lane in trace.header.lanes:
        figures = result[lane["id"]]
        rate = figures["tokens_per_second"]
        thoughts = "".join(step.text for step in trace.steps[lane["id"]] if step.thought)
        apart = f"thoughts, {figures['thoughts']} tokens:\n{thoughts.strip()}\n\nanswer:\n" if thoughts else ""
        print(plain(f"\n--- {lane['label']}\n{apart}{figures['answer'].strip() if apart else figures['answer']}"))
        print(
            f"    {len(figures['token_ids'])} tokens, {f'{rate:.1f} tokens/s' if rate else 'no decode step'}, "
            f"KV {human_bytes(figures['kv_bytes'])}"
        )
        if figures["collapsed"] is not None:
            print(f"    the text collapses: from token {figures['collapsed'] + 1} on it goes in circles")


def plain(text: str) -> str:
    """A text without control characters, which could write anywhere on the reader's terminal."""
    return re.sub(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]", "\ufffd", text)
