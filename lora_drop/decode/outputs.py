"""Decoders that also keep the output of every layer, for the inspector of a lane.

Each runs with the arithmetic of its decoder, so a lane that is decoded again gives the same numbers.

Shapes: P prompt tokens, D hidden size, V vocabulary, L layers, R rows of a pass.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from lora_drop.decode.layer import Rope
from lora_drop.decode.native.decoder import NativeDecoder
from lora_drop.decode.native.plan import Head, NativeState
from lora_drop.decode.reference import ReferenceDecoder
from lora_drop.decode.static.buffers import Store
from lora_drop.decode.static.decoder import StaticDecoder, StaticWeights
from lora_drop.decode.step import DecodeState

HEAD_ROWS = 16  # that the head reads at a time


class ReferenceOutputs(ReferenceDecoder):
    """The reference; `take` returns the outputs of the layers in the last call."""

    def __init__(self, *args: Any):
        super().__init__(*args)
        self._rows: list[list[Tensor]] = [[] for _ in range(self.num_layers)]

    def take(self) -> list[Tensor]:
        """Outputs of each layer since the last `take`, (R, D), the call's token last.

        A repair runs the layers below the first skipped one for its token alone.
        """
        taken, self._rows = self._rows, [[] for _ in range(self.num_layers)]
        return [torch.stack(rows) for rows in taken]

    def lens(self, h: Tensor, is_prefill: bool = False) -> Tensor:
        """Logits (R, V) of a layer's outputs (R, D) through the final norm and the head of a step or of a prefill."""
        head = self._prefill_logits if is_prefill else self._step_head
        return torch.cat([head(rows) for rows in h.split(HEAD_ROWS)])

    def _step_head(self, h: Tensor) -> Tensor:
        return self._prefill_logits(h)

    def _see(self, i: int, rows: Tensor) -> Tensor:
        self._rows[i].extend(rows.flatten(0, -2).clone())
        return rows

    def run_full(self, i: int, h: Tensor, rope: Rope, state: DecodeState) -> Tensor:
        return self._see(i, super().run_full(i, h, rope, state))

    def run_dropped(self, i: int, h: Tensor, rope: Rope, state: DecodeState) -> Tensor:
        return self._see(i, super().run_dropped(i, h, rope, state))


class NativeOutputs(ReferenceOutputs, NativeDecoder):
    """The native decoder; its C steps run one layer at a time."""

    def _run(
        self,
        state: NativeState,
        layers: range,
        h: Tensor,
        *,
        token: Tensor | None = None,
        head: Head | None = None,
        entered: Tensor | None = None,
        watched: Tensor | None = None,
        **options: Any,
    ) -> None:
        """See `NativeDecoder`; `watched` is left out, as `take` returns every layer's outputs."""
        for i in layers:
            entering = entered if i <= state.first else None
            super()._run(state, range(i, i + 1), h, token=token, entered=entering, **options)
            token = None
            self._see(i, h[-1:] if i < state.first else h)
        super()._run(state, range(0), h, token=token, head=head, **options)

    def _step_head(self, h: Tensor) -> Tensor:
        return self._logits(h.float().contiguous())


class StaticOutputs(ReferenceOutputs, StaticDecoder):
    """The static decoder; its passes run without graphs, in separate buffers."""

    def __init__(self, model: PreTrainedModel, weights: StaticWeights):
        super().__init__(model, dataclasses.replace(weights, captures=False, store=Store()))

    def _full(self, i: int, h: Tensor, window: Any, state: Any) -> Tensor:
        output = super()._full(i, h, window, state)
        self._see(i, output[: len(state.pending) + 1])  # without padding rows
        return output

    def _lora(self, i: int, h: Tensor, window: Any, state: Any) -> Tensor:
        return self._see(i, super()._lora(i, h, window, state))
