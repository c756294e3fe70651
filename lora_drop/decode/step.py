"""What a decoder takes and returns, and what a lane remembers between its steps.

Shapes: B batch, P prompt tokens, T tokens of a chunk, D hidden size, V vocabulary, L layers, n skipped layers.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from torch import Tensor

from lora_drop.decode.cache import KVCache
from lora_drop.decode.correction import Correction
from lora_drop.decode.head import ScreenedHead
from lora_drop.decode.refresh import Refresher
from lora_drop.method.schedule import Schedule, StepKind


class Stopped(Exception):
    """Reading a prompt was stopped between two of its parts."""


@dataclass(frozen=True)
class Prefilled:
    """A prompt that the full model has read: a lane of any schedule can start from it. Nobody writes into it.

    Args:
        tokens: (B, P).
        kv: K/V of the whole prompt.
        states: of the last token, each layer's input and the last layer's output, (L + 1, B, D).
        attended: of the same token, the stream after each layer's attention, (L, B, D).
        logits: of the next token, (B, V).
        ms: time that reading it took.
    """

    tokens: Tensor
    kv: KVCache
    states: Tensor
    attended: Tensor
    logits: Tensor
    ms: float

    @property
    def nbytes(self) -> int:
        """Bytes that it holds."""
        tensors = (self.tokens, self.states, self.attended, self.logits)
        return self.kv.allocated_bytes + sum(tensor.nbytes for tensor in tensors)


@dataclass
class DecodeState:
    """All that a lane remembers between its steps, made by `new_state` of a decoder, which may extend it with buffers.

    Attributes:
        schedule: what is skipped when.
        bank: the corrections, or None.
        watch: whether steps return the outputs of the skipped layers, for the audit.
        position: tokens read so far, which is the position of the next one.
        kv: the K/V cache.
        anchors: of each skipped layer the vector (B, D) that its reuse rule needs, see `rules`; None elsewhere.
        refresher: decides which steps are full.
        pending: with repair, of each token that was read since the last refresh, the input of the first layer that a
            repair runs for all of its tokens.
        drafted: how many of these are drafts without a pass, of which no layer holds K/V.
        row_anchors: of the last repair, for each skipped layer the anchors of all its rows.
    """

    schedule: Schedule
    bank: Correction | None
    watch: bool = False
    position: int = 0
    kv: KVCache = field(init=False)
    anchors: list[Tensor | None] = field(init=False, repr=False)
    refresher: Refresher = field(init=False)
    pending: list[Tensor] = field(default_factory=list, init=False, repr=False)
    drafted: int = field(default=0, init=False)
    row_anchors: dict[int, list[Tensor | None]] = field(default_factory=dict, init=False, repr=False)

    def __post_init__(self) -> None:
        self.kv = KVCache(self.schedule.num_layers)
        self.anchors = [None] * self.schedule.num_layers
        self.refresher = Refresher(self.schedule)

    @property
    def screened_head(self) -> ScreenedHead | None:
        """The head of LoRA steps where it is screened; None: they use the model's."""
        return self.bank.head if self.bank is not None and self.schedule.head == "screened" else None


@dataclass(frozen=True, slots=True)
class DecoderOutput:
    """Output of a decoder's call.

    Args:
        logits: of the next token, (B, V); from `read` one row a token, (B, T, V); from a pass that verifies one row a
            token of the pass, (rows, V).
        watched: outputs of the skipped layers, ascending, (n, B, D); from `read` those of the layers asked for,
            (n, B, T, D); from a pass that verifies (n, rows, D). None unless asked for.
        entropy: of the last logits in nats, if the decoder has computed it. On a GPU a tensor (1,): reading its number
            waits for the device.
        rows: tokens that the call ran through the skipped layers; more than one only in a repair.
        choice: most likely token of each row of logits, (B, 1), if the decoder has computed it.
    """

    logits: Tensor
    watched: Tensor | None = None
    entropy: float | Tensor | None = None
    rows: int = 1
    choice: Tensor | None = None


@dataclass(frozen=True)
class StepResult:
    """One step of a lane; `watched` and `logits` serve the audit only."""

    step: int
    token_id: int
    kind: StepKind
    active: list[Literal[0, 1]]
    ms: float  # on the lane's clock
    kv_bytes: int
    entropy: float | None  # nats; None of a draft that took no pass
    logits: Tensor | None  # (B, V); None of the same
    watched: Tensor | None  # (n, B, D)
    trigger: str | None = None  # what made this step a refresh before its time
    rows: int = 1  # tokens that its pass ran through the skipped layers
    top: list[tuple[int, float]] | None = None  # its likeliest tokens with probabilities, if the lane fetched them
    outside_ms: float | None = None  # of `ms`, what was spent outside the decoder's kernels


@dataclass(frozen=True)
class Rewind:
    """The full model rejected the tokens after step `to`; step `to` + 1 follows again, as a refresh."""

    to: int


@dataclass(frozen=True)
class Verified:
    """The pass at the end of a lane over its last drafts, all of which the full model accepted."""

    rows: int
    ms: float
    accepted: int
    outside_ms: float | None = None
