"""Figures as SVG: shapes and text in the page's colours, written without a library; and as PNG, without a browser.

Text stays text, in common families. Its width is estimated from DejaVu Sans, the widest of them, so no line is longer
than computed. The same calls give the same text.
"""

from __future__ import annotations

import hashlib
import html
import math
import re
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple
from unicodedata import east_asian_width

from lora_drop.errors import LoraDropError
from lora_drop.paths import ASSETS
from lora_drop.run.exports.colors import COLORS
from lora_drop.run.exports.templates import printable

FAMILY = "Inter, Segoe UI, Roboto, Helvetica Neue, Arial, DejaVu Sans, sans-serif"
FONTS = [ASSETS / "fonts" / name for name in ("DejaVuSans.ttf", "DejaVuSans-Bold.ttf")]
GET_RESVG = "pip install 'resvg-py>=0.5,<1'"
# Widths of characters in ems; other narrow ones count as 0.65, a full-width one as 1.
_WIDTHS = {
    char: width
    for width, chars in {
        0.3: "'ijlIJ",
        0.4: " ,./:;\\|f-()[]t!r\u00a0",
        0.55: '"*_`szc?L',
        0.62: "FkvxyPTYaoe",
        0.7: "KAVBRXZC",
        0.8: "UHNDG&OQ",
        0.86: "w#+<=>^~M",
        1.0: "%mW@\u2026",
    }.items()
    for char in chars
}
_BOLD = 1.12  # width of bold text
# Characters that XML forbids.
_NOT_XML = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\ufffe\uffff]")


class Box(NamedTuple):
    """A place on a figure, in pixels."""

    x: float
    y: float
    width: float
    height: float


class Key(NamedTuple):
    """An entry of a legend; `kind` is `patch`, `hollow`, `line`, `dash`, or a sign of `mark`, hollow if
    it ends in `-open`."""

    words: str
    color: str
    kind: str = "patch"
    opacity: float = 1


class Svg:
    """A figure that grows downwards.

    Args:
        width: in pixels.
        theme: `light` or `dark`.

    Raises:
        LoraDropError: no such theme.
    """

    def __init__(self, width: float, theme: str = "light"):
        if theme not in COLORS:
            raise LoraDropError(f"theme must be one of {', '.join(COLORS)}; got {theme!r}.")
        self.width, self.theme = width, theme
        self._parts: list[str] = []

    def color(self, name: str) -> str:
        """A colour of the page by its name, or `name` itself."""
        return COLORS[self.theme].get(name, name)

    def add(self, tag: str, inner: str = "", hover: str = "", **attributes: Any) -> None:
        """Append an element.

        Args:
            inner: markup.
            hover: text that a browser shows at the pointer.
            attributes: underscores in a name are hyphens; None is left out.
        """
        inner = f"<title>{as_xml(hover)}</title>{inner}" if hover else inner
        self._parts.append(
            f"<{tag}{_attributes(attributes)}>{inner}</{tag}>" if inner else f"<{tag}{_attributes(attributes)}/>"
        )

    def rect(self, box: Box, fill: str, hover: str = "", **more: Any) -> None:
        """Draw a rectangle."""
        self.add("rect", hover=hover, **box._asdict(), fill=self.color(fill), **more)

    def rects(self, boxes: Iterable[Box], fill: str, within: Sequence[Box] = (), **more: Any) -> None:
        """Draw rectangles of a colour as one path, clipped to the rectangles `within`."""
        if path := _path_of(boxes):
            clip = None
            if within:
                area = _path_of(within)
                clip = f"ld-{hashlib.sha256(area.encode()).hexdigest()[:12]}"
                self.add("clipPath", f'<path d="{area}"/>', id=clip)
            self.add("path", d=path, fill=self.color(fill), clip_path=clip and f"url(#{clip})", **more)

    def line(self, points: Sequence[tuple[float, float]], stroke: str, width: float = 1.5, **more: Any) -> None:
        """Draw a line through points."""
        if points:
            path = "M" + "L".join(f"{_number(x)} {_number(y)}" for x, y in points)
            more = {"stroke_linejoin": "round", "fill": "none"} | more
            self.add("path", d=path, stroke=self.color(stroke), stroke_width=width, **more)

    def mark(
        self, x: float, y: float, sign: str, color: str, size: float = 5, hollow: bool = False, hover: str = ""
    ) -> None:
        """Draw a sign of `SIGNS`, or a circle, around a point."""
        tint = self.color(color)
        look: dict[str, Any] = {"stroke": tint, "stroke_width": 1.5, "fill": "none" if hollow else tint}
        if sign in SIGNS:
            points = " ".join(f"{_number(x + size * dx)},{_number(y + size * dy)}" for dx, dy in SIGNS[sign])
            self.add("polygon", hover=hover, points=points, **look)
        else:
            self.add("circle", hover=hover, cx=x, cy=y, r=size, **look)

    def text(
        self,
        x: float,
        y: float,
        words: str,
        size: float = 12,
        fill: str = "ink",
        width: float = math.inf,
        bold: bool = False,
        hover: str = "",
        **more: Any,
    ) -> None:
        """Write a line, cut to `width`, with its baseline at `y`; `text_anchor` is SVG's."""
        if width_of(words, size, bold) > width:
            cut = words
            while cut and width_of(f"{cut}\u2026", size, bold) > width:
                cut = cut[:-1]
            words = f"{cut.rstrip()}\u2026"
        style = {"font_weight": 700 if bold else None, "fill": self.color(fill)}
        self.add("text", as_xml(words), hover, x=x, y=y, font_size=size, **style | more)

    def paragraph(self, x: float, y: float, words: str, width: float, size: float = 12, **more: Any) -> float:
        """Write text in lines, the first with its top at `y`; returns the bottom of the last."""
        for start, end in wrapped(words, width, size):
            y += 1.4 * size
            self.text(x, y - 0.35 * size, words[start:end], size, **more)
        return y

    def legend(self, x: float, y: float, keys: Iterable[Key], width: float, size: float = 12) -> float:
        """Write a legend from the left, in lines, the first with its top at `y`; returns its bottom."""
        left, line = x, 1.6 * size
        for words, color, kind, opacity in keys:
            room = 1.9 * size + width_of(words, size)
            if left > x and left + room > x + width:
                left, y = x, y + line
            middle = y + line / 2
            if kind in ("line", "dash"):
                dashes = "4 3" if kind == "dash" else None
                self.line([(left, middle), (left + 1.2 * size, middle)], color, 2.5, stroke_dasharray=dashes)
            elif kind in ("patch", "hollow"):
                box = Box(left + 0.2 * size, middle - 0.4 * size, 0.8 * size, 0.8 * size)
                look = {"fill": "none", "stroke": self.color(color)} if kind == "hollow" else {"fill": color}
                self.rect(box, **look, rx=1.5, fill_opacity=None if opacity == 1 else opacity)
            else:
                self.mark(
                    left + 0.6 * size, middle, kind.removesuffix("-open"), color, 0.36 * size, kind.endswith("-open")
                )
            for start, end in wrapped(words, width - 1.9 * size, size):
                self.text(left + 1.5 * size, y + line / 2 + 0.36 * size, words[start:end], size, "muted")
                y += line
            y -= line
            left += room + 0.6 * size
        return y + line

    def write(self, height: float, label: str) -> str:
        """The figure as SVG text, on the theme's panel.

        Args:
            label: for readers that do not see it.
        """
        width, tall = _number(self.width), _number(math.ceil(height))
        opening = (
            f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{tall}" viewBox="0 0 {width} {tall}" '
            f'font-family="{FAMILY}" aria-label="{as_xml(label)}" style="max-width:100%;height:auto">'
        )
        panel = f'<rect width="{width}" height="{tall}" rx="8" fill="{self.color("panel")}"/>'
        return "\n".join([opening, panel, *self._parts, "</svg>\n"])


