"""A GPU that an error has left unusable: only a new process can use it again."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from lora_drop.errors import LoraDropError, first_line
from lora_drop.models.place import on_zero_gpu

UNUSABLE = 70  # the exit code


@contextmanager
def watched(device: torch.device) -> Iterator[None]:
    """End the process, with one line, if the block fails and the device answers nothing any more.

    After some errors (an illegal address, a failed assertion in a kernel) each later call of CUDA fails, until the
    process is started anew.
    """
    try:
        yield
    except LoraDropError:
        raise
    except Exception:
        if device.type == "cuda" and not on_zero_gpu():
            _end_if_unusable(device)
        raise


def _end_if_unusable(device: torch.device) -> None:
    try:
        torch.cuda.synchronize(device)
    except Exception as error:  # torch has several kinds
        print(f"lora-drop: {device} is unusable from now on ({first_line(error)}): start again.", file=sys.stderr)
        sys.stderr.flush()
        os._exit(UNUSABLE)  # threads that wait for the device would keep another exit from ending
