"""Changes to Gradio's internals where it has no setting; `gradio_queue.py` changes the queue.

With another Gradio than the tested one a private page warns, and a public one does not start (`refuse_untested`).

- **Values of components.** For each of 10,000 sessions Gradio keeps the last value of every component, for links that
  this page does not make: the whole text of a run, and 10 MB after /replay. Here it stores no value.
- **Other hosts.** Gradio fetches any public web address that a visitor names, through its file route and for files in
  a call. Here the server contacts no other host; model loading does not go through Gradio.
- **Broken uploads.** Gradio leaves a partial upload in its folder, accepts 1,000 files at a time, and remembers every
  name whose progress was asked for. Here the part is deleted, an upload is one file, and few names are remembered.
- **States of sessions.** Gradio drops the longest silent of all sessions. Here the address with most makes room.
- **Prints.** Gradio prints what a visitor sent, control characters too. Here it prints one clean line.
- **Programs.** Gradio leaves the descriptions of the API's parameters and answers empty, and gives an MCP client
  Python's form of a dictionary. Here the descriptions are those of the docstrings, and the answer is JSON.
- **Unreadable calls.** Gradio answers an unknown function or parameter, or an unreadable value, with status 500 and a
  traceback in the log, and repeats a wrong body in its answer, which fails for NaN or bytes. Here each is status 4xx
  with one line.
"""

from __future__ import annotations

import asyncio
import json
import sys
import traceback
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from pathlib import Path
from secrets import token_bytes
from typing import Any

import gradio as gr
import safehttpx
from fastapi.exceptions import RequestValidationError
from gradio import queueing, route_utils, routes
from gradio.context import LocalContext
from gradio.events import api as api  # `gr.api`, which has no type there
from gradio.mcp import GradioMCPServer
from gradio.route_utils import FnIndexInferError, GradioMultiPartParser, GradioUploadFile
from gradio.state_holder import SessionState
from gradio.utils import get_function_description
from gradio_client import utils as client_utils
from starlette.exceptions import HTTPException
from starlette.formparsers import MultiPartException
from starlette.requests import Request
from starlette.responses import JSONResponse

from lora_drop.errors import GET_PAGE, TESTED_GRADIO, LoraDropError
from lora_drop.ui.components import sendable
from lora_drop.ui.serve.visits import Visits

KEPT_UPLOADS = 100  # names of uploads that are remembered
MISTAKE = "lora_drop.mistake"  # in a request's scope: the client's error, so status 400 where Gradio answers 500
# Gradio's MCP server makes a visitor's call anew, from this machine, with the headers that it got. The guard has put
# the visitor's address into this one, behind a secret that no visitor knows.
MCP_VISITOR = "x-lora-drop-visitor"
NO_FUNCTION = "This app has no such function: /gradio_api/info lists them."
NO_PARAMETER = "A parameter is missing, or the function has none of this name: /gradio_api/info lists them."


def keep_no_values() -> None:
    """Stop Gradio from keeping any component's last value, in the whole process."""
    SessionState._update_value_in_config = lambda self, key, value: None  # type: ignore[method-assign]


def share_states(demo: gr.Blocks, visits: Visits) -> None:
    """Have a page's sessions make room by address, and end with their visits; call it once the page is launched.

    Gradio drops the state of the session that was silent for longest: 200 calls with new names took everybody's.
    """
    holder = demo.app.state_holder

    def update(session: str) -> None:
        with holder.lock:
            if session in holder.session_data:
                holder.session_data.move_to_end(session)
            while len(holder.session_data) > holder.capacity:
                drop(visits.crowded(list(holder.session_data)))

    def drop(session: str) -> None:
        holder.session_data.pop(session, None)
        holder.time_last_used.pop(session, None)

    def end(sessions: set[str]) -> None:
        with holder.lock:
            for session in sessions:
                drop(session)

    holder.update = update  # type: ignore[assignment, method-assign]
    visits.ends.append(end)


def ask_no_other_host() -> None:
    """Refuse every web address that a visitor names, in the whole process."""
    safehttpx.async_validate_url = _refuse  # Gradio checks each address with this function first


async def _refuse(hostname: str) -> str:
    raise ValueError(f"this app asks no other host, and not {hostname[:80]!r}")


def drop_broken_uploads() -> None:
    """Delete what a failed upload left, and accept one file at a time, in the whole process."""
    routes.file_upload_statuses._statuses = _Few()
    routes.file_upload_statuses._signals = _Few(asyncio.Event)
    GradioMultiPartParser.parse = _parse  # type: ignore[assignment, method-assign]
    route_utils.GradioUploadFile = _Upload  # type: ignore[misc]


class _Upload(GradioUploadFile):
    """A file alone in a folder, with a name that nobody can guess; Gradio stores equal files once."""

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, **kwargs)
        self.sha.update(token_bytes())


class _Few(defaultdict[str, Any]):
    """A dictionary of the last `KEPT_UPLOADS` names."""

    def __setitem__(self, name: str, value: Any) -> None:
        super().__setitem__(name, value)
        while len(self) > KEPT_UPLOADS:
            del self[next(iter(self))]


async def _parse(parser: GradioMultiPartParser) -> Any:
    parser.max_files = 1
    _PARSERS.get().append(parser)
    try:
        form = await _PARSE(parser)
    except (MultiPartException, HTTPException):
        raise
    except Exception:  # among them a client that has gone; Gradio prints a traceback
        raise MultiPartException("The upload broke off, or cannot be read.") from None
    if [name for name, _ in form.multi_items()] != ["files"]:
        raise MultiPartException("An upload is one whole file, in the field 'files'.")
    return form


