"""Presets, the config of a user's options, and the changes that a third lane makes to a config."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from lora_drop.errors import LoraDropError, did_you_mean
from lora_drop.method.config import LoraDropConfig
from lora_drop.method.fields import settings_in


@dataclass(frozen=True)
class Preset:
    """A named config; `note` is its one sentence. `lora_drop.evaluation` measures its speed and quality."""

    name: str
    label: str
    note: str
    config: LoraDropConfig


EXACT: dict[str, Any] = {"refresh": "repair", "kv": "write"}  # exact full steps, which verifying needs
# The full model, with the screened head at the steps between full ones.
SCREENED_HEAD: dict[str, Any] = {"drop_layers": (), "head": "screened", "lookup": 0}
SCREENED_HEAD |= {"refresh_entropy": None, "refresh_position": None}
# Prompt lookup's drafts, as the search of `compare` chose them beside Balanced's.
COPYING = {"lookup": 1, "lookup_longest": 4, "lookup_least": 2}

PRESETS = {
    preset.name: preset
    for preset in (
        Preset(
            "balanced",
            "Balanced",
            "Skips a third of the layers in two of three steps; rejects drafts that are absurd or repeat the text.",
            LoraDropConfig(period=3, drop_ratio=0.33, accept=0.15, own_repeats=True, head="screened", **EXACT),
        ),
        Preset(
            "copying",
            "Copying",
            "As Balanced, with drafts copied from earlier text where it repeats itself.",
            LoraDropConfig(
                period=3, drop_ratio=0.33, accept=0.15, own_repeats=True, head="screened", **EXACT, **COPYING
            ),
        ),
        Preset(
            "fast",
            "Fast",
            "Skips a third of the layers in three of four steps; full steps repair the caches, every token stays.",
            LoraDropConfig(period=4, drop_ratio=0.33, head="screened", **EXACT),
        ),
        Preset(
            "lossless",
            "Lossless",
            "The full model's own text, token for token: every other draft is rejected.",
            LoraDropConfig(period=4, drop_ratio=0.15, accept=1.0, head="screened", **EXACT),
        ),
        Preset(
            "gentle",
            "Gentle",
            "Skips a quarter of the layers every other step.",
            LoraDropConfig(period=2, drop_ratio=0.25),
        ),
        Preset(
            "memory",
            "Memory",
            "Skips a third of the layers in two of three steps and saves their K/V; full steps repair the rest.",
            LoraDropConfig(period=3, drop_ratio=0.33, head="screened", **(EXACT | {"kv": "skip"})),
        ),
        Preset(
            "paper",
            "Paper (p 0.5, k 3)",
            "The paper's own rule and schedule.",
            LoraDropConfig(period=4, drop_ratio=0.5, reuse="state"),
        ),
    )
}
READABLE = "balanced"  # with trained adapters its text reads well by the measure of quality.py

# Layers of the bundled model, the cheapest to skip first. At the same bound they lose far less than evenly spaced ones
# (the first eight by `drop-order`, the others by the KL that each adds at exact refreshes: docs/training-log.md, which
# also has the measurements of `gentle`'s early refreshes).
BUNDLED_ORDER = (12, 5, 17, 6, 4, 14, 13, 7, 9, 10, 16, 8, 11, 15, 18)
# How many layers of the order, other settings, note. What is verified is repaired in twos: a CPU computes each row of
# a pass, so many layers skipped at every other token beat few that are skipped for longer.
_BUNDLED_CHOICES: dict[str, tuple[int, dict[str, Any], str]] = {
    "balanced": (
        14,
        {"period": 2, "drop_ratio": 0.54},
        "Skips fourteen chosen layers at every other token; rejects drafts that are absurd or repeat the text.",
    ),
    "copying": (
        14,
        {"period": 2, "drop_ratio": 0.54},
        "As Balanced, with drafts copied from earlier text where it repeats itself.",
    ),
    "fast": (
        14,
        {"period": 2, "drop_ratio": 0.54, "accept": 0.05, "own_repeats": True},
        "Skips the layers of Balanced; rejects only wildly unlikely drafts, and repeats.",
    ),
    "lossless": (4, {"period": 2}, "The full model's own text, token for token: every other draft is rejected."),
    "memory": (
        8,
        {},
        "Skips eight chosen layers in two of three steps and saves their K/V; full steps repair the rest.",
    ),
    "gentle": (
        4,
        {"period": 8, "refresh_entropy": 0.7},
        "Skips four chosen layers while the model is sure of its next token, and runs a full step where it is not.",
    ),
}


def is_bundled(model: str) -> bool:
    """True of the bundled model's name and id."""
    return model.partition(":")[0] == "bundled"


