"""Which layers run at which step. No tensors.

`assets/js/schedule.js` computes the same for the page; a test compares the two.

Prefill is step 0: full, and a refresh. Decode steps are s = 1, 2, 3, ... Step s of a fixed schedule is a refresh if
`s % period == 0`, or if its token's position, P - 1 + s, is a multiple of `refresh_position`. An adaptive schedule
may refresh earlier (`lora_drop.decode.refresh`); functions whose result depends on it take the refreshes that
happened. P: prompt tokens, G: decode steps.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Literal, get_args

StepKind = Literal["prefill", "refresh", "lora", "draft"]  # as the trace has it; a `draft` took no pass
DRAFTS: tuple[StepKind, ...] = ("lora", "draft")  # kinds of steps that skip layers, and may be verified later
ReuseRule = Literal["state", "anchor", "residual", "skip"]
Part = Literal["block", "attention"]
KvRule = Literal["skip", "write"]
Refresh = Literal["single", "repair"]
Head = Literal["full", "screened"]
REUSE_RULES, PARTS, KV_RULES, REFRESHES = map(get_args, (ReuseRule, Part, KvRule, Refresh))


def dropped_layers(lo: int, hi: int, drop_ratio: float) -> tuple[int, ...]:
    """The skipped layers of the range lo..hi (inclusive): n = drop_ratio * S rounded half to even, evenly spread.

    The j-th is `lo + floor((2j + 1) * S / (2n))`, S = hi - lo + 1.
    """
    span = hi - lo + 1
    n = round(drop_ratio * span)
    return tuple(lo + (2 * j + 1) * span // (2 * n) for j in range(n))


@dataclass(frozen=True)
class Schedule:
    """A resolved schedule: settings checked against a model of `num_layers` layers.

    `LoraDropConfig.schedule_for` makes it. `dropped` is ascending and never contains layer 0. `kind` follows the fixed
    schedule; of an adaptive one it has the longest gaps.

    Two methods that LoRA-Drop is compared with (`methods.py`) are schedules too, with rule `skip` and no bank:

    - `prunes`: the skipped layers never run, not even on the prompt, and hold no K/V. There is no full step.
    - `lookup`, the longest n-gram of prompt lookup: drafts take no pass, and every decode step is full. All layers
      count as skipped, so the pass runs every draft through every layer.
    """

    period: int
    num_layers: int
    dropped: tuple[int, ...]
    reuse: ReuseRule = "residual"
    part: Part = "block"
    kv: KvRule = "skip"
    refresh_entropy: float | None = None
    refresh_position: int | None = None
    refresh: Refresh = "single"
    accept: float = 0.0
    head: Head = "full"
    own_repeats: bool = False
    prunes: bool = False
    lookup: int = 0

    @cached_property
    def dropped_set(self) -> frozenset[int]:
        """`dropped` as a set, for membership tests."""
        return frozenset(self.dropped)

    @property
    def first_skipped(self) -> int:
        """The first layer that LoRA steps skip; the number of layers if they skip none."""
        return self.dropped[0] if self.dropped else self.num_layers

    @property
    def is_adaptive(self) -> bool:
        """True if the entropy of a step's logits may call for an early refresh."""
        return not self.is_baseline and self.refresh_entropy is not None

    def is_unsure(self, nats: float | None) -> bool:
        """True if the entropy of a step's logits calls for an early refresh; a threshold of 0 does at every step."""
        return self.refresh_entropy is not None and nats is not None and nats >= self.refresh_entropy

    @property
    def repairs(self) -> bool:
        """True if a full step also runs the tokens since the last one."""
        return not self.is_baseline and self.refresh == "repair"

    @property
    def verifies(self) -> bool:
        """True if a full step may take tokens back."""
        return self.repairs and self.accept > 0

    @property
    def is_baseline(self) -> bool:
        """True if every step runs every layer and the whole head, so that the output is the plain model's."""
        return self.period == 1 or (not self.dropped and self.head == "full")

    def kind(self, step: int, prompt_tokens: int = 0) -> StepKind:
        """The kind of a step. A run that skips nothing has no LoRA step, and one that prunes has no full step.

        Args:
            prompt_tokens: P; without a `refresh_position` it does not matter.
        """
        if step == 0:
            return "prefill"
        if self.prunes:
            return "lora"
        by_position = self.refresh_position and (prompt_tokens - 1 + step) % self.refresh_position == 0
        return "refresh" if self.is_baseline or step % self.period == 0 or by_position else "lora"

    def refreshes(self, prompt_tokens: int, step: int) -> int:
        """How many decode steps up to `step` are refreshes in the fixed schedule."""
        by_period, every = step // self.period, self.refresh_position
        if not every:
            return by_period
        before = prompt_tokens - 1
        by_position = (before + step) // every - before // every
        # The period is a multiple of `every`: either each step that it makes full has such a position, or none has.
        return by_position + (by_period if before % every else 0)

    def active(self, kind: StepKind) -> list[Literal[0, 1]]:
        """[num_layers] of 1 (the whole layer runs) or 0 (it is skipped, or its attention) at a step of this kind."""
        return [0 if kind in DRAFTS and i in self.dropped_set else 1 for i in range(self.num_layers)]

    def kv_length(
        self, layer: int, prompt_tokens: int, step: int, refreshes: int | None = None, last_refresh: int | None = None
    ) -> int:
        """Tokens in the K/V cache of `layer` after `step`.

        P + s in a layer that always runs. In a skipped one: P + refreshes with `kv="skip"`; with `kv="write"` P + s,
        or P + last refresh if a repair writes them.

        Args:
            refreshes: how many decode steps up to `step` were refreshes; None: as in the fixed schedule.
            last_refresh: number of the last of them; None: as in the fixed schedule.
        """
        if layer not in self.dropped_set or self.is_baseline:
            return prompt_tokens + step
        if self.prunes:
            return 0
        if self.kv == "skip":
            return prompt_tokens + (self.refreshes(prompt_tokens, step) if refreshes is None else refreshes)
        if self.repairs:
            return prompt_tokens + (step // self.period * self.period if last_refresh is None else last_refresh)
        return prompt_tokens + step


def baseline_schedule(num_layers: int) -> Schedule:
    """The schedule of the baseline lane: every layer at every step."""
    return Schedule(1, num_layers, ())


def average_period(steps: int, refreshes: int) -> float | None:
    """Decode steps per refresh; None without any refresh."""
    return steps / refreshes if refreshes else None
