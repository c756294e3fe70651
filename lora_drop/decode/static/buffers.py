"""Memory that the static decoder's graphs know by address: a lane's buffers, the store of idle ones, and the capture.

Shapes: D hidden size, V vocabulary, hs head size, R rows of a pass, S tokens that attention reads, n skipped layers.
"""

from __future__ import annotations

import contextlib
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

IDLE = 8  # most idle buffers: a run with three lanes and their audits has five
SPLIT_BLOCK = 256  # tokens by which caches grow where attention reads no more than it needs: lanes are more alike
IDLE_SHARE = 16  # and at most 1 / 16 of the device's memory

RowAnchors = dict[int, list[Tensor | None]]  # as in `DecodeState`


class Results(NamedTuple):
    """Output of a pass, in memory that the next pass overwrites.

    Args:
        logits: of the last row, (1, V), or of all, (R, V).
        choice: most likely token of these, (rows, 1).
        entropy: of these, (rows,), in nats.
        watched: outputs of the skipped layers for the same rows, (n, rows, D), if the state watches.
        row_anchors: as in `DecodeState`.
    """

    logits: Tensor
    choice: Tensor
    entropy: Tensor
    watched: Tensor | None
    row_anchors: RowAnchors


class Pass(NamedTuple):
    """A kind of pass, which has one graph.

    Args:
        lora: a LoRA step, else a full one.
        rows: R, tokens that run through the layers from the first skipped one on, padded to a power of two; more than
            one only in a repair. Padding rows repeat the last one.
    """

    lora: bool
    rows: int


@dataclass(frozen=True)
class Window:
    """Positions and places of the rows of a pass.

    Args:
        rope: cosines and signed sines, (R, 1, hs) each.
        places: of the rows in the caches of the layers that always run, and of the dropped ones, (R,) each.
        masks: for the same two, to add to the scores; None if attention reads the places instead.
        rows: (R,) index of each row, that of the last one for padding rows; None for a single row.
    """

    rope: Pair
    places: tuple[Tensor, Tensor]
    masks: tuple[Tensor | None, Tensor | None]
    rows: Tensor | None


class StaticAnchors(list[Tensor | None]):
    """Anchors that keep their place in memory: setting one copies it into the buffer that is there."""

    def __setitem__(self, layer: Any, anchor: Any) -> None:
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


@dataclass(eq=False)  # compared by identity
class Buffers:
    """Buffers of one lane at a time, zeroed between lanes.

    Args:
        stores: each layer's K/V, (2, 1, nkv, capacity, hs).
        anchors: each layer's anchor, (1, D); None where the rule keeps none.
        token: (1, 1), the token to read.
        counts: (3,), of the next pass: position of its token, tokens in the dropped layers, and rows pending before
            that token. Set before each pass, as repairs and rewinds change them.
        pending: with repair, inputs of the first skipped layer for the tokens since the last refresh, (period, D)
            padded.
        rope: cosines and signed sines of all positions, (capacity, 1, hs) each; a rotation is
            x * cos + roll(x, hs / 2) * sin.
        bank: corrections that the graphs read: a copy, which the next lane overwrites.
        graphs: of passes.
        graph_bytes: of the memory that the graphs share.
        placed: the numbers in `counts`.
    """

    stores: list[Tensor]
    anchors: list[Tensor | None]
    token: Tensor
    counts: Tensor
    pending: Tensor
    rope: Pair
    bank: Correction | None
    graphs: dict[Pass, Callable[[], Results]] = field(default_factory=dict)
    graph_bytes: int = 0
    placed: list[int] = field(default_factory=lambda: [0, 0, 0])

    @property
    def nbytes(self) -> int:
        """Bytes of the caches, of the copy of the bank and of the graphs' memory; all else is small."""
        bank = [] if self.bank is None else bank_tensors(self.bank)
        return self.graph_bytes + sum(tensor.nbytes for tensor in (*self.stores, *bank))

    def blank(self) -> None:
        """Zero all. A mask gives what lies there weight 0, but 0 times NaN would be NaN."""
        for tensor in (*self.stores, *self.anchors, self.token, self.counts, self.pending):
            if tensor is not None:
                tensor.zero_()
        self.placed = [0, 0, 0]

    def place(self, *counts: int) -> None:
        """Set `counts` by kernels with the number as an argument: a copy from the host would wait for the device."""
        for at, value in enumerate(counts):
            if self.placed[at] != value:
                self.counts[at].fill_(value)
        self.placed = list(counts)


