"""Settings are checked once, and the message names the limit."""

import pytest

from lora_drop.errors import LoraDropError
from lora_drop.method.config import LoraDropConfig, default_range
from lora_drop.method.presets import BUNDLED_ORDER, PRESETS, presets_for


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ({"period": 0}, "period must be a whole number from 1"),
        ({"period": -3}, "got -3"),
        ({"period": 2.5}, "got 2.5"),
        ({"period": True}, "got True"),
        ({"drop_ratio": 1.01}, "between 0 and 1"),
        ({"drop_ratio": -0.1}, "between 0 and 1"),
        ({"drop_ratio": float("nan")}, "between 0 and 1"),
        ({"drop_ratio": "half"}, "number from 0 to 1"),
        ({"reuse": "magic"}, "state, anchor, residual, skip"),
        ({"part": "mlp"}, "block, attention"),
        ({"kv": "drop"}, "skip, write"),
        ({"adapters": ""}, "auto, none or an adapter folder"),
        ({"layers": (0, 5)}, "layer 0 always runs"),
        ({"layers": (5, 3)}, "range low-high"),
        ({"layers": (1, 2, 3)}, "range low-high"),
        ({"layers": "3-5"}, "list of layer numbers"),
        ({"drop_layers": (0, 4)}, "layer 0 always runs"),
        ({"drop_layers": (4, 4)}, "twice"),
        ({"drop_layers": (4.5,)}, "whole numbers"),
        ({"refresh_entropy": -0.1}, "refresh_entropy must be a finite number from 0"),
        ({"refresh_entropy": float("nan")}, "got nan"),
        ({"refresh_entropy": True}, "got True"),
        ({"refresh_entropy": "2"}, "got '2'"),
        ({"refresh_norm": float("inf")}, "refresh_norm must be a finite number from 0"),
        ({"refresh_norm": False}, "got False"),
    ],
)
def test_a_bad_value_is_one_clear_line(values, says):
    with pytest.raises(LoraDropError) as error:
        LoraDropConfig(**values)
    assert says in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("values", [{"layers": (3, 30)}, {"drop_layers": (4, 30)}])
def test_the_limit_of_the_model_is_named(values):
    with pytest.raises(LoraDropError, match="0-29 and 1-29 can be skipped"):
        LoraDropConfig(**values).schedule_for(30)


def test_a_model_too_small_has_no_default_range():
    with pytest.raises(LoraDropError, match="at least 3"):
        LoraDropConfig().schedule_for(2)
    assert default_range(3) == (1, 1)
    assert default_range(4) == (2, 2)
    assert default_range(30) == (3, 28)


def test_lists_are_sorted_and_survive_json():
    config = LoraDropConfig(layers=[2, 9], drop_layers=[8, 4], period=3, reuse="skip", refresh_norm=0.25)
    assert config.drop_layers == (4, 8)
    assert LoraDropConfig.from_dict(config.to_dict()) == config
    with pytest.raises(LoraDropError, match="unknown setting 'perod'"):
        LoraDropConfig.from_dict({"perod": 3})


def test_an_explicit_list_wins_over_the_ratio():
    assert LoraDropConfig(drop_ratio=1.0, drop_layers=(7,)).schedule_for(30).dropped == (7,)
    assert LoraDropConfig(drop_layers=()).schedule_for(30).is_baseline


def test_presets_fit_the_bundled_model():
    for preset in PRESETS.values():
        assert preset.config.schedule_for(30).dropped


def test_thresholds_reach_the_schedule_and_are_off_by_default():
    assert not LoraDropConfig().schedule_for(30).is_adaptive
    for values in ({"drop_layers": (4,)}, {"drop_ratio": 0.5}):
        schedule = LoraDropConfig(refresh_entropy=0, refresh_norm=0.5, **values).schedule_for(30)
        assert schedule.is_adaptive and (schedule.refresh_entropy, schedule.refresh_norm) == (0, 0.5)
    for values in ({"period": 1}, {"drop_ratio": 0}):  # there is no LoRA step to cut short
        assert not LoraDropConfig(refresh_entropy=0, **values).schedule_for(30).is_adaptive


def test_the_bundled_model_has_chosen_layers():
    """Chosen ones in place of evenly spaced ones, and layer 11, which costs more than ten others, never."""
    ours = presets_for("bundled")
    assert ours == presets_for("bundled:SmolLM2-135M-Instruct") and presets_for("random:tiny-llama") == PRESETS
    assert list(ours) == list(PRESETS)
    for name in ("gentle", "balanced", "fast"):
        assert ours[name].config.drop_layers and 11 not in ours[name].config.drop_layers
        assert ours[name].label == PRESETS[name].label
    assert ours["paper"] == PRESETS["paper"]
    assert len(set(BUNDLED_ORDER)) == len(BUNDLED_ORDER)
