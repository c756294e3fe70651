"""Quality through the real decode schedule: teacher-forced, and of the text a lane writes.

The tokens of a target are fed one at a time through prefill and decode steps, as generation would run them: a skipped
layer attends to the keys that decoding would have written. The full model reads the same tokens in one pass. Of a
lane's own text the regret alone would reward one that goes in circles, as the full model learns to expect it: so
repeats count too.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from lora_drop.adapters.bank import AdapterBank
from lora_drop.adapters.find import find_bank
from lora_drop.decode.cache import KVCache
from lora_drop.decode.lane import not_finite
from lora_drop.decode.logits import agreement, kl, log_probs, nll
from lora_drop.decode.reference import Decoder
from lora_drop.decode.refresh import Refresher
from lora_drop.evaluation.measure.texts import Answers, Texts, answer, without_end
from lora_drop.method.config import LoraDropConfig
from lora_drop.method.interval import ratio_interval
from lora_drop.method.quality import collapse_at, repeated_share
from lora_drop.method.schedule import Schedule, average_period, baseline_schedule
from lora_drop.models.load import LoadedModel

GROUPS = ("lora_steps", "full_steps", "all_steps")  # full steps are decode steps; the prefill's token counts in all
SCORES = ("nll_baseline", "nll_lora_drop", "kl", "top1_agreement")
# The scores of a text by its number, as JSON has them, and what computes them.
Memo = Callable[[int, Callable[[], dict[str, Any]]], dict[str, Any]]


def score(full: Tensor, ours: Tensor, targets: Tensor) -> Tensor:
    """`SCORES` of each token, (T, 4).

    Args:
        full: logits (T, V) of the full model.
        ours: logits (T, V) of the lane.
        targets: tokens (T,) that follow them.
    """
    full, ours = log_probs(full), log_probs(ours)
    columns = nll(full, targets), nll(ours, targets), kl(full, ours), agreement(full, ours).float()
    return torch.stack(columns, -1).double()


def means(scores: Tensor) -> dict[str, Any]:
    """`{"count", *SCORES}` over the tokens of `score`'s (T, 4); without any the means are None."""
    values = scores.mean(0).tolist() if len(scores) else [None] * len(SCORES)
    return {"count": len(scores), **dict(zip(SCORES, values, strict=True))}


@torch.inference_mode()
def decode_target(
    decoder: Decoder,
    schedule: Schedule,
    bank: AdapterBank | None,
    prompt_ids: list[int],
    target_ids: list[int],
    after_step: Callable[[Refresher], None] = lambda refresher: None,
) -> tuple[Tensor, Tensor, Refresher]:
    """Decode a target with a schedule: prefill on the prompt, then a decode step a token.

    Args:
        prompt_ids: at least one token.
        target_ids: at least one token.
        after_step: called with the refresher after each decode step.

    Returns:
        Logits (T, V) that the target's tokens are scored by; (T,) bool, true where a LoRA step gave them; and the
        refresher after the last step.

    Raises:
        LoraDropError: a step's logits are NaN or infinite.
    """
    schedule = dataclasses.replace(schedule, accept=0.0)  # tokens of a forced text cannot be rejected
    prompt, target = (torch.tensor([ids], device=decoder.device) for ids in (prompt_ids, target_ids))
    state = decoder.new_state(schedule, bank, len(prompt_ids) + len(target_ids) - 1)
    rows, at_lora = [decoder.prefill(prompt, state).logits], [False]
    for s in range(1, len(target_ids)):
        rows.append(decoder.step(target[:, s - 1 : s], state).logits)
        at_lora.append(state.refresher.kind == "lora")
        after_step(state.refresher)
    logits = torch.cat(rows)
    _check_finite(logits, schedule, bank)
    return logits, torch.tensor(at_lora, device=decoder.device), state.refresher


@torch.inference_mode()
def read_target(decoder: Decoder, prompt_ids: list[int], target_ids: list[int]) -> Tensor:
    """Read a target with the full model, in one pass: logits (T, V) that its tokens are scored by.

    Raises:
        LoraDropError: they are NaN or infinite.
    """
    tokens = torch.tensor([prompt_ids + target_ids[:-1]], device=decoder.device)
    logits = decoder.read(tokens, KVCache(decoder.num_layers), 0, (), len(prompt_ids) - 1).logits[0]
    _check_finite(logits, baseline_schedule(decoder.num_layers), None)
    return logits


def _check_finite(logits: Tensor, schedule: Schedule, bank: AdapterBank | None) -> None:
    """Refuse logits (T, V), a row a step, that would make every mean a NaN. Waits for the device: once a text."""
    finite = logits.isfinite().all(-1)
    if not finite.all():
        raise not_finite(int((~finite).nonzero()[0]), schedule, bank)


