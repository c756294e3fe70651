"""A config is checked once: a bad value is one line, which the golden file keeps."""

import dataclasses
import pickle

import pytest

from lora_drop.errors import LoraDropError
from lora_drop.method.config import LoraDropConfig, default_range
from tests.support.golden import check_golden

NAN, INF = float("nan"), float("inf")
BAD = {
    "period": (0, -3, 2.5, True, None, 10**9 + 1),
    "drop_ratio": (1.01, -0.1, NAN, "half", True),
    "reuse": ("magic", None),
    "part": ("mlp",),
    "kv": ("drop",),
    "adapters": ("", 3),
    "layers": ((0, 5), (5, 3), (1, 2, 3), "3-5", 3),
    "drop_layers": ((0, 4), (4, 4), (4.5,), (True,)),
    "refresh_entropy": (-0.1, NAN, INF, True, "2"),
    "refresh_position": (0, 1, -4, 2.5, True, 10**9 + 1),
    "refresh": ("never",),
    "accept": (2, NAN),
    "corrections": ("off", 0),
    "own_repeats": ("yes", 1),
    "perod": (3,),
    "parts": ("linear",),  # gone, as the next
    "refresh_norm": (0.5,),
}
TOGETHER = (
    {"refresh": "repair", "period": 65},
    {"accept": 0.5},
    {"accept": 0.5, "refresh": "repair"},
    {"accept": 0.5, "kv": "write"},
    {"own_repeats": True},
    {"refresh_position": 4, "period": 6},
    {"refresh_position": 4, "period": 8, "refresh": "repair"},
)


def refused(*args, **values) -> str:
    with pytest.raises(LoraDropError) as error:
        LoraDropConfig(*args, **values)
    assert "\n" not in str(error.value)
    return str(error.value)


def test_a_bad_value_is_one_clear_line():
    cases = {f"{name}={value!r}": refused(**{name: value}) for name, values in BAD.items() for value in values}
    cases |= {", ".join(f"{name}={value!r}" for name, value in one.items()): refused(**one) for one in TOGETHER}
    check_golden("config", cases)


def test_positions_are_checked_like_names():
    assert LoraDropConfig(3, (1, 4), 0.25) == LoraDropConfig(period=3, layers=(1, 4), drop_ratio=0.25)
    assert refused(0) == refused(period=0)
    assert refused(3, (1, 4), NAN) == refused(drop_ratio=NAN)
    assert LoraDropConfig(*[field.default for field in dataclasses.fields(LoraDropConfig)]) == LoraDropConfig()
    assert "15" in refused(*[field.default for field in dataclasses.fields(LoraDropConfig)], 1)
    assert refused(3, period=3).startswith("period")


def test_the_limits_themselves_are_allowed():
    LoraDropConfig(period=1, drop_ratio=0, layers=(1, 1), drop_layers=(1,), refresh_entropy=0)
    LoraDropConfig(period=10**9, drop_ratio=1)
    LoraDropConfig(period=64, refresh="repair", kv="write", accept=1)
    LoraDropConfig(period=2, refresh_position=2)


@pytest.mark.parametrize(
    ("values", "says"),
    [({"layers": (3, 30)}, "layers 3-30 is outside"), ({"drop_layers": (4, 9, 30)}, "drop_layers contains 30,")],
)
def test_the_limit_of_the_model_is_named(values, says):
    with pytest.raises(LoraDropError, match=f"{says}.* 0-29 and 1-29 can be skipped"):
        LoraDropConfig(**values).schedule_for(30)
    assert LoraDropConfig(**values).schedule_for(31).dropped[-1] <= 30


def test_a_model_too_small_has_no_default_range():
    with pytest.raises(LoraDropError, match="at least 3"):
        LoraDropConfig().schedule_for(2)
    assert [default_range(layers) for layers in (3, 4, 5, 30)] == [(1, 1), (2, 2), (3, 3), (3, 28)]


def test_lists_are_sorted_and_survive_json():
    config = LoraDropConfig(layers=[2, 9], drop_layers=[8, 4], period=3, reuse="skip", refresh_entropy=0.25)
    assert config.drop_layers == (4, 8) and config.to_dict()["layers"] == [2, 9]
    assert LoraDropConfig(**config.to_dict()) == config
    assert LoraDropConfig(**config.differences()) == config


def test_a_config_is_frozen_and_a_value():
    config = LoraDropConfig(drop_layers=(4, 8))
    assert pickle.loads(pickle.dumps(config)) == config and hash(config) == hash(LoraDropConfig(drop_layers=[8, 4]))
    assert config.replace(period=3) == dataclasses.replace(config, period=3) != config
    with pytest.raises(dataclasses.FrozenInstanceError):
        config.period = 3
    with pytest.raises(LoraDropError, match="period"):
        config.replace(period=0)


def test_an_explicit_list_wins_over_the_ratio():
    assert LoraDropConfig(drop_ratio=1.0, drop_layers=(7,)).schedule_for(30).dropped == (7,)
    assert LoraDropConfig(drop_layers=()).schedule_for(30).is_baseline


def test_every_rule_reaches_the_schedule():
    rules = {
        **{"period": 5, "reuse": "skip", "part": "attention", "kv": "write", "refresh": "repair", "accept": 0.5},
        **{"head": "screened", "refresh_entropy": 0},
    }
    schedule = LoraDropConfig(**rules, drop_layers=(4,)).schedule_for(30)
    assert {name: getattr(schedule, name) for name in rules} == rules and schedule.num_layers == 30
    assert LoraDropConfig(layers=(1, 4), drop_ratio=1).schedule_for(6).dropped == (1, 2, 3, 4)
    assert LoraDropConfig(drop_ratio=1).schedule_for(6).dropped == (3, 4)