SIGNS = {
    "square": ((-1, -1), (1, -1), (1, 1), (-1, 1)),
    "diamond": ((0, -1.3), (1.3, 0), (0, 1.3), (-1.3, 0)),
    "up": ((0, -1.2), (1.2, 1), (-1.2, 1)),
    "down": ((0, 1.2), (1.2, -1), (-1.2, -1)),
    "plus": tuple((x, y) for x, y in ((-0.4, -1.2), (0.4, -1.2), (0.4, -0.4), (1.2, -0.4), (1.2, 0.4), (0.4, 0.4)))
    + ((0.4, 1.2), (-0.4, 1.2), (-0.4, 0.4), (-1.2, 0.4), (-1.2, -0.4), (-0.4, -0.4)),
    "tick": ((-0.3, -1.6), (0.3, -1.6), (0.3, 1.6), (-0.3, 1.6)),
    "cross": ((-1.2, -0.8), (-0.8, -1.2), (0, -0.4), (0.8, -1.2), (1.2, -0.8), (0.4, 0))
    + ((1.2, 0.8), (0.8, 1.2), (0, 0.4), (-0.8, 1.2), (-1.2, 0.8), (-0.4, 0)),
}


class Axes:
    """Linear axes around a box, with a grid.

    Args:
        svg: where they are drawn.
        box: the plot's area; ticks and titles are left of it and below.
        x: the values at its left and right.
        y: the values at its bottom and top.
    """

    def __init__(self, svg: Svg, box: Box, x: tuple[float, float], y: tuple[float, float]):
        self.svg, self.box = svg, box
        self._x, self._y = (_widened(*span) for span in (x, y))

    def x(self, value: float) -> float:
        """Place of a value across, in pixels."""
        low, high = self._x
        return self.box.x + (value - low) / (high - low) * self.box.width

    def y(self, value: float) -> float:
        """Place of a value up, in pixels."""
        low, high = self._y
        return self.box.y + (high - value) / (high - low) * self.box.height

    def draw(
        self,
        x_title: str,
        y_title: str,
        x_form: Callable[[float], str] = "{:g}".format,
        y_form: Callable[[float], str] = "{:g}".format,
        least: tuple[float, float] = (0, 0),
        size: float = 12,
    ) -> None:
        """Draw grid, ticks and titles; `least` has the least steps of ticks, infinite for no tick."""
        svg, (left, top, width, height) = self.svg, self.box
        bottom = top + height
        for value in ticks(*self._x, max(2, round(width / 110)), least[0]):
            x = self.x(value)
            svg.line([(x, top), (x, bottom)], "grid", 1)
            svg.text(x, bottom + 1.4 * size, x_form(value), size, "muted", text_anchor="middle")
        for value in ticks(*self._y, max(2, round(height / 45)), least[1]):
            y = self.y(value)
            svg.line([(left, y), (left + width, y)], "grid", 1)
            svg.text(left - 6, y + 0.36 * size, y_form(value), size, "muted", text_anchor="end")
        svg.line([(left, top), (left, bottom), (left + width, bottom)], "line", 1)
        svg.text(left + width / 2, bottom + 2.9 * size, x_title, size, "muted", text_anchor="middle")
        turn = f"rotate(-90 {_number(left - 4.6 * size)} {_number(top + height / 2)})"
        place = left - 4.6 * size, top + height / 2
        svg.text(*place, y_title, size, "muted", height + 4 * size, text_anchor="middle", transform=turn)


