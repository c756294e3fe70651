"""The colours of the page and of every figure, in one place; one meaning a colour. Many are Okabe and Ito's.

CSS reads them as variables (`--ld-baseline`), the live charts read those variables, Python figures import `COLORS`.
The four lanes, and kinds of steps and layers that touch in a drawing, differ to readers with each of the three common
colour-blindnesses too (`tests/run/test_colors.py`).
"""

from __future__ import annotations

# Text on its background keeps a contrast of at least 4.5 in both themes; lines and areas at least 3.
COLORS: dict[str, dict[str, str]] = {
    "light": {
        "baseline": "#0072B2",  # the baseline lane
        "lora-drop": "#C24E00",  # the LoRA-Drop lane (vermillion, darkened a little for text on white)
        "third": "#3D2173",  # the third lane: much darker than the first, as blue and violet look alike to many
        "fourth": "#9000F0",  # the fourth lane
        "full": "#D3DAE3",  # a layer that runs whole
        "refresh": "#009E73",  # a full step that renews what skipped layers reuse
        "early": "#00503B",  # the same, before its time
        "dropped": "#E69F00",  # a skipped layer
        "rejected": "#960F1E",  # a draft that the full model rejected
        "diverged": "#00798C",  # the first token that differs
        "ink": "#16202B",
        "muted": "#51606F",
        "line": "#D9E0E7",
        "grid": "#E8EDF2",
        "panel": "#FFFFFF",
        "page": "#F4F6F8",
        "edge": "#8894A1",  # of inputs
        "accent": "#2F4A63",  # controls, links and places
        "good": "#4F7A00",  # reads well, faster, done
        "bad": "#B0006A",  # reads badly, slower, failed
    },
    "dark": {
        "baseline": "#56B4E9",
        "lora-drop": "#FF9E57",
        "third": "#E8D6FF",
        "fourth": "#9078F0",
        "full": "#3A4653",
        "refresh": "#2FBF95",
        "early": "#C4F7E5",
        "dropped": "#E69F00",
        "rejected": "#FF5F55",
        "diverged": "#4FD3E4",
        "ink": "#E8EDF2",
        "muted": "#A5B1BD",
        "line": "#34404C",
        "grid": "#2A343F",
        "panel": "#1A222B",
        "page": "#11171D",
        "edge": "#66727F",
        "accent": "#B9CBDC",
        "good": "#A6D854",
        "bad": "#FF7DC2",
    },
}

BLACK, WHITE = "#000000", "#FFFFFF"  # numbers on the middle tones of a heatmap


def css_variables() -> str:
    """The colours as CSS variables, the dark ones under Gradio's `.dark` class."""
    return f"{css_block(':root', 'light')}\n{css_block('.dark', 'dark')}\n"


def css_block(selector: str, theme: str) -> str:
    """A theme's colours as CSS variables of a selector."""
    return selector + " {" + "".join(f" --ld-{name}: {value};" for name, value in COLORS[theme].items()) + " }"
