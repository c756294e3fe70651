"""The colours of the page and of every figure, in one place: Okabe and Ito's palette, safe for colour-blind readers.

CSS reads them as variables (`--ld-baseline`), the live charts read those variables, Python figures import `COLORS`.
"""

from __future__ import annotations

# Text on its background keeps a contrast of at least 4.5 in both themes; lines and areas at least 3.
COLORS: dict[str, dict[str, str]] = {
    "light": {
        "baseline": "#0072B2",  # the baseline lane
        "lora-drop": "#C24E00",  # the LoRA-Drop lane (vermillion, darkened a little for text on white)
        "third": "#7A4E9E",  # the next lane, should there be one
        "full": "#D3DAE3",  # a layer that runs whole
        "refresh": "#009E73",  # a full step that renews what skipped layers reuse
        "early": "#00503B",  # the same, before its time
        "dropped": "#E69F00",  # a skipped layer, no K/V written
        "dropped-kv": "#CC79A7",  # a skipped layer that still writes K/V
        "diverged": "#9E3D75",  # the first token that differs
        "tint": "#FBEBCB",  # background of a token that a LoRA step wrote
        "ink": "#16202B",
        "muted": "#51606F",
        "line": "#D9E0E7",
        "grid": "#E8EDF2",
        "panel": "#FFFFFF",
        "page": "#F4F6F8",
        "good": "#00694D",
        "bad": "#B3261E",
    },
    "dark": {
        "baseline": "#56B4E9",
        "lora-drop": "#FF9E57",
        "third": "#C9A0E8",
        "full": "#3A4653",
        "refresh": "#2FBF95",
        "early": "#C4F7E5",
        "dropped": "#E69F00",
        "dropped-kv": "#CC79A7",
        "diverged": "#E79BC6",
        "tint": "#4A3A17",
        "ink": "#E8EDF2",
        "muted": "#A5B1BD",
        "line": "#34404C",
        "grid": "#2A343F",
        "panel": "#1A222B",
        "page": "#11171D",
        "good": "#5CD3AE",
        "bad": "#FF8A80",
    },
}


def css_variables() -> str:
    """The colours as CSS variables, the dark ones under Gradio's `.dark` class."""
    return f"{css_block(':root', 'light')}\n{css_block('.dark', 'dark')}\n"


def css_block(selector: str, theme: str) -> str:
    """A theme's colours as CSS variables of a selector."""
    return selector + " {" + "".join(f" --ld-{name}: {value};" for name, value in COLORS[theme].items()) + " }"