def presets_for(model: str) -> dict[str, Preset]:
    """The presets of a model, by name.

    Args:
        model: its name as `load_model` takes it, or its id. The bundled model has layers chosen for it.
    """
    if not is_bundled(model):
        return PRESETS
    bundled = {}
    for name, (count, settings, note) in _BUNDLED_CHOICES.items():
        config = PRESETS[name].config.replace(drop_layers=BUNDLED_ORDER[:count], **settings)
        bundled[name] = dataclasses.replace(PRESETS[name], note=note, config=config)
    return PRESETS | bundled


def preset_named(name: str, model: str) -> Preset:
    """A preset by its name.

    Raises:
        LoraDropError: no such preset.
    """
    presets = presets_for(model)
    preset = presets.get(name) if isinstance(name, str) else None
    if preset is None:
        hint = did_you_mean(str(name), presets)
        raise LoraDropError(f"there is no preset {name!r}; the presets are {', '.join(presets)}.{hint}")
    return preset


def config_from(options: Mapping[str, Any], model: str, defaults: Mapping[str, Any] | None = None) -> LoraDropConfig:
    """The config of a command's, a form's or a call's options: the preset, or the defaults, with these changes.

    Args:
        options: settings by name, and `preset`; None is unset. A setting may be a value or its text.
        model: the model's name or id, as the bundled model has other presets.
        defaults: settings by name, in place of the defaults where no preset is named.

    Raises:
        LoraDropError: no such preset, or a value that is not allowed.
    """
    preset = options.get("preset")
    if preset is not None:
        config = preset_named(preset, model).config
    else:
        config = config_from({**defaults, "preset": None}, model) if defaults else LoraDropConfig()
    changes = {
        setting.name: setting.read(options[setting.name])
        for setting in settings_in(LoraDropConfig)
        if options.get(setting.name) is not None
    }
    if changes.keys() & {"layers", "drop_ratio"}:
        if "drop_layers" in changes:
            raise LoraDropError("name the skipped layers by drop_layers, or by layers and drop_ratio, not by both.")
        changes["drop_layers"] = None  # the preset may list layers
    return config.replace(**changes)


@dataclass(frozen=True)
class Comparison:
    """A third lane: LoRA-Drop's config with some fields changed, to show their effect.

    Args:
        button: label of its button on the page.
        lane: label of the lane, in the trace and on the page.
        changes: fields of `LoraDropConfig`.
    """

    button: str
    lane: str
    changes: dict[str, Any]

    def applied_to(self, config: LoraDropConfig) -> LoraDropConfig:
        """The third lane's config. Another rule needs other adapters than a named folder, which is for one rule."""
        if "reuse" in self.changes and config.adapters != "none":
            config = config.replace(adapters="auto")
        return config.replace(**self.changes)


COMPARISONS = {
    # Drafts are verified and the head is screened as in LoRA-Drop's lane: the lanes differ by the corrections alone.
    "corrections-off": Comparison("corrections off", "Corrections off", {"corrections": False}),
    "bare": Comparison(
        "nothing corrected, nothing checked",
        "Nothing corrected, nothing checked",
        {"adapters": "none", "corrections": True, "head": "full", "accept": 0.0, "own_repeats": False, "lookup": 0},
    ),
    "screened-head": Comparison(
        "full model, screened head",
        "Full model, screened head",
        {**SCREENED_HEAD, "period": 8, "corrections": False, "accept": 1.0, **EXACT},
    ),
    "adapters-off": Comparison("adapters off", "Adapters off", {"adapters": "none"}),
    "skip": Comparison("skip rule", "Skip rule", {"reuse": "skip"}),
    "state": Comparison("paper's rule", "Paper's rule (state)", {"reuse": "state"}),
    "residual": Comparison("our rule", "Our rule (residual)", {"reuse": "residual"}),
}
