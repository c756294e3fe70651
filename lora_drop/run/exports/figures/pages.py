"""The figures of a sweep, or of a search, as HTML pages that work offline."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import plotly.graph_objects as go

from lora_drop.errors import LoraDropError
from lora_drop.paths import write_files
from lora_drop.run.exports.colors import COLORS
from lora_drop.run.exports.figures.heatmaps import sweep_heatmaps
from lora_drop.run.exports.figures.pareto import frontier_figure, pareto
from lora_drop.run.results.rows import QUALITIES, Group, groups

# Downloads have the size of a picture for a talk.
CONFIG = {"responsive": True, "displaylogo": False, "toImageButtonOptions": {"width": 1600, "height": 900, "scale": 2}}


def write_figures(sweep: dict[str, Any], folder: Path, theme: str = "light") -> list[Path]:
    """Write `heatmaps.html` (a picture for each rule) and `pareto.html` (one for each quality); each works offline.

    Raises:
        LoraDropError: no such theme, or the folder cannot be written.
    """
    if theme not in COLORS:
        raise LoraDropError(f"theme must be one of {', '.join(COLORS)}; got {theme!r}.")
    chosen = groups(sweep) or [Group("any rule", "any part", "none", "")]
    pages = {
        "heatmaps.html": [sweep_heatmaps(sweep, group, theme) for group in chosen],
        "pareto.html": [pareto(sweep, quality, theme) for quality in QUALITIES],
    }
    return _write(pages, folder, theme, "LoRA-Drop sweep")


def write_frontier(result: dict[str, Any], folder: Path) -> list[Path]:
    """Write `frontier.html`, see `frontier_figure`; it works offline.

    Raises:
        LoraDropError: the folder cannot be written.
    """
    return _write({"frontier.html": [frontier_figure(result)]}, folder, "light", "LoRA-Drop settings")


def _write(pages: dict[str, list[go.Figure]], folder: Path, theme: str, title: str) -> list[Path]:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        write_files({folder / name: _page(figures, theme, title) for name, figures in pages.items()})
    except OSError as error:
        raise LoraDropError(f"cannot write the figures to {folder.name}: {error.strerror or error}.") from None
    return [folder / name for name in pages]


def _page(figures: list[go.Figure], theme: str, title: str) -> str:
    """A page with a figure on each screen; plotly.js is in it once."""
    bodies = [
        figure.to_html(CONFIG, full_html=False, include_plotlyjs=i == 0, default_height="100vh")
        for i, figure in enumerate(figures)
    ]
    style = f"body {{ margin: 0; background: {COLORS[theme]['panel']}; }}"
    head = f'<meta charset="utf-8"><title>{title}</title><style>{style}</style>'
    return f'<!doctype html><html lang="en"><head>{head}</head><body>{"".join(bodies)}</body></html>\n'
