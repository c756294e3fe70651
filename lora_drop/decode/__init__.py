"""The engine: tokens in, steps out. It knows no text, no page and no file but the C library's cache.

A `Lane` draws tokens through a `Decoder`: `ReferenceDecoder`, `StaticDecoder` or `NativeDecoder` (`step.py` has the
protocol and the result objects). What a generation remembers is in its `DecodeState`; nothing of it lives on a model
or a decoder. `refresh.py` decides which steps are full, `correction.py` holds the trained part, and `logits.py` is the
one place that computes entropy, KL, agreement and likelihood.
"""

from lora_drop.decode.cache import KVCache
from lora_drop.decode.correction import PROJECTIONS, Correction
from lora_drop.decode.head import CODE_BYTES, ScreenedHead, screen
from lora_drop.decode.lane import Lane, LaneEvent, not_finite
from lora_drop.decode.native import (
    BLOCK_KINDS,
    Blocks,
    NativeDecoder,
    NativeWeights,
    Packed,
    lay_out,
    library,
)
from lora_drop.decode.prompt import Prefilled, Stopped
from lora_drop.decode.reference import ReferenceDecoder
from lora_drop.decode.refresh import Refresher
from lora_drop.decode.sampling import Sampling
from lora_drop.decode.static import StaticDecoder, StaticWeights
from lora_drop.decode.step import Decoder, DecoderOutput, DecodeState, Judged, Rewind, StepResult
from lora_drop.decode.weights import is_supported

__all__ = [
    "BLOCK_KINDS",
    "CODE_BYTES",
    "PROJECTIONS",
    "Blocks",
    "Correction",
    "DecodeState",
    "Decoder",
    "DecoderOutput",
    "Judged",
    "KVCache",
    "Lane",
    "LaneEvent",
    "NativeDecoder",
    "NativeWeights",
    "Packed",
    "Prefilled",
    "ReferenceDecoder",
    "Refresher",
    "Rewind",
    "Sampling",
    "ScreenedHead",
    "StaticDecoder",
    "StaticWeights",
    "StepResult",
    "Stopped",
    "is_supported",
    "lay_out",
    "library",
    "not_finite",
    "screen",
]
