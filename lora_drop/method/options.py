"""Settings as people write them, on the command line, in a form or in a call, turned into a config."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lora_drop.errors import LoraDropError
from lora_drop.method.config import LoraDropConfig
from lora_drop.method.presets import preset_named
from lora_drop.method.settings import SCHEDULE, settings_of


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
        for setting in settings_of(SCHEDULE)
        if options.get(setting.name) is not None
    }
    spread = given.keys() & {"layers", "drop_ratio"}
    if spread and "drop_layers" in given:
        raise LoraDropError("name the skipped layers by drop_layers, or by layers and drop_ratio, not by both.")
    if spread:
        given["drop_layers"] = None  # a range or a ratio on top of a preset that lists layers means the range
    return config.replace(**given)
