"""Quality of a lane's own text: the lane answers freely, and the full model reads the answer.

Regret alone would reward a text that goes in circles, as the full model learns to expect it: so repeats count too.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from lora_drop.adapters.find import find_bank
from lora_drop.decode.logits import log_probs
from lora_drop.evaluation.measure.metrics import read_target
from lora_drop.evaluation.measure.texts import Answers, answer, without_end
from lora_drop.method.config import LoraDropConfig
from lora_drop.method.quality import collapse_at, repeated_share
from lora_drop.models.load import LoadedModel


@torch.inference_mode()
def evaluate_free(
    loaded: LoadedModel,
    config: LoraDropConfig,
    baseline: Answers,
    progress: Callable[[int], None] = lambda tokens: None,
    after_step: Callable[[], None] = lambda: None,
) -> dict[str, float | int]:
    """Score a lane's greedy answers with the full model.

    Args:
        baseline: the prompts, with the full model's own answers for comparison.
        progress: called with the number of tokens scored so far.
        after_step: called after each token that the lane writes.

    Returns:
        `tokens`, end tokens included; over them `regret`, the mean of ln(p_favourite / p_token) under the full model,
        the `worst` one, and the share of `own_choices`, the full model's favourites; over the answers the mean share
        of `repeated_4grams`, the `repeated_4grams_baseline` of the full model's own, and how many `collapsed`.

    Raises:
        LoraDropError: the settings do not fit the model, or logits are NaN or infinite.
    """
    schedule = config.schedule_for(loaded.num_layers)
    bank, _ = find_bank(loaded, config, schedule)
    decoder = loaded.new_decoder()
    scores: list[Tensor] = []
    texts = []
    for prompt_ids in baseline.prompts:
        ids = answer(loaded, decoder, schedule, bank, prompt_ids, after_step)
        scores.append(regrets(read_target(decoder, prompt_ids, ids), torch.tensor(ids, device=loaded.device)))
        texts.append(without_end(loaded, ids))
        progress(sum(map(len, scores)))
    every = torch.cat(scores)
    return {
        "tokens": len(every),
        "regret": float(every.mean()),
        "worst": float(every.max()),
        "own_choices": float((every == 0).float().mean()),
        "repeated_4grams": _repeats(texts),
        "repeated_4grams_baseline": _repeats(baseline.answers),
        "collapsed": sum(collapse_at(text) is not None for text in texts),
    }


def regrets(logits: Tensor, tokens: Tensor) -> Tensor:
    """ln(p_favourite / p_token) of tokens (T,) under the logits (T, V) before them: (T,), 0 for a favourite."""
    logs = log_probs(logits)
    return logs.amax(-1) - logs.gather(-1, tokens[:, None])[:, 0]


def _repeats(texts: list[list[int]]) -> float:
    return sum(map(repeated_share, texts)) / len(texts)
