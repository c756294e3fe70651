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
from lora_drop.decode.head import ScreenedHead
from lora_drop.decode.native.structs import Matrix, Pair, Plan, Screen, Store
from lora_drop.decode.native.weights import KINDS, NativeWeights
from lora_drop.decode.reference import first_skipped
from lora_drop.decode.step import DecodeState

LANES = 16  # tokens of a panel of codes


@dataclass
class NativeState(DecodeState):
    """A lane's state, and what the C steps read and write of it.

    Args:
        plan: what the schedule does with each layer; points into `tensors` and `vectors`.
        vectors: what the rule remembers of each skipped layer, (n, rows, D) float32: of each row of a pass, and
            between steps in the first row. Empty until the first step.
        passed_vectors: the same of the last pass, in a schedule that judges.
        screen: the head at LoRA steps, where it is screened.
        stores: of each layer its K/V; there from the first step on.
    """

    plan: ctypes.Array[Plan] | None = None
    vectors: Tensor = field(default_factory=lambda: torch.empty(0, 0, 0))
    passed_vectors: Tensor = field(default_factory=lambda: torch.empty(0, 0, 0), repr=False)
    tensors: list[Tensor] = field(default_factory=list, repr=False)
    screen: NativeScreen | None = field(default=None, repr=False)
    stores: ctypes.Array[Store] = field(init=False, repr=False)

    def begin(self) -> None:
        """Before the first step: lay out the plan, and what prefill left behind, where `ld_step` finds it."""
        if self.plan is not None:
            return
        schedule = self.schedule
        if schedule.reuse != "skip" and schedule.dropped:
            first = torch.cat([self.hidden[i] for i in schedule.dropped]).float()  # (n, D)
            self.vectors = first[:, None].repeat(1, schedule.period if schedule.repairs else 1, 1)
        self.plan = (Plan * schedule.num_layers)()
        for row, i in enumerate(schedule.dropped):
            self.plan[i].drops = 1
            self.plan[i].hidden = self.vectors[row].data_ptr() if len(self.vectors) else None
        self._plan_corrections(self.plan)
        pairs = zip(map(self.kv.store, range(schedule.num_layers)), self.kv.lengths, strict=True)
        stores = (Store(t.data_ptr(), t.shape[3], count, KINDS[t.dtype]) for t, count in pairs)
        self.stores = (Store * schedule.num_layers)(*stores)

    def _plan_corrections(self, plan: ctypes.Array[Plan]) -> None:
        """Where each part of the corrections is."""
        schedule, bank = self.schedule, self.bank
        if bank is None:
            return
        for i in schedule.dropped_set & bank.a.keys():
            plan[i].linear = self._pair(bank.a[i], bank.b[i])
            if schedule.reuse == "residual":
                self.tensors.append(bank.gate[i].float())
                plan[i].gate = self.tensors[-1].data_ptr()
            if i in bank.mlp:
                plan[i].mlp_in, plan[i].mlp_out = map(self._matrix, bank.mlp[i])
        for i in bank.kept.keys() - schedule.dropped_set:
            if i > first_skipped(schedule):
                for name, pair in bank.kept[i].items():
                    plan[i].kept[PROJECTIONS.index(name)] = self._pair(*pair)

    def _pair(self, a: Tensor, b: Tensor) -> Pair:
        """A (r, K) and B (N, r), the second transposed: both are read along their rows."""
        return Pair(self._matrix(a), self._matrix(b.T))

    def _matrix(self, tensor: Tensor) -> Matrix:
        self.tensors.append(tensor.contiguous())
        return Matrix(self.tensors[-1].data_ptr(), None, *tensor.shape, KINDS[tensor.dtype])

    def make_room(self, layers: range, tokens: int, skips: bool) -> None:
        """Room for so many tokens more in the caches of these layers; with `skips` not of those that are skipped.

        They are counted as if they were there: `ld_step` fills them.
        """
        kv, skipped = self.kv, self.schedule.dropped_set if skips else ()
        for i in layers:
            if i in skipped:
                continue
            store, end = self.stores[i], kv.lengths[i] + tokens
            if end > store.capacity:
                grown = kv.reserve(kv.store(i)[0], i, end)
                store.data, store.capacity = grown.data_ptr(), grown.shape[3]
            kv.lengths[i] = end

    def recount(self) -> None:
        """After the caches were cut: how much each layer's store holds."""
        for store, length in zip(self.stores, self.kv.lengths, strict=True):
            store.length = length

    def take_row(self, row: int) -> None:
        """After a pass: what the rule remembers is that of this row."""
        if len(self.vectors):
            self.vectors[:, 0] = (self.passed_vectors if self.schedule.judges else self.vectors)[:, row]


class NativeScreen:
    """A screened head as the C steps read it: codes of 16 tokens side by side, four of a token in a word."""

    def __init__(self, head: ScreenedHead, weights: NativeWeights):
        self.head = head
        tokens, rank = -len(head.codes) % LANES, -head.rank % 4  # what is missing to whole panels of whole words
        words = F.pad(head.codes, (0, rank, 0, tokens)).view(torch.int32)  # (V, R / 4)
        self._codes = words.unflatten(0, (-1, LANES)).transpose(1, 2).contiguous()
        self._scale = F.pad(head.scale, (0, tokens))
        self._project = F.pad(head.project, (0, 0, 0, rank))
        rows = weights.head_rows
        project = Matrix(self._project.data_ptr(), None, *self._project.shape, KINDS[self._project.dtype])
        pointers = self._codes.data_ptr(), self._scale.data_ptr(), None if rows is None else rows.ctypes.data
        self.screen = Screen(project, *pointers, head.best)
