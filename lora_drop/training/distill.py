"""The loss of training, and its figures on held-out text.

Shapes: B batch, T tokens, N LoRA positions, V vocabulary.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from lora_drop.adapters.bank import AdapterBank
from lora_drop.decode.logits import agreement, kl, log_probs, nll
from lora_drop.method.schedule import Schedule
from lora_drop.models.load import LoadedModel
from lora_drop.training.exact import exact_states
from lora_drop.training.settings import Loss, TrainSettings
from lora_drop.training.student import student_states

SHARP = 0.5  # temperature of the full model with the loss `sharp`
Text = tuple[Tensor, int]  # tokens (B, T) and how many of them are the prompt


def both(
    loaded: LoadedModel,
    tokens: Tensor,
    prompt_tokens: int,
    schedule: Schedule,
    bank: AdapterBank | None,
    every: bool = False,
    counted: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Log-probabilities (B, N, V) of LoRA-Drop and of the full model at LoRA steps, and these positions (T,).

    Args:
        every: take every decode step, unless refreshes are exact: then the other steps are the full model's.
        counted: (B, T) bool; take the positions where it is True alone, as rows (count, V); None takes all.
    """
    head, exact = loaded.model.get_output_embeddings(), schedule.repairs and schedule.kv == "write"
    if schedule.repairs:
        rows, full, where = exact_states(loaded.model, tokens, prompt_tokens, schedule, bank)
        states = full.index_copy(1, where.nonzero()[:, 0], rows)
    else:
        states, where = student_states(loaded.model, tokens, prompt_tokens, schedule, bank)
    if every and not exact:
        where = torch.arange(tokens.shape[1], device=tokens.device) >= prompt_tokens
    ours = states[:, where]
    with torch.no_grad():
        full = (full if exact else loaded.model.model(tokens).last_hidden_state)[:, where]
    if counted is not None:  # before the head, which costs as much as six layers
        ours, full = ours[counted[:, where]], full[counted[:, where]]
    with torch.no_grad():
        teacher = log_probs(head(full))
    return log_probs(head(ours)), teacher, where


def distillation(
    loaded: LoadedModel,
    tokens: Tensor,
    counted: Tensor,
    prompt_tokens: int,
    schedule: Schedule,
    bank: AdapterBank,
    loss: Loss = "kl",
) -> tuple[Tensor, Tensor]:
    """Loss in nats and the share of equal argmax, means over the counted tokens of a batch (B, T).

    The mean is over LoRA steps where refreshes repair. It is over all decode steps where they are single, so that
    what LoRA steps write serves the refreshes too.
    """
    if loss == "text":  # nothing follows the last token
        counted = counted & (torch.arange(tokens.shape[1], device=tokens.device) < tokens.shape[1] - 1)
    ours, full, where = both(loaded, tokens, prompt_tokens, schedule, bank, not schedule.repairs, counted)
    rows = max(1, len(ours))  # a long prompt may leave none
    if loss in ("kl", "sharp"):
        losses = kl(full if loss == "kl" else (full / SHARP).log_softmax(-1), ours)
    else:
        following = tokens.roll(-1, 1)[:, where][counted[:, where]]
        losses = nll(ours, following if loss == "text" else full.argmax(-1))
    return losses.sum() / rows, agreement(full, ours).float().sum() / rows


@torch.no_grad()
def figures(loaded: LoadedModel, texts: list[Text], schedule: Schedule, bank: AdapterBank) -> dict[str, float]:
    """Means over the LoRA steps of texts.

    Returns:
        `kl` and `nll_gap` in nats, `top1_agreement`, and `kl_all_steps`, where exact full steps count 0.
    """
    sums, steps, targets, decoded = torch.zeros(4, dtype=torch.float64), 0, 0, 0
    for tokens, prompt_tokens in texts:
        ours, full, where = both(loaded, tokens, prompt_tokens, schedule, bank, every=True)
        divergence = kl(full, ours)
        lora = (where.nonzero()[:, 0] - prompt_tokens + 1) % schedule.period > 0
        following = tokens[:, 1:][:, where[:-1]]  # the last position has none
        count = following.shape[1]
        gap = (nll(ours[:, :count], following) - nll(full[:, :count], following))[:, lora[:count]]
        agreed = agreement(full, ours)[:, lora]
        each = divergence[:, lora].sum(), agreed.sum(), gap.sum(), divergence.sum()
        sums += torch.stack(each).double().cpu()
        steps, targets = steps + agreed.numel(), targets + gap.numel()
        decoded += tokens[:, prompt_tokens:].numel()
    lora_kl, agreements, lost, all_kl = sums.tolist()
    return {
        "kl": lora_kl / steps,
        "top1_agreement": agreements / steps,
        "nll_gap": lost / max(1, targets),
        "kl_all_steps": all_kl / decoded,
    }


def evaluated_cases(settings: TrainSettings) -> list[dict[str, Any]]:
    """Schedules of an evaluation, those that sliders and presets start from, as settings of a config."""
    order, period, ratio = settings.order, settings.period, settings.drop_ratio
    if settings.drop_count:
        periods = [period] if period else [2, 3, 4]
        return [{"period": each, "drop_layers": sorted(order[: settings.drop_count])} for each in periods]
    usual = [(2, 0.25), (2, 0.5), (4, 0.5)]
    grid = sorted({(period or each, share if ratio is None else ratio) for each, share in usual})
    counts = sorted({-(-len(order) // 2), len(order)} - {0})
    return [
        *({"period": each, "drop_ratio": share} for each, share in grid),
        *({"period": period or 4, "drop_layers": sorted(order[:count])} for count in counts),
    ]
