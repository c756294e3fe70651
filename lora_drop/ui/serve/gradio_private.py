"""Changes to Gradio's internals where it has no setting (written for 6.31); `gradio_queue.py` changes the queue.

`tests/ui/test_gradio_private.py` fails with a Gradio that works differently.

- **Values of components.** For each of 10,000 sessions Gradio keeps the last value of every component, for links that
  this page does not make: the whole text of a run, and 10 MB after /replay. Here no value is kept.
- **Other hosts.** Gradio fetches any public web address that a visitor names, through its file route and for files in
  a call. Here the server contacts no other host; model loading does not go through Gradio.
- **Broken uploads.** Gradio leaves a partial upload in its folder, accepts 1,000 files at a time, and remembers every
  name whose progress was asked for. Here the part is deleted, an upload is one file, and few names are remembered.
- **Unreadable calls.** Gradio answers an unknown function or parameter, or an unreadable value, with status 500 and a
  traceback in the log, and repeats a wrong body in its answer, which fails for NaN or bytes. Here each is status 4xx
  with one line.
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
from gradio.context import LocalContext
from gradio.route_utils import FnIndexInferError, GradioMultiPartParser
from gradio.state_holder import SessionState
from gradio_client import utils as client_utils
from starlette.formparsers import MultiPartException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse

KEPT_UPLOADS = 100  # names of uploads that are remembered
MISTAKE = "lora_drop.mistake"  # in a request's scope: the client's own error, so status 400 where Gradio answers 500
NO_FUNCTION = "This app has no such function: /gradio_api/info lists them."
NO_PARAMETER = "A parameter is missing, or the function has none of this name: /gradio_api/info lists them."


def keep_no_values() -> None:
    """Stop Gradio from keeping any component's last value, in the whole process."""
    SessionState._update_value_in_config = lambda self, key, value: None  # type: ignore[method-assign]


def ask_no_other_host() -> None:
    """Refuse every web address that a visitor names, in the whole process."""
    safehttpx.async_validate_url = _refuse  # Gradio checks each address with this function first


async def _refuse(hostname: str) -> str:
    raise ValueError(f"this app asks no other host, and not {hostname[:80]!r}")


def drop_broken_uploads() -> None:
    """Delete what a failed upload left, and accept one file at a time, in the whole process."""
    routes.file_upload_statuses._statuses = _Few()
    routes.file_upload_statuses._signals = _Few(asyncio.Event)  # type: ignore[assignment]
    GradioMultiPartParser.parse = _parse  # type: ignore[assignment, method-assign]


class _Few(OrderedDict):
    """A dictionary of the last `KEPT_UPLOADS` names; `make`, if set, creates a missing value."""

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
        if isinstance(error, ClientDisconnect):  # Gradio handles only the other, and prints a traceback
            raise MultiPartException("The upload broke off.") from None
        raise


_PARSE = GradioMultiPartParser.parse


class Blocks(gr.Blocks):
    """Gradio's blocks, with one line for a client's own errors."""

    async def preprocess_data(self, block_fn: Any, inputs: list[Any], *args: Any, **kwargs: Any) -> Any:
        """Read the values of a call with its components. Raises gr.Error if one cannot be read."""
        if block_fn.fn is None:
            raise gr.Error("this function runs in the page alone.", print_exception=False)
        count = len(block_fn.inputs)
        if len(inputs) < count:
            raise gr.Error(f"this function takes {count} values, {len(inputs)} were sent.", print_exception=False)
        try:
            return await super().preprocess_data(block_fn, inputs, *args, **kwargs)
        except gr.Error as error:
            raise gr.Error(_sendable(error.message), error.duration, error.visible, error.title, False) from None
        except Exception:
            raise gr.Error("a value of this call cannot be read.", print_exception=False) from None

    async def process_api(self, *args: Any, **kwargs: Any) -> Any:
        """Run the call as Gradio does, and mark the request if it failed with a one-line error."""
        try:
            return await super().process_api(*args, **kwargs)
        except gr.Error as error:
            request = kwargs.get("request")
            for one in request if isinstance(request, list) else [request]:  # a batch has one request for each sample
                if not error.print_exception and one is not None and one.request is not None:
                    one.request.scope[MISTAKE] = True
            raise


def address_of_call() -> str:
    """The visitor's address, within a function that Gradio calls."""
    request: Any = LocalContext.request.get(None)
    request = getattr(request, "request", request)  # Gradio's own kind wraps one
    return request.scope.get("lora_drop.address", "unknown") if request else "unknown"


def answers_to_mistakes() -> dict[Any, Any]:
    """The app's exception handlers for unreadable requests."""
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
    """Answer 404 or 422 if Gradio was looking up a name that the client sent; raise any other error again."""
    where = traceback.extract_tb(error.__traceback__)[-1].filename
    if isinstance(error, LookupError | FnIndexInferError) and where in (routes.__file__, route_utils.__file__):
        return JSONResponse({"detail": NO_FUNCTION}, 404)
    if isinstance(error, TypeError) and where == client_utils.__file__:
        return JSONResponse({"detail": NO_PARAMETER}, 422)
    raise error


def _sendable(text: str) -> str:
    """Replace lone surrogates, which no answer can hold."""
    return text.encode("utf-8", "replace").decode()
