"""The page's ES modules (`assets/js`): how the page loads them, and how a file that needs nothing else holds them.

They are served as they are. A module names others by relative paths, and an import drops the query of the module that
it stands in: with Gradio's file route and a `?v=` at the entry, a browser could keep an old module beside new ones. An
import map would have to be in the page before Gradio's own modules load, and Gradio has no place for one there; a
component's `head` even drops a script's type. So the version of all modules together is a folder of their address, and
they have a route of their own. Addresses are relative: they survive a mount path and a Space's proxy.
"""

from __future__ import annotations

import hashlib
import json
import posixpath
import re
from functools import cache
from pathlib import Path
from typing import Any
from urllib.parse import quote

from starlette.responses import Response
from starlette.routing import Mount
from starlette.staticfiles import StaticFiles

SCRIPTS = Path(__file__).resolve().parent.parent.parent / "assets" / "js"
ENTRY = "main.js"  # of the page
# The path in `import ... from "./dom.js";`, and in an `export` of the same form. Types name modules in comments only.
NAMED = re.compile(r'(?<= from ")\.{1,2}/[^"\n]+(?=";$)', re.MULTILINE)
# What stands in a data: URL as it is: no `<`, which could end the script's element, no `%` or `#`, no line's end.
PLAIN = " !\"$&'()*+,/:;=?@[]^`{|}"


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


@cache
def address() -> str:
    """The relative address of the folder; it changes with the content of any module."""
    content = json.dumps(modules(ENTRY)).encode()
    return f"lora-drop-js/{hashlib.sha256(content).hexdigest()[:12]}"


class _Kept(StaticFiles):
    """A folder whose files a browser may keep: what is at an address never changes."""

    def file_response(self, *args: Any, **kwargs: Any) -> Response:
        response = super().file_response(*args, **kwargs)
        response.headers["Cache-Control"] = "public, max-age=31536000, immutable"
        return response


def route() -> Mount:
    """What serves the modules, for the app under Gradio's page."""
    return Mount(f"/{address()}", _Kept(directory=SCRIPTS))


def head() -> str:
    """What fetches all modules at once: by themselves, each would be asked for once another one has named it."""
    return "".join(f'<link rel="modulepreload" href="{address()}/{name}">' for name in modules(ENTRY))


def on_load(call: str) -> str:
    """A component's `js_on_load`: a call of a function that the entry exports."""
    name = call.partition("(")[0]
    # Gradio makes a function of this, in which a relative import would start from Gradio's own script.
    return f'import(new URL("{address()}/{ENTRY}", document.baseURI)).then(({{ {name} }}) => {call})'


@cache
def import_map(entry: str) -> str:
    """The modules that an entry needs as an import map with each of them in it, as JSON without `<`.

    A module in a data: URL cannot name another one by a relative path: they get names of the map, `lora-drop/dom.js`.
    """
    imports = {}
    for name, source in modules(entry).items():
        named = NAMED.sub(lambda path, name=name: f"lora-drop/{_beside(name, path[0])}", source)
        imports[f"lora-drop/{name}"] = f"data:text/javascript;charset=utf-8,{quote(named, safe=PLAIN)}"
    return json.dumps({"imports": imports}, indent=1)
