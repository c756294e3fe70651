"""The audit: what the full model says of the LoRA-Drop lane's own tokens. Its time is in no lane's clock.

True drift needs the full model's states on the same tokens, so the audit is a second, full pass with a KV cache of its
own, in chunks: one batched forward a refresh.
"""

from __future__ import annotations

import torch
from torch import Tensor

from lora_drop.decode import Decoder, KVCache, StepResult
from lora_drop.decode.logits import agreement, kl, log_probs
from lora_drop.run.records import number

MAX_CHUNK = 16  # steps: with a long or endless period the page should not wait longer than this for its drift


class Audit:
    """The shadow pass over one lane.

    Args:
        prefill: the lane's KV cache right after prefill. Prefill is full by definition, so the audit starts from a
            copy of it instead of reading the prompt again.
        prompt_tokens: P.
        first_token: the token that prefill gave.
    """

    def __init__(
        self, decoder: Decoder, dropped: tuple[int, ...], prefill: KVCache, prompt_tokens: int, first_token: int
    ):
        self._decoder, self._dropped = decoder, dropped
        self._kv = prefill.clone()
        self._position = prompt_tokens
        self._fed = [first_token]  # tokens to read: step s feeds the token of step s-1
        self._steps: list[StepResult] = []

    def add(self, step: StepResult) -> list[dict]:
        """Take a decode step of the lane; at a refresh, or a full chunk, return the audit of all since the last."""
        self._steps.append(step)
        if step.kind == "refresh" or len(self._steps) >= MAX_CHUNK:
            out = self.flush()
            self._fed = [step.token_id]
            return out
        self._fed.append(step.token_id)
        return []

    @torch.inference_mode()
    def flush(self) -> list[dict]:
        """Audit what was taken since the last chunk: dicts of step, drift, cosine, kl, agrees, argmax (token id)."""
        steps, self._steps = self._steps, []
        if not steps:
            return []
        tokens = torch.tensor([self._fed[: len(steps)]], device=self._decoder.device)
        full = self._decoder.read(tokens, self._kv, self._position, self._dropped)
        self._position += len(steps)
        found = []
        for t, step in enumerate(steps):
            assert step.watched is not None and full.watched is not None  # an audited lane keeps them
            drift = _drift(step.watched, full.watched[:, :, t])
            found.append({"step": step.step, **drift, **_divergence(step.logits, full.logits[:, t])})
        return found


def _drift(ours: Tensor, full: Tensor) -> dict[str, list[float | None]]:
    """Relative error and cosine of the lane's outputs against the full model's, (n, B, D) each."""
    ours, full = ours.float(), full.float()
    drift = (ours - full).norm(dim=-1) / full.norm(dim=-1)
    cosine = torch.cosine_similarity(ours, full, dim=-1)
    return {
        "drift": [number(value, 6) for value in drift[:, 0].tolist()],
        "cosine": [number(value, 6) for value in cosine[:, 0].tolist()],
    }


def _divergence(ours: Tensor, full: Tensor) -> dict[str, float | bool | int | None]:
    """KL(full || lane) and the argmax, from logits (B, V) each."""
    ours, full = log_probs(ours), log_probs(full)
    return {
        "kl": number(float(kl(full, ours)[0]), 6),
        "agrees": bool(agreement(full, ours)[0]),
        "argmax": int(full.argmax(-1)),
    }
