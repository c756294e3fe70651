"""The library's two calls: `stream` a run's records, and `generate` as transformers' decoding hook."""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from transformers import GenerationConfig, LogitsProcessorList, PreTrainedModel, StoppingCriteriaList
from transformers.generation.stopping_criteria import StopStringCriteria
from transformers.generation.streamers import BaseStreamer
from transformers.generation.utils import GenerateDecoderOnlyOutput

from lora_drop.adapters.bank import AdapterBank
from lora_drop.adapters.find import bank_folder
from lora_drop.decode.lane import Lane
from lora_drop.decode.sampling import Sampling, draw
from lora_drop.errors import LoraDropError
from lora_drop.method.config import LoraDropConfig
from lora_drop.method.presets import READABLE, preset_named
from lora_drop.models.external import prepare
from lora_drop.models.hub import SUPPORTED
from lora_drop.models.load import LoadedModel, ModelInfo, usable_context
from lora_drop.run.request import Request, lane_plan
from lora_drop.run.results.bank_presets import presets_of
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


# Settings of `model.generate` under which transformers decodes otherwise than greedily or by sampling, or returns what
# this decoder does not keep -> the value that turns each off.
_REFUSED = {
    "num_beams": 1,
    "num_return_sequences": 1,
    "guidance_scale": 1,
    "penalty_alpha": 0,
    "prompt_lookup_num_tokens": 0,
    "assistant_early_exit": None,
    "use_mtp": False,
    "dola_layers": None,
    "constraints": None,
    "force_words_ids": None,
    "output_attentions": False,
    "output_hidden_states": False,
}


@torch.inference_mode()
def generate(
    model: PreTrainedModel,
    input_ids: Tensor,
    logits_processor: LogitsProcessorList,
    stopping_criteria: StoppingCriteriaList,
    generation_config: GenerationConfig,
    lora_drop: LoraDropConfig | Mapping[str, Any] | str | None = None,
    adapters: AdapterBank | str | None = None,
    streamer: BaseStreamer | None = None,
    tokenizer: Any = None,
    stop_strings: str | list[str] | None = None,
    **model_kwargs: Any,
) -> Tensor | GenerateDecoderOnlyOutput:
    """LoRA-Drop decoding for `model.generate(**inputs, custom_generate=lora_drop.generate, lora_drop="balanced")`.

    It decodes as the command line does: with the fastest decoder for the model, which packs its matrices at the first
    call, and the adapters that the config names, `auto` by default. What is prepared for a model is freed with it.
    The prompts of a batch are decoded one after the other, each without its padding.

    transformers prepares the processors (temperature and top-p among them), the stopping criteria and the config, and
    draws from torch's global generator as transformers' sampling does.

    Args:
        input_ids: the prompts, (B, P), padded on the left.
        lora_drop: a config, a dict of its fields, or a preset's name. If None: `READABLE` where there are adapters
            for it, else every layer runs, with a warning.
        adapters: the corrections, on any device, or the path of their folder, in place of those that the settings
            name.
        streamer: `model.generate` does not pass its `streamer` to a callable, nor its `assistant_model`, and this
            function cannot warn that they are missing: bind the streamer with `with_`.
        tokenizer: to be bound too.
        stop_strings: texts that end an answer; they need the tokenizer.
        model_kwargs: what transformers prepares for the model's forward. Only `attention_mask` is used (a parameter of
            that name would be passed twice); a `cache` or `position_ids` of the caller are a warning.

    Returns:
        Prompts and new tokens, (B, P + new), stop tokens included, padded on the right; with
        `return_dict_in_generate` an object of these, with the scores and logits that were asked for.

    Raises:
        LoraDropError: a model, adapters, settings or a kind of decoding that do not fit; logits that are NaN or
            infinite.
    """
    _check_call(model, input_ids, generation_config, streamer)
    padding = _padding(input_ids, **model_kwargs)
    if stop_strings:
        if tokenizer is None:
            raise LoraDropError(
                "stop_strings needs the tokenizer, which transformers does not hand to a callable: "
                "custom_generate=lora_drop.with_(tokenizer=tokenizer)."
            )
        stopping_criteria = StoppingCriteriaList([*stopping_criteria, StopStringCriteria(tokenizer, stop_strings)])
    info, decoder = prepare(model)
    bank = adapters if isinstance(adapters, AdapterBank) else None
    config = _config_of(lora_drop, info, str(adapters) if adapters and bank is None else None, bank)
    plan, notes = lane_plan(info, config, bank=bank)
    for note in notes:
        warnings.warn(note, stacklevel=3)  # the caller of `generate`, through inference_mode's wrapper
    if streamer is not None:
        streamer.put(input_ids.cpu())  # as transformers does: a streamer may skip the prompt
    room, samples = generation_config.max_length - input_ids.shape[1], generation_config.do_sample
    is_object = generation_config.return_dict_in_generate
    kinds = [kind for kind in ("scores", "logits") if is_object and getattr(generation_config, f"output_{kind}")]
    rows = []
    for prompt, start in zip(input_ids.split(1), padding, strict=True):
        choose = _Choices(prompt, logits_processor, samples, plan.schedule.verifies, bool(kinds))
        lane = Lane(decoder, prompt[:, start:], plan.schedule, plan.bank, choose, room)
        choose.lane = lane
        for token in _until_stopped(lane, prompt, stopping_criteria):
            choose.answer.append(token)
            if streamer is not None:
                streamer.put(torch.tensor([token]))
        rows.append(choose)
    if streamer is not None:
        streamer.end()
    pad = generation_config._pad_token_tensor
    answers = [input_ids.new_tensor(row.answer) for row in rows]
    new = pad_sequence(answers, batch_first=True, padding_value=0 if pad is None else int(pad))
    sequences = torch.cat((input_ids, new), 1)
    if not is_object:
        return sequences
    output: Any = {"sequences": sequences}
    for kind in kinds:
        steps = [torch.cat([row.outputs[step][kind] for step in range(len(row.answer))]) for row in rows]
        output[kind] = pad_sequence(steps, batch_first=True).unbind(1)
    return GenerateDecoderOnlyOutput(**output)


