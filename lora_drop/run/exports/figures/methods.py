"""The frontier of methods as a static picture: speed against regret."""

from __future__ import annotations

import math
from typing import Any

from lora_drop.method.methods import method_of
from lora_drop.run.exports.figures.svg import Box, Svg, ticks
from lora_drop.run.results.compared import is_lossless, reported, text_of, winner_words
from lora_drop.run.results.store import Row

PICTURE = "methods.svg"
WIDTH, LEFT, SPLIT, TOP, LINE, BAND = 1220, 90, 600, 84, 24, 20  # pixels; the plot lies between LEFT and SPLIT
TICKS = (0.03, 0.1, 0.3, 1, 3, 10)  # nats, of the scale of regret, which is logarithmic
LEAST = 0.01  # a smaller regret counts as this much


def frontier_picture(content: dict[str, Any]) -> str:
    """Each reported method as a numbered mark with the interval of its speed, and a list of them.

    Methods that keep the full model's text stand in a separate band above the scale of regret.
    """
    svg, rows = Svg(WIDTH), reported(content)
    speeds = [row[name] or row["speedup"] for row in rows for name in ("speedup", "speedup_low", "speedup_high")]
    low, high = min([0.9, *speeds]), max([1.1, *speeds])
    exact = [row for row in rows if is_lossless(row)]
    worst = 1.3 * max([0.3, *(row["regret"] for row in rows)])
    top = TOP + BAND * (len(exact) + 1)
    bottom = max(top + 240, TOP + LINE * (len(rows) + 1))

    def x(speed: float) -> float:
        return float(LEFT + 20 + (speed - low) / (high - low) * (SPLIT - LEFT - 50))

    def y_of(regret: float) -> float:
        return top + math.log(max(regret, LEAST) / LEAST) / math.log(worst / LEAST) * (bottom - top)

    about = f"{content['model']['id']} on {content['device']['name']}, {content['data']['prompts']} prompts"
    svg.text(20, 34, "Methods on one clock: speed against regret", 20, bold=True)
    svg.text(20, 58, f"{about}, {content['date'][:10]}. Up and to the right is better.", 13, "muted")
    svg.rect(Box(LEFT, TOP, SPLIT - LEFT, top - TOP), "grid")
    svg.text(LEFT + 6, TOP - 5, "the full model's text, token for token", 12, "muted")
    for speed in ticks(low, high, 6):
        svg.text(x(speed), bottom + 18, f"{speed:g}x", 12, "muted", text_anchor="middle")
    for regret in TICKS:
        if regret <= worst:
            svg.line([(LEFT, y_of(regret)), (SPLIT, y_of(regret))], "grid", 1)
            svg.text(LEFT - 6, y_of(regret) + 4, f"{regret:g}", 12, "muted", text_anchor="end")
    svg.line([(x(1), TOP), (x(1), bottom)], "muted", 1)
    svg.text((LEFT + SPLIT) / 2, bottom + 40, "times the full model's speed", 13, "muted", text_anchor="middle")
    middle = (top + bottom) / 2
    turn: dict[str, Any] = {"text_anchor": "middle", "transform": f"rotate(-90 36 {middle:.0f})"}
    svg.text(36, middle, "regret, nats a token", 13, "muted", **turn)
    for number, row in enumerate(rows, start=1):
        _add_row(svg, number, row, x, TOP + BAND * (exact.index(row) + 1) if row in exact else y_of(row["regret"]))
    return svg.write(bottom + 60, winner_words(content))


def _add_row(svg: Svg, number: int, row: Row, x: Any, y: float) -> None:
    """A method's mark at its place, and its line of the list."""
    method, label = method_of(row["method"])
    color = "lora-drop" if label.startswith("LoRA-Drop") else "baseline"
    hover = f"{method.note} Source: {method.source}."
    if row["speedup_low"] is not None:
        svg.line([(x(row["speedup_low"]), y), (x(row["speedup_high"]), y)], color, 2)
    svg.mark(x(row["speedup"]), y, "circle", color, 9)
    svg.text(x(row["speedup"]), y + 4, str(number), 11, "panel", bold=True, text_anchor="middle")
    line = TOP + LINE * number
    svg.text(SPLIT + 20, line, str(number), 13, color, bold=True)
    trained = "" if method.is_trained else " (untrained)"
    svg.text(SPLIT + 48, line, f"{row['speedup']:.2f}x {label}{trained}", 13, hover=hover)
    svg.text(WIDTH - 16, line, text_of(row), 13, "muted", text_anchor="end")
