"""The settings of a schedule: one frozen object, checked once.

`LoraDropConfig` holds a user's settings and checks all that needs no model. `schedule_for` takes the model's number of
layers, checks the rest and returns the `Schedule` that every other module works from.
"""

from __future__ import annotations

import dataclasses
from typing import Any

from lora_drop.errors import LoraDropError
from lora_drop.method.fields import SCHEDULE, checked, setting
from lora_drop.method.schedule import Head, KvRule, Part, Refresh, ReuseRule, Schedule, dropped_layers

MAX_PERIOD = 10**9  # longer than any run; not every JSON reader takes larger numbers
MAX_REPAIR = 64  # the longest period with repair, and so the most rows of one pass


@checked(SCHEDULE)
class LoraDropConfig:
    """Settings of LoRA-Drop (arXiv 2601.02569). docs/settings.md lists them.

    Raises:
        LoraDropError: a value is not allowed, or two do not go together.
    """

    period: int = setting(
        4,
        "run a full step (refresh) every N decode steps; 1 is the baseline",
        between=(1, MAX_PERIOD),
        note="the baseline",
        label="Full step every N tokens",
        info="Longer: fewer full steps, more speed, more drift between them.",
        span=(1, 16, 1),
        main=True,
        words="full step every {} tokens",
    )
    layers: tuple[int, int] | None = setting(
        None,
        "range of the layers that may be skipped, e.g. 3-28; unset, all but the first three and the last",
        label="Layers that may be skipped",
        info="The skipped rows of the activity map lie in this range.",
        main=True,
        metavar="LOW-HIGH",
        words="layers {}",
    )
    drop_ratio: float = setting(
        0.5,
        "share of that range that LoRA steps skip, spread evenly",
        between=(0, 1),
        label="Drop ratio",
        info="Share of that range to skip: higher is faster.",
        span=(0, 1, 0.05),
        row="drop",
        main=True,
        words="drop ratio {}",
    )
    reuse: ReuseRule = setting(
        "residual",
        "what replaces the output of a skipped layer",
        labels=(
            "state: last token's output (paper)",
            "anchor: last refresh's output",
            "residual: what the layer added at the last refresh",
            "skip: nothing",
        ),
        label="Reuse rule",
        info="Changes what LoRA steps write.",
        words="{} rule",
    )
    part: Part = setting(
        "block",
        "part of a layer that is skipped: all of it (block), or its attention only",
        labels=("layer (paper)", "attention only"),
        label="What is skipped",
        info="Attention only: less drift, less speed.",
        row="part",
        words="attention only",
    )
    kv: KvRule = setting(
        "skip",
        "whether a skipped layer writes no K/V (skip), or still computes and stores them (write)",
        labels=("none (paper)", "written"),
        label="K/V when skipped",
        info="Written: no memory is saved.",
        row="part",
        words="K/V of skipped layers written",
    )
    drop_layers: tuple[int, ...] | None = setting(
        None,
        "layers to skip, by number, instead of range and ratio",
        label="Exact layers to skip (instead of range and ratio)",
        info="Only these rows of the activity map are skipped.",
        metavar="4,6,8",
    )
    adapters: str = setting(
        "auto",
        "trained corrections: auto (those that ship for the model and rule), none, an adapter folder, or a repository "
        "of the Hub, USER/REPO or USER/REPO@REVISION",
        allowed="auto, none, an adapter folder or a repository USER/REPO",
        public=("auto", "none"),
        label="Trained corrections (adapters)",
        info="None: more drift, and the text breaks sooner.",
    )
    refresh_entropy: float | None = setting(
        None,
        "refresh early if the entropy of the last logits reaches this many nats",
        low=0,
        label="Refresh early at entropy",
        info="In nats. Lower: more early full steps where the model is unsure.",
        row="refresh",
        metavar="NATS",
        words="refresh at entropy {}",
    )
    refresh_position: int | None = setting(
        None,
        "run a full step also at each token whose position in the text, counted from 0, is a multiple of N, as the "
        "paper's published code does (N 4, period 8)",
        between=(2, MAX_PERIOD),
        label="Refresh at every N-th position",
        info="More full steps, where the prompt's length puts them.",
        row="refresh",
        metavar="N",
        words="full step at every {}th position",
    )
    refresh: Refresh = setting(
        "single",
        "tokens of a full step: the current one (single), or in one pass all since the last full step (repair)",
        labels=("the current token (paper)", "all since the last one"),
        label="A full step reads",
        info="All since the last one: drift falls to 0 at each full step, which then takes longer.",
        words="full steps repair",
    )
    accept: float = setting(
        0.0,
        "with repair: reject a draft that the full model gives less than this share of its favourite's probability; "
        "1 accepts only its own choices, 0 accepts all",
        between=(0, 1),
        label="Accept",
        info="Higher: more guesses are rejected.",
        span=(0, 1, 0.05),
        row="drop",
        main=True,
        words="accept {}",
    )
    head: Head = setting(
        "full",
        "head at LoRA steps: all logits exact (full), or only those of the likeliest tokens of a preview (screened)",
        labels=("whole", "screened"),
        label="Head at LoRA steps",
        info="Screened: LoRA steps get narrower in the race.",
        row="parts",
        words="screened head",
    )
    corrections: bool = setting(
        True,
        "correct the skipped layers at LoRA steps; off leaves the adapters their screened head alone",
        label="Corrections",
        info="Off: more drift. A screened head stays.",
        row="parts",
        words="no corrections",
    )
    own_repeats: bool = setting(
        False,
        "with accept: a draft that completes a 2-gram which the reply holds already stays only if it is the full "
        "model's own choice",
        label="Repeats only by the full model's choice",
        info="On: guesses start fewer circles; a few more are rejected.",
        row="parts",
        words="no guessed repeats",
    )

    def __post_init__(self) -> None:
        if self.refresh == "repair" and self.period > MAX_REPAIR:
            raise LoraDropError(
                f"with refresh repair the period is at most {MAX_REPAIR}, got {self.period}: shorten it, or take "
                "refresh single."
            )
        every = self.refresh_position
        if every and (self.refresh != "single" or self.period % every):
            raise LoraDropError(
                f"refresh_position {every} needs refresh single and a period that is a multiple of {every}, got "
                f"refresh {self.refresh} and period {self.period}: change these, or leave refresh_position out."
            )
        if self.accept and (self.refresh, self.kv) != ("repair", "write"):
            raise LoraDropError(
                f"accept {self.accept:g} needs exact full steps to verify by: set refresh repair and kv write, or "
                "accept 0."
            )
        if self.own_repeats and not self.accept:
            raise LoraDropError("own_repeats has no effect with accept 0, which keeps every draft: raise accept.")

    def schedule_for(self, num_layers: int) -> Schedule:
        """The schedule on a model of `num_layers` layers.

        Raises:
            LoraDropError: the range or the list does not fit the model; the message names its limit.
        """
        last = num_layers - 1
        low, high = self.layers or default_range(num_layers)
        if high > last:
            raise LoraDropError(
                f"layers {low}-{high} is outside this model: its layers are 0-{last} and 1-{last} can be skipped."
            )
        dropped = dropped_layers(low, high, self.drop_ratio) if self.drop_layers is None else self.drop_layers
        if dropped and dropped[-1] > last:
            raise LoraDropError(
                f"drop_layers contains {dropped[-1]}, but this model's layers are 0-{last} and 1-{last} can be "
                "skipped."
            )
        rules = {name: value for name, value in vars(self).items() if name in Schedule.__dataclass_fields__}
        return Schedule(num_layers=num_layers, dropped=dropped, **rules)

    def replace(self, **changes: Any) -> LoraDropConfig:
        """A copy with some fields changed, checked like a new one; `own_repeats` goes where `accept` becomes 0."""
        if changes.get("accept") == 0:
            changes = {"own_repeats": False} | changes
        return dataclasses.replace(self, **changes)

    def to_dict(self) -> dict[str, Any]:
        """The fields as plain JSON values."""
        return {k: list(v) if isinstance(v, tuple) else v for k, v in dataclasses.asdict(self).items()}

    def differences(self) -> dict[str, Any]:
        """The fields that differ from their defaults, as plain JSON values: how files of results store a config."""
        defaults = type(self)().to_dict()
        return {name: value for name, value in self.to_dict().items() if value != defaults[name]}


def default_range(num_layers: int) -> tuple[int, int]:
    """The paper's droppable range: all but the first three layers and the last (inclusive bounds).

    Raises:
        LoraDropError: the model has fewer than three layers.
    """
    if num_layers < 3:
        raise LoraDropError(f"this model has {num_layers} layers; LoRA-Drop needs at least 3 to have one to skip.")
    return min(3, num_layers - 2), num_layers - 2
