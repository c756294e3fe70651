"""What the static decoder's graphs read and write: a lane's buffers, where a pass puts its rows, and the capture.

Shapes: D hidden size, V vocabulary, hs head size, R rows of a pass, S tokens that attention reads, n skipped layers.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor

from lora_drop.decode.cache import HiddenCache, KVCache
from lora_drop.decode.correction import Correction
from lora_drop.decode.step import DecodeState

SPAN = 256  # tokens that attention reads at least

Rope = tuple[Tensor, Tensor]  # cosines and signed sines: x * cos + roll(x, hs / 2) * sin rotates
Passed = dict[int, list[Tensor | None]]  # as in `DecodeState`


class Results(NamedTuple):
    """What a pass leaves in memory of its own, until it is run again.

    Args:
        logits: of the last row, (1, V), or of all, (R, V).
        watched: outputs of the skipped layers for the same rows, (n, rows, D), if watched.
        ratios: ||d|| / ||cached|| of the corrected layers.
        passed: what a rewind needs.
    """

    logits: Tensor
    watched: Tensor | None
    ratios: list[Tensor]
    passed: Passed


class Pass(NamedTuple):
    """What a graph is captured for.

    Args:
        lora: a LoRA step, else a full one.
        rows: R, the tokens that run through the layers from the first skipped one on: more than one only in a repair.
        spans: S of the layers that always run and of the dropped ones.
    """

    lora: bool
    rows: int
    spans: tuple[int, int]


@dataclass(frozen=True)
class Window:
    """Where the rows of a pass stand.

    Args:
        rope: (R, 1, hs) each.
        places: of the rows in the caches of the layers that always run and of the dropped ones, (R,) each.
        masks: of the same two, to be added to the scores.
        bank: whose `kept` part the layers use.
    """

    rope: Rope
    places: tuple[Tensor, Tensor]
    masks: tuple[Tensor, Tensor]
    bank: Correction | None = None


class StaticHidden(HiddenCache):
    """Vectors that keep their place: after the first, a layer's vector is written over."""

    def __setitem__(self, layer: int, vector: Tensor | None) -> None:
        held = self.vectors[layer]
        if held is None or vector is None:
            self.vectors[layer] = vector
        else:
            held.copy_(vector)


@dataclass
class StaticState(DecodeState):
    """A lane's static buffers, made by `start`, and the graphs over them. `entered` has views of `pending`.

    Args:
        tokens: the most that a layer's cache is going to hold, as far as known.
        token: (1, 1), the token to read.
        counts: (3,), of the next pass: the position of its first row, how many tokens the dropped layers hold, and how
            many rows are pending. Set before each pass, as a repair and a rewind change them by more than one.
        pending: with repair what the first skipped layer takes of the tokens since the last refresh, (period, D).
        rope: (tokens, hs) each.
    """

    tokens: int = 0
    token: Tensor = field(init=False, repr=False)
    counts: Tensor = field(init=False, repr=False)
    pending: Tensor = field(init=False, repr=False)
    rope: Rope = field(init=False, repr=False)
    graphs: dict[Pass, Callable[[], Results]] = field(default_factory=dict, repr=False)


def span(kv: KVCache, layer: int, tokens: int) -> int:
    """How much of a layer's storage a pass reads that needs `tokens`: a power of two, as far as there is storage."""
    return min(1 << (max(SPAN, tokens) - 1).bit_length(), kv.store(layer).shape[3])


def capture(run: Callable[[], Results], changed: list[Tensor], device: torch.device) -> Callable[[], Results]:
    """A pass as a CUDA graph: run once aside, as libraries set themselves up on their first call, and then captured.

    Args:
        changed: what the pass changes and must find unchanged when it is first replayed.
    """
    with torch.cuda.device(device):
        before = [tensor.clone() for tensor in changed]
        aside = torch.cuda.Stream()
        aside.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(aside):
            run()
        torch.cuda.current_stream().wait_stream(aside)
        for tensor, value in zip(changed, before, strict=True):
            tensor.copy_(value)
        graph = torch.cuda.CUDAGraph()
        # Another visitor's thread may call CUDA meanwhile; that is no business of this capture.
        with torch.cuda.graph(graph, capture_error_mode="thread_local"):
            results = run()

    def replay() -> Results:
        graph.replay()
        return results

    return replay
