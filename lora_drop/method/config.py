"""The settings of LoRA-Drop: one frozen object, checked once.

`LoraDropConfig` holds what a user asks for and checks what can be checked without a model. `schedule_for` adds the
model's number of layers, checks the rest and returns the `Schedule` that every other module works from.
"""

from __future__ import annotations

import dataclasses
import sys
from dataclasses import dataclass
from typing import Any

from lora_drop.errors import LoraDropError
from lora_drop.method.schedule import MAX_PERIOD, Schedule, dropped_layers

REUSE_RULES = ("state", "anchor", "residual", "skip")
PARTS = ("block", "attention")
KV_RULES = ("skip", "write")


@dataclass(frozen=True)
class LoraDropConfig:
    """What LoRA-Drop is asked to do (arXiv 2601.02569; names as on the command line).

    Args:
        period: a full step (refresh) every `period` decode steps; 1 is the baseline, exactly.
        layers: `(lo, hi)`, inclusive: the droppable range. `None` is the paper's choice, all but the first three and
            the last.
        drop_ratio: share of the range that is dropped, spread evenly over it; in [0, 1].
        drop_layers: the dropped layers by number, instead of `layers` and `drop_ratio`.
        reuse: what a dropped layer computes at a LoRA step: `state`, `anchor`, `residual` or `skip`.
        part: what is dropped: the whole `block`, or its `attention` only.
        kv: `skip` writes no K/V in dropped layers at LoRA steps, `write` still computes and stores them.
        adapters: `auto` (the bank shipped for the model and rule, if there is one), `none`, or an adapter folder.
        refresh_entropy: refresh early where the entropy of the last logits reaches this many nats; `period` is then
            the longest gap. None is off.
        refresh_norm: refresh early where the corrections of the last LoRA step reach this share of the cached state
            that they correct. None is off.

    Raises:
        LoraDropError: a value is outside what it may be.
    """

    period: int = 4
    layers: tuple[int, int] | None = None
    drop_ratio: float = 0.5
    drop_layers: tuple[int, ...] | None = None
    reuse: str = "residual"
    part: str = "block"
    kv: str = "skip"
    adapters: str = "auto"
    refresh_entropy: float | None = None
    refresh_norm: float | None = None

    def __post_init__(self):
        if not _is_int(self.period) or self.period < 1:
            raise LoraDropError(f"period must be a whole number from 1 (the baseline) upwards, got {self.period!r}.")
        if self.period > MAX_PERIOD:
            raise LoraDropError(f"period must be at most {MAX_PERIOD:,}, which no run reaches.")
        if isinstance(self.drop_ratio, bool) or not isinstance(self.drop_ratio, (int, float)):
            raise LoraDropError(f"drop_ratio must be a number from 0 to 1, got {self.drop_ratio!r}.")
        if not 0 <= self.drop_ratio <= 1:  # also refuses NaN
            raise LoraDropError(f"drop_ratio must lie between 0 and 1, got {self.drop_ratio}.")
        for name, allowed in (("reuse", REUSE_RULES), ("part", PARTS), ("kv", KV_RULES)):
            if getattr(self, name) not in allowed:
                raise LoraDropError(f"{name} must be one of {', '.join(allowed)}; got {getattr(self, name)!r}.")
        if not isinstance(self.adapters, str) or not self.adapters:
            raise LoraDropError(f"adapters must be auto, none or an adapter folder; got {self.adapters!r}.")
        for name in ("refresh_entropy", "refresh_norm"):
            object.__setattr__(self, name, _threshold(name, getattr(self, name)))
        if self.layers is not None:
            object.__setattr__(self, "layers", _whole_numbers("layers", self.layers))
            if len(self.layers) != 2 or self.layers[0] > self.layers[1]:
                raise LoraDropError(f"layers must be a range low-high such as 3-28, got {_join(self.layers)}.")
            if self.layers[0] < 1:
                raise LoraDropError(f"layers must start at 1 (layer 0 always runs), got {_join(self.layers)}.")
        if self.drop_layers is not None:
            chosen = tuple(sorted(_whole_numbers("drop_layers", self.drop_layers)))
            if len(set(chosen)) != len(chosen):
                raise LoraDropError(f"drop_layers names a layer twice: {_join(chosen, ',')}.")
            if chosen and chosen[0] < 1:
                raise LoraDropError(f"drop_layers may not contain layer {chosen[0]}: layer 0 always runs.")
            object.__setattr__(self, "drop_layers", chosen)

    def schedule_for(self, num_layers: int) -> Schedule:
        """The schedule on a model of `num_layers` layers.

        Raises:
            LoraDropError: the range or the list does not fit the model; the message names its limit.
        """
        last = num_layers - 1
        if self.layers is not None and self.layers[1] > last:
            raise LoraDropError(
                f"layers {_join(self.layers)} is outside this model: "
                f"its layers are 0-{last} and 1-{last} can be dropped."
            )
        if self.drop_layers is not None:
            if self.drop_layers and self.drop_layers[-1] > last:
                raise LoraDropError(
                    f"drop_layers contains {self.drop_layers[-1]}, but this model's layers are 0-{last} "
                    f"and 1-{last} can be dropped."
                )
            dropped = self.drop_layers
        else:
            dropped = dropped_layers(*(self.layers or default_range(num_layers)), self.drop_ratio)
        return Schedule(
            self.period,
            num_layers,
            dropped,
            self.reuse,
            self.part,
            self.kv,
            refresh_entropy=self.refresh_entropy,
            refresh_norm=self.refresh_norm,
        )

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
        names = {field.name for field in dataclasses.fields(cls)}
        unknown = sorted(set(values) - names)
        if unknown:
            raise LoraDropError(f"unknown setting {unknown[0]!r}; the settings are {', '.join(sorted(names))}.")
        return cls(**values)


def default_range(num_layers: int) -> tuple[int, int]:
    """The paper's droppable range: all but the first three layers and the last (inclusive bounds).

    Raises:
        LoraDropError: the model has fewer than three layers.
    """
    if num_layers < 3:
        raise LoraDropError(f"this model has {num_layers} layers; LoRA-Drop needs at least 3 to have one to drop.")
    return min(3, num_layers - 2), num_layers - 2


def _is_int(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _threshold(name: str, value: Any) -> float | None:
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if value is not None and not (is_number and 0 <= value <= sys.float_info.max):  # also refuses NaN
        raise LoraDropError(f"{name} must be a finite number from 0 upwards, or left out (off); got {value!r}.")
    return value and float(value)  # JSON's writers do not all take a whole number of any size


def _whole_numbers(name: str, values: Any) -> tuple[int, ...]:
    if isinstance(values, str) or not hasattr(values, "__iter__"):
        raise LoraDropError(f"{name} must be a list of layer numbers, got {values!r}.")
    values = tuple(values)
    if not all(_is_int(value) for value in values):
        raise LoraDropError(f"{name} must hold whole numbers, got {list(values)!r}.")
    return values


def _join(values: tuple[int, ...], mark: str = "-") -> str:
    return mark.join(str(value) for value in values)