def with_(streamer: BaseStreamer | None = None, tokenizer: Any = None) -> Callable[..., Any]:
    """`generate` with what `model.generate` does not hand to a callable: `custom_generate=lora_drop.with_(...)`.

    Args:
        streamer: gets verified tokens as they are written; one prompt at a time.
        tokenizer: for `stop_strings`.
    """
    return functools.partial(generate, streamer=streamer, tokenizer=tokenizer)


def _config_of(
    lora_drop: LoraDropConfig | Mapping[str, Any] | str | None,
    info: ModelInfo,
    folder: str | None,
    bank: AdapterBank | None,
) -> LoraDropConfig:
    """The config of a call; `folder` and `bank` are the adapters that it names. Raises LoraDropError."""
    if isinstance(lora_drop, Mapping):
        lora_drop = LoraDropConfig(**{str(name): value for name, value in lora_drop.items()})
    is_readable = lora_drop is None
    if lora_drop is None or isinstance(lora_drop, str):
        config = preset_named(READABLE if lora_drop is None else lora_drop, presets_of(info, folder)).config
    elif isinstance(lora_drop, LoraDropConfig):
        config = lora_drop.replace(adapters=folder) if folder else lora_drop
    else:
        raise LoraDropError(f"lora_drop must be a LoraDropConfig, a dict or a preset's name; got {lora_drop!r:.80}.")
    if is_readable and bank is None and bank_folder(info, config, config.schedule_for(info.num_layers)) is None:
        warnings.warn(
            f"no trained adapters are shipped for {info.id}, and lora_drop is left out: every layer runs (period 1). "
            "Name a preset, such as lora_drop='memory', to skip layers all the same.",
            stacklevel=4,
        )
        return LoraDropConfig(period=1, adapters="none")
    return config


def _until_stopped(lane: Lane, prompt: Tensor, stopping_criteria: StoppingCriteriaList) -> Iterator[int]:
    """A lane's tokens up to the one that meets the criteria. Only verified ones: drafts may still be rejected."""
    ids = prompt
    for _ in lane:
        for token in lane.tokens[ids.shape[1] - prompt.shape[1] : lane.verified]:
            ids = torch.cat((ids, ids.new_tensor([[token]])), 1)
            yield token
            if stopping_criteria(ids, None).all():
                return


