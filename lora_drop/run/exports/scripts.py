"""The page's ES modules, style sheets and plotly.js, and how a file that needs nothing else holds the modules."""

from __future__ import annotations

import json
import posixpath
import re
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from urllib.parse import quote

from lora_drop.paths import ASSETS

SCRIPTS = ASSETS / "js"
TEMPLATES = ASSETS / "html"
# The style sheets of the run and of the other tabs, in the order in which they count: the later of two equals wins.
_RUN = (
    *("base", "page", "status", "controls", "figures", "what_if", "presets", "compare", "answers", "charts", "tables"),
    *("verdict", "race", "inspector", "pins", "player", "menu", "talk", "tip", "narrow"),
)
RUN_STYLES = tuple(ASSETS / "css" / f"{name}.css" for name in _RUN)
BUILD_UP_STYLE = ASSETS / "css" / "build_up.css"  # of the Method tab and of a replay
TAB_STYLES = (
    *(ASSETS / "css" / "tabs" / f"{name}.css" for name in ("panels", "safe_zone", "figures", "method")),
    BUILD_UP_STYLE,
)
# The path in `import ... from "./dom.js";`, and in an `export` of the same form. Types name modules in comments only.
NAMED = re.compile(r'(?<= from ")\.{1,2}/[^"\n]+(?=";$)', re.MULTILINE)
# What stands in a data: URL as it is: no `<`, which could end the script's element, no `%` or `#`, no line's end.
PLAIN = " !\"$&'()*+,/:;=?@[]^`{|}"


@cache
def plotly_script() -> Path:
    """plotly.js as the installed plotly package carries it: nothing is fetched from elsewhere."""
    found = find_spec("plotly")
    if found is None or found.origin is None:
        raise ModuleNotFoundError("No module named 'plotly'", name="plotly")
    return Path(found.origin).parent / "package_data" / "plotly.min.js"


@cache
def modules(entry: str) -> dict[str, str]:
    """The modules that an entry needs, itself included: the source of each by its path in the folder, in order."""
    found, asked = {}, [entry]
    while asked:
        name = asked.pop()
        if name not in found:
            found[name] = (SCRIPTS / name).read_text(encoding="utf-8")
            asked += (_beside(name, path) for path in NAMED.findall(found[name]))
    return dict(sorted(found.items()))


def _beside(name: str, path: str) -> str:
    """What a relative path names in a module."""
    return posixpath.normpath(posixpath.join(posixpath.dirname(name), path))


def _named(name: str, source: str) -> str:
    """A module's source with the map's names in the place of relative paths."""
    return NAMED.sub(lambda path: f"lora-drop/{_beside(name, path[0])}", source)


@cache
def import_map(entry: str) -> str:
    """The modules that an entry needs as an import map with each of them in it, as JSON without `<`.

    A module in a data: URL cannot name another one by a relative path: they get names of the map, `lora-drop/dom.js`.
    """
    imports = {}
    for name, source in modules(entry).items():
        imports[f"lora-drop/{name}"] = f"data:text/javascript;charset=utf-8,{quote(_named(name, source), safe=PLAIN)}"
    return json.dumps({"imports": imports}, indent=1)
