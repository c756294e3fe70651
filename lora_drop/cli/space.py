"""`space` and `replay-space`: folders to push to HuggingFace Spaces, of the page and of recorded runs."""

from __future__ import annotations

import argparse
import shlex
from pathlib import Path

from lora_drop.cli.arguments import Commands, add_command
from lora_drop.cli.output import note, print_result
from lora_drop.run.exports.replay_space import TITLE


def add(commands: Commands) -> None:
    """Add the options of both commands."""
    page = add_command(commands, "space", run, "make the folder of a HuggingFace Space that runs the page")
    runs = add_command(commands, "replay-space", run_replays, "recorded runs as a static Space, free to host")
    for parser in (page, runs):
        parser.add_path("out", "OUT", "an empty folder, or a new one")
    page.add_argument("--space", metavar="OWNER/NAME", help="the Space's name, for the thumbnail's address")
    page.add_argument(
        "--zero-gpu", action="store_true", help="for ZeroGPU: its hardware, and the newest torch that it lists"
    )
    page.add_argument(
        "--torch-index", metavar="URL", help="a package index for the Space's requirements, such as that of CPU torch"
    )
    page.add_argument("--preload", metavar="OWNER/MODEL", help="a Hub model to download while the Space is built")
    runs.add_path("traces", "TRACE", "of `run --trace`, or from the page", nargs="+")
    runs.add_argument("--title", default=TITLE, help="of the page and the Space")
    runs.add_argument("--app", metavar="URL", help="the live app, to link to")


def run(args: argparse.Namespace) -> None:
    """Run the command `space`."""
    from lora_drop.ui.serve.space_folder import KERNELS, build, report

    sizes = build(args.out, args.space, args.zero_gpu, args.torch_index, args.preload)
    if KERNELS not in sizes:
        note("the folder has no C kernels for Linux: a Space without a compiler is slow. `make wheels` compiles them.")
    _show(args, sizes, report(sizes), args.space or "OWNER/NAME")


def run_replays(args: argparse.Namespace) -> None:
    """Run the command `replay-space`."""
    from lora_drop.run.exports.replay_space import build

    sizes = build(args.out, args.traces, args.title, args.app)
    report = "\n".join(f"{size / 1e3:10,.0f} kB  {name}" for name, size in sizes.items())
    _show(args, sizes, report, "OWNER/NAME")


def _show(args: argparse.Namespace, sizes: dict[str, int], report: str, space: str) -> None:
    out: Path = args.out
    push = f"Push it: hf upload {space} {shlex.quote(str(out))} . --repo-type space"
    print_result(args, {"folder": str(out), "files": sizes}, lambda: print(f"{report}\n{push}"))
