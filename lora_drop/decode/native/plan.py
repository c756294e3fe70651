"""What the schedule and the corrections of one lane do, as the C steps read it.

Shapes: D hidden size, n skipped layers, r rank, R rank of the screen, V vocabulary.
"""

from __future__ import annotations

import ctypes
from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.nn import functional as F

from lora_drop.decode.correction import PROJECTIONS
from lora_drop.decode.head import LOWEST, ScreenedHead
from lora_drop.decode.native.structs import Q4_0, Q8_0, Matrix, Pair, Plan, Screen, Store
from lora_drop.decode.native.weights import GROUP, KINDS, NativeWeights, in_panels, q8_0
from lora_drop.decode.step import DecodeState

LANES = 16  # rows of a panel


@dataclass
class NativeState(DecodeState):
    """A lane's state, and what the C steps read and write of it.

    Args:
        packs: read the corrections' parts `linear` and `mlp` in blocks of 8 bits, beside weights in blocks.
        plan: what the schedule does with each layer; points into `tensors` and `vectors`.
        vectors: what the rule remembers of each skipped layer, (n, rows, D) float32, of each row of the last pass.
            Empty until the first step.
        held: the row of them that stands.
        screen: the head at LoRA steps, where it is screened.
        stores: of each layer its K/V; there from the first step on.
        rooms: the tokens that each has room for.
        first: the first layer that a repair runs for all of its tokens.
    """

    packs: bool = False
    plan: ctypes.Array[Plan] = field(init=False, repr=False)
    vectors: Tensor = field(default_factory=lambda: torch.empty(0, 0, 0))
    held: int = 0
    tensors: list[Tensor] = field(default_factory=list, repr=False)
    screen: NativeScreen | None = field(default=None, repr=False)
    stores: ctypes.Array[Store] | None = field(default=None, repr=False)
    rooms: list[int] = field(default_factory=list, repr=False)
    first: int = field(init=False)

    def __post_init__(self) -> None:
        super().__post_init__()
        self.first = self.schedule.first_skipped if self.schedule.repairs else 0
        self.plan = (Plan * self.schedule.num_layers)()
        self._plan_corrections()

    def begin(self) -> None:
        """Before the first step: lay out what prefill left behind where `ld_step` finds it."""
        if self.stores is not None:
            return
        schedule = self.schedule
        if schedule.reuse != "skip" and schedule.dropped:
            first = torch.cat([anchor for anchor in self.anchors if anchor is not None]).float()  # (n, D)
            self.vectors = first[:, None].repeat(1, schedule.period if schedule.repairs else 1, 1)
        for row, i in enumerate(schedule.dropped):
            self.plan[i].drops = 1
            self.plan[i].hidden = self.vectors[row].data_ptr() if len(self.vectors) else None
        pairs = zip(map(self.kv.store, range(schedule.num_layers)), self.kv.lengths, strict=True)
        stores = (Store(t.data_ptr(), t.shape[3], count, KINDS[t.dtype]) for t, count in pairs)
        self.stores = (Store * schedule.num_layers)(*stores)
        self.rooms = [store.capacity for store in self.stores]

    def _plan_corrections(self) -> None:
        """Where each part of the corrections is."""
        schedule, bank, plan = self.schedule, self.bank, self.plan
        if bank is None:
            return
        for i in schedule.dropped_set & bank.a.keys():
            plan[i].linear = self._linear(bank.a[i], bank.b[i])
            if schedule.reuse == "residual":
                self.tensors.append(bank.gate[i].float())
                plan[i].gate = self.tensors[-1].data_ptr()
            if i in bank.mlp:
                plan[i].mlp_in, plan[i].mlp_out = self._mlp(*bank.mlp[i])
        for i in bank.kept.keys() - schedule.dropped_set:
            if i > schedule.first_skipped:
                for name, pair in bank.kept[i].items():
                    plan[i].kept[PROJECTIONS.index(name)] = self._pair(*pair)

    def _linear(self, a: Tensor, b: Tensor) -> Pair:
        """A (r, D) and B (D, r), in blocks where they fit."""
        if self._fits(a) and self._fits(b):
            return Pair(self._packed(a), self._packed(b))
        return self._pair(a, b)

    def _mlp(self, gate_up: Tensor, down: Tensor) -> tuple[Matrix, Matrix]:
        """Gate and up (2b, D) and down (D, b), in blocks where they fit."""
        matrix = self._packed if self._fits(gate_up[: len(gate_up) // 2]) and self._fits(down) else self._matrix
        return matrix(gate_up), matrix(down)

    def _pair(self, a: Tensor, b: Tensor) -> Pair:
        """A (r, K) and B (N, r), this 16 rows side by side: both are read from start to end."""
        panels = F.pad(b, (0, 0, 0, -len(b) % LANES)).unflatten(0, (-1, LANES)).transpose(1, 2).contiguous()
        self.tensors.append(panels)
        return Pair(self._matrix(a), Matrix(panels.data_ptr(), None, *b.shape, KINDS[b.dtype]))

    def _fits(self, tensor: Tensor) -> bool:
        return self.packs and tensor.shape[0] % LANES == 0 and tensor.shape[1] % GROUP == 0

    def _packed(self, tensor: Tensor) -> Matrix:
        rows = q8_0(tensor)
        self.tensors.append(torch.empty(rows.size, dtype=torch.uint8))
        return in_panels(rows, Q8_0, self.tensors[-1])

    def _matrix(self, tensor: Tensor) -> Matrix:
        self.tensors.append(tensor.contiguous())
        return Matrix(self.tensors[-1].data_ptr(), None, *tensor.shape, KINDS[tensor.dtype])

    def make_room(self, layers: range, tokens: int, skips: bool) -> None:
        """Room for so many tokens more in the caches of these layers; with `skips` not of those that are skipped.

        They are counted as if they were there: `ld_step` fills them.
        """
        assert self.stores is not None  # `begin` comes first
        kv, skipped = self.kv, self.schedule.dropped_set if skips else ()
        for i in layers:
            if i in skipped:
                continue
            end = kv.lengths[i] + tokens
            if end > self.rooms[i]:
                grown = kv.reserve(kv.store(i)[0], i, end)
                self.stores[i].data, self.stores[i].capacity = grown.data_ptr(), grown.shape[3]
                self.rooms[i] = grown.shape[3]
            kv.lengths[i] = end

    def recount(self) -> None:
        """After the caches were cut: how much each layer's store holds."""
        for store, length in zip(self.stores or (), self.kv.lengths, strict=True):
            store.length = length


class NativeScreen:
    """A screened head as the C steps read it: its codes as blocks of Q4_0."""

    def __init__(self, head: ScreenedHead, weights: NativeWeights):
        self.head = head
        tokens, rank = -len(head.codes) % LANES, -head.rank % GROUP  # what is missing to whole panels of whole blocks
        # A block of a file has a scale, then bytes with a code of its first half and one of its second.
        codes = F.pad(head.codes, (0, rank, 0, tokens)).unflatten(1, (-1, 2, GROUP // 2)) - LOWEST
        low, high = codes.to(torch.uint8).unbind(2)
        scale = F.pad(head.scale.half(), (0, 0, 0, tokens))[..., None].view(torch.uint8)
        rows = torch.cat([scale, low | high << 4], -1).flatten(1).numpy()
        self._codes = torch.empty(rows.size, dtype=torch.uint8)
        self._project = F.pad(head.project, (0, 0, 0, rank))
        own = weights.head_rows
        self.screen = Screen(
            Matrix(self._project.data_ptr(), None, *self._project.shape, KINDS[self._project.dtype]),
            in_panels(rows, Q4_0, self._codes),
            *(None if own is None else own.ctypes.data, head.best),
        )
