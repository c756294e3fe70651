"""A look inside one step of a lane: what each layer did, how far it was from the full model, and what it would say.

The lane's text up to the step is read again, off every clock: by the lane's schedule, with full steps where the
run had them, and by the full model. That is possible only where model, adapters and prompt have not changed since. A
layer's logit lens is the likeliest next tokens if the final norm and the head followed it directly. Lanes that have
diverged have different prefixes, so each figure names the lanes whose text it is for.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from lora_drop.adapters.bank import AdapterBank
from lora_drop.adapters.find import config_fingerprint, find_bank
from lora_drop.adapters.hub import download, hub_name
from lora_drop.decode.native.weights import NativeWeights
from lora_drop.decode.outputs import NativeOutputs, ReferenceOutputs, StaticOutputs
from lora_drop.decode.refresh import Refresher
from lora_drop.decode.static.decoder import StaticWeights
from lora_drop.decode.step import DecodeState, Stopped
from lora_drop.errors import LoraDropError
from lora_drop.method.config import LoraDropConfig
from lora_drop.method.fields import SCHEDULE
from lora_drop.method.schedule import DRAFTS, Schedule
from lora_drop.method.settings import settings_of
from lora_drop.models.load import LoadedModel
from lora_drop.paths import SHIPPED_ADAPTERS
from lora_drop.run.audit import drift_of, top_of
from lora_drop.run.request import prompt_ids_of
from lora_drop.run.trace.records import Header, StepRecord, number
from lora_drop.run.trace.trace import Trace

AROUND = 64  # steps on either side whose outputs are stored too: a reader goes on to the neighbours
CHUNK = 64  # tokens of one pass of the full model


@dataclass(frozen=True)
class RecordedLane:
    """Schedule, corrections and prompt of a lane of a trace."""

    schedule: Schedule
    bank: AdapterBank | None
    prompt_ids: list[int]


def recorded_lane(loaded: LoadedModel, trace: Trace, lane: str) -> RecordedLane:
    """The lane's schedule, corrections and prompt, on the model of its run.

    Raises:
        LoraDropError: the model, its weights, the adapters or the prompt's tokens are not those of the run.
    """
    header = trace.header
    check_weights(loaded, header)
    recorded: dict[str, Any] = dict(header.config_of(lane))
    config = _config(recorded)
    schedule = config.schedule_for(loaded.num_layers)
    if recorded.get("lookup"):
        schedule = dataclasses.replace(schedule, lookup=recorded["lookup"], dropped=tuple(range(loaded.num_layers)))
    schedule = dataclasses.replace(schedule, prunes=bool(recorded.get("prunes")))
    if list(schedule.dropped) != list(recorded["dropped"]):
        raise LoraDropError(f"lane {lane} skips other layers than its settings say: it cannot be read again.")
    bank = None
    if config.adapters != "none":
        fingerprint = config_fingerprint(loaded, config)
        if fingerprint is None or fingerprint != recorded.get("bank", fingerprint):
            raise LoraDropError("this run's adapters have changed since, or are gone: run it again to look inside.")
        bank, _ = find_bank(loaded, config, schedule)
    ids = prompt_ids_of(loaded, header.prompt, header.sampling)
    if len(ids) != header.prompt_tokens:
        raise LoraDropError(f"the prompt has {len(ids)} tokens here and had {header.prompt_tokens} in this run.")
    _check_steps(loaded, schedule, trace.steps[lane], len(ids))
    return RecordedLane(schedule, bank, ids)


def _check_steps(loaded: LoadedModel, schedule: Schedule, steps: list[StepRecord], prompt_tokens: int) -> None:
    """Raise LoraDropError where the steps do not follow the schedule on this model: a decoder may rely on that."""
    if prompt_tokens + len(steps) > loaded.context + 1:
        raise LoraDropError(f"this run is longer than the context of {loaded.id}: it cannot be read again.")
    gap = 0
    for step in steps[1:]:
        gap = gap + 1 if step.kind in DRAFTS else 0
        is_free = schedule.is_adaptive or schedule.verifies  # its full steps depend on the text
        fits = step.kind == "refresh" or gap if is_free else step.kind == schedule.kind(step.step, prompt_tokens)
        if not fits or gap >= schedule.period:
            raise LoraDropError(f"step {step.step} is not what this lane's schedule says: it cannot be read again.")
    if any(step.token_id >= loaded.shape.vocab_size for step in steps):
        raise LoraDropError(f"this run has tokens that {loaded.id} does not know: it cannot be read again.")


def check_weights(loaded: LoadedModel, header: Header) -> None:
    """Raise LoraDropError if the model is not the one that the run was made with."""
    model: dict[str, Any] = {**header.model}
    if model.get("revision") != loaded.revision or model["layers"] != loaded.num_layers:
        raise LoraDropError(
            f"this run's weights ({model['id'][:80]}, {str(model.get('revision', 'unknown'))[:40]}) are not those of "
            f"the model here ({loaded.id}, {loaded.revision}): run it again to look inside."
        )


def _config(recorded: dict[str, Any]) -> LoraDropConfig:
    """A lane's settings, from its header; adapters are `none` where none were used.

    Raises:
        LoraDropError: a value that this version does not have, or adapters that are not shipped.
    """
    names = [setting.name for setting in settings_of(SCHEDULE)]
    settings = {name: recorded[name] for name in names if name in recorded}
    extras = recorded.get("extras", {})
    if not (recorded.get("rank") or recorded.get("corrected") or extras.get("head_rank")):
        settings["adapters"] = "none"
    elif (name := settings.get("adapters", "auto")) != "auto":
        # The fingerprint tells whether the adapters of that name, shipped or of the Hub's cache, are the run's.
        here = {folder.name: folder for folder in SHIPPED_ADAPTERS.iterdir()}
        with contextlib.suppress(LoraDropError):  # a trace causes no download
            if hub_name(str(name)):
                here[name] = download(str(name), offline=True)
        if "bank" not in recorded or name not in here:
            raise LoraDropError(f"this run's adapters {str(name)[:80]} are not here: it cannot be read again.")
        settings["adapters"] = str(here[name])
    return LoraDropConfig(**settings)


@dataclass(frozen=True)
class Window:
    """Layer outputs at some steps of a lane, on the CPU. It keeps no model alive.

    Args:
        tokens: of the lane, as far as the window's steps have read them.
        start: the first step.
        lane: outputs of all layers at each step of the lane, (steps, L, D).
        full: the same of the full model.
        repaired: by step that a repair ran again, its outputs (L, D) there.
    """

    tokens: list[int]
    start: int
    lane: Tensor
    full: Tensor
    repaired: dict[int, Tensor]

    @property
    def nbytes(self) -> int:
        """Bytes of its tensors."""
        return self.lane.nbytes + self.full.nbytes + sum(outputs.nbytes for outputs in self.repaired.values())

    def holds(self, step: int, token_ids: list[int]) -> bool:
        """True if the window has this step of a lane with these tokens."""
        return self.start <= step < self.start + len(self.lane) and self.tokens == token_ids[: len(self.tokens)]


class _Recorded(Refresher):
    """Full steps where the recorded run had them, for whatever reason."""

    kinds: list[str]

    def begin(self) -> bool:
        self.step += 1
        full = self.kinds[self.step] == "refresh"
        self.kind = "refresh" if full else "lora"
        if full:
            self.last_refresh = self.step
            self.refreshes += 1
        return full

    def end(self, logits: Tensor, nats: float | None = None) -> None:
        """Nothing depends on the logits: the recorded run has decided."""


def watched(loaded: LoadedModel) -> ReferenceOutputs:
    """The model's decoder, as a variant that keeps layer outputs."""
    if isinstance(loaded.weights, NativeWeights):
        return NativeOutputs(loaded.model, loaded.weights)
    if isinstance(loaded.weights, StaticWeights):
        return StaticOutputs(loaded.model, loaded.weights)
    return ReferenceOutputs(loaded.model)


