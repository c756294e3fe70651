"""LoRA-Drop Studio: `python app.py` opens the page on the bundled model. Also the entry of a HuggingFace Space."""

from __future__ import annotations

import argparse
import importlib.util
import os
import sys
from functools import partial

from lora_drop import runtime

runtime.share_heap()
runtime.configure()  # before the first `import torch` or `import gradio`, here and in every module below

# ZeroGPU's package (every Gradio Space has it) puts a stand-in in CUDA's place. It has to come before torch, and on
# ZeroGPU it imports Gradio.
if importlib.util.find_spec("spaces"):
    import spaces  # noqa: F401


def main() -> int:
    """Load the model, serve the page; returns the exit code."""
    parser = argparse.ArgumentParser(description="LoRA-Drop Studio, the page.")
    parser.add_argument(
        "--model",
        default=os.environ.get("LORA_DROP_MODEL", "bundled"),
        help="bundled (default), a hub id, a folder or random:SHAPE; LORA_DROP_MODEL names it too",
    )
    parser.add_argument("--device", default="auto", help="auto (default), cpu or cuda")
    parser.add_argument("--dtype", default="auto", help="auto (default), float32 or bfloat16")
    parser.add_argument("--host", help="the address to listen on; 127.0.0.1, or 0.0.0.0 in a Space, unless given")
    parser.add_argument("--port", type=int, help="the port; GRADIO_SERVER_PORT names it too")
    parser.add_argument("--mcp", action="store_true", help="also serve the API's functions as MCP tools")
    args = parser.parse_args()
    if args.mcp and importlib.util.find_spec("mcp") is None:
        print("app.py: --mcp needs one more package: pip install 'gradio[mcp]'.", file=sys.stderr)
        return 2
    # Gradio reads GRADIO_SERVER_NAME itself where no host is given.
    open_to_all = runtime.in_space() and "GRADIO_SERVER_NAME" not in os.environ
    host = args.host or ("0.0.0.0" if open_to_all else None)

    from lora_drop.errors import LoraDropError
    from lora_drop.models.load import load_model
    from lora_drop.models.pool import ModelPool, allowed_models
    from lora_drop.ui.page import build_app, launch

    try:
        load = partial(load_model, device=args.device, dtype=args.dtype)
        # On ZeroGPU the weights are moved to the card before the first visitor comes: one model a Space.
        names = () if runtime.on_zero_gpu() else allowed_models()
        page = build_app(ModelPool(load(args.model), names, load, name=args.model))
    except LoraDropError as error:
        print(f"app.py: {error}", file=sys.stderr)
        return 2
    try:
        launch(page, host, args.port, mcp=args.mcp)
    except OSError as error:  # the port is taken
        print(f"app.py: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
