"""Decoders that also keep what every layer gave: for those who look inside a lane, off every clock.

Each runs the decoder that it is made of, with the same arithmetic: a lane that is read again gives what it gave.

Shapes: P prompt tokens, D hidden size, V vocabulary, L layers, R rows of a pass.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from lora_drop.decode.layer import Rope
from lora_drop.decode.native.decoder import NativeDecoder
from lora_drop.decode.reference import ReferenceDecoder
from lora_drop.decode.static.decoder import StaticDecoder
from lora_drop.decode.step import DecodeState

HEAD_ROWS = 16  # that the head reads together


class ReferenceOutputs(ReferenceDecoder):
    """The reference, watched: `take` gives what the layers of the last call gave."""

    def __init__(self, *args: Any):
        super().__init__(*args)
        self._rows: list[list[Tensor]] = [[] for _ in range(self.num_layers)]

    def take(self) -> list[Tensor]:
        """By layer what it gave since the last `take`, (R, D), the call's own token last.

        A repair runs the layers below the first skipped one for its own token alone.
        """
        taken, self._rows = self._rows, [[] for _ in range(self.num_layers)]
        return [torch.stack(rows) for rows in taken]

    def lens(self, h: Tensor, is_prefill: bool = False) -> Tensor:
        """Logits (R, V) that the final norm and the head make of a layer's outputs (R, D), as a step or a prefill."""
        head = self._prefill_head if is_prefill else self._step_head
        return torch.cat([head(rows) for rows in h.split(HEAD_ROWS)])

    def _prefill_head(self, h: Tensor) -> Tensor:
        return self.head(self.norm(h.to(self.dtype)))

    _step_head = _prefill_head

    def _see(self, i: int, rows: Tensor) -> None:
        self._rows[i].extend(rows.clone())

    def run_full(self, i: int, h: Tensor, rope: Rope, state: DecodeState) -> Tensor:
        out = super().run_full(i, h, rope, state)
        self._see(i, out[0, -1:])
        return out

    def run_dropped(self, i: int, h: Tensor, rope: Rope, state: DecodeState) -> Tensor:
        out = super().run_dropped(i, h, rope, state)
        self._see(i, out[0])
        return out

    def run_adapted(self, i: int, h: Tensor, rope: Rope, state: DecodeState) -> Tensor:
        out = super().run_adapted(i, h, rope, state)
        self._see(i, out[0])
        return out


class NativeOutputs(ReferenceOutputs, NativeDecoder):
    """The native decoder, watched: the C steps run a layer at a time."""

    def _run(
        self,
        state: Any,
        layers: range,
        h: Tensor,
        position: int,
        lora: bool = False,
        watched: Tensor | None = None,
        ratios: Tensor | None = None,
        entered: Tensor | None = None,
    ) -> None:
        for i in layers:
            super()._run(state, range(i, i + 1), h, position, lora, entered=entered if i <= state.first else None)
            self._see(i, h[-1:] if i < state.first else h)

    def _step_head(self, h: Tensor) -> Tensor:
        return self._logits(h.float().contiguous())


class StaticOutputs(ReferenceOutputs, StaticDecoder):
    """The static decoder, watched: its passes without graphs."""

    def __init__(self, *args: Any):
        super().__init__(*args)
        self._captures = False

    def _full(self, i: int, h: Tensor, window: Any, state: Any) -> Tensor:
        out = super()._full(i, h, window, state)
        self._see(i, out)
        return out

    def _lora(self, i: int, h: Tensor, window: Any, state: Any) -> Tensor:
        out = super()._lora(i, h, window, state)
        self._see(i, out)
        return out
