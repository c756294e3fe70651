"""Figures of a run: its answers, the race by distance, layer activity, drift, K/V, and where the gain comes from.

Every number is the trace's or its report's; the sentences are those of the page.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Callable, Iterator, Sequence
from itertools import groupby
from statistics import fmean
from typing import Any, NamedTuple

from lora_drop.errors import LoraDropError
from lora_drop.method.cost import human_bytes
from lora_drop.method.schedule import DRAFTS, Schedule
from lora_drop.run.exports.figures.svg import Axes, Box, Key, Svg, as_xml, wrapped
from lora_drop.run.exports.templates import place_of
from lora_drop.run.report.report import Report
from lora_drop.run.report.verdict import conclusions
from lora_drop.run.report.words import setting_words
from lora_drop.run.trace.records import BASELINE, AuditRecord, JudgeRecord, StepRecord
from lora_drop.run.trace.trace import Trace

WIDTH, EDGE, GAP = 1200, 24, 28
TINTS = ("baseline", "lora-drop", "third", "fourth")  # of the lanes, in order
TEXT, HEADING = 14, 16
LINES = 16  # of each answer; the rest is an ellipsis
LEAST = 1.5  # pixels; shorter passes are drawn together with the next one
MOST_POINTS = 400  # of a line
NOTHING = "This run has nothing to draw here."
# As on the page: the colours of what a lane saves or pays.
PARTS = {"layers": "dropped", "head": "muted", "refreshes": "refresh", "taken_back": "rejected", "outside": "edge"}


class Run(NamedTuple):
    """What the figures are drawn from."""

    svg: Svg
    report: Report
    concluded: dict[str, Any]

    @property
    def trace(self) -> Trace:
        """The run's records."""
        return self.report.trace

    @property
    def lanes(self) -> list[tuple[str, str, str]]:
        """Id, short name and colour of each lane; of four or more the last are grey."""
        return [
            (lane["id"], lane["label"].partition(":")[0], TINTS[i] if i < len(TINTS) else "muted")
            for i, lane in enumerate(self.trace.header.lanes)
        ]


Figure = Callable[[Run, Box], float]


def run_svg(trace: Trace, theme: str = "light", figure: str = "run") -> str:
    """A run as one SVG: all figures, or one of them.

    Args:
        theme: `light` or `dark`.
        figure: `run`, or one of `FIGURES`.

    Raises:
        LoraDropError: no such theme or figure.
    """
    if figure not in CHOICES:
        raise LoraDropError(f"figure must be one of {', '.join(CHOICES)}; got {figure!r}.")
    report = Report.of(trace)
    run = Run(Svg(WIDTH, theme), report, conclusions(report))
    box = Box(EDGE, EDGE, WIDTH - 2 * EDGE, 0)
    bottom = _whole(run, box) if figure == "run" else _titled(run, figure, box)
    return run.svg.write(bottom + EDGE, run.concluded["verdict"]["text"])


def _whole(run: Run, box: Box) -> float:
    bottom = _headline(run, box)
    for name in ("answers", "race", "activity"):
        bottom = _titled(run, name, box._replace(y=bottom + GAP))
    half = (box.width - 2 * GAP) / 2
    pair = [
        _titled(run, name, Box(box.x + at * (half + 2 * GAP), bottom + GAP, half, 0))
        for at, name in enumerate(("drift", "kv"))
    ]
    return _titled(run, "parts", box._replace(y=max(pair) + GAP))


def _headline(run: Run, box: Box) -> float:
    """The prompt, where and how it ran, and the verdict."""
    svg, header, verdict = run.svg, run.trace.header, run.concluded["verdict"]
    prompt = " ".join(header.prompt.split())
    svg.text(box.x, box.y + 22, prompt, 22, width=box.width, bold=True)
    about = f"{place_of(header)}: {', '.join(setting_words(header))}"
    bottom = svg.paragraph(box.x, box.y + 30, about, box.width, 13, fill="muted")
    figures = verdict["figures"]
    for at, figure in enumerate(figures):
        x = box.x + at * box.width / 3
        svg.text(x, bottom + 36, figure["value"], 28, bold=True)
        svg.text(x, bottom + 58, figure["label"], 13, "muted", box.width / 3 - GAP)
    bottom += 62 if figures else 0
    words = verdict["line"] if figures else verdict["text"]
    return svg.paragraph(box.x, bottom + 4, words, box.width, TEXT) if words else bottom


