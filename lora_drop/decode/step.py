"""What a decoder is, what a lane remembers between its steps, and what a step gives.

Shapes: B batch, P prompt tokens, T tokens of a chunk, D hidden size, V vocabulary, n skipped layers.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal, Protocol

import torch
from torch import Tensor

from lora_drop.decode.cache import HiddenCache, KVCache
from lora_drop.decode.correction import Correction
from lora_drop.decode.refresh import Refresher
from lora_drop.method.schedule import Schedule, StepKind


@dataclass
class DecodeState:
    """All that a lane remembers between its steps, made by `Decoder.new_state`; a decoder may add its own buffers."""

    schedule: Schedule
    bank: Correction | None
    kv: KVCache
    hidden: HiddenCache
    watch: bool = False  # whether steps give the outputs of the skipped layers, for the audit
    position: int = 0  # tokens read so far: the true position of the next one
    refresher: Refresher = field(init=False)  # which step this is, and whether it is full

    def __post_init__(self):
        self.refresher = Refresher(self.schedule)


@dataclass(frozen=True, slots=True)
class DecoderOutput:
    """What a decoder's call gives.

    Args:
        logits: of the next token, (B, V); from `read` one row a token, (B, T, V).
        watched: the outputs of the skipped layers, ascending, (n, B, D); from `read` those of the layers asked for,
            (n, B, T, D). None where nobody asked.
        entropy: of the logits in nats, where the schedule needed it, so that nobody computes it again; else None.
    """

    logits: Tensor
    watched: Tensor | None = None
    entropy: float | None = None


class Decoder(Protocol):
    """The layers of one model, ready to decode. It holds nothing of a request: that is in `DecodeState`, one a lane.

    There are three: `ReferenceDecoder` (transformers' own modules; the others are checked against it), `StaticDecoder`
    (static buffers, CUDA graphs) and `NativeDecoder` (C, on a CPU).

    Attributes:
        name: for the trace and the page, such as `native (bfloat16)`.
        device, dtype: of the tokens that it takes, and of its activations and K/V.
        num_layers: L.
    """

    name: str
    device: torch.device
    dtype: torch.dtype
    num_layers: int

    def new_state(
        self, schedule: Schedule, bank: Correction | None = None, tokens: int = 0, watch: bool = False
    ) -> DecodeState:
        """A fresh state.

        Args:
            bank: on the model's device and in its dtype (`Correction.to`).
            tokens: the most that the caches will hold, which lets static buffers be reserved once; 0 is unknown.
            watch: have each step give the outputs of the skipped layers.
        """

    def prefill(self, input_ids: Tensor, state: DecodeState) -> DecoderOutput:
        """Read the prompt (B, P): step 0, full, and the first refresh. Gives the logits after its last token."""

    def step(self, token: Tensor, state: DecodeState) -> DecoderOutput:
        """Decode one token (B, 1), full or with the schedule's layers skipped, as `state.refresher` decides."""

    def read(
        self, tokens: Tensor, kv: KVCache, position: int, layers: tuple[int, ...], logits_from: int = 0
    ) -> DecoderOutput:
        """The full model on a chunk of tokens (B, T) at `position`, after what `kv` holds: the audit's pass.

        Args:
            layers: whose outputs are wanted, ascending.
            logits_from: the first token of the chunk whose logits are wanted, so that there are T - logits_from.
        """


@dataclass(frozen=True)
class StepResult:
    """One step of a lane. `ms` is the lane's own clock; `watched` and `logits` serve the audit only."""

    step: int
    token_id: int
    kind: StepKind
    active: list[Literal[0, 1]]
    ms: float
    kv_bytes: int
    entropy: float
    logits: Tensor  # (B, V)
    watched: Tensor | None  # (n, B, D)
    trigger: str | None = None  # what made this a refresh before its time
