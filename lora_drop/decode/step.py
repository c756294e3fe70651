"""What a lane remembers between its steps, and what a step gives."""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import Tensor

from lora_drop.decode.cache import HiddenCache, KVCache
from lora_drop.decode.correction import Correction
from lora_drop.decode.refresh import Refresher
from lora_drop.method.schedule import Schedule


@dataclass
class DecodeState:
    """All that a lane remembers between its steps."""

    schedule: Schedule
    bank: Correction | None
    kv: KVCache
    hidden: HiddenCache
    position: int = 0  # tokens read so far: the true position of the next one
    refresher: Refresher = field(init=False)  # which step this is, and whether it is full

    def __post_init__(self):
        self.refresher = Refresher(self.schedule)


@dataclass(frozen=True)
class Step:
    """One step as the engine sees it. `ms` is the lane's own clock; `watched` and `logits` serve the audit only."""

    step: int
    token_id: int
    kind: str
    active: list[int]
    ms: float
    kv_bytes: int
    entropy: float
    logits: Tensor  # (B, V)
    watched: list[Tensor]  # n_dropped x (B, D), empty unless asked for
    trigger: str | None = None  # what made this a refresh before its time