def _titled(run: Run, name: str, box: Box) -> float:
    """A figure with its title above and its sentence below; returns its bottom."""
    title, why, draw = FIGURES[name]
    run.svg.text(box.x, box.y + HEADING, title, HEADING, bold=True)
    bottom = draw(run, box._replace(y=box.y + HEADING + 8))
    sentence = run.concluded["why"].get(why)
    return run.svg.paragraph(box.x, bottom + 6, sentence, box.width, 13) if sentence else bottom


def _nothing(run: Run, box: Box) -> float:
    run.svg.text(box.x, box.y + TEXT, NOTHING, TEXT, "muted")
    return box.y + 1.5 * TEXT


def _answers(run: Run, box: Box) -> float:
    """Each lane's text, side by side: full steps underlined, the first token that differs in its colour."""
    svg, summary = run.svg, run.trace.summary
    keys = [Key("full step (all layers ran)", "refresh", "line"), Key("first token that differs", "diverged")]
    top = svg.legend(box.x, box.y, keys, box.width) + 8
    width = (box.width - GAP * (len(run.lanes) - 1)) / len(run.lanes)
    bottoms = []
    for at, (lane, name, tint) in enumerate(run.lanes):
        x, steps = box.x + at * (width + GAP), run.trace.steps[lane]
        svg.rect(Box(x, top, width, 3), tint)
        svg.text(x, top + 24, name, TEXT + 2, tint, width, bold=True)
        rate = (summary.lanes[lane] if summary else {}).get("tokens_per_second")
        figures = [f"{rate:.1f} tokens/s"] if rate else []
        figures += [f"{len(steps)} tokens", f"K/V {human_bytes(steps[-1].kv_bytes)}"] if steps else ["no token"]
        svg.text(x, top + 42, ", ".join(figures), 12, "muted", width)
        bottoms.append(_answer(run, lane, Box(x, top + 48, width, 0)))
    return max(bottoms)


def _answer(run: Run, lane: str, box: Box) -> float:
    """A lane's text in lines, at most `LINES` of them."""
    steps, differs = run.trace.steps[lane], run.report.first_difference(lane)
    baseline = run.report.lanes[lane].schedule.is_baseline
    text = "".join(step.text for step in steps)
    looks: list[str] = []  # of each character
    for step in steps:
        look = "differs" if step.step == differs else "full" if step.kind == "refresh" and not baseline else ""
        looks += [look] * len(step.text)
    svg, y, size = run.svg, box.y, TEXT + 1
    lines = wrapped(text, box.width, size)
    for number, (start, end) in enumerate(lines[:LINES]):
        y += 1.5 * size
        spans = ""
        for look, places in groupby(range(start, start + len(text[start:end].rstrip())), looks.__getitem__):
            first, *others = places
            words = as_xml(text[first : (others or [first])[-1] + 1])
            spans += _span(svg, look, words)
        if number == LINES - 1 and len(lines) > LINES:
            spans += "\u2026"
        place: dict[str, Any] = {"x": box.x, "y": y - 0.4 * size, "font_size": size, "fill": svg.color("ink")}
        svg.add("text", spans, **place, style="white-space:pre", **{"xml:space": "preserve"})
    return y


def _span(svg: Svg, look: str, words: str) -> str:
    """Markup of a part of a line. The colour of a line under text is that of the element that asks for it."""
    if look == "full":
        ink = f'<tspan fill="{svg.color("ink")}">{words}</tspan>'
        return f'<tspan fill="{svg.color("refresh")}" text-decoration="underline">{ink}</tspan>'
    return f'<tspan fill="{svg.color("diverged")}" font-weight="700">{words}</tspan>' if look else words