@torch.inference_mode()
def read_again(
    loaded: LoadedModel, trace: Trace, lane: str, step: int, should_stop: Callable[[], bool] = lambda: False
) -> Window | None:
    """Read a lane's text again, and keep the layer outputs around a step.

    Args:
        trace: only its header, and the kinds and tokens of the lane's steps, are read.
        step: one that the lane has.
        should_stop: asked between steps.

    Returns:
        None if it was stopped.

    Raises:
        LoraDropError: see `recorded_lane`.
    """
    recorded = recorded_lane(loaded, trace, lane)
    steps = trace.steps[lane]
    start, end = max(0, step - AROUND), min(len(steps), step + AROUND + 1)
    decoder = watched(loaded)
    state = decoder.new_state(
        dataclasses.replace(recorded.schedule, accept=0.0), recorded.bank, len(recorded.prompt_ids) + end
    )
    refresher = _Recorded(state.schedule)
    refresher.kinds = [record.kind for record in steps]
    state.refresher = refresher
    tokens = [record.token_id for record in steps[: end - 1]]
    try:
        ids = torch.tensor([recorded.prompt_ids], device=decoder.device)
        prompt = decoder.read_prompt(ids, should_stop)
        pruned = recorded.schedule.dropped if recorded.schedule.prunes else ()
        lane_prompt = decoder.read_prompt(ids, should_stop, pruned) if pruned else prompt
        decoder.start(lane_prompt, state)
        first, full_kv = lane_prompt.states[1:, 0].cpu(), prompt.kv.clone()
        rows, repaired = _lane_rows(decoder, state, tokens, start, should_stop)
        full = _full_rows(loaded, full_kv, len(recorded.prompt_ids), tokens, start, should_stop)
    except Stopped:
        return None
    if start == 0:
        rows, full = [first.to(full.dtype), *rows], torch.cat([first[None].to(full.dtype), full])
    return Window(tokens, start, torch.stack(rows), full, repaired)


