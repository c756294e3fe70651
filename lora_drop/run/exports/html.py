"""A recorded run as one HTML file that needs nothing else: the page's live view, its scripts, plotly.js and the run.

It opens from a disk, and its Content-Security-Policy forbids any network. Prompt, tokens, labels and names stay text:
escaped in markup, and without any `<` inside a script element.
"""

from __future__ import annotations

import dataclasses
import hashlib
import re
from collections.abc import Iterator
from itertools import zip_longest
from pathlib import Path
from typing import Any

from lora_drop.paths import ASSETS
from lora_drop.run.exports.colors import css_variables
from lora_drop.run.exports.scripts import BUILD_UP_STYLE, PLOTLY, RUN_STYLES, import_map
from lora_drop.run.exports.templates import TEMPLATES, escaped, filled, place_of
from lora_drop.run.report.align import answers_side_by_side
from lora_drop.run.report.report import Report
from lora_drop.run.report.steps import inside
from lora_drop.run.report.verdict import conclusions
from lora_drop.run.report.words import setting_words
from lora_drop.run.trace.records import Header, Record, StepRecord
from lora_drop.run.trace.trace import Trace
from lora_drop.run.wire import figures_line, page_line, wire_line

ENTRY = "replay.js"  # the module that mounts the live view and the method


def replay_html(trace: Trace) -> str:
    """The run, whole or cut short, as a self-contained page. The same trace gives the same page.

    The text has no lone surrogates: it can be written as UTF-8.
    """
    header = trace.header
    title = escaped(f"LoRA-Drop replay: {header.model['id'].removeprefix('bundled:')}")
    settings = f"{place_of(header)}: {', '.join(setting_words(header))}"
    cut = "" if trace.summary else ' <span class="ld-replay-cut">The trace was cut short: it has no summary.</span>'
    # Each two answers word by word, as a replay has no server to ask.
    answers = {"type": "answers", "pairs": answers_side_by_side({lane: trace.text(lane) for lane in trace.steps})}
    blanks = {
        "title": title,
        "styles": css_variables() + "".join(map(_read, (*RUN_STYLES, ASSETS / "css" / "replay.css", BUILD_UP_STYLE))),
        "settings": escaped(settings),
        "cut": cut,
        "prompt": escaped(header.prompt),
        "notes": "\n".join(f"<p>Note: {escaped(str(note))}</p>" for note in header.sampling.get("notes", [])),
        "view": _read(TEMPLATES / "live.html"),
        "run": _inert(wire_text(trace) + page_line(inside(trace)) + page_line(answers)),
        "plotly": _script(_read(PLOTLY)),
        "modules": import_map(ENTRY),
        "entry": ENTRY,
    }
    return filled("replay.html", blanks)


def wire_text(trace: Trace) -> str:
    """The run as the page gets it: its id, the lines of its records (the lanes a pass each in turn), its figures."""
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
        for record in filter(None, passes):
            yield record
            if (
                isinstance(record, StepRecord)
                and trace.stands(record)
                and (audit := trace.audits[record.lane].get(record.step))
            ):
                yield audit
    for audits in trace.quality.values():
        yield from audits.values()


def _completed(trace: Trace) -> Header:
    """The header with defaults for what the view needs and a file may lack."""
    header = trace.header
    rules = {"period": 1, "reuse": "residual", "part": "block", "kv": "skip"}
    longest = max(len(steps) for steps in trace.steps.values())
    # Any: these have keys that their types do not name.
    device: Any = {"decoder": "unknown", **header.device}
    lanes: Any = [{**lane, "config": rules | dict(lane["config"])} for lane in header.lanes]
    sampling: Any = {"max_new_tokens": longest, **header.sampling}
    return dataclasses.replace(
        header, lanes=lanes, model={"kv_bytes_per_token": 0, **header.model}, device=device, sampling=sampling
    )


def _inert(text: str) -> str:
    """JSON for a script element: without `<` nothing in it can end the element or begin another."""
    return text.replace("<", "\\u003c")


def _script(source: str) -> str:
    """A script for its element: `</script` and `<!--` occur in strings and expressions only, where `\\/` is `/`."""
    return re.sub(r"<(/script|!--)", r"<\\\1", source, flags=re.IGNORECASE)


def _read(path: Path) -> str:
    return path.read_text(encoding="utf-8")
