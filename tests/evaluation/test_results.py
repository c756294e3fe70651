"""Files of results: a setting is stored by its differences, and a new one voids no row."""

import dataclasses
import json

import pytest

from lora_drop.errors import LoraDropError
from lora_drop.method.config import LoraDropConfig
from lora_drop.method.fields import SCHEDULE, checked, setting
from lora_drop.method.presets import Presets
from lora_drop.paths import SHIPPED_SWEEPS
from lora_drop.run.results import preset_results
from lora_drop.run.results import store as results
from lora_drop.run.results.bank_presets import presets_of, read_presets
from lora_drop.run.results.files import SWEEP
from lora_drop.run.results.preset_results import measured_presets
from lora_drop.run.results.store import Store, is_setting
from tests.support.presets import BUNDLED, BUNDLED_PRESETS


@checked(SCHEDULE)
class Later(LoraDropConfig):
    """The config of a later version, which has one setting more."""

    wobble: float = setting(0.25, "made up for this test", between=(0, 1))


@pytest.fixture
def later(monkeypatch):
    monkeypatch.setattr(results, "LoraDropConfig", Later)


def test_differences_are_what_is_not_at_its_default():
    assert LoraDropConfig().differences() == {}
    config = LoraDropConfig(period=8, drop_layers=(4, 2), refresh_entropy=0.7)
    assert config.differences() == {"period": 8, "drop_layers": [2, 4], "refresh_entropy": 0.7}
    assert LoraDropConfig(**config.differences()) == config


@pytest.mark.parametrize("form", ["to_dict", "differences"])
def test_a_new_setting_at_its_default_is_the_old_setting(later, form):
    stored = getattr(LoraDropConfig(period=8, reuse="state"), form)()
    assert is_setting(stored, Later(period=8, reuse="state"))
    assert not is_setting(stored, Later(period=8, reuse="state", wobble=0.5))
    assert not is_setting(stored, Later(period=7, reuse="state"))
    assert not is_setting({**stored, "gone": 1}, Later(period=8, reuse="state"))
    assert is_setting({**stored, "wobble": 0.5}, Later(period=8, reuse="state", wobble=0.5))


def measured():
    """What the shipped file says of the presets, with the banks that it was measured with."""
    content = json.loads(BUNDLED_PRESETS.read_text())
    rules = ("reuse", "part", "refresh", "kv")
    banks = {tuple(row[name] for name in rules): row["adapters_fingerprint"] for row in reversed(content["rows"])}
    return measured_presets(BUNDLED, None, lambda config: banks[tuple(getattr(config, name) for name in rules)])


def test_the_shipped_rows_hold_for_todays_presets():
    assert set(measured().rows) == set(presets_of(BUNDLED))


def test_a_new_setting_voids_no_shipped_row(later, monkeypatch):
    shipped, content = read_presets(BUNDLED)
    presets = Presets(dataclasses.replace(p, config=Later(**p.config.to_dict())) for p in shipped.values())
    monkeypatch.setattr(preset_results, "read_presets", lambda loaded, adapters: (presets, content))
    assert set(measured().rows) == set(presets)
    presets["fast"] = dataclasses.replace(presets["fast"], config=presets["fast"].config.replace(wobble=0.5))
    assert set(measured().rows) == set(presets) - {"fast"}


def test_a_new_setting_is_no_other_sweep(later, tmp_path):
    before = SWEEP.read(SHIPPED_SWEEPS / "sweep.json")
    whole = before | {"settings": {**LoraDropConfig(layers=(3, 28)).to_dict(), **before["settings"]}}
    for old in (before, whole):
        (tmp_path / "sweep.json").write_text(json.dumps(old))
        assert Store(SWEEP, tmp_path, before | {"rows": []}).rows == before["rows"]
        now = before | {"settings": before["settings"] | {"wobble": 0.5}}
        with pytest.raises(LoraDropError, match="already holds a sweep of another settings"):
            Store(SWEEP, tmp_path, now)


def test_the_defaults_are_those_that_the_shipped_files_were_written_with():
    """A default that changes gives the stored differences another meaning: then write it into them, and here."""
    defaults = {
        "period": 4, "layers": None, "drop_ratio": 0.5, "drop_layers": None, "reuse": "residual", "part": "block",
        "kv": "skip", "adapters": "auto", "refresh_entropy": None, "corrections": True,
    }  # fmt: skip
    assert LoraDropConfig().to_dict().items() >= defaults.items()
