"""What the static decoder's graphs know by address: a lane's buffers, the store of idle ones, and the capture.

Shapes: D hidden size, V vocabulary, hs head size, R rows of a pass, S tokens that attention reads, n skipped layers.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections import deque
from collections.abc import Callable, Hashable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor

from lora_drop.decode.correction import Correction
from lora_drop.decode.static.layers import Pair
from lora_drop.decode.step import DecodeState
from lora_drop.method.schedule import Schedule

IDLE = 8  # lanes' buffers that are kept at most: a run with three lanes and their audits has five
IDLE_SHARE = 16  # and at most this part of the device's memory, in bytes

RowAnchors = dict[int, list[Tensor | None]]  # as in `DecodeState`


class Results(NamedTuple):
    """What a pass leaves in memory of its own, until any pass is run again.

    Args:
        logits: of the last row, (1, V), or of all, (R, V).
        choice, entropy: the likeliest token (rows, 1) and the entropy (rows,) of these.
        watched: outputs of the skipped layers for the same rows, (n, rows, D), if watched.
        ratios: ||d|| / ||cached|| of the corrected layers.
        row_anchors: what a rewind needs.
    """

    logits: Tensor
    choice: Tensor
    entropy: Tensor
    watched: Tensor | None
    ratios: list[Tensor]
    row_anchors: RowAnchors


class Pass(NamedTuple):
    """What a graph is captured for.

    Args:
        lora: a LoRA step, else a full one.
        rows: R, the tokens that run through the layers from the first skipped one on, padded to a power of two: more
            than one only in a repair. The rows beyond the last one repeat it.
    """

    lora: bool
    rows: int


@dataclass(frozen=True)
class Window:
    """Where the rows of a pass stand.

    Args:
        rope: (R, 1, hs) each.
        places: of the rows in the caches of the layers that always run and of the dropped ones, (R,) each.
        masks: of the same two, to be added to the scores; None where attention reads the places.
        rows: (R,), for each row the one that it is: itself, or the last; None for a single row.
        bank: whose `kept` part the layers use.
    """

    rope: Pair
    places: tuple[Tensor, Tensor]
    masks: tuple[Tensor | None, Tensor | None]
    rows: Tensor | None
    bank: Correction | None = None


class StaticAnchors(list[Tensor | None]):
    """Anchors that keep their place in memory: setting one copies it into the buffer that is there."""

    def __setitem__(self, layer, anchor) -> None:
        place = self[layer]
        if place is None or anchor is None:
            super().__setitem__(layer, anchor)
        else:
            place.copy_(anchor)

    def bind(self, layer: int, place: Tensor | None) -> None:
        """Copy a layer's anchor to a buffer, and keep it there from now on."""
        anchor = self[layer]
        if anchor is not None and place is not None and anchor is not place:
            place.copy_(anchor)
        super().__setitem__(layer, place)


@dataclass(eq=False)  # two with the same numbers are not the same
class Buffers:
    """One lane's at a time. Nothing of a lane is left in them for the next.

    Args:
        stores: a layer's K/V, (2, 1, nkv, capacity, hs).
        vectors: a skipped layer's anchor, (1, D); None where the rule keeps none.
        token: (1, 1), the token to read.
        counts: (3,), of the next pass: the position of its token, how many tokens the dropped layers hold, and how
            many rows are pending before that token. Set before each pass, as a repair and a rewind change them.
        pending: with repair what the first skipped layer takes of the tokens since the last refresh, (period, D)
            padded.
        rope: cosines and signed sines of all positions, (capacity, hs) each: x * cos + roll(x, hs / 2) * sin rotates.
        bank: the corrections that the graphs read: a copy, so that another lane's may be put there.
        graphs: of passes.
        placed: what `counts` holds.
    """

    stores: list[Tensor]
    vectors: list[Tensor | None]
    token: Tensor
    counts: Tensor
    pending: Tensor
    rope: Pair
    bank: Correction | None
    graphs: dict[Pass, Callable[[], Results]] = field(default_factory=dict)
    placed: list[int] = field(default_factory=lambda: [0, 0, 0])

    @property
    def nbytes(self) -> int:
        """Bytes of the caches, by far the largest part."""
        return sum(store.nbytes for store in self.stores)

    def blank(self) -> None:
        """As if never used. What a mask hides counts nothing, but nothing times NaN is NaN."""
        for tensor in (*self.stores, *self.vectors, self.token, self.counts, self.pending):
            if tensor is not None:
                tensor.zero_()
        self.placed = [0, 0, 0]

    def place(self, *counts: int) -> None:
        """Set `counts`. A number in a kernel's arguments: no copy from the host, which would wait for the device."""
        for at, value in enumerate(counts):
            if self.placed[at] != value:
                self.counts[at].fill_(value)
        self.placed = list(counts)


