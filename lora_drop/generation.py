"""The library's two calls: `stream` a run's records, and `generate` as transformers' own decoding hook."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from transformers import GenerationConfig, PreTrainedModel

from lora_drop.adapters import AdapterBank
from lora_drop.config import LoraDropConfig
from lora_drop.decoder import Decoder
from lora_drop.engine import Lane, Sampling
from lora_drop.errors import LoraDropError
from lora_drop.models import LoadedModel
from lora_drop.session import Request, run
from lora_drop.trace import Record


def stream(
    loaded: LoadedModel, prompt: str, config: LoraDropConfig | None = None, **settings: Any
) -> Iterator[Record]:
    """Run a prompt and yield the records of its trace as they happen: header, steps, audits, summary.

    Args:
        loaded: from `load_model`.
        config: LoRA-Drop's settings, the defaults if None.
        settings: further fields of `lora_drop.session.Request`: `max_new_tokens`, `temperature`, `top_p`, `seed`,
            `view`, `audit`, `ignore_eos`, `lanes`.

    Raises:
        LoraDropError: a setting does not fit the model; before the first record.
    """
    return run(loaded, Request(prompt, config or LoraDropConfig(), **settings))


def generate(
    model: PreTrainedModel,
    input_ids: Tensor,
    generation_config: GenerationConfig | None = None,
    lora_drop: LoraDropConfig | None = None,
    adapters: AdapterBank | None = None,
    seed: int = 0,
) -> Tensor:
    """LoRA-Drop decoding for `model.generate(**inputs, custom_generate=lora_drop.generate, lora_drop=config)`.

    Args:
        input_ids: the prompt, (1, P).
        generation_config: `max_new_tokens` (or `max_length`), `do_sample`, `temperature`, `top_p`, `eos_token_id`;
            transformers passes the model's own with the call's arguments.
        lora_drop: the settings, the defaults if None.
        adapters: the corrections, on any device; None runs the untrained rule.
        seed: of the token draws.

    Returns:
        Prompt and new tokens, (1, P + new), the stop token included.

    Raises:
        LoraDropError: more than one prompt, or settings that do not fit the model.
    """
    if input_ids.shape[0] != 1:
        raise LoraDropError(f"LoRA-Drop decodes one prompt at a time; this is a batch of {input_ids.shape[0]}.")
    settings = generation_config if generation_config is not None else model.generation_config
    schedule = (lora_drop or LoraDropConfig()).schedule_for(model.config.num_hidden_layers)
    if settings.max_new_tokens is not None:
        room = settings.max_new_tokens
    else:
        room = (settings.max_length or 20) - input_ids.shape[1]
    if room < 1:
        raise LoraDropError("there is no room for a new token: raise max_new_tokens or max_length.")
    eos = settings.eos_token_id
    sampling = Sampling(settings.temperature or 1.0, settings.top_p or 1.0, seed) if settings.do_sample else Sampling()
    bank = adapters and adapters.to(model.device, model.dtype)
    stop_ids = frozenset() if eos is None else frozenset([eos] if isinstance(eos, int) else list(eos))
    lane = Lane(Decoder(model), input_ids, schedule, bank, sampling, room, stop_ids)
    new = torch.tensor([[step.token_id for step in lane]], device=input_ids.device)
    return torch.cat((input_ids, new), dim=1)
