"""assets/screenshots/paper-readings.svg, the paper's speeds by each reading of its settings, and their table.

`python -m scripts.paper_readings` writes the picture anew and prints the table's rows as Markdown.
"""

from __future__ import annotations

from lora_drop.method import paper
from lora_drop.paths import ASSETS
from lora_drop.run.exports.figures.svg import Svg

FILE = ASSETS / "screenshots" / "paper-readings.svg"
WIDTH, LEFT, RIGHT, TOP, LINE = 1000, 240, 970, 170, 30  # pixels
LOW, HIGH = 1.0, 3.0  # times the full model's speed
TINTS = ("lora-drop", "baseline", "refresh", "muted")  # of the readings
OF_K = "LLaMA2-7B"  # the model whose bounds stand beside the table over k
# That table at p 0.5: k, and the lowest and the highest speedup of its models.
SPEEDS_OF_K = ((1, 1.35, 1.45), (2, 1.45, 1.55), (5, 1.75, 1.85))


def readings_picture() -> str:
    """A line for each row of the paper's two tables: its speed, and the bound by each of `paper.READINGS`."""
    svg = Svg(WIDTH)

    def x(speed: float) -> float:
        return LEFT + (speed - LOW) / (HIGH - LOW) * (RIGHT - LEFT)

    rows = [
        (f"{row.model}, p {row.drop_ratio:g}, k {row.k}", row.speedup, row.speedup, row.bounds) for row in paper.ROWS
    ]
    for k, lowest, highest in SPEEDS_OF_K:
        bounds = tuple(paper.bound_of(OF_K, 0.5, k, reading) for reading in paper.READINGS)
        rows.append((f"table over k, p 0.5, k {k}", lowest, highest, bounds))
    title = "The paper's speeds against the bound, by four readings of its settings"
    svg.text(20, 34, title, 17, bold=True)
    svg.text(20, 60, f"Bar: as reported ({paper.LABEL}). Circle: the bound, from bytes read.", 13, "muted")
    for i, (reading, color) in enumerate(zip(paper.READINGS, TINTS, strict=True)):
        svg.mark(LEFT + 8, 78 + 20 * i, "circle", color, 6, hollow=True)
        svg.text(LEFT + 22, 82 + 20 * i, reading.label, 13)
    bottom = TOP + LINE * len(rows)
    for tick in (1.0, 1.5, 2.0, 2.5, 3.0):
        svg.line([(x(tick), TOP - 8), (x(tick), bottom)], "grid", 1)
        svg.text(x(tick), bottom + 18, f"{tick:g}x", 12, text_anchor="middle")
    for i, (words, low, high, bounds) in enumerate(rows):
        y = TOP + LINE * i + 10
        svg.text(LEFT - 12, y + 4, words, 13, text_anchor="end")
        svg.line([(x(low), y), (x(high), y)], "ink", 4)
        for end in (low, high):
            svg.line([(x(end), y - 9), (x(end), y + 9)], "ink", 4)
        for bound, color in zip(bounds, TINTS, strict=True):
            svg.mark(x(bound), y, "circle", color, 6, hollow=True)
    return svg.write(bottom + 36, "The paper's speeds and the bound by four readings of its settings")


def table() -> str:
    """The rows of the table in docs/paper.md."""
    lines = []
    for row in paper.ROWS:
        pairs = zip((row.speedup, *row.bounds), (row.kv_saved, *row.kv_limits), strict=True)
        cells = " | ".join(f"{speed:.2f}x, {share:.0%}" for speed, share in pairs)
        lines.append(f"| {row.model}, p {row.drop_ratio:g} | {cells} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    FILE.write_text(readings_picture(), encoding="utf-8")
    print(table(), end="")