@dataclass
class StaticState(DecodeState):
    """A lane that decodes over static buffers. Its `pending` holds views of the buffers' `pending`.

    Args:
        tokens: the most that a layer's cache is going to hold, as far as known.
        prompt: tokens of the prompt that the buffers were made for; 0: not known before prefill.
        buffers: from then on.
    """

    tokens: int = 0
    prompt: int = 0
    buffers: Buffers | None = field(default=None, repr=False)
    give_back: Any = field(default=None, repr=False)  # the finalizer that puts them back into the store

    def __post_init__(self) -> None:
        super().__post_init__()
        self.anchors: StaticAnchors = StaticAnchors(self.anchors)


class Store:
    """Idle buffers with their graphs, by what these depend on; the least recently used go first.

    One thread takes (see `runtime`); giving back is a single step, which any may do, the garbage collector's too.
    """

    def __init__(self) -> None:
        self._idle: deque[tuple[Hashable, Buffers]] = deque()  # the most recently used last

    def take(self, key: Hashable) -> Buffers | None:
        """Buffers for a lane, or None: there are none of this kind."""
        for entry in reversed(list(self._idle)):
            if entry[0] == key:
                self._idle.remove(entry)
                return entry[1]
        return None

    def give_back(self, key: Hashable, buffers: Buffers) -> None:
        """A lane needs them no more."""
        self._idle.append((key, buffers))

    def trim(self, most: int) -> None:
        """Let go what is beyond `IDLE`, or beyond so many bytes together."""
        while self._idle and (len(self._idle) > IDLE or sum(buffers.nbytes for _, buffers in self._idle) > most):
            self._idle.popleft()

    def clear(self) -> None:
        """Let all go: their memory is needed."""
        self._idle.clear()


def bank_key(bank: Correction | None) -> Hashable:
    """All of a bank that a graph depends on but for its numbers."""
    if bank is None:
        return None
    kept = tuple((layer, tuple(pairs)) for layer, pairs in bank.kept.items())
    shapes = tuple(tensor.shape for tensor in bank_tensors(bank))
    return bank.alpha, tuple(bank.a), tuple(bank.gate), tuple(bank.mlp), kept, bank.head and bank.head.best, shapes


def bank_tensors(bank: Correction) -> list[Tensor]:
    """A bank's tensors in a fixed order."""
    found: list[Tensor] = []

    def take(tensor: Tensor) -> Tensor:
        found.append(tensor)
        return tensor

    bank.mapped(take)
    if bank.head is not None:
        found += [bank.head.project, bank.head.codes, bank.head.scale]
    return found


def copied(bank: Correction) -> Correction:
    """A bank with tensors of its own."""
    changes: dict[str, Any] = bank.mapped(torch.clone)
    if (head := bank.head) is not None:
        own: dict[str, Any] = {name: getattr(head, name).clone() for name in ("project", "codes", "scale")}
        changes["head"] = dataclasses.replace(head, **own)
    return dataclasses.replace(bank, **changes)


def padded(rows: int) -> int:
    """Rows of the pass that runs them: a power of two."""
    return 1 << (rows - 1).bit_length()


def passes_of(schedule: Schedule) -> list[Pass]:
    """All passes that a lane can come to, the commonest first."""
    found = [] if schedule.is_baseline else [Pass(True, 1)]
    if not schedule.repairs:
        return [*found, Pass(False, 1)]
    most = padded(schedule.period)
    if not (schedule.is_adaptive or schedule.verifies):
        return [*found, Pass(False, most)]
    return [*found, *(Pass(False, 1 << power) for power in reversed(range(most.bit_length())))]


def capture(run: Callable[[], Results], device: torch.device, pool: Any) -> Callable[[], Results]:
    """A pass as a CUDA graph: run once aside, as libraries set themselves up on their first call, and then captured.

    The stream is of this device and of this capture alone. One that fails leaves it behind, whatever its state: the
    caller's stream is the current one again.

    Args:
        pool: the memory that all graphs share. They never run at once, and what one gives is copied before the next.

    Raises:
        torch.OutOfMemoryError: there is no memory for it.
        RuntimeError: the pass does what a capture cannot hold.
    """
    with torch.cuda.device(device):
        aside = torch.cuda.Stream(device)
        aside.wait_stream(torch.cuda.current_stream(device))
        try:
            with torch.cuda.stream(aside):
                run()
                graph = torch.cuda.CUDAGraph()
                # Another thread may call CUDA meanwhile; that is no business of this capture.
                with torch.cuda.graph(graph, pool=pool, stream=aside, capture_error_mode="thread_local"):
                    results = run()
        finally:
            with contextlib.suppress(RuntimeError):  # of a stream that a failed capture has spoiled
                torch.cuda.current_stream(device).wait_stream(aside)

    def replay() -> Results:
        graph.replay()
        return results

    return replay
