"""The palette: texts keep their contrast, and what touches stays apart for colour-blind readers too."""

import itertools
import math
import re
from pathlib import Path

import pytest

from lora_drop.run.exports.colors import COLORS

ROOT = Path(__file__).resolve().parents[2]
THEMES = pytest.mark.parametrize("theme", COLORS)
# The three common colour-blindnesses at full strength, on linear RGB (Machado, Oliveira and Fernandes 2009).
BLIND = {
    "none": ((1, 0, 0), (0, 1, 0), (0, 0, 1)),
    "protan": ((0.152286, 1.052583, -0.204868), (0.114503, 0.786281, 0.099216), (-0.003882, -0.048116, 1.051998)),
    "deutan": ((0.367322, 0.860646, -0.227968), (0.280085, 0.672501, 0.047413), (-0.011820, 0.042940, 0.968881)),
    "tritan": ((1.255528, -0.076749, -0.178779), (-0.078411, 0.930809, 0.147602), (0.004733, 0.691367, 0.303900)),
}
XYZ = ((0.4339, 0.3762, 0.1899), (0.2126, 0.7152, 0.0722), (0.0178, 0.1098, 0.8730))  # as a share of D65's white
LEAST = 18  # distance in Lab; neighbours at 10 are still told apart side by side
QUOTED = r"[\"'`](#(?:[0-9a-fA-F]{6}|[0-9a-fA-F]{3}))[\"'`]"
IN_CSS = r":[^;{}\n]*(#(?:[0-9a-fA-F]{6}|[0-9a-fA-F]{3})\b)[^{\n]*;"
LANES = ("baseline", "lora-drop", "third", "fourth")
# In one drawing: cells of layers; the race's strip of a lane's steps; bands of the Safe zone's map.
CELLS = ("full", "refresh", "dropped", "early")


def linear(color: str) -> list[float]:
    parts = [int(color[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    return [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]


def times(matrix, values: list[float]) -> list[float]:
    return [sum(weight * value for weight, value in zip(row, values, strict=True)) for row in matrix]


def lab(rgb: list[float]) -> tuple[float, float, float]:
    x, y, z = (v ** (1 / 3) if v > 0.008856 else 7.787 * v + 16 / 116 for v in times(XYZ, rgb))
    return 116 * y - 16, 500 * (x - y), 200 * (y - z)


def mixed(colors: dict[str, str], name: str, share: float) -> list[float]:
    """A colour over the panel, mixed as browsers do."""
    ends = [[int(colors[one][i : i + 2], 16) for i in (1, 3, 5)] for one in (name, "panel")]
    parts = (round(share * over + (1 - share) * under) for over, under in zip(*ends, strict=True))
    return linear("#" + "".join(f"{part:02X}" for part in parts))


def distance(one: list[float], other: list[float], kind: str) -> float:
    seen = [lab([min(max(part, 0.0), 1.0) for part in times(BLIND[kind], rgb)]) for rgb in (one, other)]
    return math.dist(*seen)


def contrast(one: str, other: str) -> float:
    low, high = sorted(times(XYZ, linear(color))[1] for color in (one, other))
    return (high + 0.05) / (low + 0.05)


@THEMES
@pytest.mark.parametrize("kind", BLIND)
def test_what_touches_stays_apart(theme, kind):
    colors = COLORS[theme]
    pairs = [(mixed(colors, a, 1), mixed(colors, b, 1)) for a, b in itertools.combinations(LANES, 2)]
    pairs += [(mixed(colors, a, 1), mixed(colors, b, 1)) for a, b in itertools.combinations(CELLS, 2)]
    for lane in LANES[1:]:
        strip = [mixed(colors, lane, 0.35), mixed(colors, "refresh", 1), mixed(colors, "rejected", 1)]
        pairs += itertools.combinations(strip, 2)
    pairs.append((mixed(colors, "good", 0.4), mixed(colors, "bad", 0.4)))
    pairs.append((mixed(colors, "good", 0.4), mixed(colors, "bad", 0.16)))
    close = [(i, round(away, 1)) for i, pair in enumerate(pairs) if (away := distance(*pair, kind)) < LEAST]
    assert close == []


@THEMES
def test_texts_keep_their_contrast(theme):
    colors = COLORS[theme]
    for name in (*LANES, "rejected", "good", "bad", "accent", "ink", "muted"):
        assert contrast(colors[name], colors["panel"]) >= 4.5, name
    assert len(set(colors.values())) == len(colors), "a colour has one meaning"


def test_no_other_place_has_a_colour_of_its_own():
    found = [
        (path.name, color)
        for folder, ending in (("assets/js", "js"), ("assets/css", "css"), ("lora_drop", "py"))
        for path in (ROOT / folder).rglob(f"*.{ending}")
        if path.name != "colors.py"
        for color in re.findall(QUOTED if ending != "css" else IN_CSS, path.read_text("utf-8"))
    ]
    assert found == []