def forget_file(demo: gr.Blocks, path: str) -> None:
    """Take a deleted file off the lists of a page and its components."""
    for files in demo.temp_file_sets:
        files.discard(path)


@contextmanager
def uploading() -> Iterator[Callable[[], None]]:
    """Follow an upload within the block; yields a function that deletes all of it but a file that was accepted."""
    parsers: list[GradioMultiPartParser] = []

    def clear() -> None:
        for parser in parsers:
            for draft in parser._files_to_close_on_error:  # an accepted upload was renamed
                draft.close()
                Path(draft.name).unlink(missing_ok=True)
            for _, file in parser.items:
                if isinstance(file, _Upload) and parser.upload_dir:
                    with suppress(OSError):  # the accepted file is in it
                        (Path(parser.upload_dir) / file.sha.hexdigest()).rmdir()

    token = _PARSERS.set(parsers)
    try:
        yield clear
    finally:
        _PARSERS.reset(token)


_PARSERS: ContextVar[list[GradioMultiPartParser]] = ContextVar("uploads of this request")
_PARSE = GradioMultiPartParser.parse


def answer_tools_in_json() -> None:
    """Have an MCP tool's answer be JSON, in the whole process: Gradio writes Python's form of a dictionary."""
    GradioMCPServer.postprocess_output_data = _postprocess  # type: ignore[method-assign]


def _postprocess(self: GradioMCPServer, data: Any, root_url: str) -> Any:
    texts = [value if isinstance(value, str) else json.dumps(value, ensure_ascii=False) for value in data]
    return _POSTPROCESS(self, texts, root_url)


_POSTPROCESS = GradioMCPServer.postprocess_output_data


def clean_prints() -> None:
    """Have Gradio print as one line without control characters what a visitor may have sent, in the whole process."""
    for module in (routes, queueing, route_utils):
        module.print = _print  # type: ignore[attr-defined]


def _print(*values: object, **options: Any) -> None:
    print(LoraDropError(" ".join(map(str, values))), **options)


def refuse_untested(public: bool) -> None:
    """Warn in one line of an untested version of Gradio: what is replaced here may be elsewhere in it.

    Raises:
        LoraDropError: the version is untested, and the page is public.
    """
    if gr.__version__.startswith(f"{TESTED_GRADIO}."):
        return
    line = f"gradio {gr.__version__} is installed, and this page is tested with {TESTED_GRADIO} alone: {GET_PAGE}"
    if public:
        raise LoraDropError(f"{line}, or start with --private.")
    print(f"warning: {line}", file=sys.stderr)


class Blocks(gr.Blocks):
    """Gradio's blocks, with one line for a client's errors."""

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
            raise gr.Error(sendable(error.message), error.duration, error.visible, error.title, False) from None
        except Exception:
            raise gr.Error("a value of this call cannot be read.", print_exception=False) from None

    def get_api_info(self, *args: Any, **kwargs: Any) -> Any:
        """What `view_api` prints, with the descriptions of the functions' docstrings."""
        info = super().get_api_info(*args, **kwargs)
        functions = {f"/{function.api_name}": function.fn for function in self.fns.values() if function.fn}
        for name, endpoint in info["named_endpoints"].items():
            _, parameters, returns = get_function_description(functions[name])
            for parameter in endpoint["parameters"]:
                parameter["python_type"]["description"] = parameters.get(parameter["parameter_name"], "")
            for output in endpoint["returns"]:
                output["python_type"]["description"] = " ".join(returns)
        return info

    async def process_api(self, *args: Any, **kwargs: Any) -> Any:
        """Run the call as Gradio does, and mark the request if it failed with a one-line error."""
        try:
            return await super().process_api(*args, **kwargs)
        except gr.Error as error:
            request = kwargs.get("request")
            # A batch has one request for each sample.
            for sample in request if isinstance(request, list) else [request]:
                if not error.print_exception and sample is not None and sample.request is not None:
                    sample.request.scope[MISTAKE] = True
            raise


def address_of_call() -> str:
    """The visitor's address, within a function that Gradio calls."""
    request: Any = LocalContext.request.get(None)
    request = getattr(request, "request", request)  # Gradio's request wraps Starlette's
    return request.scope.get("lora_drop.address", "unknown") if request else "unknown"


def session_of(visitor: gr.Request | None) -> str | None:
    """A visitor's session; None for one who came over MCP: Gradio's server has one session for all of them."""
    if visitor is None or MCP_VISITOR in visitor.headers:
        return None
    return visitor.session_hash


def answers_to_mistakes() -> dict[Any, Any]:
    """The app's exception handlers for unreadable requests."""
    return {RequestValidationError: _unreadable, **dict.fromkeys((FnIndexInferError, KeyError, TypeError), _unknown)}


async def _unreadable(request: Request, error: RequestValidationError) -> JSONResponse:
    first = error.errors()[0]
    place = ".".join(str(part) for part in first["loc"])
    return JSONResponse({"detail": sendable(f"This request cannot be read: {place}: {first['msg']}.")}, 422)


async def _unknown(request: Request, error: Exception) -> JSONResponse:
    """Answer 404 or 422 if Gradio was looking up a name that the client sent; raise any other error again."""
    where = traceback.extract_tb(error.__traceback__)[-1].filename
    if isinstance(error, LookupError | FnIndexInferError) and where in (routes.__file__, route_utils.__file__):
        return JSONResponse({"detail": NO_FUNCTION}, 404)
    if isinstance(error, TypeError) and where == client_utils.__file__:
        return JSONResponse({"detail": NO_PARAMETER}, 422)
    raise error
