"""Which decode steps are full, in free-running and teacher-forced decoding.

A fixed schedule refreshes every `period` steps, and at multiples of its `refresh_position`. An adaptive one also
refreshes early, when the entropy of the last logits reaches a threshold. `period` is the longest gap then.

A decoder asks `begin` whether its step is full, and passes the logits to `end`. With a fixed schedule `end` does
nothing, and nothing waits for the device.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from lora_drop.decode.logits import entropy
from lora_drop.method.schedule import Schedule, StepKind


@dataclass
class Refresher:
    """The kind of a generation's last step, and of its next one.

    Attributes:
        step: number of the last decode step; 0 before the first.
        kind: of that step.
        trigger: the trigger that made that step a refresh before its time, or None.
        last_refresh: number of the last full step.
        refreshes: full decode steps so far.
        entropy: nats, of the last logits; None with a fixed schedule.
        prompt_tokens: length of the prompt.
    """

    schedule: Schedule
    step: int = 0
    kind: StepKind = "prefill"
    trigger: str | None = None
    last_refresh: int = 0
    refreshes: int = 0
    entropy: float | None = None
    prompt_tokens: int = 0

    def begin(self) -> bool:
        """Begin the next decode step; return True if it is full."""
        self.step += 1
        schedule = self.schedule
        due = schedule.is_baseline or bool(schedule.lookup) or self.step - self.last_refresh >= schedule.period
        if schedule.refresh_position:
            due = schedule.kind(self.step, self.prompt_tokens) == "refresh"
        due = due and not schedule.prunes
        self.trigger = "entropy" if not due and schedule.is_unsure(self.entropy) else None
        full = due or self.trigger is not None
        self.kind = "refresh" if full else "lora"
        if full:
            self.last_refresh = self.step
            self.refreshes += 1
        return full

    def draft(self) -> None:
        """Begin a decode step whose token was drafted without a pass."""
        self.step += 1
        self.kind, self.trigger = "draft", None

    def back_to(self, step: int) -> None:
        """Record that a full pass took back all steps after `step`, which is the last refresh now."""
        self.refreshes += self.kind == "lora"  # the pass at the end of a text begins no step
        self.step = self.last_refresh = step
        self.kind, self.trigger = "refresh", None

    def end(self, logits: Tensor, nats: float | None = None) -> None:
        """Take the logits (1, V) of prefill or of the step that `begin` began; the next step depends on them.

        Args:
            nats: their entropy, if the decoder has computed it.
        """
        if self.schedule.is_adaptive:
            self.entropy = entropy(logits) if nats is None else nats
