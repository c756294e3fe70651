"""The page's ES modules, style sheets and plotly.js, and the modules inside one HTML file."""

from __future__ import annotations

import json
import posixpath
import re
from functools import cache
from urllib.parse import quote

from lora_drop.paths import ASSETS

SCRIPTS = ASSETS / "js"
# Of the npm package plotly.js-cartesian-dist-min, which package-lock.json locks: a third of the whole plotly.js.
PLOTLY = ASSETS / "vendor" / "plotly-cartesian.min.js"
# Style sheets of the run and of the other tabs, in order: of two equal rules the later wins.
_RUN = (
    *("base", "page", "status", "controls", "figures", "what_if", "presets", "compare", "answers", "charts", "tables"),
    *("verdict", "stack", "race", "inspector", "pins", "player", "menu", "talk", "tip", "narrow"),
)
RUN_STYLES = tuple(ASSETS / "css" / f"{name}.css" for name in _RUN)
BUILD_UP_STYLE = ASSETS / "css" / "build_up.css"  # of the Method tab and of a replay
TAB_STYLES = (
    *(ASSETS / "css" / "tabs" / f"{name}.css" for name in ("panels", "safe_zone", "figures", "method", "pays")),
    BUILD_UP_STYLE,
)
# The path in `import ... from "./dom.js";` and in such an `export`. Types name modules in comments only.
NAMED = re.compile(r'(?<= from ")\.{1,2}/[^"\n]+(?=";$)', re.MULTILINE)
# Characters that need no quoting in a data: URL: not `<`, which could end the script element, `%`, `#` or newlines.
PLAIN = " !\"$&'()*+,/:;=?@[]^`{|}"


@cache
def modules(entry: str) -> dict[str, str]:
    """The modules that an entry needs, itself included: sources by path."""
    sources, pending = {}, [entry]
    while pending:
        name = pending.pop()
        if name not in sources:
            sources[name] = (SCRIPTS / name).read_text(encoding="utf-8")
            pending += (_beside(name, path) for path in NAMED.findall(sources[name]))
    return dict(sorted(sources.items()))


def _beside(name: str, path: str) -> str:
    """The path that a relative path in a module stands for."""
    return posixpath.normpath(posixpath.join(posixpath.dirname(name), path))


def _named(name: str, source: str) -> str:
    """A module's source with the import map's names instead of relative paths."""
    return NAMED.sub(lambda path: f"lora-drop/{_beside(name, path[0])}", source)


@cache
def import_map(entry: str) -> str:
    """The modules that an entry needs, as an import map of data: URLs; JSON without `<`.

    A module in a data: URL cannot import by a relative path, so each has a name in the map: `lora-drop/dom.js`.
    """
    imports = {}
    for name, source in modules(entry).items():
        imports[f"lora-drop/{name}"] = f"data:text/javascript;charset=utf-8,{quote(_named(name, source), safe=PLAIN)}"
    return json.dumps({"imports": imports}, indent=1)
