"""A model that a caller holds, made ready for decoding: what is known of it lives as long as it does."""

from __future__ import annotations

import threading
import weakref
from dataclasses import dataclass

import torch
from torch import nn
from transformers import PreTrainedModel

from lora_drop.decode.native.weights import NativeWeights
from lora_drop.decode.static.decoder import StaticWeights
from lora_drop.decode.step import Decoder
from lora_drop.models import bundled
from lora_drop.models.load import (
    BUNDLED_ID,
    BUNDLED_REVISION,
    ModelInfo,
    bundled_blocks,
    decoder_for,
    fingerprint,
    model_shape,
    step_weights,
    usable_context,
)
from lora_drop.models.place import resolve_dtype
from lora_drop.paths import cache_dir


@dataclass(frozen=True)
class _Known:
    revision: str
    places: tuple[int, ...]  # of the parameters, once their weights are laid out
    weights: StaticWeights | NativeWeights | None


_KNOWN: weakref.WeakKeyDictionary[PreTrainedModel, _Known] = weakref.WeakKeyDictionary()
_lock = threading.Lock()


def made_ready(model: PreTrainedModel) -> tuple[ModelInfo, Decoder]:
    """What there is to know of a caller's model, and the fastest decoder for it as it is now.

    Its matrices are laid out side by side in memory, once; the modules keep working. The bundled model is found by its
    weights. Where its modules are not plain ones (hooks, quantised or adapted layers) it is the reference decoder.
    """
    revision = fingerprint(model)
    weights = _laid_out(model, revision) if _is_plain(model) else None
    decoder = decoder_for(model, weights)
    info = ModelInfo(
        tokenizer=None,
        id=BUNDLED_ID if revision == BUNDLED_REVISION else getattr(model, "name_or_path", "") or "the model given",
        revision=revision,
        context=usable_context(model.config),
        device=decoder.device,
        dtype=decoder.dtype,
        shape=model_shape(model, weights),
        num_layers=decoder.num_layers,
        decoder_name=decoder.name,
    )
    return info, decoder


def _laid_out(model: PreTrainedModel, revision: str) -> StaticWeights | NativeWeights | None:
    """The weights as its decoder reads them; anew only where they have changed or moved."""
    with _lock:
        known = _KNOWN.get(model)
        if known is None or (known.revision, known.places) != (revision, _places(model)):
            blocks = bundled_blocks if _is_bundled(model, revision) else None
            weights = step_weights(model, model.device, blocks)
            known = _KNOWN[model] = _Known(revision, _places(model), weights)
        return known.weights


def _places(model: PreTrainedModel) -> tuple[int, ...]:
    return tuple(weight.data_ptr() for weight in model.parameters())


def _is_bundled(model: PreTrainedModel, revision: str) -> bool:
    """Whether its own blocks are here, and what the command line takes for it in this number type."""
    usual = resolve_dtype("auto", model.device) == model.dtype
    return revision == BUNDLED_REVISION and usual and bundled.is_ready(cache_dir() / bundled.NAME)


def _is_plain(model: PreTrainedModel) -> bool:
    """Whether the modules compute what their weights say, all on one device in one number type."""
    weights = {(weight.device, weight.dtype) for weight in model.parameters()}
    hooked = any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
    wrapped = any("forward" in vars(module) for module in model.modules())  # accelerate replaces it
    adapted = any(isinstance(module, nn.Linear) and type(module) is not nn.Linear for module in model.modules())
    linear = sum(type(module) is nn.Linear for module in model.modules())
    whole = linear == 7 * model.config.num_hidden_layers + 1
    known = {dtype for _, dtype in weights} <= {torch.float32, torch.bfloat16}
    return whole and len(weights) == 1 and known and not (hooked or wrapped or adapted)
