"""Presets, the config of a user's options, and the changes that a third lane makes to a config."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
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


class Presets(dict[str, Preset]):
    """Presets by name.

    Args:
        presets: in their order.
        order: layers of the model, the cheapest to skip first; empty where they were not measured.
        bank: the adapters that were named and brought the presets; None of a model's own.
    """

    def __init__(self, presets: Iterable[Preset], order: Iterable[int] = (), bank: str | None = None):
        super().__init__((preset.name, preset) for preset in presets)
        self.order, self.bank = tuple(order), bank

    def stored(self, preset: Preset) -> LoraDropConfig:
        """A preset's config as a file has it, in which the bank beside it is `auto`."""
        return preset.config.replace(adapters="auto") if preset.config.adapters == self.bank else preset.config


EXACT: dict[str, Any] = {"refresh": "repair", "kv": "write"}  # exact full steps, which verifying needs
# The full model, with the screened head at the steps between full ones.
SCREENED_HEAD: dict[str, Any] = {"drop_layers": (), "head": "screened", "lookup": 0}
SCREENED_HEAD |= {"refresh_entropy": None, "refresh_position": None}
_BALANCED = LoraDropConfig(period=3, drop_ratio=0.33, accept=0.15, own_repeats=True, head="screened", **EXACT)

# Those of a model whose bank brings none.
PRESETS = Presets(
    (
        Preset(
            "balanced",
            "Balanced",
            "Skips a third of the layers in two of three steps; rejects drafts that are absurd or repeat the text.",
            _BALANCED,
        ),
        Preset(
            "copying",
            "Copying",
            "As Balanced, with drafts copied from earlier text where it repeats itself.",
            # Prompt lookup's drafts as the search of `compare` chose them beside Balanced's.
            _BALANCED.replace(lookup=1, lookup_longest=4, lookup_least=2),
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
)
READABLE = "balanced"  # with trained adapters its text reads well by the measure of quality.py
UNTRAINED = "Untrained: no corrections ship for this model."  # of a model without a bank


def preset_named(name: str, presets: Presets) -> Preset:
    """A preset by its name.

    Raises:
        LoraDropError: no such preset.
    """
    preset = presets.get(name) if isinstance(name, str) else None
    if preset is None:
        hint = did_you_mean(str(name), presets)
        raise LoraDropError(f"there is no preset {name!r}; the presets are {', '.join(presets)}.{hint}")
    return preset


def config_from(
    options: Mapping[str, Any], presets: Presets | None, defaults: Mapping[str, Any] | None = None
) -> LoraDropConfig:
    """The config of a command's, a form's or a call's options: the preset, or the defaults, with these changes.

    Args:
        options: settings by name, and `preset`; None is unset. A setting may be a value or its text.
        presets: those of the model. None before it is loaded: then a preset stays as it is, without the changes.
        defaults: settings by name, in place of the defaults where no preset is named.

    Raises:
        LoraDropError: no such preset, or a value that is not allowed.
    """
    changes, config = _changes(options), LoraDropConfig()
    if options.get("preset") is not None:
        config = preset_named(options["preset"], presets or PRESETS).config
        if presets is None:
            return config
    elif defaults:
        config = config_from({**defaults, "preset": None}, presets)
    return config.replace(**changes)


def _changes(options: Mapping[str, Any]) -> dict[str, Any]:
    """The settings that are set. Raises LoraDropError: a text that cannot be read, or layers named in two ways."""
    changes = {
        setting.name: setting.read(options[setting.name])
        for setting in settings_in(LoraDropConfig)
        if options.get(setting.name) is not None
    }
    if changes.keys() & {"layers", "drop_ratio"}:
        if "drop_layers" in changes:
            raise LoraDropError("name the skipped layers by drop_layers, or by layers and drop_ratio, not by both.")
        changes["drop_layers"] = None  # the preset may list layers
    return changes


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
