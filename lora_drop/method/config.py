"""The settings of a schedule: one frozen object, checked once.

`LoraDropConfig` holds what a user asks for and checks what can be checked without a model. `schedule_for` adds the
model's number of layers, checks the rest and returns the `Schedule` that every other module works from.
"""

from __future__ import annotations

import dataclasses
from typing import Any

from lora_drop.errors import LoraDropError
from lora_drop.method.schedule import Schedule, dropped_layers
from lora_drop.method.settings import MAX_REPAIR, SCHEDULE, fields, settings_of

_Fields: Any = fields("LoraDropConfig", settings_of(SCHEDULE))


class LoraDropConfig(_Fields):
    """What LoRA-Drop does (arXiv 2601.02569).

    Its fields are the schedule's settings, with the names of the command line: `lora_drop.method.settings` has each
    with its values, its default and what it does, and so has docs/settings.md.

    Raises:
        LoraDropError: a value is outside what it may be.
    """

    def check(self) -> None:
        if self.refresh == "repair" and self.period > MAX_REPAIR:
            raise LoraDropError(
                f"with refresh repair the period is at most {MAX_REPAIR}, got {self.period}: shorten it, or take "
                "refresh single."
            )
        if self.accept and (self.refresh, self.kv) != ("repair", "write"):
            raise LoraDropError(
                f"accept {self.accept:g} needs exact full steps to judge by: set refresh repair and kv write, or "
                "accept 0."
            )

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
        if self.drop_layers is not None:
            if self.drop_layers and self.drop_layers[-1] > last:
                raise LoraDropError(
                    f"drop_layers contains {self.drop_layers[-1]}, but this model's layers are 0-{last} "
                    f"and 1-{last} can be skipped."
                )
            dropped = self.drop_layers
        else:
            dropped = dropped_layers(low, high, self.drop_ratio)
        of_schedule = {field.name for field in dataclasses.fields(Schedule)}
        rules = {name: value for name, value in vars(self).items() if name in of_schedule}
        return Schedule(num_layers=num_layers, dropped=dropped, **rules)

    def replace(self, **changes: Any) -> LoraDropConfig:
        """A copy with some fields changed, checked anew."""
        return dataclasses.replace(self, **changes)

    def to_dict(self) -> dict[str, Any]:
        """The fields as plain JSON values."""
        return {k: list(v) if isinstance(v, tuple) else v for k, v in dataclasses.asdict(self).items()}

    def differences(self) -> dict[str, Any]:
        """The fields that are not at their defaults, as plain JSON values: how a file of results names a setting."""
        defaults = type(self)().to_dict()
        return {name: value for name, value in self.to_dict().items() if value != defaults[name]}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> LoraDropConfig:
        """Back from `to_dict`.

        Raises:
            LoraDropError: a name is unknown or a value is not allowed.
        """
        return cls(**values)


def default_range(num_layers: int) -> tuple[int, int]:
    """The paper's droppable range: all but the first three layers and the last (inclusive bounds).

    Raises:
        LoraDropError: the model has fewer than three layers.
    """
    if num_layers < 3:
        raise LoraDropError(f"this model has {num_layers} layers; LoRA-Drop needs at least 3 to have one to skip.")
    return min(3, num_layers - 2), num_layers - 2
