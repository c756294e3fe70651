"""What is changed inside of Gradio, where it has no setting for it. All of it is here (read in 6.31), but for
`gradio_queue.py`, the queue.

`tests/ui/test_gradio_private.py` fails where a version of Gradio no longer works as is said here.

- **Values of components.** For each of 10,000 sessions Gradio keeps the last value of every component, for links that
  this page does not make: the whole text of a run, and 10 MB after /replay. Here no value is kept.
- **Other hosts.** Gradio fetches any public address of the web that a visitor names, by its file route and for the
  files that a call names. Here the server asks no other host; what loads models has ways of its own.
- **Uploads that break off.** Gradio leaves what had come of them in its folder, takes 1,000 files at a time, and keeps
  each name by which somebody asked how far an upload is. Here it goes, an upload has one file, and few names are kept.
- **Calls that cannot be read.** Gradio answers an unknown function or parameter, and a value that cannot be read, with
  status 500 and a traceback in the log, and repeats a wrong body in its answer, which fails at NaN or bytes. Here each
  is status 4xx with one line.
"""

from __future__ import annotations

import asyncio
import traceback
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gradio as gr
import safehttpx
from fastapi.exceptions import RequestValidationError
from gradio import route_utils, routes
from gradio.route_utils import FnIndexInferError, GradioMultiPartParser
from gradio.state_holder import SessionState
from gradio_client import utils as client_utils
from starlette.formparsers import MultiPartException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse

KEPT_UPLOADS = 100  # names of uploads that are remembered
MISTAKE = "lora_drop.mistake"  # in a request's scope: its error is the visitor's, status 400 where Gradio says 500
NO_FUNCTION = "This app has no such function: /gradio_api/info lists them."
NO_PARAMETER = "A parameter is missing, or the function has none of this name: /gradio_api/info lists them."


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


class Blocks(gr.Blocks):
    """Gradio's, which calls what a visitor sent wrongly a mistake of theirs, in one line."""

    async def preprocess_data(self, block_fn: Any, inputs: list[Any], *args: Any, **kwargs: Any) -> Any:
        """The values as the components read them. Raises gr.Error where one cannot be read."""
        if block_fn.fn is None:
            raise gr.Error("this function runs in the page alone.", print_exception=False)
        wanted = len(block_fn.inputs)
        if len(inputs) < wanted:
            raise gr.Error(f"this function takes {wanted} values, {len(inputs)} were sent.", print_exception=False)
        try:
            return await super().preprocess_data(block_fn, inputs, *args, **kwargs)
        except gr.Error as error:
            raise gr.Error(_sendable(error.message), error.duration, error.visible, error.title, False) from None
        except Exception:
            raise gr.Error("a value of this call cannot be read.", print_exception=False) from None

    async def process_api(self, *args: Any, **kwargs: Any) -> Any:
        """Gradio's; an error that is told in a line is marked in the request."""
        try:
            return await super().process_api(*args, **kwargs)
        except gr.Error as error:
            request = kwargs.get("request")
            for one in request if isinstance(request, list) else [request]:  # a batch has one for each of its samples
                if not error.print_exception and one is not None and one.request is not None:
                    one.request.scope[MISTAKE] = True
            raise


def answers_to_mistakes() -> dict[Any, Any]:
    """What the app answers to requests that cannot be read, by the error that they raise."""
    return {
        RequestValidationError: _unreadable,
        FnIndexInferError: _unknown,
        KeyError: _unknown,
        TypeError: _unknown,
    }


async def _unreadable(request: Request, error: RequestValidationError) -> JSONResponse:
    first = error.errors()[0]
    place = ".".join(str(part) for part in first["loc"])
    return JSONResponse({"detail": _sendable(f"This request cannot be read: {place}: {first['msg']}.")}, 422)


async def _unknown(request: Request, error: Exception) -> JSONResponse:
    """404 or 422 where Gradio looked for what the visitor named; any other error goes on as it came."""
    where = traceback.extract_tb(error.__traceback__)[-1].filename
    if isinstance(error, LookupError | FnIndexInferError) and where in (routes.__file__, route_utils.__file__):
        return JSONResponse({"detail": NO_FUNCTION}, 404)
    if isinstance(error, TypeError) and where == client_utils.__file__:
        return JSONResponse({"detail": NO_PARAMETER}, 422)
    raise error


def _sendable(text: str) -> str:
    """The text with a sign in place of each half of a pair, which no answer can hold."""
    return text.encode("utf-8", "replace").decode()