def _race(run: Run, box: Box) -> float:
    """A bar of tokens for each lane at the time when the first one had finished, and each pass as wide as its time."""
    svg, trace = run.svg, run.trace
    clocks = {lane: trace.clock(lane) for lane, *_ in run.lanes}
    counts = {lane: len(trace.steps[lane]) for lane in clocks}
    times = {lane: sum(width for width, _ in _passes(run, lane)) for lane in clocks}
    longest = max(times.values())
    if not 0 < longest < LONGEST_MS:
        return _nothing(run, box)
    verifies = any(lane.schedule.verifies for lane in run.report.lanes.values())
    keys = [
        Key("accepted" if verifies else "tokens", "lora-drop"),
        Key("after the first had finished", "lora-drop", "line"),
        Key("LoRA step", "lora-drop", opacity=0.35),
        Key("full step", "refresh"),
        Key("every layer", "baseline", opacity=0.6),
    ]
    top = svg.legend(box.x, box.y, [*keys, *([Key("rejected", "rejected")] if verifies else [])], box.width) + 6
    compared = [lane for lane in (run.report.main, BASELINE) if lane in clocks]
    equal = min(counts[lane] for lane in compared)
    finish = min((clocks[lane][equal - 2] for lane in compared), default=0.0) if equal > 1 else longest
    x, room = box.x + 130, box.width - 130 - 170
    unit, scale = room / max(counts.values()), (box.width - 130 - 24) / longest
    for lane, name, tint in run.lanes:
        solid = min(1 + bisect_right(clocks[lane], finish), counts[lane])
        svg.text(x - 10, top + 14, name, 13, tint, 120, text_anchor="end")
        svg.rect(Box(x, top, room, 18), "grid")
        svg.rect(Box(x, top, solid * unit, 18), tint)
        svg.rect(Box(x + solid * unit, top + 6, (counts[lane] - solid) * unit, 6), tint)
        count = equal if lane in compared and equal > 1 else counts[lane]
        seconds = (clocks[lane][count - 2] if count > 1 else 0) / 1000
        svg.text(x + room + 8, top + 14, f"{count} tokens, {seconds:.2f} s", 13)
        top += 22
    svg.text(x, top + 16, "Each token\u2019s width is its time", 12, "muted")
    axes = Axes(svg, Box(x, top + 24, longest * scale, 22 * len(run.lanes)), (0, longest), (0, 1))
    axes.draw("milliseconds after the prompt", "", least=(0, math.inf))
    for at, (lane, *_) in enumerate(run.lanes):
        y = axes.box.y + 22 * at + 3
        for (tint, opacity), boxes in _merged(_passes(run, lane), x, y, scale).items():
            svg.rects(boxes, tint, fill_opacity=None if opacity == 1 else opacity)
    return axes.box.y + axes.box.height + 36


LONGEST_MS = 1e12  # a file may hold any times


def _passes(run: Run, lane: str) -> Iterator[tuple[float, tuple[str, float]]]:
    """Milliseconds, and colour with opacity, of each decode pass of a lane."""
    tint = next(tint for name, _, tint in run.lanes if name == lane)
    every = run.report.lanes[lane].schedule.is_baseline
    for record in run.trace.passes[lane]:
        if isinstance(record, JudgeRecord):
            yield max(record.ms, 0.0), ("refresh", 1.0)
        elif isinstance(record, StepRecord) and record.step:
            kind = (tint, 0.35) if record.kind in DRAFTS else (tint, 0.6) if every else ("refresh", 1.0)
            yield max(record.ms, 0.0), kind if run.trace.stands(record) else ("rejected", 1.0)


def _merged(
    passes: Iterator[tuple[float, tuple[str, float]]], x: float, y: float, scale: float
) -> dict[tuple[str, float], list[Box]]:
    """Boxes of passes by their looks; one that is too short is drawn with the next one."""
    boxes: dict[tuple[str, float], list[Box]] = {}
    width = 0.0
    for ms, look in passes:
        width += ms * scale
        if width >= LEAST:
            boxes.setdefault(look, []).append(Box(x, y, width - min(1, width / 5), 16))
            x, width = x + width, 0.0
    return boxes


def _activity(run: Run, box: Box) -> float:
    """Layers by steps. A step's skipped layers are all of the lane's, so its columns are cut to their rows."""
    svg, main = run.svg, run.report.main
    steps, schedule = run.trace.steps[main], run.report.lanes[main].schedule
    if not steps:
        return _nothing(run, box)
    early = any(step.trigger for step in steps)
    keys = [Key("runs", "full"), Key("skipped", "dropped"), Key("run again at a full step", "refresh")]
    top = svg.legend(box.x, box.y, [*keys, *([Key("early", "early")] if early else [])], box.width) + 6
    height = max(60, min(9 * schedule.num_layers, 200))
    axes = Axes(svg, Box(box.x + 60, top, box.width - 60, height), (0, len(steps)), (-0.5, schedule.num_layers - 0.5))
    axes.draw("step", "layer", least=(1, 1))
    svg.rect(axes.box, "full")
    if not schedule.is_baseline:
        row, column = axes.box.height / schedule.num_layers, axes.box.width / len(steps)
        every = [Box(axes.box.x, axes.y(at) - row / 2, axes.box.width, row) for at in range(schedule.num_layers)]
        rows = [every[layer] for layer in schedule.dropped]
        columns: dict[str, list[Box]] = {"lora": [], "draft": [], "refresh": [], "early": []}
        for kind, run_of in groupby(steps[1:], lambda step: "early" if step.trigger else step.kind):
            first, *others = run_of
            wide = (1 + len(others)) * column
            columns[kind].append(Box(axes.x(first.step), axes.box.y, wide - min(0.5, column / 4), axes.box.height))
        for kind, boxes in columns.items():
            if within := every if kind == "draft" else rows:
                svg.rects(boxes, "dropped" if kind in DRAFTS else kind, within)
    return top + height + 38


