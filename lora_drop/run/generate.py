"""The library's two calls: `stream` a run's records, and `generate` as transformers' own decoding hook."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from transformers import GenerationConfig, LogitsProcessorList, PreTrainedModel, StoppingCriteriaList
from transformers.generation.streamers import BaseStreamer

from lora_drop.adapters.bank import AdapterBank
from lora_drop.adapters.find import find_bank
from lora_drop.decode.lane import Lane
from lora_drop.decode.sampling import Sampling, draw
from lora_drop.errors import LoraDropError
from lora_drop.method.config import LoraDropConfig
from lora_drop.models.external import prepare
from lora_drop.models.hub import SUPPORTED
from lora_drop.models.load import LoadedModel, usable_context
from lora_drop.run.request import Request
from lora_drop.run.run import run
from lora_drop.run.trace.records import Record


def stream(
    loaded: LoadedModel, prompt: str, config: LoraDropConfig | None = None, **settings: Any
) -> Iterator[Record]:
    """Run a prompt and yield the records of its trace as they happen: header, steps, audits, summary.

    Args:
        loaded: from `load_model`.
        config: LoRA-Drop's settings, the defaults if None.
        settings: further fields of `lora_drop.run.request.Request`: `max_new_tokens`, `temperature`, `top_p`, `seed`,
            `view`, `audit`, `ignore_eos`, `lanes`.

    Raises:
        LoraDropError: a setting does not fit the model; before the first record.
    """
    return run(loaded, Request(prompt, config or LoraDropConfig(), **settings))


@torch.inference_mode()
def generate(
    model: PreTrainedModel,
    input_ids: Tensor,
    logits_processor: LogitsProcessorList,
    stopping_criteria: StoppingCriteriaList,
    generation_config: GenerationConfig,
    lora_drop: LoraDropConfig | None = None,
    adapters: AdapterBank | None = None,
    streamer: BaseStreamer | None = None,
    **model_kwargs: Any,
) -> Tensor:
    """LoRA-Drop decoding for `model.generate(**inputs, custom_generate=lora_drop.generate, lora_drop=config)`.

    It decodes as the command line does: with the fastest decoder for the model, which packs its matrices at the first
    call, and the adapters that the config names, `auto` by default. What is prepared for a model is freed with it.

    transformers prepares the processors (temperature and top-p among them), the stopping criteria and the config, and
    draws from torch's global generator as its own sampling does.

    Args:
        input_ids: the prompt, (1, P).
        lora_drop: the settings, the defaults if None.
        adapters: the corrections, on any device, in place of those that the settings name.
        streamer: a transformers streamer. `model.generate(streamer=...)` silently drops it for a callable, so bind it
            here: `custom_generate=functools.partial(lora_drop.generate, streamer=streamer)`.
        model_kwargs: what transformers prepares for the model's forward. Only `attention_mask` is read, and must be
            all ones (a parameter of that name would be passed twice); the decoder has its own cache.

    Returns:
        Prompt and new tokens, (1, P + new), the stop token included.

    Raises:
        LoraDropError: more than one prompt, padding, or a model, adapters or settings that do not fit; logits that
            are NaN or infinite.
    """
    _check_call(model, input_ids, generation_config, model_kwargs.get("attention_mask"))
    config = lora_drop or LoraDropConfig()
    schedule = config.schedule_for(model.config.num_hidden_layers)
    info, decoder = prepare(model)
    if adapters:
        warning = adapters.check(info, "of this call", schedule.reuse, schedule.part)
    bank, notes = (adapters, [warning] if warning else []) if adapters else find_bank(info, config, schedule)
    for note in notes:
        warnings.warn(note, stacklevel=3)  # the caller of `generate`, through inference_mode's wrapper
    bank = bank and bank.to(decoder.device, decoder.dtype)
    if streamer is not None:
        streamer.put(input_ids.cpu())  # as transformers does: a streamer may skip the prompt
    prompt, room = input_ids, generation_config.max_length - input_ids.shape[1]
    choose = _Choices(prompt, logits_processor, generation_config.do_sample, schedule.verifies)
    lane = choose.lane = Lane(decoder, prompt, schedule, bank, Sampling(), room, choose=choose)
    for _ in lane:
        # Stream and stop by verified tokens only: drafts may still be rejected.
        for token in lane.tokens[input_ids.shape[1] - prompt.shape[1] : lane.verified]:
            input_ids = torch.cat((input_ids, input_ids.new_tensor([[token]])), 1)
            if streamer is not None:
                streamer.put(input_ids[0, -1:].cpu())
            if stopping_criteria(input_ids, None).all():
                if streamer is not None:
                    streamer.end()
                return input_ids
    return input_ids


class _Choices:
    """Draws a lane's tokens by transformers' own processors.

    Attributes:
        lane: the lane.
    """

    lane: Lane

    def __init__(self, prompt: Tensor, processor: LogitsProcessorList, samples: bool, verifies: bool):
        self._prompt, self._processor, self._samples = prompt, processor, samples
        # Drafts are drawn again when they are verified, so each draw has noise of its own, by a seed from torch's.
        self._seed = int(torch.randint(2**62, ())) if samples and verifies else None

    def __call__(self, logits: Tensor, step: int) -> Tensor:
        """Tokens (rows, 1) of logits (rows, V), the first row for step `step`."""
        return torch.cat([self._one(row[None], step + at) for at, row in enumerate(logits)])

    def _one(self, logits: Tensor, step: int) -> Tensor:
        before = self._prompt.new_tensor([self.lane.tokens[:step]])
        # transformers annotates a narrower type of tensor than it passes.
        scores = self._processor(torch.cat((self._prompt, before), 1), logits.float())  # type: ignore[arg-type]
        if not self._samples:
            return scores.argmax(-1, keepdim=True)
        if self._seed is not None:
            return draw(scores, Sampling(1.0, 1.0, self._seed), step)
        # multinomial refuses NaN. Any token will do for broken logits: the lane reports them.
        probs = scores.softmax(-1)
        return torch.multinomial(probs.masked_fill(~probs.isfinite().all(), 1.0), 1)


def _check_call(
    model: PreTrainedModel, input_ids: Tensor, generation_config: GenerationConfig, attention_mask: Tensor | None
) -> None:
    """Raise LoraDropError for calls that LoRA-Drop does not support."""
    if input_ids.shape[0] != 1:
        raise LoraDropError(f"LoRA-Drop decodes one prompt at a time; this is a batch of {input_ids.shape[0]}.")
    if input_ids.shape[1] == 0:
        raise LoraDropError("the prompt has no token: pass input_ids (inputs_embeds is not supported).")
    if model.config.model_type not in SUPPORTED:
        raise LoraDropError(f"this is a {model.config.model_type!r} model; supported are {', '.join(SUPPORTED)}.")
    if generation_config.return_dict_in_generate:
        raise LoraDropError("return_dict_in_generate is not supported: LoRA-Drop returns the tokens.")
    if generation_config.max_length > (context := usable_context(model.config)):
        raise LoraDropError(
            f"prompt and answer may reach {generation_config.max_length} tokens, the model's context is {context}: "
            "lower max_new_tokens."
        )
    if attention_mask is not None and not attention_mask.all():
        raise LoraDropError("the prompt is padded; LoRA-Drop decodes prompts without padding.")
