"""Ask one example of the full model and of LoRA-Drop.

A choice is scored by the log-likelihood of its tokens, decoded through the real schedule. An answer is generated
greedily. The gold text of every example is also teacher-forced through the schedule: on a small model, whose accuracy
is near chance, NLL, KL and agreement say more.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from lora_drop.adapters.bank import AdapterBank
from lora_drop.decode.lane import Lane
from lora_drop.decode.logits import log_probs, nll
from lora_drop.decode.reference import Decoder
from lora_drop.decode.sampling import Sampling
from lora_drop.errors import LoraDropError
from lora_drop.evaluation.measure.metrics import decode_target, means, read_target, score
from lora_drop.evaluation.tasks.base import Example, Options, Say, Task
from lora_drop.evaluation.tasks.sandbox import run_program
from lora_drop.method.schedule import Schedule, baseline_schedule
from lora_drop.models.load import LoadedModel
from lora_drop.models.tokens import Detokenizer, encode_prompt, encode_text

LANES = ("baseline", "lora_drop")
LABELS = {"baseline": "full model", "lora_drop": "LoRA-Drop"}


@dataclass(frozen=True)
class Runner:
    """The two lanes that answer: the model's decoder, with the full schedule and with LoRA-Drop's."""

    loaded: LoadedModel
    decoder: Decoder
    schedule: Schedule
    bank: AdapterBank | None
    options: Options
    say: Say

    def run(self, task: Task, example: Example) -> dict[str, Any]:
        """Run an example.

        Returns:
            `{"cut", "baseline": {"score", "answer", ...}, "lora_drop": {same}, "lora_steps": {...}, "all_steps":
            {...}}`; a score is None where it needs running code and that is off.

        Raises:
            LoraDropError: the example does not fit the model's context.
        """
        generates = not example.choices and (self.options.run_code or not task.runs_code)
        tokenizer = self.loaded.tokenizer
        texts = example.choices or (example.target,)
        follow = {text: encode_text(tokenizer, text) for text in texts}
        if not all(follow.values()):
            raise LoraDropError("an answer has no token")
        room = self.loaded.context - max([*map(len, follow.values()), self.options.max_new_tokens * generates])
        limit = min(room, self.options.context_tokens or room)
        if limit < 1:
            raise LoraDropError(f"its answer alone fills the context of {self.loaded.context} tokens")
        prompt, cut = fit_prompt(tokenizer, example.prompt, example.chat, limit)
        quality, sums = self._quality(prompt, follow, example.target)
        result = {"cut": cut, **quality}
        for lane in LANES:
            if example.choices:
                result[lane] = self._choice(example, sums[lane])
            elif generates:
                result[lane] = self._generated(task, example, prompt, lane)
            else:
                result[lane] = {"score": None, "answer": None}
        return result

    def _quality(
        self, prompt: list[int], follow: dict[str, list[int]], target: str
    ) -> tuple[dict[str, Any], dict[str, list[float]]]:
        """Teacher-forced means over the target's tokens, and each text's log-likelihood in both lanes."""
        quality: dict[str, Any] = {}
        sums: dict[str, list[float]] = {lane: [] for lane in LANES}
        for text, ids in follow.items():
            full = read_target(self.decoder, prompt, ids)
            ours, at_lora, _ = decode_target(self.decoder, self.schedule, self.bank, prompt, ids)
            tokens = torch.tensor(ids, device=self.loaded.device)
            for lane, logits in zip(LANES, (full, ours), strict=True):
                sums[lane].append(log_likelihood(logits, tokens))
            if text == target:
                scores = score(full, ours, tokens)
                quality = {"lora_steps": means(scores[at_lora]), "all_steps": means(scores)}
        return quality, sums

    @staticmethod
    def _choice(example: Example, sums: list[float]) -> dict[str, Any]:
        """Choose by log-likelihood per character: lm-eval's `acc_norm`."""
        choices = list(dict.fromkeys(example.choices))  # in the order of `sums`
        normed = [total / len(choice) for total, choice in zip(sums, choices, strict=True)]
        best = max(range(len(choices)), key=normed.__getitem__)
        return {"score": float(choices[best] == example.target), "answer": best, "log_likelihoods": sums}

    def _generated(self, task: Task, example: Example, prompt: list[int], lane: str) -> dict[str, Any]:
        if lane == "baseline":
            schedule, bank = baseline_schedule(self.loaded.num_layers), None
        else:
            schedule, bank = self.schedule, self.bank
        text = generate_text(
            self.loaded, self.decoder, schedule, bank, prompt, self.options.max_new_tokens, example.stop
        )
        answer = task.answer(example, text)
        result = {"answer": answer, "text": text}
        if not task.runs_code:
            return {"score": task.score(example, answer), **result}
        outcome = run_program(task.program(example, answer))
        if outcome.met_a_limit:
            self.say(f"{example.id}, {LABELS[lane]}'s program: {outcome.reason}.")
        return {"score": float(outcome.passed), "reason": outcome.reason, **result}


def log_likelihood(logits: Tensor, tokens: Tensor) -> float:
    """The sum of log-probabilities (nats) of tokens (T,) under logits (T, V)."""
    return -float(nll(log_probs(logits), tokens).sum())


def fit_prompt(tokenizer: Any, text: str, chat: bool, limit: int) -> tuple[list[int], bool]:
    """Encode a prompt in at most `limit` tokens; a longer one loses its middle, as both ends hold the question.

    Returns:
        The token ids, and true if the middle was cut.

    Raises:
        LoraDropError: the chat template alone is longer.
    """
    ids = encode_prompt(tokenizer, text, chat)
    if len(ids) <= limit:
        return ids, False
    inner = encode_text(tokenizer, text)
    keep = limit - (len(ids) - len(inner))
    while keep > 1:
        half = keep // 2
        ends = tokenizer.decode(inner[:half]), tokenizer.decode(inner[-half:])
        ids = encode_prompt(tokenizer, f"{ends[0].rstrip(chr(0xFFFD))} {ends[1].lstrip(chr(0xFFFD))}", chat)
        if len(ids) <= limit:
            return ids, True
        keep -= max(1, len(ids) - limit)  # a text cut between two tokens may need more of them
    raise LoraDropError(f"the prompt does not fit into {limit} tokens")


def generate_text(
    loaded: LoadedModel,
    decoder: Decoder,
    schedule: Schedule,
    bank: AdapterBank | None,
    prompt_ids: list[int],
    max_new_tokens: int,
    stop: Sequence[str] = (),
    sampling: Sampling | None = None,
    stop_ids: frozenset[int] = frozenset(),
) -> str:
    """Generate a lane's text after a prompt, greedily without `sampling`.

    The text ends after `max_new_tokens`, at a stop token of the model or of `stop_ids`, or before the first of the
    `stop` texts.
    """
    ids, stop_ids = torch.tensor([prompt_ids], device=loaded.device), loaded.stop_ids | stop_ids
    lane = Lane(decoder, ids, schedule, bank, sampling or Sampling(), max_new_tokens, stop_ids)
    detokenizer, text = Detokenizer(loaded.tokenizer), ""
    longest = max(map(len, stop), default=0)
    done = 0
    for _ in lane:
        for token in lane.tokens[done : lane.verified]:
            if token in stop_ids:
                return text
            piece = detokenizer.add(token)
            start = max(0, len(text) - longest)
            text += piece
            if ends := [at for at in (text.find(end, start) for end in stop) if at >= 0]:
                return text[: min(ends)]
        done = lane.verified
    return text