def _drift(run: Run, box: Box) -> float:
    """Mean drift of each lane's skipped layers; of the main one also the least and the most, and its full steps."""
    svg, main, trace = run.svg, run.report.main, run.trace
    audits = {
        lane: [(step, audit) for step, audit in sorted(trace.audits[lane].items()) if audit.mean_drift is not None]
        for lane, *_ in run.lanes
    }
    if not audits[main]:
        return _nothing(run, box)
    tints = {lane: (name, tint) for lane, name, tint in run.lanes}
    keys = [Key(f"mean, {tints[lane][0]}", tints[lane][1], "line") for lane in audits if audits[lane]]
    keys += [Key("least to most", tints[main][1], opacity=0.25), Key("full step", "refresh", "circle")]
    top = svg.legend(box.x, box.y, keys, box.width) + 6
    spans = [(step, min(values), max(values)) for step, audit in audits[main] if (values := _drifts(audit))]
    means = {lane: [(step, audit.mean_drift or 0.0) for step, audit in audits[lane]] for lane in audits}
    last = max(step for points in means.values() for step, _ in points)
    most = max([high for *_, high in spans] + [y for points in means.values() for _, y in points])
    axes = Axes(svg, Box(box.x + 60, top, box.width - 60, 170), (0, last), (0, most))
    axes.draw("step", "\u2016x\u0302 \u2212 x\u2016 / \u2016x\u2016", least=(1, 0))
    lows = _thinned([(step, low) for step, low, _ in spans], min)
    highs = _thinned([(step, high) for step, _, high in spans], max)
    band = _placed(axes, highs) + _placed(axes, lows)[::-1]
    svg.line(band, "none", 0, fill=svg.color(tints[main][1]), fill_opacity=0.2)
    for lane, points in sorted(means.items(), key=lambda item: item[0] == main):  # the main one over the others
        svg.line(_placed(axes, _thinned(points, fmean)), tints[lane][1], 1.75 if lane == main else 1.25)
    full = [point for point in means[main] if trace.steps[main][point[0]].kind == "refresh"]
    if len(full) <= MOST_POINTS / 2:
        for x, y in _placed(axes, full):
            svg.mark(x, y, "circle", "refresh", 2)
    return top + 170 + 38


def _kv(run: Run, box: Box) -> float:
    """Bytes of K/V counted in each lane, and the formula as a dashed line."""
    svg, trace = run.svg, run.trace
    if not any(trace.steps.values()):
        return _nothing(run, box)
    keys = [Key(name, tint, "line") for _, name, tint in run.lanes] + [Key("formula", "ink", "dash")]
    top = svg.legend(box.x, box.y, keys, box.width) + 6
    most = max(step.kv_bytes for steps in trace.steps.values() for step in steps)
    unit = human_bytes(most).split()[1]
    scale = 1024.0 ** ("B", "KiB", "MiB", "GiB").index(unit)
    last = max(len(steps) for steps in trace.steps.values()) - 1
    axes = Axes(svg, Box(box.x + 60, top, box.width - 60, 170), (0, last), (0, 1.05 * most / scale))
    axes.draw("step", unit, least=(1, 0))
    per_token = trace.header.model.get("kv_bytes_per_token")
    for at, (lane, _, tint) in enumerate(run.lanes):
        points = [(step.step, step.kv_bytes / scale) for step in trace.steps[lane]]
        svg.line(_placed(axes, _thinned(points, max)), tint, 5 - 1.5 * min(at, 2))
    for lane, *_ in run.lanes:
        if per_token:
            formula = _formula(run.report.lanes[lane].schedule, trace.header.prompt_tokens, trace.steps[lane])
            points = [(step, tokens * per_token / scale) for step, tokens in formula]
            svg.line(_placed(axes, _thinned(points, max)), "ink", 1, stroke_dasharray="4 4")
    return top + 170 + 38