class _Choices:
    """Draws a lane's tokens by transformers' processors.

    Attributes:
        lane: the lane.
        answer: the lane's tokens that were verified, up to the stop.
        outputs: by step, the logits of its token, and the scores that the processors made of them, each (1, V).
    """

    lane: Lane

    def __init__(self, prompt: Tensor, processor: LogitsProcessorList, samples: bool, verifies: bool, keeps: bool):
        self._prompt, self._processor, self._samples, self._keeps = prompt, processor, samples, keeps
        # A draft is drawn again when it is verified: a step's noise follows from its number and one seed of torch's.
        self._seed = int(torch.randint(2**62, ())) if samples and verifies else None
        self.answer: list[int] = []
        self.outputs: dict[int, dict[str, Tensor]] = {}

    def __call__(self, logits: Tensor, step: int) -> Tensor:
        """Tokens (rows, 1) of logits (rows, V), the first row for step `step`."""
        return torch.cat([self._token(row[None], step + at) for at, row in enumerate(logits)])

    def _token(self, logits: Tensor, step: int) -> Tensor:
        before = self._prompt.new_tensor([self.lane.tokens[:step]])
        logits = logits.float()
        # A processor may write into its argument. transformers annotates a narrower type of tensor than it passes.
        scores = self._processor(torch.cat((self._prompt, before), 1), logits.clone())  # type: ignore[arg-type]
        if self._keeps:
            self.outputs[step] = {"scores": scores, "logits": logits}
        if not self._samples:
            return scores.argmax(-1, keepdim=True)
        if self._seed is not None:
            return draw(scores, Sampling(1.0, 1.0, self._seed), step)
        # multinomial refuses NaN. Any token will do for broken logits: the lane reports them.
        probs = scores.softmax(-1)
        return torch.multinomial(probs.masked_fill(~probs.isfinite().all(), 1.0), 1)


def _check_call(
    model: PreTrainedModel,
    input_ids: Tensor,
    generation_config: GenerationConfig,
    streamer: BaseStreamer | None,
) -> None:
    """Raise LoraDropError if LoRA-Drop does not support a call of `model.generate`."""
    for name, off in _REFUSED.items():
        value = getattr(generation_config, name, off)
        is_output = name.startswith("output_") and not generation_config.return_dict_in_generate
        if value not in (off, None) and not is_output:
            raise LoraDropError(
                f"{name}={value} is not supported: LoRA-Drop writes one text a prompt, greedily or by sampling, and "
                "keeps its tokens, scores and logits."
            )
    if input_ids.shape[1] == 0:
        raise LoraDropError("the prompt has no token: pass input_ids (inputs_embeds is not supported).")
    if model.config.model_type not in SUPPORTED:
        raise LoraDropError(f"this is a {model.config.model_type!r} model; supported are {', '.join(SUPPORTED)}.")
    if generation_config.max_length > (context := usable_context(model.config)):
        raise LoraDropError(
            f"prompt and answer may reach {generation_config.max_length} tokens, the model's context is {context}: "
            "lower max_new_tokens."
        )
    if streamer is not None and len(input_ids) > 1:
        raise LoraDropError(f"a streamer takes one prompt at a time; this is a batch of {len(input_ids)}.")


def _padding(
    input_ids: Tensor,
    attention_mask: Tensor | None = None,
    position_ids: Tensor | None = None,
    cache: Any = None,
    **_: Any,
) -> list[int]:
    """Tokens of padding before each prompt. Warns of a cache or positions of the caller, which have no effect.

    Raises:
        LoraDropError: there is other padding than on the left.
    """
    mask = torch.ones_like(input_ids) if attention_mask is None else attention_mask.long()
    starts = mask.argmax(1)
    if (
        mask.shape != input_ids.shape
        or not mask.any(1).all()
        or not all(row[start:].all() for row, start in zip(mask, starts, strict=True))
    ):
        raise LoraDropError("prompts are padded on the left alone: set padding_side='left' on the tokenizer.")
    # transformers makes a cache and positions for a call without them. It marks a cache of the caller.
    lost = ["cache"] if getattr(cache, "_is_user_defined", False) else []
    if position_ids is not None and not torch.equal(position_ids, (mask.cumsum(1) - 1).clamp(min=0)):
        lost.append("position_ids")
    if lost:
        warnings.warn(f"{', '.join(lost)} has no effect: LoRA-Drop keeps its own cache.", stacklevel=4)
    return starts.tolist()
