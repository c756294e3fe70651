"""Checkpoints of a training run, written whole or not at all, so that the last good one survives any failure.

A checkpoint is a folder with `adapter/`, the bank with its card, and `state.pt`. `--adapters` takes the folder around
it (`adapters.bank.files_of`).
"""

from __future__ import annotations

import os
import pickle
import shutil
from pathlib import Path
from typing import Any

import torch

from lora_drop.adapters.bank import CHECKPOINT_BANK, CHECKPOINTS, AdapterBank
from lora_drop.errors import LoraDropError, first_line
from lora_drop.paths import sync

CHECKPOINT = CHECKPOINTS[0]
STATE = "state.pt"


def last_checkpoint(out: Path) -> Path | None:
    """Folder of the last good checkpoint; None without one."""
    return next((folder for name in CHECKPOINTS if (folder := out / name).is_dir()), None)


def write_checkpoint(out: Path, bank: AdapterBank, state: dict[str, Any]) -> None:
    """Replace the last checkpoint by the bank, its card and the state.

    Raises:
        LoraDropError: they cannot be written; the last checkpoint stays.
    """
    draft, old = (out / f"{CHECKPOINT}.{end}" for end in ("partial", "old"))
    try:
        shutil.rmtree(draft, ignore_errors=True)
        draft.mkdir(parents=True)
        bank.save(draft / CHECKPOINT_BANK)
        torch.save(state, draft / STATE)
        sync(draft / STATE)
        if (out / CHECKPOINT).exists():  # else a kill just below has left the last good one in `old`
            shutil.rmtree(old, ignore_errors=True)
            os.replace(out / CHECKPOINT, old)
        os.replace(draft, out / CHECKPOINT)
        shutil.rmtree(old, ignore_errors=True)
    except (OSError, RuntimeError, LoraDropError) as error:  # how torch.save and the bank report a full disk
        shutil.rmtree(draft, ignore_errors=True)
        raise LoraDropError(
            f"the checkpoint could not be written ({error}); the last good one is kept: make room, then --resume."
        ) from None


def read_state(out: Path, device: torch.device) -> dict[str, Any]:
    """Read the state of the last checkpoint.

    Raises:
        LoraDropError: there is no checkpoint, or it cannot be read.
    """
    folder = last_checkpoint(out)
    if folder is None:
        raise LoraDropError(f"there is no checkpoint in {out.name} to resume: start without --resume.")
    try:
        state: dict[str, Any] = torch.load(folder / STATE, map_location=device, weights_only=True)
    except (OSError, RuntimeError, ValueError, EOFError, pickle.UnpicklingError) as error:
        raise LoraDropError(f"the checkpoint in {out.name} cannot be read: {first_line(error)}") from None
    return state
