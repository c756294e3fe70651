"""The losses of a training as a picture."""

from __future__ import annotations

import json
from contextlib import suppress
from typing import Any

from lora_drop.adapters.card import dropped_in
from lora_drop.run.exports.figures.svg import Axes, Box, Key, Svg

PICTURE, TITLE = "loss.svg", "Losses of the training"
WIDTH, EDGE = 900, 24
COLORS = ("lora-drop", "baseline", "third", "refresh", "early")


def loss_picture(log: str) -> str:
    """The loss of each step in a `train_log.jsonl`, and the KL of its evaluations by schedule, as an SVG.

    A resumed run repeats the steps after its checkpoint: of two lines of a step the last one counts.
    """
    entries: dict[int, dict[str, Any]] = {}
    for line in log.splitlines():
        with suppress(ValueError):  # a line that a kill has cut short
            entry = json.loads(line)
            while entries and next(reversed(entries)) >= entry["step"]:
                entries.popitem()
            entries[entry["step"]] = entry
    lines = {"loss of each step": [(entry["tokens"], entry["loss"]) for entry in entries.values() if "loss" in entry]}
    for entry in entries.values():
        for row in entry.get("evaluation", {}).get("schedules", ()):
            name = f"KL on held-out text, period {row['period']}, {dropped_in(row)}"
            lines.setdefault(name, []).append((entry["tokens"], row["kl"]))
    tokens, losses = zip(*(point for line in lines.values() for point in line), strict=True)
    svg, keys = Svg(WIDTH), []
    svg.text(EDGE, 44, TITLE, 20, bold=True)
    axes = Axes(svg, Box(90, 68, WIDTH - 90 - EDGE, 320), (0, max(tokens)), (0, max(losses)))
    axes.draw("tokens", "nats a token", "{:,.0f}".format)
    for color, (words, points) in zip(COLORS, lines.items(), strict=False):
        svg.line([(axes.x(count), axes.y(loss)) for count, loss in points], color)
        keys.append(Key(words, color, "line"))
    return svg.write(svg.legend(EDGE, 440, keys, WIDTH - 2 * EDGE) + EDGE, TITLE)
