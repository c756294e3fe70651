"""The page's own document, sent compressed.

Gradio compresses what its name says is text (`.js`, `.css`), and so the page's scripts. The document has no name: it
was half of all that came but for plotly.js. Nothing else is touched here: a stream of events must not wait for a
compressor to have enough of it.
"""

from __future__ import annotations

from starlette.middleware.gzip import GZipMiddleware
from starlette.types import ASGIApp, Receive, Scope, Send


class Compressed:
    """The middleware, over the app whose document it is."""

    def __init__(self, app: ASGIApp):
        self.app, self.packed = app, GZipMiddleware(app)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request, packed where it is for the document and its browser can read that."""
        is_document = scope["type"] == "http" and scope["path"] == scope.get("root_path", "") + "/"
        await (self.packed if is_document else self.app)(scope, receive, send)
