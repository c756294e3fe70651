"""Settings as people write them, on the command line and in calls over the network, turned into a config."""

from __future__ import annotations

from typing import Any

from lora_drop.errors import LoraDropError
from lora_drop.method.config import LoraDropConfig
from lora_drop.method.presets import presets_for


def config_from(options: Any, model: str) -> LoraDropConfig:
    """The config of given options: the preset (or the defaults), changed by what was given.

    Args:
        model: the model's name or id: it may have presets of its own.
        options: has the attributes preset, period, layers (a text), drop_ratio, drop_layers (a text), reuse, part, kv
            adapters, refresh_entropy and refresh_norm; None is not given.

    Raises:
        LoraDropError: an unknown preset, or a value that is not allowed.
    """
    config = LoraDropConfig()
    if options.preset is not None:
        presets = presets_for(model)
        if not isinstance(options.preset, str) or options.preset not in presets:
            raise LoraDropError(f"there is no preset {options.preset!r}; the presets are {', '.join(presets)}.")
        config = presets[options.preset].config
    given = {
        name: getattr(options, name)
        for name in ("period", "drop_ratio", "reuse", "part", "kv", "adapters", "refresh_entropy", "refresh_norm")
        if getattr(options, name) is not None
    }
    if options.layers is not None:
        given["layers"] = parse_range(options.layers)
    if options.drop_layers is not None:
        if options.layers is not None or options.drop_ratio is not None:
            raise LoraDropError("name the dropped layers by drop_layers, or by layers and drop_ratio, not by both.")
        given["drop_layers"] = parse_list(options.drop_layers)
    elif options.layers is not None or options.drop_ratio is not None:
        given["drop_layers"] = None  # a range or a ratio on top of a preset that lists layers means the range
    return config.replace(**given)


def parse_range(text: str) -> tuple[int, int]:
    """`3-28` -> (3, 28).

    Raises:
        LoraDropError: it is not of that form.
    """
    low, mark, high = text.partition("-")
    if not (mark and _is_layer(low.strip()) and _is_layer(high.strip())):
        raise LoraDropError(f"layers must be a range low-high such as 3-28, got {text!r}.")
    return int(low), int(high)


def parse_list(text: str, name: str = "drop_layers") -> tuple[int, ...]:
    """`4,6,8` -> (4, 6, 8); an empty text names no layer. `name` is the option's, for the message.

    Raises:
        LoraDropError: it is not of that form.
    """
    parts = [part.strip() for part in text.split(",")] if text.strip() else []
    if not all(map(_is_layer, parts)):
        raise LoraDropError(f"{name} must be layer numbers with commas such as 4,6,8; got {text!r}.")
    return tuple(int(part) for part in parts)


def parse_threshold(name: str, text: str) -> float | None:
    """`2.5` -> 2.5; an empty text is off.

    Raises:
        LoraDropError: it is not a number; `LoraDropConfig` checks which.
    """
    try:
        return float(text) if text.strip() else None
    except ValueError:
        raise LoraDropError(f"{name} must be a number, or left empty (off); got {text!r}.") from None


def _is_layer(text: str) -> bool:
    return text.isdecimal() and len(text) <= 6
