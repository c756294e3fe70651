"""A model's files, brought here and checked before any weights are read: it says how far it is, and ends when asked.

The download is a process of its own, the only way to end one at any moment; what it has is kept, and gone on with the
next time.
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

EACH = 0.5  # seconds between two looks at a download
DOWNLOAD = (
    "import sys; from huggingface_hub import snapshot_download as get; get(sys.argv[1], allow_patterns=sys.argv[2:])"
)


def fetch(
    name: str,
    should_stop: Callable[[], bool] = lambda: False,
    device: str | torch.device = "auto",
    dtype: str | torch.dtype = "auto",
) -> Iterator[str]:
    """Bring a model's files here; nothing where they are, or where there are none.

    Yields, in words, how far it is.

    Raises:
        LoraDropError: the model cannot be had, does not fit, or `should_stop` said so.
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
    """Get the files, with their sizes in bytes."""
    from huggingface_hub.constants import HF_HUB_CACHE

    folder = Path(HF_HUB_CACHE) / f"models--{name.replace('/', '--')}" / "blobs"
    total = sum(files.values())
    command = [sys.executable, "-c", DOWNLOAD, name, *files]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    try:
        while process.poll() is None:
            if should_stop():
                raise LoraDropError(f"Stopped: {name} was not fetched; what came of it is kept.")
            yield f"Fetching {name}: {min(_size(folder), total) / 1e6:,.0f} of {total / 1e6:,.0f} MB."
            time.sleep(EACH)
        if process.returncode:
            assert process.stderr is not None
            said = [line.strip() for line in process.stderr.read().splitlines() if line.strip()]
            raise LoraDropError(f"{name} could not be fetched ({said[-1] if said else 'no reason given'}): try again.")
    finally:
        if process.poll() is None:
            process.kill()
        process.communicate()


def _size(folder: Path) -> int:
    """Bytes that the files of a folder take on the disk; a file that is being written may be longer than that."""
    found = 0
    with contextlib.suppress(OSError):
        for path in folder.iterdir():
            found += path.stat().st_blocks * 512
    return found
