"""Recorded runs as a static Space: `python -m lora_drop replay-space OUT TRACE.jsonl...`.

A static Space is served for free and needs no hardware: a page that lists the runs with their figures, and each run as
its self-contained replay. It opens from a disk too. Push it with `hf upload OWNER/NAME OUT . --repo-type
space`, and set its address in the app's LORA_DROP_REPLAY_URL: the app links to it when the GPU quota is used up.
"""

from __future__ import annotations

import html
import json
from pathlib import Path
from urllib.parse import urlsplit

from lora_drop.errors import LoraDropError
from lora_drop.paths import new_folder
from lora_drop.run.exports.colors import css_block
from lora_drop.run.exports.html import replay_html
from lora_drop.run.exports.templates import escaped, filled, place_of
from lora_drop.run.report.words import setting_words
from lora_drop.run.trace.trace import Trace, read_trace

TITLE = "LoRA-Drop: recorded runs"
SHORT = "LoRA-Drop decoding beside the full model, replayed"
MAX_TITLE = 100
# Figures of a summary: name, key, and form.
FIGURES = (
    ("speedup", "speedup", "{:.2f}x"),
    ("bound", "bound", "{:.2f}x"),
    ("KV saved", "kv_saved", "{:.0%}"),
    ("same next token at LoRA steps", "top1_agreement", "{:.0%}"),
)
PACES = (("baseline", "full model"), ("lora_drop", "LoRA-Drop"))


def build(out: Path, paths: list[Path], title: str = TITLE, app: str | None = None) -> dict[str, int]:
    """Write the Space.

    Args:
        out: a folder that is empty or does not exist.
        paths: trace files, in the order in which they are listed.
        app: the address of the live app, to link to.

    Returns:
        Bytes of each file, by name.

    Raises:
        LoraDropError: a trace cannot be read, the folder is in use, or the title or the address is not valid.
    """
    if not title.strip() or len(title) > MAX_TITLE or not title.isprintable():
        raise LoraDropError(f"--title must be one line of at most {MAX_TITLE} characters.")
    if app is not None and not is_web(app):
        raise LoraDropError(f"--app must be an http or https address, not {app[:80]!r}.")
    traces = [read_trace(path) for path in paths]
    names = [f"run-{number}.html" for number in range(1, len(traces) + 1)]
    files = {
        "README.md": _readme(title),
        "index.html": index_html(list(zip(names, traces, strict=True)), title, app),
        **{name: replay_html(trace) for name, trace in zip(names, traces, strict=True)},
    }
    with new_folder(out) as draft:
        for name, text in files.items():
            (draft / name).write_text(text, encoding="utf-8")
    return {name: (out / name).stat().st_size for name in files}


def index_html(runs: list[tuple[str, Trace]], title: str = TITLE, app: str | None = None) -> str:
    """The page that lists runs, each with the name of its file."""
    link = f' The app that made them: <a href="{html.escape(app)}">{html.escape(app)}</a>.' if app else ""
    dark = f"@media (prefers-color-scheme: dark) {{ {css_block(':root', 'dark')} }}"
    blanks = {
        "title": escaped(title),
        "colors": f"{css_block(':root', 'light')}\n{dark}",
        "app": link,
        "runs": "\n".join(_entry(name, trace) for name, trace in runs),
    }
    return filled("replays.html", blanks)


def _entry(name: str, trace: Trace) -> str:
    header, summary = trace.header, trace.summary
    figures: list[tuple[str, float | None, str]] = []
    if summary:
        paces = {words: summary.lanes.get(lane, {}).get("tokens_per_second") for lane, words in PACES}
        figures += [(words, pace, "{:.0f} tokens/s") for words, pace in paces.items()]
        figures += [(words, getattr(summary, key), form) for words, key, form in FIGURES]
        differs = summary.first_divergence  # counted from 0, and shown from 1, as on the page
        figures.append(("first difference at token", None if differs is None else differs + 1, "{:.0f}"))
    rows = [(words, form.format(value)) for words, value, form in figures if value is not None]
    listed = "".join(f"<div><dt>{words}</dt><dd>{value}</dd></div>" for words, value in rows)
    cut = "" if summary else '<p class="cut">Cut short: it has no summary.</p>'
    return (
        f'<li><h2><a href="{name}">{escaped(header.prompt)}</a></h2>'
        f"<p>{escaped(place_of(header))}: {escaped(', '.join(setting_words(header)))}</p>{cut}"
        + (f"<dl>{listed}</dl>" if listed else "")
        + "</li>"
    )


def _readme(title: str) -> str:
    # A JSON string is a YAML string: any title stays one value.
    return f"""---
title: {json.dumps(title, ensure_ascii=False)}
emoji: ⏩
colorFrom: blue
colorTo: yellow
sdk: static
app_file: index.html
license: apache-2.0
short_description: {SHORT}
tags:
  - text-generation
  - efficient-inference
  - arxiv:2601.02569
---

Runs of LoRA-Drop ([arXiv 2601.02569](https://arxiv.org/abs/2601.02569)) recorded with LoRA-Drop Studio, as pages that
need nothing else. `python -m lora_drop replay-space` makes them from traces.
"""


def is_web(address: str) -> bool:
    """Whether a text is an http or https address."""
    try:
        parts = urlsplit(address)
    except ValueError:
        return False
    return parts.scheme in ("http", "https") and bool(parts.netloc)
