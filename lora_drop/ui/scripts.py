"""How the page loads its ES modules (`assets/js`).

They are served as they are. A module names others by relative paths, and an import drops the query of the module that
it stands in: with Gradio's file route and a `?v=` at the entry, a browser could keep an old module beside new ones. An
import map would have to be in the page before Gradio's own modules load, and Gradio has no place for one there; a
component's `head` even drops a script's type. So the version of all modules together is a folder of their address, and
they have a route of their own. Addresses are relative: they survive a mount path and a Space's proxy.
"""

from __future__ import annotations

import hashlib
import json
from functools import cache
from typing import Any

from starlette.responses import Response
from starlette.routing import Mount
from starlette.staticfiles import StaticFiles

from lora_drop.run.exports.scripts import SCRIPTS, modules

ENTRY = "main.js"  # of the page; what only a tab needs, it imports when the tab is first opened


@cache
def address() -> str:
    """The relative address of the folder; it changes with the content of any module."""
    sources = {path.relative_to(SCRIPTS).as_posix(): path.read_text("utf-8") for path in SCRIPTS.rglob("*.js")}
    content = json.dumps(sources, sort_keys=True).encode()
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
    """What fetches the page's modules at once: by themselves, each would be asked for once another has named it."""
    return "".join(f'<link rel="modulepreload" href="{address()}/{name}">' for name in modules(ENTRY))


def on_load(call: str) -> str:
    """A component's `js_on_load`: a call of a function that the entry exports."""
    name = call.partition("(")[0]
    # Gradio makes a function of this, in which a relative import would start from Gradio's own script.
    return f'import(new URL("{address()}/{ENTRY}", document.baseURI)).then(({{ {name} }}) => {call})'
