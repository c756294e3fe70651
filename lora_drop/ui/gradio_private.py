"""What is changed inside of Gradio, where it has no setting for it. All of it is here (read in 6.31), but for
`gradio_queue.py`, the queue.

`tests/ui/test_gradio_private.py` fails where a version of Gradio no longer works as is said here.

- **Values of components.** For each of 10,000 sessions Gradio keeps the last value of every component, for links that
  this page does not make: the whole text of a run, and 10 MB after /replay. Here no value is kept.
- **Other hosts.** Gradio fetches any public address of the web that a visitor names, by its file route and for the
  files that a call names. Here the server asks no other host; what loads models has ways of its own.
- **Uploads that break off.** Gradio leaves what had come of them in its folder, takes 1,000 files at a time, and keeps
  each name by which somebody asked how far an upload is. Here it goes, an upload has one file, and few names are kept.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import safehttpx
from gradio import routes
from gradio.route_utils import GradioMultiPartParser
from gradio.state_holder import SessionState
from starlette.formparsers import MultiPartException
from starlette.requests import ClientDisconnect

KEPT_UPLOADS = 100  # names of uploads that are remembered


def keep_no_values() -> None:
    """Keep no component's last value, for the whole process."""
    SessionState._update_value_in_config = lambda self, key, value: None  # type: ignore[method-assign]


def ask_no_other_host() -> None:
    """Refuse every address of the web that a visitor names, for the whole process."""
    safehttpx.async_validate_url = _refuse  # Gradio checks each such address with it first


async def _refuse(hostname: str) -> str:
    raise ValueError(f"this app asks no other host, and not {hostname[:80]!r}")


def drop_broken_uploads() -> None:
    """Leave nothing of an upload that does not end well, and take one file at a time, for the whole process."""
    routes.file_upload_statuses._statuses = _Few()
    routes.file_upload_statuses._signals = _Few(asyncio.Event)  # type: ignore[assignment]
    GradioMultiPartParser.parse = _parse  # type: ignore[assignment, method-assign]


class _Few(OrderedDict):
    """The values of the last names; a missing one is made, where that is said how."""

    def __init__(self, make: Callable[[], Any] | None = None):
        super().__init__()
        self._make = make

    def __missing__(self, name: str) -> Any:
        if self._make is None:
            raise KeyError(name)
        self[name] = value = self._make()
        return value

    def __setitem__(self, name: str, value: Any) -> None:
        super().__setitem__(name, value)
        while len(self) > KEPT_UPLOADS:
            self.popitem(last=False)


async def _parse(parser: GradioMultiPartParser) -> Any:
    parser.max_files = 1
    try:
        return await _PARSE(parser)
    except BaseException as error:
        for file in parser._files_to_close_on_error:
            file.close()
            Path(file.name).unlink(missing_ok=True)
        if isinstance(error, ClientDisconnect):  # Gradio knows only the other: it would be a traceback a visitor
            raise MultiPartException("The upload broke off.") from None
        raise


_PARSE = GradioMultiPartParser.parse
