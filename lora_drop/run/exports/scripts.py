"""The page's scripts, for the live page and for a replay that opens offline."""

from __future__ import annotations

from functools import cache
from pathlib import Path

SCRIPTS = ("schedule.js", "controls.js", "charts.js", "player.js", "export.js", "takeaway.js", "live.js")


@cache
def plotly_script() -> Path:
    """plotly.js as the installed plotly package carries it: nothing is fetched from elsewhere."""
    from importlib.util import find_spec

    return Path(find_spec("plotly").origin).parent / "package_data" / "plotly.min.js"
