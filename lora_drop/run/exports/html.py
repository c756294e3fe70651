"""A recorded run as one HTML file that needs nothing else: the page's own live view, its scripts, plotly and the run.

It opens from a disk without a network, and its Content-Security-Policy forbids one. What a run brings with it (prompt,
tokens, labels, names) is text: escaped where it is markup, and inside a script's element without any `<`.
"""

from __future__ import annotations

import dataclasses
import hashlib
import html
import re
from collections.abc import Iterator
from itertools import zip_longest
from pathlib import Path
from typing import Any

from lora_drop.paths import ASSETS
from lora_drop.run.exports.chrome import printable
from lora_drop.run.exports.colors import css_variables
from lora_drop.run.exports.scripts import BUILD_UP_STYLE, RUN_STYLES, TEMPLATES, import_map, plotly_script
from lora_drop.run.report.align import answers_side_by_side
from lora_drop.run.report.report import Report
from lora_drop.run.report.steps import inside
from lora_drop.run.report.verdict import conclusions
from lora_drop.run.report.words import setting_words
from lora_drop.run.trace.records import Header, Record, StepRecord
from lora_drop.run.trace.trace import Trace
from lora_drop.run.wire import figures_line, page_line, wire_line

ENTRY = "replay.js"  # of the page's modules, the one that mounts the live view and the method


def replay_html(trace: Trace) -> str:
    """The run as a self-contained page, also one that was cut short. The same trace gives the same page.

    The text has no lone surrogates: it can be written as UTF-8.
    """
    header = trace.header
    model = header.model
    name = f"{model['id'].removeprefix('bundled:')}, {model['dtype']}, on {header.device['name']}"
    settings = ", ".join(setting_words(header))
    cut = "" if trace.summary else ' <span class="ld-replay-cut">The trace was cut short: it has no summary.</span>'
    blanks = {
        "title": _escaped(f"{name}: {settings} - LoRA-Drop replay"),
        "styles": css_variables() + "".join(map(_read, (*RUN_STYLES, ASSETS / "css" / "replay.css", BUILD_UP_STYLE))),
        "heading": _escaped(f"LoRA-Drop: {name}"),
        "settings": _escaped(settings),
        "cut": cut,
        "prompt": _escaped(header.prompt),
        "notes": "\n".join(f"<p>Note: {_escaped(str(note))}</p>" for note in header.sampling.get("notes", [])),
        "view": _read(TEMPLATES / "live.html"),
        "run": _inert(wire_text(trace) + page_line(inside(trace)) + page_line(_answers(trace))),
        "plotly": _script(_read(plotly_script())),
        "modules": import_map(ENTRY),
        "entry": ENTRY,
    }
    # One pass: a blank's name within what fills another one stays what it is.
    return re.sub(r"\{\{(\w+)\}\}", lambda found: blanks[found[1]], _read(TEMPLATES / "replay.html"))


def wire_text(trace: Trace) -> str:
    """The run as the page gets it: its id, `wire_line` of each record, the lanes a pass each in turn, its figures."""
    header, report = _completed(trace), Report.of(trace)
    ids = [lane["id"] for lane in header.lanes]
    lines = "".join(wire_line(record, ids) for record in [header, *_in_turn(trace)])
    if trace.summary:  # concluded anew: an old file has no verdict
        lines += wire_line(dataclasses.replace(trace.summary, **conclusions(report)), ids)
    else:
        lines += page_line({"type": "cut", **conclusions(report)})
    lines += figures_line(report)
    return f'{{"type":"run","id":"{hashlib.sha256(lines.encode()).hexdigest()[:12]}","whole":true}}\n{lines}'


def _in_turn(trace: Trace) -> Iterator[Record]:
    """All passes, those for rejected tokens included (their time is in the lane's clock), each with its audit."""
    for passes in zip_longest(*trace.passes.values()):
        for one in filter(None, passes):
            yield one
            if isinstance(one, StepRecord) and trace.stands(one) and (audit := trace.audits[one.lane].get(one.step)):
                yield audit
    for audits in trace.quality.values():
        yield from audits.values()


def _answers(trace: Trace) -> dict[str, Any]:
    """Any two answers word by word: a replay has no server to ask."""
    return {"type": "answers", "pairs": answers_side_by_side({lane: trace.text(lane) for lane in trace.steps})}


def _completed(trace: Trace) -> Header:
    """The header with what the format lets out and the view draws with."""
    header = trace.header
    rules = {"period": 1, "reuse": "residual", "part": "block", "kv": "skip"}
    longest = max(len(steps) for steps in trace.steps.values())
    device: Any = {"decoder": "unknown", **header.device}  # Any: its type names no decoder
    return dataclasses.replace(
        header,
        lanes=[{**lane, "config": rules | lane["config"]} for lane in header.lanes],
        model={"kv_bytes_per_token": 0, **header.model},
        device=device,
        sampling={"max_new_tokens": longest, **header.sampling},
    )


def _escaped(text: str) -> str:
    return html.escape(printable(text))


def _inert(text: str) -> str:
    """JSON for a script's element: without `<` nothing in it can end the element or begin another one."""
    return text.replace("<", "\\u003c")


def _script(source: str) -> str:
    """A script for its element: in strings and expressions, the only places where these can be, `\\/` is `/`."""
    return re.sub(r"<(/script|!--)", r"<\\\1", source, flags=re.IGNORECASE)


def _read(path: Path) -> str:
    return path.read_text(encoding="utf-8")
