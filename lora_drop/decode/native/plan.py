"""A lane's schedule, corrections and state, laid out for the C steps.

Shapes: D hidden size, n skipped layers, r rank, R rank of the screen, V vocabulary.
"""

from __future__ import annotations

import ctypes
from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.nn import functional as F

from lora_drop.decode.head import LOWEST, ScreenedHead
from lora_drop.decode.native.structs import Q4_0, Q8_0, Answer, Matrix, Plan, Screen, Store
from lora_drop.decode.native.weights import GROUP, KINDS, NativeWeights, dense, in_large_pages, in_panels, q8_0
from lora_drop.decode.step import DecodeState

LANES = 16  # rows of a panel


@dataclass
class NativeState(DecodeState):
    """State of a lane, and the memory of it that the C steps read and write.

    Args:
        packs: store the corrections in blocks of 8 bits, beside weights in blocks.
        plan: how LoRA steps run each layer; points into `tensors` and `vectors`.
        vectors: anchors of the skipped layers after each row of the last pass, (n, rows, D) float32. Empty until the
            first step.
        held: row of `vectors` that LoRA steps reuse.
        tensors: keeps what `plan` points to.
        screen: the head of LoRA steps, if it is screened.
        inputs: rows (rows, D) float32 that a pass runs in place; the first hold the pending tokens' states.
        rows: each of them, (1, D).
        stores: K/V of each layer; None until the first step.
        rooms: capacity of each store in tokens.
        first: first layer that a repair runs for all of its tokens.
    """

    packs: bool = False
    plan: ctypes.Array[Plan] = field(init=False, repr=False)
    vectors: Tensor = field(default_factory=lambda: torch.empty(0, 0, 0))
    held: int = 0
    tensors: list[Tensor] = field(default_factory=list, repr=False)
    screen: NativeScreen | None = field(default=None, repr=False)
    inputs: Tensor = field(default_factory=lambda: torch.empty(0, 0), repr=False)
    rows: tuple[Tensor, ...] = field(default=(), repr=False)
    stores: ctypes.Array[Store] | None = field(default=None, repr=False)
    rooms: list[int] = field(default_factory=list, repr=False)
    first: int = field(init=False)

    def __post_init__(self) -> None:
        super().__post_init__()
        self.first = self.schedule.first_skipped if self.schedule.repairs else 0
        self.plan = (Plan * self.schedule.num_layers)()
        self._plan_corrections()

    def begin(self, hidden_size: int) -> None:
        """Before the first step, lay out the K/V and anchors of prefill for `ld_step`."""
        if self.stores is not None:
            return
        schedule = self.schedule
        rows = schedule.most_rows if schedule.repairs else 1
        self.inputs = torch.empty(rows, hidden_size)
        self.rows = self.inputs.split(1)
        if schedule.reuse != "skip" and schedule.dropped:
            first = torch.cat([anchor for anchor in self.anchors if anchor is not None]).float()  # (n, D)
            self.vectors = first[:, None].repeat(1, rows, 1)
        for row, i in enumerate(schedule.dropped):
            self.plan[i].drops = 1
            self.plan[i].hidden = self.vectors[row].data_ptr() if len(self.vectors) else None
        stores = (  # a pruned layer has none
            Store() if t is None else store_of(t, count)
            for t, count in zip(self.kv.stores, self.kv.lengths, strict=True)
        )
        self.stores = (Store * schedule.num_layers)(*stores)
        self.rooms = [store.capacity for store in self.stores]

    def _plan_corrections(self) -> None:
        """Set the addresses of the corrections in the plan."""
        schedule, bank, plan = self.schedule, self.bank, self.plan
        if bank is None:
            return
        for i in schedule.dropped_set & bank.a.keys():
            a, b = bank.a[i], bank.b[i]
            if self._fits(a, b):
                plan[i].a, plan[i].b = self._packed(a), self._packed(b)
            else:
                plan[i].a, plan[i].b = self._matrix(a), self._side_by_side(b)
            if schedule.reuse == "residual":
                self.tensors.append(bank.gate[i].float())
                plan[i].gate = self.tensors[-1].data_ptr()

    def _side_by_side(self, b: Tensor) -> Matrix:
        """B (N, r) with 16 rows side by side, so that it is read from start to end."""
        panels = F.pad(b, (0, 0, 0, -len(b) % LANES)).unflatten(0, (-1, LANES)).transpose(1, 2).contiguous()
        self.tensors.append(panels)
        n, k = b.shape
        return Matrix(data=panels.data_ptr(), n=n, k=k, kind=KINDS[b.dtype])

    def _fits(self, *matrices: Tensor) -> bool:
        """True if matrices are read in blocks, which their shapes must allow."""
        return self.packs and not any(matrix.shape[0] % LANES or matrix.shape[1] % GROUP for matrix in matrices)

    def _packed(self, tensor: Tensor) -> Matrix:
        rows = q8_0(tensor)
        self.tensors.append(torch.empty(rows.size, dtype=torch.uint8))
        return in_panels(rows, Q8_0, self.tensors[-1])

    def _matrix(self, tensor: Tensor) -> Matrix:
        self.tensors.append(tensor.contiguous())
        return dense(self.tensors[-1])

    def make_room(self, layers: range, tokens: int, skips: bool, forgets: int = 0) -> None:
        """Make room for more tokens in the caches of some layers, and count them; `ld_step` writes them.

        Args:
            skips: leave out the skipped layers.
            forgets: tokens that `ld_step` takes from the other layers first.
        """
        assert self.stores is not None  # `begin` comes first
        kv, dropped, lengths, rooms = self.kv, self.schedule.dropped_set, self.kv.lengths, self.rooms
        for i in layers:
            if i not in dropped:
                end = lengths[i] + tokens - forgets
            elif skips:
                continue
            else:
                end = lengths[i] + tokens
            if end > rooms[i]:
                grown = kv.reserve(kv.store(i)[0], i, end)
                self.stores[i].data, self.stores[i].capacity = grown.data_ptr(), grown.shape[3]
                rooms[i] = grown.shape[3]
            lengths[i] = end

    def recount(self) -> None:
        """Tell the stores the caches' lengths, after a cut."""
        for store, length in zip(self.stores or (), self.kv.lengths, strict=True):
            store.length = length


