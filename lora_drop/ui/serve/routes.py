"""The app's addresses, each in a class with its limits; an address in no class is closed.

The list is made from the app's routes, so it holds behind any root path. A route that a newer Gradio adds is closed
until somebody has given it a class here, and the start prints it.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from enum import Enum
from typing import Any
from urllib.parse import parse_qsl

from starlette.routing import get_route_path  # type: ignore[attr-defined]  # which Starlette imports there itself
from starlette.types import Scope

from lora_drop.ui.components import address


class Kind(Enum):
    """What a request costs: a page is built, a file read, an event noted; a call is light work or may be a run."""

    PAGE = "page"
    FILE = "file"
    EVENT = "event"
    UPLOAD = "upload"
    LIGHT = "light"
    RUN = "run"
    CLOSED = "closed"


_ROOT = {
    Kind.PAGE: "/ /config",
    Kind.FILE: "/svelte/{path:path} /static/{path:path} /assets/{path:path} /favicon.ico /theme.css /robots.txt "
    "/manifest.json",
    Kind.EVENT: "/metrics /pause /resume /monitoring /monitoring/summary /monitoring/{key}",
    Kind.CLOSED: "/openapi.json /login /logout /pwa_icon /pwa_icon/{size}",
}
_API = {  # under /gradio_api
    Kind.PAGE: "info startup-events",
    Kind.FILE: "theme.css file={path_or_url:path}",
    Kind.EVENT: "user login_check token app_id reset cancel heartbeat/{session_hash} queue/data queue/status "
    "upload_progress call/{api_name}/{event_id} call/v2/{api_name}/{event_id}",
    Kind.UPLOAD: "upload",
    Kind.LIGHT: "run/{api_name} api/{api_name} component_server",
    Kind.RUN: "queue/join call/{api_name} call/v2/{api_name} mcp",
    # Routes of Gradio that this page does not need: they write files, ask other hosts, or print what a visitor sends.
    Kind.CLOSED: "deep_link openapi.json dev/reload runs process_recording file/{path:path} proxy={url_path:path} "
    "custom_component/{id}/{environment}/{type}/{file_name} stream/{event_id} stream/{event_id}/close "
    "stream/{session_hash}/{run}/{component_id}/playlist.m3u8 "
    "stream/{session_hash}/{run}/{component_id}/playlist-file "
    "stream/{session_hash}/{run}/{component_id}/{segment_id}.{ext} vibe-edit undo-vibe-edit vibe-code "
    "vibe-starter-queries",
}
_KINDS = {path: kind for kind, paths in _ROOT.items() for path in paths.split()}
_KINDS |= {f"/gradio_api/{path}": kind for kind, paths in _API.items() for path in paths.split()}
_QUERY = ("session_hash", "event_id", "upload_id")  # read from a query; a page sends its link's parameters along, too
_DASHBOARD = re.compile(r"/monitoring/[^/]+/dashboard(/|$)")  # Gradio adds it when a private server's owner asks


class Routes:
    """The classes of an app's routes.

    Attributes:
        unknown: paths of the app's routes that have no class, and are closed.
    """

    def __init__(self, routes: Iterable[Any]):
        self._kinds: dict[Any, Kind] = {_DASHBOARD: Kind.EVENT}
        self.unknown: list[str] = []
        for route in _flat(routes):
            path = route.path if route.path == "/" else route.path.rstrip("/")
            kind = Kind.FILE if path == f"/{address()}" else _KINDS.get(path)
            if kind is None and path not in self.unknown:
                self.unknown.append(path)
            self._kinds[route.path_regex] = kind or Kind.CLOSED

    def match(self, scope: Scope) -> tuple[Kind, dict[str, str]]:
        """Class of a request's address; of a call or an event also the names in the path and the query."""
        path = get_route_path(scope)
        for regex, kind in self._kinds.items():
            if match := regex.match(path):
                if kind in (Kind.PAGE, Kind.FILE, Kind.CLOSED):
                    return kind, {}
                query = parse_qsl(scope["query_string"].decode("latin-1"))
                return kind, {name: value for name, value in query if name in _QUERY} | match.groupdict()
        if path.endswith("/"):
            return Kind.CLOSED, {}
        return self.match({**scope, "path": f"{scope['path']}/"})  # the app redirects to a mount's address


def _flat(routes: Iterable[Any]) -> Iterator[Any]:
    """The routes themselves; FastAPI keeps those of an included router in it."""
    for route in routes:
        if router := getattr(route, "original_router", None):
            yield from _flat(router.routes)
        else:
            yield route
