"""Audits: a lane compared with the full model, off every clock.

`DriftAudit` uses the lane's own tokens: drift is the distance from the full model's states on the same tokens, so a
second, full pass with a separate K/V cache computes them, one batched forward per refresh. `QualityAudit` uses the
baseline's tokens: on a lane's own text the figure would reward collapse, since the full model copies a loop too.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from lora_drop.decode.correction import Correction
from lora_drop.decode.lane import not_finite
from lora_drop.decode.logits import agreement, kl, likeliest, log_probs
from lora_drop.decode.reference import Decoder
from lora_drop.decode.step import Prefilled, StepResult
from lora_drop.method.schedule import Schedule
from lora_drop.models.tokens import piece
from lora_drop.run.trace.records import TOP, number

MAX_CHUNK = 16  # steps: the page gets its drift at least this often, however long the period


class DriftAudit:
    """The full pass over one lane's tokens.

    Args:
        prompt: where the lane started.
        first_token: that it drew from the prompt.
    """

    def __init__(self, decoder: Decoder, dropped: tuple[int, ...], prompt: Prefilled, first_token: int):
        self._decoder, self._dropped, self._prompt = decoder, dropped, prompt
        self._kv = prompt.kv.clone()
        self._tokens = [first_token]  # the lane's: step s feeds token s-1
        self._read = 0  # steps whose tokens are in the cache
        self._steps: list[StepResult] = []

    def add(self, step: StepResult) -> list[dict[str, Any]]:
        """Take a decode step of the lane; at a refresh, or when a chunk is full, return the audits since the last."""
        self._steps.append(step)
        audits = self.flush() if step.kind == "refresh" or len(self._steps) >= MAX_CHUNK else []
        self._tokens.append(step.token_id)
        return audits

    def first(self, step: StepResult) -> dict[str, Any]:
        """Audit the prefill of a lane that has read the prompt by itself; the other lanes' is the full model's."""
        return self._audit(step, self._prompt.logits, None)

    def rewind(self, to: int) -> None:
        """The lane's tokens after step `to` were rejected."""
        del self._tokens[to + 1 :]
        self._steps = [step for step in self._steps if step.step <= to]
        if back := max(0, self._read - to):
            for layer in range(self._decoder.num_layers):
                self._kv.cut(layer, back)
            self._read = to

    @torch.inference_mode()
    def flush(self) -> list[dict[str, Any]]:
        """Audit the steps since the last chunk: dicts of step, drift, cosine, kl, agrees, argmax (an id), regret."""
        steps, self._steps = self._steps, []
        if not steps:
            return []
        fed = self._tokens[self._read : self._read + len(steps)]
        tokens = torch.tensor([fed], device=self._decoder.device)
        layers = self._dropped if any(step.watched is not None for step in steps) else ()
        full = self._decoder.read(tokens, self._kv, self._prompt.tokens.shape[1] + self._read, layers)
        self._read += len(steps)
        assert full.watched is not None  # `read` returns those of the layers asked for
        return [self._audit(step, full.logits[:, t], full.watched[:, 0, t]) for t, step in enumerate(steps)]

    def _audit(self, step: StepResult, logits: Tensor, outputs: Tensor | None) -> dict[str, Any]:
        """Audit a step, by the full model's logits (1, V) and its outputs of the skipped layers (n, D)."""
        distances: dict[str, list[float | None]] = dict.fromkeys(("drift", "cosine"), [None] * len(self._dropped))
        if step.watched is not None and outputs is not None:
            ours, theirs = step.watched[:, 0].float(), outputs.float()
            cosine = torch.cosine_similarity(ours, theirs, dim=-1)
            distances = {
                name: [number(x, 6) for x in values.tolist()]
                for name, values in (("drift", drift_of(ours, theirs)), ("cosine", cosine))
            }
        row = logits[0].float()
        regret = number(float(row.max() - row[step.token_id]), 6)  # ln(p_favourite / p_token)
        if step.logits is None:  # a draft without a pass
            best = int(row.argmax())
            divergence: dict[str, Any] = {"kl": None, "agrees": best == step.token_id, "argmax": best}
        else:
            divergence = _divergence(step.logits, logits)
        return {"step": step.step, **distances, **divergence, "regret": regret}


class QualityAudit:
    """A lane's schedule on the baseline's tokens, one step behind the baseline.

    Args:
        schedule: the lane's. The tokens are fixed and cannot be rejected, so `accept` is off.
        bank: the lane's.
        prompt: where the baseline started.
        tokens: that the baseline writes at most.
    """

    def __init__(self, decoder: Decoder, schedule: Schedule, bank: Correction | None, prompt: Prefilled, tokens: int):
        self._decoder, self._prompt = decoder, prompt
        schedule = dataclasses.replace(schedule, accept=0.0)
        self._state = decoder.new_state(schedule, bank, prompt.tokens.shape[1] + tokens - 1)
        self._token: Tensor | None = None  # the baseline's last

    @torch.inference_mode()
    def add(self, step: StepResult) -> dict[str, Any]:
        """Take a step of the baseline: a dict of step, kind, kl, agrees, argmax (token id) and nll_gap.

        Raises:
            LoraDropError: the lane's logits are NaN or infinite.
        """
        if self._token is None:
            output = self._decoder.start(self._prompt, self._state)
        else:
            output = self._decoder.step(self._token, self._state)
        state = self._state
        if not output.logits.isfinite().all():
            raise not_finite(state.refresher.step, state.schedule, state.bank)
        self._token = torch.tensor([[step.token_id]], device=self._decoder.device)
        assert step.logits is not None  # the baseline drafts nothing
        full, ours = (log_probs(logits)[0, step.token_id] for logits in (step.logits, output.logits))
        divergence = _divergence(output.logits, step.logits)
        gap = number(float(full - ours), 6)
        return {"step": step.step, "kind": state.refresher.kind, **divergence, "nll_gap": gap}


def top_of(tokenizer: Any, logits: Tensor) -> list[list[list[Any]]]:
    """The likeliest tokens of each row of logits (rows, V): `[text, probability]`, the likeliest first."""
    ids, chances = (values.tolist() for values in likeliest(logits, TOP))
    return [top_words(tokenizer, zip(*row, strict=True)) for row in zip(ids, chances, strict=True)]


def top_words(tokenizer: Any, row: Iterable[tuple[int, float]]) -> list[list[Any]]:
    """The same of one row, from ids and probabilities."""
    return [[piece(tokenizer, token), round(chance, 4)] for token, chance in row]


def drift_of(ours: Tensor, full: Tensor) -> Tensor:
    """||x_hat - x|| / ||x|| of a lane's outputs (..., D) and the full model's."""
    ours, full = ours.float(), full.float()
    norms: Tensor = (ours - full).norm(dim=-1) / full.norm(dim=-1)
    return norms


def _divergence(ours: Tensor, full: Tensor) -> dict[str, float | bool | int | None]:
    """KL(full || lane) and the argmax, from logits (B, V) each."""
    ours, full = log_probs(ours), log_probs(full)
    return {
        "kl": number(float(kl(full, ours)[0]), 6),
        "agrees": bool(agreement(full, ours)[0]),
        "argmax": int(full.argmax(-1)),
    }
