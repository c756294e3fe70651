"""What a decoder is, what a lane remembers between its steps, and what a step gives.

Shapes: B batch, P prompt tokens, T tokens of a chunk, D hidden size, V vocabulary, n skipped layers.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal, Protocol

import torch
from torch import Tensor

from lora_drop.decode.cache import HiddenCache, KVCache
from lora_drop.decode.correction import Correction
from lora_drop.decode.prompt import Prefilled
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
    # With repair, of each token that a LoRA step has read since the last refresh: what the first skipped layer takes.
    pending: list[Tensor] = field(default_factory=list, repr=False)
    # Of the last repair: for each skipped layer what its rule remembers of each row.
    row_anchors: dict[int, list[Tensor | None]] = field(default_factory=dict, repr=False)

    def __post_init__(self):
        self.refresher = Refresher(self.schedule)


@dataclass(frozen=True, slots=True)
class DecoderOutput:
    """What a decoder's call gives.

    Args:
        logits: of the next token, (B, V); from `read` one row a token, (B, T, V); from a pass that verifies one a
            token of the pass, (rows, V).
        watched: the outputs of the skipped layers, ascending, (n, B, D); from `read` those of the layers asked for,
            (n, B, T, D); from a pass that verifies (n, rows, D). None where nobody asked.
        entropy: of the last logits in nats, where somebody knows it already, so that nobody computes it again; on a
            GPU still there, (1,): whoever takes its number waits for the device.
        rows: the tokens that the call ran through the skipped layers: more than one only in a repair.
        choice: the likeliest token of each row of logits, (B, 1), from a decoder that found it on the way.
    """

    logits: Tensor
    watched: Tensor | None = None
    entropy: float | Tensor | None = None
    rows: int = 1
    choice: Tensor | None = None


class Decoder(Protocol):
    """The layers of one model, ready to decode. It holds nothing of a request: that is in `DecodeState`, one a lane.

    There are three: `ReferenceDecoder` (transformers' own modules; the others are checked against it), `StaticDecoder`
    (static buffers, CUDA graphs) and `NativeDecoder` (C, on a CPU).

    Attributes:
        name: for the trace and the page, such as `native (bfloat16)`.
        device, dtype: of the tokens that it takes, and of its activations and K/V.
        num_layers: L.
        kernels: the instructions that its own kernels use, such as `avx2`; None: it has none.
        runs_ahead: whether a step only asks the device for its work, so that the next can be asked for meanwhile.
    """

    name: str
    device: torch.device
    dtype: torch.dtype
    num_layers: int
    kernels: str | None
    runs_ahead: bool

    def new_state(
        self,
        schedule: Schedule,
        bank: Correction | None = None,
        tokens: int = 0,
        watch: bool = False,
        prompt: int = 0,
    ) -> DecodeState:
        """A fresh state.

        Args:
            bank: on the model's device and in its dtype (`Correction.to`).
            tokens: the most that the caches will hold, which lets static buffers be reserved once; 0 is unknown.
            watch: have each step give the outputs of the skipped layers.
            prompt: how many of the tokens are the prompt's; 0 is unknown. With it a decoder can set itself up now,
                before the clock of a lane starts.
        """

    def read_prompt(self, input_ids: Tensor, should_stop: Callable[[], bool] = lambda: False) -> Prefilled:
        """Read a prompt (B, P) with every layer, in parts, for any number of lanes.

        Args:
            should_stop: asked between two parts.

        Raises:
            Stopped: it said so.
        """

    def start(self, prompt: Prefilled, state: DecodeState) -> DecoderOutput:
        """Step 0 of a fresh state, full, and the first refresh: the prompt's K/V, copied, and its anchors.

        Gives the logits after the prompt's last token.
        """

    def prefill(self, input_ids: Tensor, state: DecodeState) -> DecoderOutput:
        """`read_prompt` and `start`, for one lane alone."""

    def step(self, token: Tensor, state: DecodeState) -> DecoderOutput:
        """Decode one token (B, 1), full or with the schedule's layers skipped, as `state.refresher` decides.

        A refresh with `refresh="repair"` is a `repair` that ends with this token.
        """

    def repair(self, token: Tensor | None, state: DecodeState) -> DecoderOutput:
        """One full pass over the tokens that LoRA steps have read since the last refresh, and over `token` (1, 1).

        With `kv="write"` caches and anchors then equal those of the full model on the same tokens. Each row's numbers
        are those of a full step, bit for bit (`StaticDecoder`: up to rounding).

        Args:
            token: None verifies what is pending: no step begins.

        Returns:
            Logits of the last token, or of each where the schedule verifies.
        """

    def rewind(self, found: DecoderOutput, rows: int, state: DecodeState) -> DecoderOutput:
        """Take back all but the first `rows` tokens of the pass that has just given `found`.

        Only in a schedule that verifies. The last token kept is the last refresh then.

        Returns:
            What the pass would have given had it ended there: logits (1, V).
        """

    def entropy(self, logits: Tensor) -> float:
        """Entropy in nats of a step's logits (1, V)."""

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
    rows: int = 1  # tokens that its pass ran through the skipped layers


@dataclass(frozen=True)
class Rewind:
    """The full model takes back what a lane drew after step `to`; the step after it comes again, as a refresh."""

    to: int


@dataclass(frozen=True)
class Verified:
    """The pass at the end of a lane whose last tokens were drafts, all of which the full model keeps."""

    rows: int
    ms: float
    accepted: int