def _formula(schedule: Schedule, prompt_tokens: int, steps: Sequence[StepRecord]) -> Iterator[tuple[int, int]]:
    """Tokens that the caches of all layers hold after each step, by the formula and the full steps so far."""
    refreshes = last = read = 0
    for step in steps:
        if step.kind == "refresh":
            refreshes, last = refreshes + 1, step.step
        if step.kind != "draft":  # its token is read by the next full step
            read = step.step
        lengths = [
            schedule.kv_length(layer, prompt_tokens, read, refreshes, last) for layer in range(schedule.num_layers)
        ]
        yield step.step, sum(lengths)


def _parts(run: Run, box: Box) -> float:
    """Two aligned bars: a token of the full model with the time that skipping saves, and one of LoRA-Drop's with what
    it pays on top."""
    svg, made = run.svg, run.concluded["parts"]
    if made is None or not 0 < made["total"] < LONGEST_MS:
        return _nothing(run, box)
    parts = {part["id"]: part["ms"] for part in made["parts"]}
    full, outside = parts.pop("full"), made["outside"] or {"own": 0.0, "full": 0.0}
    changes = {name: ms for name, ms in parts.items() if name != "outside"}
    saved = {name: -ms for name, ms in changes.items() if ms < 0}
    paid = {name: ms for name, ms in changes.items() if ms > 0}
    both = full - outside["full"] - sum(saved.values())
    unit = 0.84 * (box.width - 130) / max(full, made["total"], made["bound"] or 0)
    labels = {part["id"]: part["label"] for part in made["parts"]}
    keys = [
        Key(
            f"{labels[name]} {ms:+.2f} ms".replace("-", "\u2212"),
            PARTS.get(name, "muted"),
            "hollow" if ms < 0 else "patch",
        )
        for name, ms in changes.items()
    ]
    if made["outside"]:
        keys.append(Key(f"{labels['outside']} {outside['own']:.2f} ms (full model {outside['full']:.2f} ms)", "edge"))
    if made["bound"]:
        keys.append(Key(f"bound, an estimate from memory traffic {made['bound']:.2f} ms", "ink", "tick"))
    top = svg.legend(box.x, box.y, keys, box.width) + 6
    x = box.x + 130
    mark = x + (made["bound"] or 0) * unit
    rows = (
        ("Full model", "baseline", full, saved, outside["full"]),
        ("LoRA-Drop", "lora-drop", made["total"], paid, outside["own"]),
    )
    for name, tint, total, pieces, rest in rows:
        svg.text(x - 10, top + 16, name, 13, tint, text_anchor="end")
        left = x
        for part, ms in {"both": both, **pieces, "outside": rest}.items():
            wide = max(ms, 0) * unit
            is_saved = pieces is saved and part in saved
            look: dict[str, Any] = {
                "fill": tint if part == "both" else "none" if is_saved else PARTS.get(part, "muted")
            }
            if is_saved:
                look |= {"stroke": svg.color(PARTS.get(part, "muted")), "stroke_width": 1.5}
            if wide > 0:
                svg.rect(Box(left + 0.75, top, max(wide - 1.5, 0.5), 22), **look)
            left += wide
        if pieces is paid and left < mark < left + 70:  # the mark would cross the words
            left = mark
        svg.text(left + 8, top + 16, f"{total:.2f} ms", 13, bold=True)
        top += 28
    if made["bound"]:
        svg.rect(Box(mark - 1, top - 32, 2, 30), "ink")
    return top


def _drifts(audit: AuditRecord) -> list[float]:
    return [value for value in audit.drift if value is not None]


def _placed(axes: Axes, points: Sequence[tuple[int, float]]) -> list[tuple[float, float]]:
    return [(axes.x(x), axes.y(y)) for x, y in points]


def _thinned(
    points: Sequence[tuple[int, float]], one_of: Callable[[Sequence[float]], float]
) -> list[tuple[int, float]]:
    """At most `MOST_POINTS` points: of each few neighbours one, at the first one's place."""
    few = -(-len(points) // MOST_POINTS)
    parts = [points[at : at + few] for at in range(0, len(points), few)] if points else []
    return [(part[0][0], one_of([y for _, y in part])) for part in parts]


# Title, its sentence in `why`, and how it is drawn.
FIGURES: dict[str, tuple[str, str, Figure]] = {
    "answers": ("The answers", "answers", _answers),
    "race": ("The race: tokens, on one clock", "race", _race),
    "activity": ("Layer activity", "activity", _activity),
    "drift": ("Drift from the full model", "drift", _drift),
    "kv": ("K/V memory", "memory", _kv),
    "parts": ("Where the time of a token goes", "parts", _parts),
}
CHOICES = ("run", *FIGURES)
