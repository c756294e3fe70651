"""Presets, the config of a user's options, and the third lane."""

from typing import get_args

import pytest

from lora_drop.errors import LoraDropError
from lora_drop.method.config import LoraDropConfig
from lora_drop.method.methods import layers_to_skip
from lora_drop.method.presets import COMPARISONS, PRESETS, config_from, preset_named
from lora_drop.method.settings import Compare
from lora_drop.run.results.bank_presets import presets_of
from tests.support.presets import BUNDLED


def test_presets_fit_the_bundled_model():
    for preset in PRESETS.values():
        assert preset.config.schedule_for(30).dropped


def test_the_bundled_model_has_chosen_layers():
    """Chosen ones in place of evenly spaced ones, the first of its order."""
    ours = presets_of(BUNDLED)
    assert list(ours) == list(PRESETS) and all(ours[name].label == PRESETS[name].label for name in PRESETS)
    counts = {"balanced": 14, "copying": 14, "fast": 14, "lossless": 4, "memory": 8, "paper": 0}
    assert {name: len(preset.config.drop_layers or ()) for name, preset in ours.items()} == counts
    for preset in ours.values():
        layers = preset.config.drop_layers or ()
        assert layers == layers_to_skip(ours.order, 30, len(layers)) or preset == PRESETS["paper"]


@pytest.mark.parametrize("name", ["gentle", "warp", ["paper"]])
def test_a_preset_that_is_gone_is_one_line(name):
    for read in (lambda: preset_named(name, PRESETS), lambda: config_from({"preset": name}, None)):
        with pytest.raises(LoraDropError, match="no preset .*balanced, copying, fast, lossless, memory, paper"):
            read()


@pytest.mark.parametrize(
    ("options", "config"),
    [
        ({}, LoraDropConfig()),
        ({"period": None, "preset": None, "other": 3}, LoraDropConfig()),
        ({"period": "8", "layers": "1-4", "refresh_entropy": ""}, LoraDropConfig(period=8, layers=(1, 4))),
        ({"preset": "paper", "period": 2}, PRESETS["paper"].config.replace(period=2)),
        ({"preset": "memory", "drop_ratio": 0.25}, PRESETS["memory"].config.replace(drop_ratio=0.25)),
        ({"preset": "memory", "layers": (3, 9)}, PRESETS["memory"].config.replace(layers=(3, 9))),
        ({"drop_layers": "6,4", "reuse": "state"}, LoraDropConfig(drop_layers=(4, 6), reuse="state")),
    ],
)
def test_options_change_the_preset_or_the_defaults(options, config):
    assert config_from(options, PRESETS) == config


@pytest.mark.parametrize("spread", [{"layers": "1-4"}, {"drop_ratio": 0.5}])
def test_a_list_of_layers_excludes_range_and_ratio(spread):
    with pytest.raises(LoraDropError, match="not by both"):
        config_from({"drop_layers": "4", **spread}, PRESETS)


def test_a_third_lane_changes_its_fields_only():
    assert get_args(Compare) == tuple(COMPARISONS)
    config = LoraDropConfig(period=3, reuse="anchor", adapters="./mine")
    assert COMPARISONS["state"].applied_to(config) == config.replace(reuse="state", adapters="auto")
    assert COMPARISONS["adapters-off"].applied_to(config) == config.replace(adapters="none")
    bare = config.replace(adapters="none")
    assert COMPARISONS["skip"].applied_to(bare) == bare.replace(reuse="skip")