def store_of(kv: Tensor, length: int) -> Store:
    """K/V (2, 1, nkv, capacity, hs) of a layer, `length` tokens of them filled; the caller keeps the tensor."""
    return Store(data=kv.data_ptr(), capacity=kv.shape[3], length=length, kind=KINDS[kv.dtype])


class Head:
    """The head of some rows of a pass: tensors for what it gives, and the structure by which C fills them.

    Attributes:
        logits: (rows, V).
        choice: most likely token of each row, (rows, 1).
        entropy: of the last row; None unless asked for.
    """

    def __init__(self, rows: int, vocabulary: int, screen: NativeScreen | None = None, entropy: bool = False):
        self.logits = torch.empty(rows, vocabulary)
        self.choice = torch.empty(rows, 1, dtype=torch.int64)
        self.entropy = ctypes.c_float() if entropy else None
        self._answer = Answer(
            screen=None if screen is None else ctypes.addressof(screen.screen),
            rows=rows,
            logits=self.logits.data_ptr(),
            best=self.choice.data_ptr(),
            entropy=None if self.entropy is None else ctypes.addressof(self.entropy),
        )
        self.address = ctypes.addressof(self._answer)


class NativeScreen:
    """A screened head for the C steps: its codes are blocks of Q4_0."""

    def __init__(self, head: ScreenedHead, weights: NativeWeights):
        self.head = head
        tokens, rank = -len(head.codes) % LANES, -head.rank % GROUP  # padding to whole panels of whole blocks
        # A block has a scale, then bytes with one code of its first half in the low bits and one of its second half.
        codes = F.pad(head.codes, (0, rank, 0, tokens)).unflatten(1, (-1, 2, GROUP // 2)) - LOWEST
        low, high = codes.to(torch.uint8).unbind(2)
        scale = F.pad(head.scale.half(), (0, 0, 0, tokens))[..., None].view(torch.uint8)
        rows = torch.cat([scale, low | high << 4], -1).flatten(1).numpy()
        self._codes = in_large_pages(rows.size)
        self._project = F.pad(head.project, (0, 0, 0, rank))
        self.screen = Screen(
            project=dense(self._project),
            codes=in_panels(rows, Q4_0, self._codes),
            rows=None if weights.head_blocks is None else weights.head_blocks.rows.ctypes.data,
            best=head.best,
        )