@torch.inference_mode()
def evaluate(
    loaded: LoadedModel,
    config: LoraDropConfig,
    texts: Texts,
    progress: Callable[[int], None] = lambda tokens: None,
    after_step: Callable[[Refresher], None] = lambda refresher: None,
    memo: Memo = lambda number, compute: compute(),
) -> dict[str, Any]:
    """Score targets after prompts with the full model and with LoRA-Drop.

    Prefill predicts a target's first token, which counts in `all_steps` only; decode step s feeds target[s-1].

    Args:
        progress: called with the number of scored tokens after each target.
        after_step: called with the refresher after each decode step.
        memo: called for each text, for its scores: those that it has, or those that it lets compute.

    Returns:
        `{"tokens", "lora_steps": {...}, "full_steps": {...}, "all_steps": {...}, "loss_interval", "config"}`: see
        `means`; NLL and KL in nats. The quality loss is the KL over all steps, and `loss_interval` its 95% interval
        over the prompts, None for a single one. `config` also has the `decode_steps`, how many were `refreshes`, the
        `average_period` that follows, and `draft`: true if the setting verifies its tokens, which it cannot do on a
        forced text, so that this is the quality of its drafts.

    Raises:
        LoraDropError: the settings do not fit the model.
    """
    schedule = config.schedule_for(loaded.num_layers)
    bank, notes = find_bank(loaded, config, schedule)
    decoder = loaded.new_decoder().ready_for([(schedule, bank)])
    groups: dict[str, list[Tensor]] = {name: [] for name in GROUPS}
    decode_steps = refreshes = tokens = 0
    losses = []  # summed KL and tokens of each text

    def scored(prompt_ids: list[int], target_ids: list[int]) -> dict[str, Any]:
        full = read_target(decoder, prompt_ids, target_ids)
        ours, at_lora, refresher = decode_target(decoder, schedule, bank, prompt_ids, target_ids, after_step)
        scores = score(full, ours, torch.tensor(target_ids, device=loaded.device)).tolist()
        steps = {"decode_steps": refresher.step, "refreshes": refresher.refreshes}
        return {"scores": scores, "at_lora": at_lora.tolist(), **steps}

    for number, pair in enumerate(texts.pairs):
        text = memo(number, partial(scored, *pair))
        decode_steps += text["decode_steps"]
        refreshes += text["refreshes"]
        scores, at_lora = torch.tensor(text["scores"], dtype=torch.float64), torch.tensor(text["at_lora"])
        for name, rows in zip(GROUPS, (scores[at_lora], scores[1:][~at_lora[1:]], scores), strict=True):
            groups[name].append(rows)
        losses.append((float(scores[:, SCORES.index("kl")].sum()), float(len(scores))))
        tokens += len(scores)
        progress(tokens)
    pace = {
        "decode_steps": decode_steps,
        "refreshes": refreshes,
        "average_period": average_period(decode_steps, refreshes),
    }
    return {
        "tokens": tokens,
        **{name: means(torch.cat(rows)) for name, rows in groups.items()},
        "loss_interval": ratio_interval(losses),
        "config": {**describe(loaded, config, decoder.name), **texts.facts, **pace, "notes": notes},
    }


def describe(loaded: LoadedModel, config: LoraDropConfig, decoder: str) -> dict[str, Any]:
    """The setting, and the model that it ran on, as a result's `config` has them."""
    schedule = config.schedule_for(loaded.num_layers)
    bank, _ = find_bank(loaded, config, schedule)
    return {
        **config.to_dict(),
        "dropped": list(schedule.dropped),
        "rank": bank.rank if bank else 0,
        "draft": schedule.verifies,
        "model": loaded.id,
        "revision": loaded.revision,
        "dtype": str(loaded.dtype).removeprefix("torch."),
        "decoder": decoder,
    }


# ---- of the text a lane writes ----


@torch.inference_mode()
def evaluate_free(
    loaded: LoadedModel,
    config: LoraDropConfig,
    baseline: Answers,
    progress: Callable[[int], None] = lambda tokens: None,
    after_step: Callable[[], None] = lambda: None,
) -> dict[str, float | int | None]:
    """Score a lane's greedy answers with the full model.

    Args:
        baseline: the prompts, with the full model's own answers for comparison.
        progress: called with the number of tokens scored so far.
        after_step: called after each token that the lane writes.

    Returns:
        The numbers of `texts` and of `tokens`, end tokens included; over the tokens `regret`, the mean of
        ln(p_favourite / p_token) under the full model, the `worst` one, and the share of `own_choices`, the full
        model's favourites; over the answers the mean share of `repeated_4grams`, the `repeated_4grams_baseline` of the
        full model's own, and how many `collapsed`. `regret_low` to `regret_high` is the regret's 95% interval over the
        prompts, `repeats_above_low` to `repeats_above_high` that of the difference of the shares, answer by answer;
        None for a single prompt.

    Raises:
        LoraDropError: the settings do not fit the model, or logits are NaN or infinite.
    """
    schedule = config.schedule_for(loaded.num_layers)
    bank, _ = find_bank(loaded, config, schedule)
    decoder = loaded.new_decoder().ready_for([(schedule, bank)])
    scores: list[Tensor] = []
    texts = []
    for prompt_ids in baseline.prompts:
        ids = answer(loaded, decoder, schedule, bank, prompt_ids, after_step)
        scores.append(regrets(read_target(decoder, prompt_ids, ids), torch.tensor(ids, device=loaded.device)))
        texts.append(without_end(loaded, ids))
        progress(sum(map(len, scores)))
    every = torch.cat(scores)
    sums = [(float(losses.sum()), float(len(losses))) for losses in scores]
    regret_low, regret_high = ratio_interval(sums) or (None, None)
    ours, usual = ([repeated_share(text) for text in side] for side in (texts, baseline.answers))
    above = ratio_interval([(a - b, 1.0) for a, b in zip(ours, usual, strict=True)]) or (None, None)
    return {
        "texts": len(texts),
        "tokens": len(every),
        "regret": float(every.mean()),
        "regret_low": regret_low,
        "regret_high": regret_high,
        "worst": float(every.max()),
        "own_choices": float((every == 0).float().mean()),
        "repeated_4grams": sum(ours) / len(ours),
        "repeated_4grams_baseline": sum(usual) / len(usual),
        "repeats_above_low": above[0],
        "repeats_above_high": above[1],
        "collapsed": sum(collapse_at(text) is not None for text in texts),
    }


def regrets(logits: Tensor, tokens: Tensor) -> Tensor:
    """ln(p_favourite / p_token) of tokens (T,) under the logits (T, V) before them: (T,), 0 for a favourite."""
    logs = log_probs(logits)
    return logs.amax(-1) - logs.gather(-1, tokens[:, None])[:, 0]