@dataclass
class StaticState(DecodeState):
    """State of a lane over static buffers. Its `pending` holds views of the buffers' `pending`.

    Args:
        tokens: most tokens that a layer's cache will hold, as far as known.
        prompt: tokens of the prompt that the buffers were made for; 0 is unknown.
        buffers: None until the prompt's length is known.
        give_back: finalizer that returns the buffers to the store.
    """

    tokens: int = 0
    prompt: int = 0
    buffers: Buffers | None = field(default=None, repr=False)
    give_back: Any = field(default=None, repr=False)

    def __post_init__(self) -> None:
        super().__post_init__()
        self.anchors: StaticAnchors = StaticAnchors(self.anchors)


class Store(deque[tuple[Hashable, Buffers]]):
    """Idle buffers with their graphs, by what these depend on, the most recently used last.

    One thread takes buffers; `append` is atomic, so any thread may give them back, the garbage collector's too.
    """

    def take(self, key: Hashable) -> Buffers | None:
        """Take buffers for a lane; None if there are none of this kind."""
        for entry in reversed(list(self)):
            if entry[0] == key:
                self.remove(entry)
                return entry[1]
        return None

    def trim(self, most: int) -> None:
        """Drop the least recently used beyond `IDLE` buffers, or beyond `most` bytes together."""
        while self and (len(self) > IDLE or sum(buffers.nbytes for _, buffers in self) > most):
            self.popleft()


def bank_key(bank: Correction | None) -> Hashable:
    """What a graph depends on of a bank: all but the numbers in its tensors."""
    if bank is None:
        return None
    shapes = tuple(tensor.shape for tensor in bank_tensors(bank))
    return bank.alpha, tuple(bank.a), tuple(bank.gate), bank.head and bank.head.best, shapes


def bank_tensors(bank: Correction) -> list[Tensor]:
    """A bank's tensors in a fixed order."""
    head = [] if bank.head is None else [bank.head.project, bank.head.codes, bank.head.scale]
    return [*bank.a.values(), *bank.b.values(), *bank.gate.values(), *head]


def schedule_key(schedule: Schedule) -> Hashable:
    """What a graph depends on of a schedule, beside the room in its caches: not on when which pass runs."""
    rules = schedule.reuse, schedule.part, schedule.kv, schedule.head, schedule.repairs, schedule.verifies
    return schedule.dropped, schedule.first_skipped, rules, tuple(passes_of(schedule))


def padded(rows: int) -> int:
    """Rows of the pass that runs `rows` rows: the next power of two."""
    return 1 << (rows - 1).bit_length()


def passes_of(schedule: Schedule) -> list[Pass]:
    """All passes that a lane can need, the most frequent first."""
    lora = [Pass(True, 1)] if schedule.has_lora_steps else []
    if schedule.prunes:
        return lora
    if not schedule.repairs:
        return [*lora, Pass(False, 1)]
    most = padded(schedule.most_rows)
    if not (schedule.is_adaptive or schedule.verifies):
        return [*lora, Pass(False, most)]
    return [*lora, *(Pass(False, 1 << power) for power in reversed(range(most.bit_length())))]


def capture(
    run: Callable[[], Results], device: torch.device, pool: Any, stream: Any
) -> tuple[Callable[[], Results], int]:
    """Capture a pass as a CUDA graph, after one run outside the capture, in which libraries set themselves up.

    If it fails, the stream is left in whatever state, and the caller's stream is the current one again. cuBLAS'
    workspaces, which torch keeps, are freed between run and capture and after the capture: a graph that used one of
    the other kind of memory would outlive it (pytorch #193402).

    Args:
        pool: memory that all graphs share: they never run at once, and the output of one is copied before the next.
        stream: to capture on, on this device. The pool's memory is shared among captures on the same stream.

    Returns:
        A function that replays the graph, and the bytes by which the pool grew.

    Raises:
        torch.OutOfMemoryError: there is no memory for it.
        RuntimeError: the pass does something that cannot be captured.
    """
    with torch.cuda.device(device):
        stream.wait_stream(torch.cuda.current_stream(device))
        try:
            with torch.cuda.stream(stream):
                run()
                torch._C._cuda_clearCublasWorkspaces()
                graph = torch.cuda.CUDAGraph()
                # thread_local: other threads may call CUDA during the capture.
                with torch.cuda.graph(graph, pool=pool, stream=stream, capture_error_mode="thread_local"):
                    before = torch.cuda.memory_reserved(device)
                    results = run()
                    grown = torch.cuda.memory_reserved(device) - before
        finally:
            with contextlib.suppress(RuntimeError):  # of a stream that a failed capture has broken
                torch._C._cuda_clearCublasWorkspaces()
                torch.cuda.current_stream(device).wait_stream(stream)

    def replay() -> Results:
        graph.replay()
        return results

    return replay, grown
