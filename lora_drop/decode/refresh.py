"""Which decode steps are full: the one place that decides it, for free-running and teacher-forced decoding alike.

A fixed schedule refreshes every `period` steps. An adaptive one also refreshes early, when a trigger fires: the
entropy of the last logits, or the norm of the last corrections relative to the cached states that they correct, has
reached its threshold. `period` is then the longest gap.

All that a decoder has to do with it: ask `begin` whether its step is full, hand each correction to `measure`, and give
the logits to `end`. With both triggers off the last two do nothing, and nothing waits for the device.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from lora_drop.decode.logits import entropy
from lora_drop.method.schedule import Schedule, StepKind


@dataclass
class Refresher:
    """Decides which decode steps of one generation are full: what the last step was, and what the next one will be."""

    schedule: Schedule
    step: int = 0  # 0 before and at prefill, then the number of the last decode step
    kind: StepKind = "prefill"  # of that step
    trigger: str | None = None  # what made that step a refresh before its time
    last_refresh: int = 0  # the number of the last full step
    refreshes: int = 0  # decode steps so far that were full
    entropy: float | None = None  # nats, of the last logits; None where its trigger is off
    norm: float | None = None  # ||d|| / ||cached||, mean over the corrected layers; None where off or full
    _ratios: list[Tensor] = field(default_factory=list, init=False, repr=False)

    def begin(self) -> bool:
        """Go on to the next decode step; True if it is full."""
        self.step += 1
        due = self.schedule.is_baseline or self.step - self.last_refresh >= self.schedule.period
        self.trigger = None if due else self.schedule.trigger(self.entropy, self.norm)
        full = due or self.trigger is not None
        self.kind = "refresh" if full else "lora"
        if full:
            self.last_refresh = self.step
            self.refreshes += 1
        return full

    def back_to(self, step: int) -> None:
        """A full pass has taken back all after this step, which is the last refresh now."""
        self.refreshes += self.kind == "lora"  # the pass had begun no step of its own
        self.step = self.last_refresh = step
        self.kind, self.trigger = "refresh", None

    def measure(self, d: Tensor, cached: Tensor) -> None:
        """Take the correction of a skipped layer and the vector that its rule reuses, D numbers each (batch 1)."""
        if self.schedule.watches_norm:
            d, cached = (torch.linalg.vector_norm(x, dtype=torch.float32) for x in (d, cached))
            self._ratios.append(d / cached)

    def take(self, ratios: Iterable[Tensor]) -> None:
        """The same for a decoder that computed ||d|| / ||cached|| itself, one of each corrected layer."""
        self._ratios.extend(ratios)

    def drain(self) -> list[Tensor]:
        """The ratios that `measure` found since the last `end`, for a decoder that takes them back each step."""
        ratios, self._ratios = self._ratios, []
        return ratios

    def end(self, logits: Tensor, known: float | None = None) -> None:
        """Take the logits (1, V) of prefill or of the step that `begin` began: the next one depends on them.

        `known` is their entropy, from a decoder that computed it itself.
        """
        if not self.schedule.is_adaptive:
            return
        if self.schedule.watches_entropy:
            self.entropy = entropy(logits) if known is None else known
        self.norm = float(torch.stack(self._ratios).mean()) if self._ratios else None
        self._ratios.clear()
