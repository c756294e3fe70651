"""`diff`: two recorded runs side by side: the settings that differ, the figures, and the answers word by word."""

from __future__ import annotations

import argparse
import shutil
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lora_drop.cli.arguments import Commands, add_command
from lora_drop.cli.output import Row, print_result, print_table
from lora_drop.cli.replay import write_export
from lora_drop.cli.run_report import figures, plain, run_object
from lora_drop.run.exports.colors import css_block
from lora_drop.run.exports.templates import escaped, filled
from lora_drop.run.report.align import side_by_side
from lora_drop.run.report.compare import compared, side_of
from lora_drop.run.report.report import Report
from lora_drop.run.report.verdict import conclusions
from lora_drop.run.trace.trace import Trace, read_trace

LONGEST = 60  # characters of a setting's value in a table


def add(commands: Commands) -> None:
    """Add the command's options."""
    parser = add_command(commands, "diff", run, "compare two recorded runs: settings, figures, answers word by word")
    parser.add_path("left", "A.jsonl")
    parser.add_path("right", "B.jsonl")
    parser.add_path("--html", "OUT.html", "the comparison as a page that opens offline")


def run(args: argparse.Namespace) -> None:
    """Run the command."""
    paths = [args.left, args.right]
    result = difference(paths, [read_trace(path) for path in paths])
    if args.html:
        write_export(paths, args.html, _page(result))
    print_result(args, result, lambda: _show(result))


def difference(paths: Sequence[Path], traces: Sequence[Trace]) -> dict[str, Any]:
    """Two runs side by side.

    Returns:
        `{"runs": [{"name", "run"}], "settings": {name: [text, text]}, "figures": {same}, "answers": {lane: {"text",
        "pieces"}}}`. `run` is `run_object`. `settings` are those that differ. `answers` are of the lanes that both
        runs have, else of the lanes that they are about, aligned as by `side_by_side`.
    """
    reports = [Report.of(trace) for trace in traces]
    results = [run_object(report, conclusions(report)) for report in reports]
    columns = []
    for report, result in zip(reports, results, strict=True):
        rates = {name: lane.tokens_per_second for name, lane in report.lanes.items()}
        columns.append({f"tokens/s, {name}": f"{rate:.1f}" for name, rate in rates.items() if rate} | figures(result))
    sides = compared({str(at): side_of(trace) for at, trace in enumerate(traces)})
    left, right = traces
    lanes = {name: (name, name) for name in left.steps if name in right.steps}
    lanes = lanes or {"main": (left.header.main["id"], right.header.main["id"])}
    return {
        "runs": [{"name": f"{'AB'[at]} {paths[at].name}", "run": results[at]} for at in (0, 1)],
        "settings": {row["name"]: row["values"] for row in sides["settings"]},
        "figures": {label: [column.get(label, "-") for column in columns] for each in columns for label in each},
        "answers": {name: side_by_side(left.text(a), right.text(b)) for name, (a, b) in lanes.items()},
    }


def _show(result: dict[str, Any]) -> None:
    width = shutil.get_terminal_size((100, 24)).columns
    a, b = (plain(run["name"]) for run in result["runs"])
    for title in ("settings", "figures"):
        rows: list[Row] = []
        for name, texts in result[title].items():
            left, right = (textwrap.shorten(plain(text), LONGEST, placeholder=" ...") for text in texts)
            rows.append({"name": name, a: left, b: right})
        print_table(rows, {title if rows else f"{title}: the same": ("name",), a: (a,), b: (b,)})
        print()
    print("words of A alone are [-so-], words of B alone {+so+}")
    for lane, answer in result["answers"].items():
        print(f"\n--- {lane}: {answer['text']}")
        if any(kind == "differ" for kind, *_ in answer["pieces"]):
            print(textwrap.fill(plain(" ".join(map(_marked, answer["pieces"]))), width))


def _marked(piece: list[str]) -> str:
    """A piece of an alignment as `wdiff` writes it."""
    kind, left, right = piece
    return left if kind == "same" else " ".join([f"[-{left}-]"] * bool(left) + [f"{{+{right}+}}"] * bool(right))


def _page(result: dict[str, Any]) -> str:
    """The comparison as HTML without scripts."""
    heads = "".join(f"<th>{escaped(run['name'])}</th>" for run in result["runs"])

    def row(left: str, right: str) -> str:
        return f"<td>{escaped(left)}</td><td>{escaped(right)}</td></tr>"

    def table(title: str, rows: dict[str, list[str]]) -> str:
        lines = "".join(f"<tr><th>{escaped(name)}</th>{row(*values)}" for name, values in rows.items())
        return f"<table><tr><th>{title}</th>{heads}</tr>{lines}</table>" if rows else f"<p>{title}: the same.</p>"

    answers = ""
    for lane, answer in result["answers"].items():
        words = "".join(f'<tr class="{kind}">{row(*texts)}' for kind, *texts in answer["pieces"])
        answers += f"<h2>{escaped(lane)}</h2><p>{answer['text']}</p><table><tr>{heads}</tr>{words}</table>"
    light, dark = css_block(":root", "light"), css_block(":root", "dark")
    blanks = {
        "styles": f"{light} @media (prefers-color-scheme: dark) {{ {dark} }}",
        "settings": table("Settings that differ", result["settings"]),
        "figures": table("Figures", result["figures"]),
        "answers": answers,
    }
    return filled("diff.html", blanks)