def _lane_rows(
    decoder: ReferenceOutputs, state: DecodeState, tokens: list[int], start: int, should_stop: Callable[[], bool]
) -> tuple[list[Tensor], dict[int, Tensor]]:
    """Outputs of the lane's steps from max(start, 1) on, and of those that a repair ran again. Raises Stopped."""
    first_pass: list[Tensor] = []
    repaired: dict[int, Tensor] = {}
    for step, token in enumerate(tokens, start=1):
        if should_stop():
            raise Stopped
        decoder.step(torch.tensor([[token]], device=decoder.device), state)
        outputs = decoder.take()
        rows = max(map(len, outputs))
        if step >= start:
            first_pass.append(torch.stack([layer[-1] for layer in outputs]).cpu())  # (L, D) of the step's token
        for back in range(1, rows):
            if (earlier := step - back) >= max(start, 1):
                below = first_pass[earlier - max(start, 1)]  # below the first skipped layer the first pass was exact
                again = [layer[-1 - back].cpu() if len(layer) > 1 else below[i] for i, layer in enumerate(outputs)]
                repaired[earlier] = torch.stack(again)
    return first_pass, repaired


def _full_rows(
    loaded: LoadedModel, kv: Any, position: int, tokens: list[int], start: int, should_stop: Callable[[], bool]
) -> Tensor:
    """The full model's outputs (steps, L, D) at the steps from max(start, 1) on. Raises Stopped."""
    decoder, layers, rows = loaded.new_decoder(), tuple(range(loaded.num_layers)), []
    for at in range(0, len(tokens), CHUNK):
        if should_stop():
            raise Stopped
        chunk = torch.tensor([tokens[at : at + CHUNK]], device=decoder.device)
        outputs = decoder.read(chunk, kv, position + at, layers, chunk.shape[1] - 1).watched
        assert outputs is not None  # `read` returns those of the layers asked for
        rows.append(outputs[:, 0, max(0, start - at - 1) :].transpose(0, 1).cpu())
    return torch.cat(rows) if rows else torch.empty(0, loaded.num_layers, loaded.shape.hidden_size)


def inspect(loaded: LoadedModel, header: Header, about: dict[str, Any], window: Window) -> dict[str, Any]:
    """A step of a lane, with what the second reading of its text adds.

    Args:
        about: one of `report.steps.about_steps`.

    Returns:
        `about`. Its `layers` also have `drift` (||x_hat - x|| / ||x|| of the layer's output), `lens` and
        `full_lens` (five `[token text, probability]`, of the lane's output and of the full model's); `full` has the
        full model's five on the same text, and `refresh` the largest `drift` that a repair left at this token.

    Raises:
        LoraDropError: the model is another one.
    """
    check_weights(loaded, header)
    lane, step = about["lane"], about["step"]
    decoder, at = watched(loaded), step - window.start
    ours, full = (outputs[at].to(loaded.device) for outputs in (window.lane, window.full))
    drifts = _drifts(ours, full)
    with torch.inference_mode():
        lenses = top_of(loaded.tokenizer, decoder.lens(torch.cat([ours, full]), step == 0))
    count = loaded.num_layers
    for i, layer in enumerate(about["layers"]):
        layer |= {"drift": drifts[i], "lens": lenses[i], "full_lens": lenses[count + i]}
    about["full"] = lenses[-1]
    if about["top"][lane]["tokens"] is None:  # of a draft without a pass
        about["top"][lane]["tokens"] = lenses[count - 1]
    again = window.repaired.get(step)
    if about["refresh"] and again is not None:
        repaired = [drift for drift in _drifts(again.to(loaded.device), full) if drift is not None]
        about["refresh"]["drift"] = max(repaired, default=None)
    return about


def _drifts(ours: Tensor, full: Tensor) -> list[float | None]:
    """By layer, from outputs (L, D)."""
    return [number(drift, 6) for drift in drift_of(ours, full).tolist()]
