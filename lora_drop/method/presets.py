"""Named settings, and the changes that a third lane makes to one."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from lora_drop.errors import LoraDropError
from lora_drop.method.config import LoraDropConfig
from lora_drop.method.fields import settings_in


@dataclass(frozen=True)
class Preset:
    """A named setting, with what it does in a sentence. What it is good for is measured: `lora_drop.evaluation`."""

    name: str
    label: str
    note: str
    config: LoraDropConfig


# What full steps make exact, and so can judge by. Of the corrections the linear part alone: on a CPU the others take
# more time than what they mend is worth (docs/training-log.md).
EXACT: dict[str, Any] = {"refresh": "repair", "kv": "write", "parts": "linear"}

PRESETS = {
    preset.name: preset
    for preset in (
        Preset(
            "balanced",
            "Balanced",
            "A third of the layers is skipped in two of three steps; what the full model finds absurd is taken back.",
            LoraDropConfig(period=3, drop_ratio=0.33, accept=0.15, head="screened", **EXACT),
        ),
        Preset(
            "fast",
            "Fast",
            "A third of the layers is skipped in three of four steps; full steps mend the caches, every token stays.",
            LoraDropConfig(period=4, drop_ratio=0.33, head="screened", **EXACT),
        ),
        Preset(
            "lossless",
            "Lossless",
            "The full model's own text, token for token: all else is taken back.",
            LoraDropConfig(period=4, drop_ratio=0.15, accept=1.0, head="screened", **EXACT),
        ),
        Preset(
            "gentle",
            "Gentle",
            "A quarter of the layers is skipped every other step.",
            LoraDropConfig(period=2, drop_ratio=0.25),
        ),
        Preset(
            "memory",
            "Memory",
            "Only attention is skipped, in half of the layers: saves K/V, but little time.",
            LoraDropConfig(period=4, drop_ratio=0.5, part="attention"),
        ),
        Preset(
            "paper",
            "Paper (p 0.5, k 3)",
            "The paper's own rule and schedule.",
            LoraDropConfig(period=4, drop_ratio=0.5, reuse="state"),
        ),
    )
}
ALIASES = {"kv-saver": "memory"}  # of presets that had another name


# Layers of the bundled model, the cheapest to skip first: at the same bound they lose far less than evenly spaced ones
# (`drop-order`; docs/training-log.md has the measurements, also of the early refreshes of `gentle`).
BUNDLED_ORDER = (12, 5, 17, 6, 4, 14, 13, 7, 18, 26, 16, 15, 25)
_BUNDLED_CHOICES: dict[str, tuple[int, dict[str, Any], str]] = {  # how many of them, other settings, note
    "balanced": (
        8,
        {},
        "Eight chosen layers are skipped in two of three steps; what the full model finds absurd is taken back.",
    ),
    "fast": (
        8,
        {},
        "Eight chosen layers are skipped in three of four steps; full steps mend the caches, every token stays.",
    ),
    "lossless": (4, {}, "The full model's own text, token for token: all else is taken back."),
    "gentle": (
        4,
        {"period": 8, "refresh_entropy": 0.7},
        "Four chosen layers are skipped while the model is sure of its next token; a full step comes where it is not.",
    ),
}


def presets_for(model: str) -> dict[str, Preset]:
    """The presets by name, as they are on a model.

    Args:
        model: its name as `load_model` takes it, or its id; only the bundled one has layers of its own choice.
    """
    if model.partition(":")[0] != "bundled":
        return PRESETS
    chosen = {}
    for name, (count, settings, note) in _BUNDLED_CHOICES.items():
        config = PRESETS[name].config.replace(drop_layers=BUNDLED_ORDER[:count], **settings)
        chosen[name] = dataclasses.replace(PRESETS[name], note=note, config=config)
    return PRESETS | chosen


def preset_named(name: str, model: str) -> Preset:
    """A preset by its name, or by one that it had before.

    Raises:
        LoraDropError: there is none of that name.
    """
    presets = presets_for(model)
    found = presets.get(ALIASES.get(name, name)) if isinstance(name, str) else None
    if found is None:
        raise LoraDropError(f"there is no preset {name!r}; the presets are {', '.join(presets)}.")
    return found


def config_from(options: Mapping[str, Any], model: str) -> LoraDropConfig:
    """The config of given options: the preset (or the defaults), changed by what was given.

    Args:
        options: settings by name, and `preset`; what is missing or None was not given. A text is read as its setting
            writes it.
        model: the model's name or id: it may have presets of its own.

    Raises:
        LoraDropError: an unknown preset, or a value that is not allowed.
    """
    config = LoraDropConfig()
    preset = options.get("preset")
    if preset is not None:
        config = preset_named(preset, model).config
    given = {
        setting.name: setting.read(options[setting.name])
        for setting in settings_in(LoraDropConfig)
        if options.get(setting.name) is not None
    }
    spread = given.keys() & {"layers", "drop_ratio"}
    if spread and "drop_layers" in given:
        raise LoraDropError("name the skipped layers by drop_layers, or by layers and drop_ratio, not by both.")
    if spread:
        given["drop_layers"] = None  # a range or a ratio on top of a preset that lists layers means the range
    return config.replace(**given)


@dataclass(frozen=True)
class Comparison:
    """A third lane: the same schedule with something changed, to see what that does.

    Args:
        button: what asks for it on the page.
        lane: the lane's label, in the trace and on the page.
        changes: fields of `LoraDropConfig`.
    """

    button: str
    lane: str
    changes: dict[str, Any]

    def applied_to(self, config: LoraDropConfig) -> LoraDropConfig:
        """The third lane's config. Another rule wants other adapters than a folder that was named for this one."""
        if "reuse" in self.changes and config.adapters != "none":
            config = config.replace(adapters="auto")
        return config.replace(**self.changes)


COMPARISONS = {
    # Full steps repair as in LoRA-Drop's lane: what is seen is what corrections and `accept` buy, not the refresh.
    "bare": Comparison(
        "no corrections",
        "Without corrections",
        {"adapters": "none", "parts": "auto", "head": "full", "accept": 0.0},
    ),
    "adapters-off": Comparison("adapters off", "Adapters off", {"adapters": "none"}),
    "skip": Comparison("skip rule", "Skip rule", {"reuse": "skip"}),
    "state": Comparison("paper's rule", "Paper's rule (state)", {"reuse": "state"}),
    "residual": Comparison("our rule", "Our rule (residual)", {"reuse": "residual"}),
}