def ticks(low: float, high: float, about: int, least: float = 0) -> list[float]:
    """Round values between `low` and `high`, some `about` of them and at least `least` apart.

    The step is 1, 2 or 5 times a power of ten."""
    low, high = sorted((low, high))
    least = max(least, (high - low) / about)
    if least == math.inf:
        return []
    power = 10.0 ** math.floor(math.log10(least))
    step = next(n * power for n in (1, 2, 5, 10) if n * power >= least * 0.999)
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [round(n * step, 12) for n in range(first, last + 1)]


def width_of(text: str, size: float, bold: bool = False) -> float:
    """Estimated width of a text in pixels; too large rather than too small."""
    ems = sum(_width(char) for char in text)
    return size * ems * (_BOLD if bold else 1)


def wrapped(text: str, width: float, size: float) -> list[tuple[int, int]]:
    """Where the lines of a text start and end: at its newlines, and at spaces where a line would be too long."""
    lines, start, space, used = [], 0, 0, 0.0
    for at, char in enumerate(text):
        if char == "\n":
            lines.append((start, at))
            start, used = at + 1, 0.0
            continue
        used += size * _width(char)
        if used > width and at > start and not char.isspace():
            end = space if space > start else at
            lines.append((start, end))
            start = end
            used = width_of(text[start : at + 1], size)
        if char.isspace() or _is_wide(char):
            space = at + 1
    return [*lines, (start, len(text))]


def png_of(svg: str, scale: float = 2) -> bytes:
    """A figure as a PNG of `scale` times its size, in the shipped font; other scripts in the system's, if it has them.

    Raises:
        LoraDropError: the package resvg-py or the shipped font is missing.
    """
    try:
        from resvg_py import svg_to_bytes
    except ModuleNotFoundError:
        raise LoraDropError(f"a PNG needs the package resvg-py: {GET_RESVG}; an SVG needs nothing.") from None
    if missing := [path.name for path in FONTS if not path.is_file()]:
        raise LoraDropError(f"the font {missing[0]} is missing in {FONTS[0].parent}: install this program again.")
    return svg_to_bytes(
        svg_string=svg.replace(FAMILY, "DejaVu Sans"), font_files=[str(path) for path in FONTS], zoom=scale
    )


def _width(char: str) -> float:
    return _WIDTHS.get(char) or (1.0 if _is_wide(char) else 0.65)


def _is_wide(char: str) -> bool:
    return char > "\u10ff" and east_asian_width(char) in "WF"


def _widened(low: float, high: float) -> tuple[float, float]:
    """The ends of an axis: one unit around `low` where its values span nothing, or no finite range."""
    if not 0 < abs(high - low) < math.inf:  # a file may hold any numbers
        return low - 0.5, low + 0.5
    return low, high


def _path_of(boxes: Iterable[Box]) -> str:
    return "".join(
        f"M{_number(x)} {_number(y)}h{_number(width)}v{_number(height)}h{_number(-width)}z"
        for x, y, width, height in boxes
    )


def _number(value: float) -> str:
    return f"{value:.1f}".removesuffix(".0") if math.isfinite(value) else "0"


def _attributes(attributes: dict[str, Any]) -> str:
    """Attributes as markup."""
    return "".join(
        f' {name.replace("_", "-")}="{_number(value) if isinstance(value, int | float) else as_xml(value)}"'
        for name, value in attributes.items()
        if value is not None
    )


def as_xml(text: str) -> str:
    """A text escaped for XML; characters that XML forbids become U+FFFD."""
    return html.escape(_NOT_XML.sub("\ufffd", printable(text)))
