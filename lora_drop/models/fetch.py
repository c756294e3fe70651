"""Download and check a model's files before any weights are read, with progress, and stop on request.

The download is a process of its own: only that can be ended at any moment. The next download goes on from its files.
"""

from __future__ import annotations

import contextlib
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import torch

from lora_drop.errors import LoraDropError
from lora_drop.models import bundled
from lora_drop.models.hub import check_config, hub_files, locate
from lora_drop.models.place import places

POLL = 0.5  # seconds between two looks at a download
DOWNLOAD = (
    "import sys; from huggingface_hub import snapshot_download as get; get(sys.argv[1], allow_patterns=sys.argv[2:])"
)


def fetch(
    name: str,
    should_stop: Callable[[], bool] = lambda: False,
    device: str | torch.device = "auto",
    dtype: str | torch.dtype = "auto",
) -> Iterator[str]:
    """Download a model's files, unless they are here or the model has none; yields the progress in words.

    Raises:
        LoraDropError: the model cannot be downloaded, does not fit, or `should_stop` returned true.
    """
    if name.startswith("random:"):
        return
    if name in ("bundled", f"bundled:{bundled.NAME}"):
        bundled.ensure()
        return
    source, name, local = locate(name)
    check_config(source, name, places(device, dtype), local)
    if local:
        return
    files = hub_files(name)
    if not files:  # the Hub cannot be reached: earlier downloads have to do
        return
    yield from _download(name, files, should_stop)


def _download(name: str, files: dict[str, int], should_stop: Callable[[], bool]) -> Iterator[str]:
    """Download files, by name with their sizes in bytes."""
    from huggingface_hub.constants import HF_HUB_CACHE

    folder = Path(HF_HUB_CACHE) / f"models--{name.replace('/', '--')}" / "blobs"
    total = sum(files.values())
    command = [sys.executable, "-c", DOWNLOAD, name, *files]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    try:
        while process.poll() is None:
            if should_stop():
                raise LoraDropError(f"Stopped: {name} was not fetched; the next download goes on from here.")
            yield f"Fetching {name}: {min(_size(folder), total) / 1e6:,.0f} of {total / 1e6:,.0f} MB."
            time.sleep(POLL)
        if process.returncode:
            assert process.stderr is not None
            lines = process.stderr.read().split("\n")
            reason = next((line.strip() for line in reversed(lines) if line.strip()), f"code {process.returncode}")
            raise LoraDropError(f"{name} could not be fetched ({reason}): try again.")
    finally:
        if process.poll() is None:
            process.kill()
        process.communicate()


def _size(folder: Path) -> int:
    """Bytes on the disk of a folder's files; a file that is being written may already have its full length."""
    size = 0
    with contextlib.suppress(OSError):
        for path in folder.iterdir():
            size += path.stat().st_blocks * 512
    return size
