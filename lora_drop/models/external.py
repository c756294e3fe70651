"""Prepare a model that the caller loaded; what is cached about it lives as long as the model."""

from __future__ import annotations

import threading
import weakref
from dataclasses import dataclass

import torch
from torch import nn
from transformers import PreTrainedModel

from lora_drop.decode.native.weights import NativeWeights
from lora_drop.decode.reference import Decoder
from lora_drop.decode.static.decoder import StaticWeights
from lora_drop.models.gguf import refuse
from lora_drop.models.load import (
    BUNDLED_ID,
    BUNDLED_REVISION,
    LoadedModel,
    ModelInfo,
    blocks_of,
    fingerprint,
    sketch,
    step_weights,
    usable_context,
)
from lora_drop.models.place import resolve_dtype


@dataclass(frozen=True)
class _Prepared:
    revision: str
    addresses: tuple[int, ...]  # of the parameters, once their weights are laid out
    weights: StaticWeights | NativeWeights | None


_PREPARED: weakref.WeakKeyDictionary[PreTrainedModel, _Prepared] = weakref.WeakKeyDictionary()
_lock = threading.Lock()


def prepare(model: PreTrainedModel) -> tuple[ModelInfo, Decoder]:
    """Describe a caller's model and build the fastest decoder for it in its present state.

    The first call lays the matrices out side by side in memory; the modules keep working. The bundled model is
    recognised by its weights. A model with modules that are not plain (hooks, quantised or adapted layers) gets the
    reference decoder.

    Raises:
        LoraDropError: the model has no numbers.
    """
    if model.device.type == "meta":
        refuse()
    revision = fingerprint(model)
    weights = _weights(model, revision) if _is_plain(model) else None
    name = BUNDLED_ID if revision == BUNDLED_REVISION else getattr(model, "name_or_path", "") or "a caller's model"
    context = usable_context(model.config)
    loaded = LoadedModel(model, None, name, revision, context, model.device, model.dtype, weights, sketch(model))
    return loaded.info(), loaded.new_decoder()


def _weights(model: PreTrainedModel, revision: str) -> StaticWeights | NativeWeights | None:
    """The weights in the decoder's layout; laid out again only where they changed or moved."""
    with _lock:
        prepared = _PREPARED.get(model)
        if prepared is None or (prepared.revision, prepared.addresses) != (revision, _addresses(model)):
            usual = resolve_dtype("auto", model.device) == model.dtype  # the command line would use this number type
            weights = step_weights(model, model.device, blocks_of(revision) if usual else None)
            prepared = _PREPARED[model] = _Prepared(revision, _addresses(model), weights)
        return prepared.weights


def _addresses(model: PreTrainedModel) -> tuple[int, ...]:
    return tuple(weight.data_ptr() for weight in model.parameters())


def _is_plain(model: PreTrainedModel) -> bool:
    """Whether the modules compute exactly their weights, all on one device in one supported number type."""
    placements = {(weight.device, weight.dtype) for weight in model.parameters()}
    hooked = any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
    wrapped = any("forward" in vars(module) for module in model.modules())  # accelerate replaces it
    adapted = any(isinstance(module, nn.Linear) and type(module) is not nn.Linear for module in model.modules())
    linear = sum(type(module) is nn.Linear for module in model.modules())
    complete = linear == 7 * model.config.num_hidden_layers + 1
    supported = {dtype for _, dtype in placements} <= {torch.float32, torch.bfloat16}
    return complete and len(placements) == 1 and supported and not (hooked or wrapped or adapted)
