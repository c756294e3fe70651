"""The models menu: what there is to know of a model before it is fetched. Sizes are estimates from its name."""

from __future__ import annotations

import re

from lora_drop.adapters.find import bank_facts
from lora_drop.models.load import ModelInfo
from lora_drop.models.place import free_memory
from lora_drop.models.pool import ModelPool

_SIZE = re.compile(r"(?<![\w.])(\d+(?:\.\d+)?)([mb])(?![a-z0-9])", re.IGNORECASE)  # as in Qwen2.5-0.5B-Instruct
_UNITS = {"m": 1e6, "b": 1e9}
ROOM = 1.25  # of the weights' bytes: what loading, the caches of a run and its audit take beside them


def menu_choices(pool: ModelPool) -> list[tuple[str, str]]:
    """What the menu shows of each model, and its label."""
    first = pool.info(None)
    free = free_memory(first.device)
    # The model in memory makes way for another one.
    room = None if free is None else free + first.shape.params * first.dtype.itemsize
    return [(f"{label} · {_about(pool, label, first, room)}", label) for label in pool.labels]


def _about(pool: ModelPool, label: str, first: ModelInfo, room: float | None) -> str:
    """`about 14.0 GB, too large for this machine (estimated); no corrections: runs the untrained rule`."""
    info = pool.info(label) if pool.is_known(label) else None
    params = info.shape.params if info else parameters(label)
    size = "size unknown"
    if params is not None:
        taken = params * first.dtype.itemsize
        size = f"about {taken / 1e9:.1f} GB"
        if info is None and room is not None:
            size += ", fits here (estimated)" if ROOM * taken <= room else ", too large for this machine (estimated)"
    # Banks are found by a fingerprint of the weights; those of a model that was never loaded are not known.
    has_bank = info is not None and bool(bank_facts(info.revision))
    bank = "trained corrections" if has_bank else "no corrections ship for it: runs the untrained rule"
    return f"{size}; {bank}"


def parameters(name: str) -> float | None:
    """The number of parameters that a model's name tells; None if it tells none."""
    found = _SIZE.findall(name)
    return float(found[-1][0]) * _UNITS[found[-1][1].lower()] if found else None
