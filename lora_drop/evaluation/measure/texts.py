"""Texts that quality is measured on: prompts with the tokens to score after them.

Targets are given, or the full model's own: the baseline lane's greedy answers, as a reader would see them.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from lora_drop.adapters.bank import AdapterBank
from lora_drop.decode.lane import Lane
from lora_drop.decode.reference import Decoder
from lora_drop.decode.sampling import Sampling
from lora_drop.errors import LoraDropError
from lora_drop.method.quality import collapse_at
from lora_drop.method.schedule import Schedule, baseline_schedule
from lora_drop.models.load import LoadedModel
from lora_drop.models.tokens import encode_prompt, encode_text

ANSWER_TOKENS = 128  # at most, of an answer


@dataclass(frozen=True)
class Texts:
    """Prompts and the targets to score.

    Args:
        pairs: token ids of each prompt and of what follows it, at least one of each.
        facts: about the texts, for a result's `config`.
    """

    pairs: list[tuple[list[int], list[int]]]
    facts: dict[str, Any] = field(default_factory=dict)


def given_texts(loaded: LoadedModel, pairs: Iterable[tuple[str, str]], context_tokens: int | None = None) -> Texts:
    """Encode prompts through the chat template, and targets alone, without an end token.

    Args:
        context_tokens: keep only the prompt's last tokens; None keeps all.

    Raises:
        LoraDropError: a record does not fit the model's context, or a target has no token.
    """
    encoded = []
    for number, (prompt, target) in enumerate(pairs, start=1):
        prompt_ids = _prompt_ids(loaded, prompt, context_tokens)
        target_ids = encode_text(loaded.tokenizer, target)
        if not target_ids:
            raise LoraDropError(f"record {number}: the target has no token.")
        _check_room(loaded, number, len(prompt_ids), len(target_ids))
        encoded.append((prompt_ids, target_ids))
    return Texts(encoded, {"target": "given", "context_tokens": context_tokens})


@dataclass(frozen=True)
class Answers:
    """The full model's greedy answers to prompts, without their end tokens."""

    prompts: list[list[int]]
    answers: list[list[int]]
    context_tokens: int | None = None

    @property
    def sha256(self) -> str:
        """Of all answers' token ids."""
        return hashlib.sha256(json.dumps(self.answers).encode()).hexdigest()

    def texts(self) -> Texts:
        """The answers as targets; those that are empty or collapse are left out and counted."""
        pairs = list(zip(self.prompts, self.answers, strict=True))
        usable = [(prompt, answer) for prompt, answer in pairs if answer and collapse_at(answer) is None]
        facts = {
            "target": "own",
            "context_tokens": self.context_tokens,
            "prompts": len(pairs),
            "left_out": len(pairs) - len(usable),
            "answers_sha256": self.sha256,
        }
        return Texts(usable, facts)


def own_answers(
    loaded: LoadedModel,
    prompts: Sequence[str],
    context_tokens: int | None = None,
    progress: Callable[[int], None] = lambda answers: None,
    after_step: Callable[[], None] = lambda: None,
) -> Answers:
    """Let the full model answer prompts, once for all settings that are measured on its answers.

    Args:
        context_tokens: keep only the prompt's last tokens; None keeps all.
        progress: called with the answers so far.
        after_step: called after each token.

    Raises:
        LoraDropError: a prompt does not fit the model's context.
    """
    prompt_ids = []
    for number, prompt in enumerate(prompts, start=1):
        prompt_ids.append(_prompt_ids(loaded, prompt, context_tokens))
        _check_room(loaded, number, len(prompt_ids[-1]), ANSWER_TOKENS)
    decoder, schedule = loaded.new_decoder(), baseline_schedule(loaded.num_layers)
    answers: list[list[int]] = []
    for ids in prompt_ids:
        answers.append(without_end(loaded, answer(loaded, decoder, schedule, None, ids, after_step)))
        progress(len(answers))
    return Answers(prompt_ids, answers, context_tokens)


def answer(
    loaded: LoadedModel,
    decoder: Decoder,
    schedule: Schedule,
    bank: AdapterBank | None,
    prompt_ids: list[int],
    after_step: Callable[[], None] = lambda: None,
) -> list[int]:
    """Let a lane answer greedily: at most `ANSWER_TOKENS`, its end token included."""
    prompt = torch.tensor([prompt_ids], device=loaded.device)
    lane = Lane(decoder, prompt, schedule, bank, Sampling(), ANSWER_TOKENS, loaded.stop_ids)
    for _ in lane:
        after_step()
    return lane.tokens


def without_end(loaded: LoadedModel, answer: list[int]) -> list[int]:
    """An answer without its end token."""
    return answer[:-1] if answer and answer[-1] in loaded.stop_ids else answer


def _prompt_ids(loaded: LoadedModel, prompt: str, context_tokens: int | None) -> list[int]:
    prompt_ids = encode_prompt(loaded.tokenizer, prompt)
    return prompt_ids if context_tokens is None else prompt_ids[-context_tokens:]


def _check_room(loaded: LoadedModel, number: int, prompt_tokens: int, target_tokens: int) -> None:
    if prompt_tokens + target_tokens > loaded.context:
        raise LoraDropError(
            f"record {number} has {prompt_tokens} + {target_tokens} tokens, more than the context of "
            f"{loaded.context}: shorten it, or keep less of the prompt with --context-tokens."
        )
