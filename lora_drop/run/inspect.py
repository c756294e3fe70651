"""A look inside one step of a lane: what each layer did there, how far it was from the full model, what it would say.

The lane's text up to the step is read again, off every clock: through the lane's own schedule, with its full steps
where they were, and through the full model. The logit lens of a layer are the likeliest next tokens if the final norm
and the head came right after it. Where lanes have differed their texts are different prefixes, and each figure says on
whose it stands.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from lora_drop.decode.native.weights import NativeWeights
from lora_drop.decode.outputs import NativeOutputs, ReferenceOutputs, StaticOutputs
from lora_drop.decode.refresh import Refresher
from lora_drop.decode.static.decoder import StaticWeights
from lora_drop.decode.step import DecodeState, Stopped
from lora_drop.models.load import LoadedModel
from lora_drop.run.recorded import check_weights, recorded_lane
from lora_drop.run.report.steps import about_step
from lora_drop.run.top import top_of
from lora_drop.run.trace.records import number
from lora_drop.run.trace.trace import Trace

AROUND = 64  # steps before and after the one asked for whose outputs are kept: a reader goes on to its neighbours
CHUNK = 64  # tokens that the full model reads together


@dataclass(frozen=True)
class Window:
    """What the layers gave at some steps of a lane, on the CPU; nothing in it holds on to a model.

    Args:
        tokens: of the lane, those that the steps up to the window's end have read.
        start: the first step.
        lane, full: outputs of all layers at each step, (steps, L, D), of the lane and of the full model.
        repaired: of the steps that a repair ran again, the outputs (L, D) that it gave them.
    """

    tokens: list[int]
    start: int
    lane: Tensor
    full: Tensor
    repaired: dict[int, Tensor]

    @property
    def nbytes(self) -> int:
        """Bytes of its tensors."""
        return self.lane.nbytes + self.full.nbytes + sum(one.nbytes for one in self.repaired.values())

    def holds(self, step: int, token_ids: list[int]) -> bool:
        """Whether a step is in it, of a lane that has written these tokens."""
        return self.start <= step < self.start + len(self.lane) and self.tokens == token_ids[: len(self.tokens)]


class _Told(Refresher):
    """Full steps where the recorded run had them, whatever made them full there."""

    kinds: list[str]

    def begin(self) -> bool:
        self.step += 1
        full = self.kinds[self.step] == "refresh"
        self.kind = "refresh" if full else "lora"
        if full:
            self.last_refresh = self.step
            self.refreshes += 1
        return full

    def end(self, logits: Tensor, known: float | None = None) -> None:
        self._ratios.clear()

    def take(self, ratios: Any) -> None:
        pass


def watched(loaded: LoadedModel) -> ReferenceOutputs:
    """The decoder that the model decodes with, watched."""
    if isinstance(loaded.weights, NativeWeights):
        return NativeOutputs(loaded.model, loaded.weights)
    if isinstance(loaded.weights, StaticWeights):
        return StaticOutputs(loaded.model, loaded.weights)
    return ReferenceOutputs(loaded.model)


@torch.inference_mode()
def read_again(
    loaded: LoadedModel, trace: Trace, lane: str, step: int, should_stop: Callable[[], bool] = lambda: False
) -> Window | None:
    """Read a lane's text again, with the steps around the one asked for watched.

    Args:
        should_stop: asked between steps.

    Returns:
        None if it was stopped.

    Raises:
        LoraDropError: see `recorded_lane`; or the lane has no such step.
    """
    recorded = recorded_lane(loaded, trace, lane)
    steps = trace.steps[lane]
    about_step(trace, lane, step)
    start, end = max(0, step - AROUND), min(len(steps), step + AROUND + 1)
    decoder = watched(loaded)
    state = decoder.new_state(
        dataclasses.replace(recorded.schedule, accept=0.0), recorded.bank, len(recorded.prompt_ids) + end
    )
    refresher = _Told(state.schedule)
    refresher.kinds = [one.kind for one in steps]
    state.refresher = refresher
    try:
        prompt = decoder.read_prompt(torch.tensor([recorded.prompt_ids], device=decoder.device), should_stop)
    except Stopped:
        return None
    decoder.start(prompt, state)
    first = prompt.states[1:, 0].cpu()
    full_state = state.kv.clone()
    tokens = [one.token_id for one in steps[: end - 1]]
    lane_rows = _lane_rows(decoder, state, tokens, start, should_stop)
    if lane_rows is None:
        return None
    full = _full_rows(loaded, full_state, len(recorded.prompt_ids), tokens, start, should_stop)
    if full is None:
        return None
    rows, repaired = lane_rows
    if start == 0:
        rows, full = [first.to(full.dtype), *rows], torch.cat([first[None].to(full.dtype), full])
    return Window(tokens, start, torch.stack(rows), full, repaired)


def _last_rows(outputs: list[Tensor]) -> Tensor:
    """(L, D) of the call's own token."""
    return torch.stack([rows[-1] for rows in outputs]).cpu()


