"""The records of a run as lines for the page: arrays instead of names, to keep an update small."""

from __future__ import annotations

import json
from typing import Any

from lora_drop.run.report.commands import commands_of
from lora_drop.run.report.report import Report
from lora_drop.run.report.speed import speedup_words
from lora_drop.run.report.words import lane_words, loop_words, run_words
from lora_drop.run.trace.records import (
    KINDS,
    TOGETHER,
    AuditRecord,
    Header,
    JudgeRecord,
    Record,
    RewindRecord,
    StepRecord,
    Summary,
    number,
)

# Added to the lane's number, the first value of a line, to tell the records apart; a step's line adds nothing.
AUDIT, REWIND, JUDGE = 100, 300, 400
FIGURES = 200  # what the figures' line begins with
SO_FAR = (*TOGETHER, "quality_loss", "accepted")  # the figures of it, of the lane that the run is about


def wire_line(record: Record, lane_ids: list[str]) -> str:
    """The record as a line for the page, newline included. Empty where the page needs none."""
    values = page_values(record, lane_ids)
    return "" if values is None else page_line(values)


def page_line(values: Any) -> str:
    """JSON as a line for the page, newline included."""
    return json.dumps(values, ensure_ascii=True, allow_nan=False, separators=(",", ":")) + "\n"


def figures_line(report: Report) -> str:
    """The figures so far as a line for the page, rounded to what it shows: `[200, *SO_FAR, by_chance,
    [[tokens_per_second, differs] a lane]]`."""
    figures = report.figures()
    together = [number(v, 4) if isinstance(v := figures[name], float) else v for name in SO_FAR]
    lanes = figures["lanes"].values()
    pairs = [[number(lane["tokens_per_second"], 2) or None, lane["differs"]] for lane in lanes]
    return page_line([FIGURES, *together, int(figures["by_chance"]), pairs])


def page_values(record: Record, lane_ids: list[str]) -> Any:
    """The values of a record's line for the page; None if the page does not need the record.

    Returns:
        For a header its object as in the file, with `main`, the lane that the run is about, `commands`, and `words`:
        `{"lanes": {lane: [text, ...]}, "run": [text, ...]}`, the settings of each lane and those of all lanes (tokens,
        sampling), as lists for the page to join. For a summary its object, with `words`: `{"speedup": text or null,
        "lanes": {lane: text}}`. `speedup` is shown instead of a number that says too little; `lanes` has a note on
        each lane that loops. The other records are arrays, in which `lane` and `kind` are indices:

        - step: `[lane, step, token_id, text, kind, ms, kv_bytes, entropy]`, and at an early refresh its
          trigger; of a thought that trigger or null, and 1. The active layers follow from the kind and the lane's
          `dropped` layers;
        - rewind: `[300 + lane, to]`; judge: `[400 + lane, rows, ms, kept]`;
        - audit: `[100 + lane, step, [10000 * drift, ...], kl, agrees, argmax_text]`, where `argmax_text` is 0 if both
          agree. An audit of quality has no line: the page gets the figures made from it.
    """
    match record:
        case Header():
            words = {"lanes": {name: lane_words(record, name) for name in lane_ids}, "run": run_words(record)}
            return record.to_file() | {"main": record.main["id"], "commands": commands_of(record), "words": words}
        case Summary():
            speedup = speedup_words(record.speedup, record.speedup_interval)
            return record.to_file() | {"words": {"speedup": speedup, "lanes": loop_words(record.lanes)}}
        case AuditRecord(audit="quality"):
            return None
    lane = lane_ids.index(record.lane)
    match record:
        case StepRecord():
            values: list[Any] = [lane, record.step, record.token_id, record.text, KINDS.index(record.kind)]
            values += [round(record.ms, 2), record.kv_bytes, number(record.entropy, 3)]
            if record.thought:
                return [*values, record.trigger, 1]
            return values if record.trigger is None else [*values, record.trigger]
        case RewindRecord():
            return [REWIND + lane, record.to]
        case JudgeRecord():
            return [JUDGE + lane, record.rows, round(record.ms, 2), record.kept]
    drift = [value if value is None else round(10_000 * value) for value in record.drift]
    says = 0 if record.agrees else record.argmax_text
    return [AUDIT + lane, record.step, drift, number(record.kl, 4), int(record.agrees), says]
