"""Presets, the config of a user's options, and the third lane."""

from typing import get_args

import pytest

from lora_drop.errors import LoraDropError
from lora_drop.method.config import LoraDropConfig
from lora_drop.method.presets import BUNDLED_ORDER, COMPARISONS, PRESETS, config_from, preset_named, presets_for
from lora_drop.method.settings import Compare


def test_presets_fit_the_bundled_model():
    for preset in PRESETS.values():
        assert preset.config.schedule_for(30).dropped


def test_the_bundled_model_has_chosen_layers():
    """Chosen ones in place of evenly spaced ones."""
    ours = presets_for("bundled")
    assert ours == presets_for("bundled:SmolLM2-135M-Instruct") and presets_for("random:tiny-llama") == PRESETS
    assert list(ours) == list(PRESETS)
    assert {name: len(one.config.drop_layers or ()) for name, one in ours.items()} == {
        **{"balanced": 14, "fast": 14, "lossless": 4, "gentle": 4},
        **{"memory": 8, "paper": 0},
    }
    assert all(ours[name].label == PRESETS[name].label for name in PRESETS)
    assert ours["paper"] == PRESETS["paper"]
    assert len(set(BUNDLED_ORDER)) == len(BUNDLED_ORDER)


def test_a_preset_by_a_former_name():
    for name in ("warp", None, ["paper"]):
        with pytest.raises(LoraDropError, match="balanced, fast, lossless, gentle, memory, paper"):
            preset_named(name, "bundled")


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
    assert config_from(options, "bundled") == config


@pytest.mark.parametrize("spread", [{"layers": "1-4"}, {"drop_ratio": 0.5}])
def test_a_list_of_layers_excludes_range_and_ratio(spread):
    with pytest.raises(LoraDropError, match="not by both"):
        config_from({"drop_layers": "4", **spread}, "bundled")


def test_a_third_lane_changes_its_fields_only():
    assert get_args(Compare) == tuple(COMPARISONS)
    config = LoraDropConfig(period=3, reuse="anchor", adapters="./mine")
    assert COMPARISONS["state"].applied_to(config) == config.replace(reuse="state", adapters="auto")
    assert COMPARISONS["adapters-off"].applied_to(config) == config.replace(adapters="none")
    bare = config.replace(adapters="none")
    assert COMPARISONS["skip"].applied_to(bare) == bare.replace(reuse="skip")
