"""Teacher-forced quality through the real decode schedule.

The target's tokens are fed one at a time through prefill and decode steps, exactly as generation would run them, so a
skipped layer attends to the keys that decoding would have written. The full model reads the same tokens in one pass.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from lora_drop.adapters.bank import AdapterBank
from lora_drop.adapters.find import find_bank
from lora_drop.decode.cache import KVCache
from lora_drop.decode.lane import not_finite
from lora_drop.decode.logits import agreement, kl, log_probs, nll
from lora_drop.decode.refresh import Refresher
from lora_drop.decode.step import Decoder
from lora_drop.evaluation.measure.texts import Texts
from lora_drop.method.config import LoraDropConfig
from lora_drop.method.interval import ratio_interval
from lora_drop.method.schedule import Schedule, average_period, baseline_schedule
from lora_drop.models.load import LoadedModel

GROUPS = ("lora_steps", "full_steps", "all_steps")  # full steps are decode steps; the prefill's token counts in all
KL = 2  # its column of `score`


@dataclass
class Means:
    """Running sums over tokens; `to_dict` gives the means, None where nothing was counted."""

    count: int = 0
    nll_baseline: float = 0.0
    nll_lora_drop: float = 0.0
    kl: float = 0.0
    agreements: int = 0

    def add(self, full: Tensor, ours: Tensor, targets: Tensor) -> None:
        """Take the logits (T, V) of both models and the tokens (T,) that follow."""
        self.take(score(full, ours, targets))

    def take(self, scores: Tensor) -> None:
        """The same from what `score` makes of them."""
        self.count += len(scores)
        nll_baseline, nll_lora_drop, divergence, agreements = scores.sum(0).tolist()
        self.nll_baseline += nll_baseline
        self.nll_lora_drop += nll_lora_drop
        self.kl += divergence
        self.agreements += int(agreements)

    def to_dict(self) -> dict[str, float | int | None]:
        def mean(total: float) -> float | None:
            return total / self.count if self.count else None

        return {
            "count": self.count,
            "nll_baseline": mean(self.nll_baseline),
            "nll_lora_drop": mean(self.nll_lora_drop),
            "kl": mean(self.kl),
            "top1_agreement": mean(self.agreements),
        }


def score(full: Tensor, ours: Tensor, targets: Tensor) -> Tensor:
    """Of logits (T, V) and tokens (T,) that follow: (T, 4) of both NLLs, KL(full || ours) and whether both agree."""
    full, ours = log_probs(full), log_probs(ours)
    columns = nll(full, targets), nll(ours, targets), kl(full, ours), agreement(full, ours).float()
    return torch.stack(columns, -1).double()


@torch.inference_mode()
def decode_target(
    decoder: Decoder,
    schedule: Schedule,
    bank: AdapterBank | None,
    prompt_ids: list[int],
    target_ids: list[int],
    after_step: Callable[[Refresher], None] = lambda refresher: None,
) -> tuple[Tensor, Tensor, Refresher]:
    """What LoRA-Drop expects at each token of a target: prefill on the prompt, then a decode step a token.

    Args:
        prompt_ids, target_ids: at least one token each.
        after_step: called with the refresher after each decode step.

    Returns:
        Logits (T, V), those that the target's tokens are scored by; which of them a LoRA step gave, (T,) bool; and
        the refresher after the last step.

    Raises:
        LoraDropError: a step's logits are NaN or infinite.
    """
    schedule = dataclasses.replace(schedule, accept=0.0)  # a forced text is not taken back
    prompt, target = (torch.tensor([ids], device=decoder.device) for ids in (prompt_ids, target_ids))
    state = decoder.new_state(schedule, bank, len(prompt_ids) + len(target_ids) - 1)
    logits, at_lora = [decoder.prefill(prompt, state).logits], [False]
    for s in range(1, len(target_ids)):
        logits.append(decoder.step(target[:, s - 1 : s], state).logits)
        at_lora.append(state.refresher.kind == "lora")
        after_step(state.refresher)
    found = torch.cat(logits)
    _check_finite(found, schedule, bank)
    return found, torch.tensor(at_lora, device=decoder.device), state.refresher


@torch.inference_mode()
def read_target(decoder: Decoder, prompt_ids: list[int], target_ids: list[int]) -> Tensor:
    """What the full model expects at each token of a target: logits (T, V).

    Raises:
        LoraDropError: they are NaN or infinite.
    """
    tokens = torch.tensor([prompt_ids + target_ids[:-1]], device=decoder.device)
    logits = decoder.read(tokens, KVCache(decoder.num_layers), 0, (), len(prompt_ids) - 1).logits[0]
    _check_finite(logits, baseline_schedule(decoder.num_layers), None)
    return logits


def _check_finite(logits: Tensor, schedule: Schedule, bank: AdapterBank | None) -> None:
    """Refuse a text's logits (T, V), a row a step, that would make every mean a NaN. Once a text: it waits."""
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
) -> dict[str, Any]:
    """Score targets after prompts with the full model and with LoRA-Drop.

    Prefill predicts a target's first token, which counts in `all_steps` only; decode step s feeds target[s-1].

    Args:
        progress: called with the number of scored tokens after each target.
        after_step: called with the refresher after each decode step.

    Returns:
        `{"tokens", "lora_steps": {...}, "full_steps": {...}, "all_steps": {...}, "loss_interval", "config"}`, means
        over tokens, NLL and KL in nats. The quality loss is the KL over all steps, and `loss_interval` its 95%
        interval over the prompts, None for a single one. `config` also has the `decode_steps`, how many were
        `refreshes`, the `average_period` that this makes, and `draft`: whether the setting takes tokens back, which it
        cannot do on a forced text, so that this is the quality of its drafts.

    Raises:
        LoraDropError: the settings do not fit the model.
    """
    schedule = config.schedule_for(loaded.num_layers)
    bank, notes = find_bank(loaded, config, schedule)
    decoder = loaded.new_decoder()
    groups = {name: Means() for name in GROUPS}
    decode_steps = refreshes = 0
    losses = []  # summed KL and tokens of each text
    for prompt_ids, target_ids in texts.pairs:
        full = read_target(decoder, prompt_ids, target_ids)
        ours, at_lora, refresher = decode_target(decoder, schedule, bank, prompt_ids, target_ids, after_step)
        decode_steps += refresher.step
        refreshes += refresher.refreshes
        scores = score(full, ours, torch.tensor(target_ids, device=loaded.device))
        for name, rows in zip(GROUPS, (scores[at_lora], scores[1:][~at_lora[1:]], scores), strict=True):
            groups[name].take(rows)
        losses.append((float(scores[:, KL].sum()), float(len(scores))))
        progress(groups["all_steps"].count)
    pace = {
        "decode_steps": decode_steps,
        "refreshes": refreshes,
        "average_period": average_period(decode_steps, refreshes),
    }
    return {
        "tokens": groups["all_steps"].count,
        **{name: means.to_dict() for name, means in groups.items()},
        "loss_interval": ratio_interval(losses),
        "config": {**describe(loaded, config, decoder.name), **texts.facts, **pace, "notes": notes},
    }


def describe(loaded: LoadedModel, config: LoraDropConfig, decoder: str) -> dict[str, Any]:
    """What a result's `config` says of the setting and of the model that it ran on."""
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