def _lane_rows(
    decoder: ReferenceOutputs, state: DecodeState, tokens: list[int], start: int, should_stop: Callable[[], bool]
) -> tuple[list[Tensor], dict[int, Tensor]] | None:
    """The lane's steps 1, 2, ...: outputs of those from `start` on, and of those that a repair ran again."""
    found: list[Tensor] = []
    repaired: dict[int, Tensor] = {}
    for step, token in enumerate(tokens, start=1):
        if should_stop():
            return None
        decoder.step(torch.tensor([[token]], device=decoder.device), state)
        outputs = decoder.take()
        rows = max(map(len, outputs))
        if step >= start:
            found.append(_last_rows(outputs))
        for back in range(1, rows):
            if (earlier := step - back) >= max(start, 1):
                below = found[earlier - max(start, 1)]  # what the layers below the first skipped one gave: exact
                again = [one[-1 - back].cpu() if len(one) > 1 else below[i] for i, one in enumerate(outputs)]
                repaired[earlier] = torch.stack(again)
    return found, repaired


def _full_rows(
    loaded: LoadedModel, kv: Any, position: int, tokens: list[int], start: int, should_stop: Callable[[], bool]
) -> Tensor | None:
    """The full model's outputs (steps, L, D) at the steps from `start` on, prefill's left out."""
    decoder, layers, found = loaded.new_decoder(), tuple(range(loaded.num_layers)), []
    for at in range(0, len(tokens), CHUNK):
        if should_stop():
            return None
        chunk = torch.tensor([tokens[at : at + CHUNK]], device=decoder.device)
        outputs = decoder.read(chunk, kv, position + at, layers, chunk.shape[1] - 1).watched
        assert outputs is not None  # `read` gives those of the layers asked for
        found.append(outputs[:, 0, max(0, start - at - 1) :].transpose(0, 1).cpu())
    if not found:
        return torch.empty(0, loaded.num_layers, loaded.shape.hidden_size)
    return torch.cat(found)


def inspect(loaded: LoadedModel, trace: Trace, lane: str, step: int, window: Window) -> dict[str, Any]:
    """What there is to know of a step of a lane: `about_step`, and what its second reading gave.

    Returns:
        `about_step`'s dict, in which `layers` have `drift` (||x_hat - x|| / ||x|| of the layer's output), `lens` and
        `full_lens` (five `[token text, probability]`, of the lane's output and of the full model's) too, `full` has
        the full model's five on the same text, and `refresh` the largest `drift` that a repair left this token with.

    Raises:
        LoraDropError: the lane has no such step, or the model is another one.
    """
    check_weights(loaded, trace)
    found = about_step(trace, lane, step)
    decoder, at = watched(loaded), step - window.start
    ours, full = (outputs[at].to(loaded.device) for outputs in (window.lane, window.full))
    drifts = _drift(ours, full)
    with torch.inference_mode():
        lenses = top_of(loaded.tokenizer, decoder.lens(torch.cat([ours, full]), step == 0))
    count = loaded.num_layers
    for i, layer in enumerate(found["layers"]):
        layer |= {"drift": drifts[i], "lens": lenses[i], "full_lens": lenses[count + i]}
    found["full"] = lenses[-1]
    if found["top"][lane]["tokens"] is None:  # an older trace
        found["top"][lane]["tokens"] = lenses[count - 1]
    again = window.repaired.get(step)
    if found["refresh"] and again is not None:
        known = [drift for drift in _drift(again.to(loaded.device), full) if drift is not None]
        found["refresh"]["drift"] = max(known, default=None)
    return found


def _drift(ours: Tensor, full: Tensor) -> list[float | None]:
    """By layer, from outputs (L, D)."""
    ours, full = ours.float(), full.float()
    return [number(one, 6) for one in ((ours - full).norm(dim=-1) / full.norm(dim=-1)).tolist()]
