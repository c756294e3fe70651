"""Start the page, for `app.py` and the command `page`."""

from __future__ import annotations

import argparse
import atexit
import os
import shutil
import signal
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from functools import partial
from importlib.util import find_spec

from lora_drop.errors import GET_PAGE, LineParser, LoraDropError
from lora_drop.paths import own_upload_folder
from lora_drop.runtime import check_versions, one_line_warnings
from lora_drop.ui.serve.environment import in_space
from lora_drop.ui.serve.memory import share_heap


def main(argv: Sequence[str] | None = None, prog: str = "app.py") -> int:
    """Load the model and serve the page until it is stopped, which ends the process; returns an error's exit code.

    Call it before torch or Gradio is imported.

    Args:
        argv: the options; by default those of the process.
        prog: the program's name in the help and in error lines.
    """
    share_heap()
    one_line_warnings()
    sys.setswitchinterval(0.0005)  # a thread that computes in Python delays each small step of a run by so much
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # as Ctrl-C: temporary folders go
    # ZeroGPU's package, which every Gradio Space has, replaces CUDA with a stand-in. It must come before torch, and on
    # ZeroGPU it imports Gradio.
    if find_spec("spaces"):
        import spaces  # noqa: F401
    try:
        args = _parser(prog).parse_args(argv)
        check_versions("page")
        with ExitStack() as ending:
            _serve(args, ending)
    except (LoraDropError, OSError) as error:  # OSError: the port is taken
        print(f"{prog}: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:  # before the page was there
        return 130
    sys.stdout.flush()
    os._exit(0)  # open streams, and threads inside a library, would keep the process


def _parser(prog: str) -> argparse.ArgumentParser:
    parser = LineParser(prog=prog, description="LoRA-Drop Studio, the page.")
    parser.add_argument(
        "--model",
        default=os.environ.get("LORA_DROP_MODEL", "bundled"),
        help="bundled (default), a hub id, a folder or random:SHAPE; LORA_DROP_MODEL sets it too",
    )
    parser.add_argument("--device", default="auto", help="auto (default), cpu or cuda")
    parser.add_argument("--dtype", default="auto", help="auto (default), float32 or bfloat16")
    parser.add_argument("--host", help="the address to listen on (default 127.0.0.1, in a Space 0.0.0.0)")
    parser.add_argument(
        "--public",
        action=argparse.BooleanOptionalAction,
        help="tight limits and listed models only, for strangers (default in a Space, with --share, or on an address "
        "that other machines can reach; LORA_DROP_PUBLIC sets it too)",
    )
    parser.add_argument("--private", dest="public", action="store_false", help="the same as --no-public")
    parser.add_argument("--share", action="store_true", help="also serve the page at a public Gradio address")
    parser.add_argument("--port", type=int, help="the port; GRADIO_SERVER_PORT sets it too")
    parser.add_argument("--mcp", action="store_true", help="also serve the API's functions as MCP tools")
    return parser


def launch(model: str = "bundled", inline: bool = True, port: int | None = None) -> str:
    """Serve the page privately from this process, which goes on; for notebooks.

    Args:
        model: as for the command `page`.
        inline: show the page in the notebook's cell too.
        port: the port; by default Gradio's.

    Returns:
        The page's address.

    Raises:
        LoraDropError: a package of the page is missing, or the model cannot be loaded.
    """
    check_versions("page")
    ending = ExitStack()
    atexit.register(ending.close)
    args = _parser("launch").parse_args(
        ["--model", model, "--private", *([] if port is None else ["--port", f"{port}"])]
    )
    return _serve(args, ending, block=False, inline=inline)


def _serve(args: argparse.Namespace, ending: ExitStack, **more: bool) -> str:
    """Serve the page and return its address; `ending` gets what its end does, `more` is for the page's `launch`.

    Raises LoraDropError or OSError if it cannot start.
    """
    if find_spec("gradio") is None:
        raise LoraDropError(f"the page needs Gradio: {GET_PAGE}")
    if args.mcp and find_spec("mcp") is None:
        raise LoraDropError("--mcp needs one more package: pip install 'gradio[mcp]'.")
    # Gradio reads this variable when it is imported, and writes to the folder before the page is up.
    if not os.environ.get("GRADIO_TEMP_DIR") and (folder := own_upload_folder()):
        os.environ["GRADIO_TEMP_DIR"] = folder
        ending.callback(shutil.rmtree, folder, ignore_errors=True)

    from lora_drop.models.load import LoadedModel, fetch, load_model
    from lora_drop.models.place import on_zero_gpu
    from lora_drop.models.pool import ModelPool, allowed_models
    from lora_drop.run.warm import warm_up
    from lora_drop.ui.page import build_app
    from lora_drop.ui.page import launch as serve
    from lora_drop.ui.serve.calibration import Background, calibrates
    from lora_drop.ui.serve.policy import Policy

    # Without a host Gradio reads GRADIO_SERVER_NAME itself.
    named = os.environ.get("GRADIO_SERVER_NAME")
    host = args.host or (None if named else "0.0.0.0" if in_space() else None)
    host = f"[{host}]" if host and ":" in host.strip("[]") and not host.startswith("[") else host  # Gradio's way
    policy = Policy.from_environment(args.public, host or named, args.share)

    def load(name: str) -> LoadedModel:
        loaded = load_model(name, device=args.device, dtype=args.dtype)
        warm_up(loaded, closed=policy.public)
        return loaded

    # On ZeroGPU the weights are prepared before the first visitor comes: one model a Space.
    names = () if on_zero_gpu() else allowed_models(policy.public)
    files = partial(fetch, device=args.device, dtype=args.dtype)
    pool = ModelPool(load(args.model), names, load, args.model, files)
    page = build_app(pool, policy)
    if calibrates():
        Background(pool).start()
    return serve(page, host, args.port, mcp=args.mcp, share=args.share, **more)
