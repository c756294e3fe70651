"""Speeds measured on this machine: how they are measured, and which of them count."""

from __future__ import annotations

import json
import random

import pytest

from lora_drop.adapters import find
from lora_drop.cli.main import main
from lora_drop.errors import LoraDropError
from lora_drop.evaluation.measure import calibrate
from lora_drop.evaluation.measure.calibrate import Calibration
from lora_drop.method.presets import PRESETS
from lora_drop.models.load import LoadedModel
from lora_drop.run.results import calibration
from lora_drop.run.results.calibration import (
    HEAD,
    HEAD_PERIODS,
    gain_here,
    head_config,
    is_calibrated,
    no_gain_words,
    speeds_here,
    write_calibration,
)
from lora_drop.run.results.files import CALIBRATION
from lora_drop.run.results.preset_results import preset_figures
from lora_drop.run.results.store import whole_setting
from lora_drop.run.trace.records import BASELINE
from lora_drop.ui.facts import preset_facts
from tests.support.fuzzing import TRIED, budget, mutated_bytes, mutated_json
from tests.support.golden import check_golden
from tests.support.parts import full_bank

TINY = ["calibrate", "--model", "random:tiny-llama", "--device", "cpu", "--dtype", "float32"]


@pytest.fixture(autouse=True)
def folder(monkeypatch, tmp_path):
    monkeypatch.setattr(calibration, "calibrations", lambda: tmp_path / "kept")
    monkeypatch.setattr(calibrate, "LEAST_TOKENS", 24)  # so that each lane takes steps, whatever the time
    return tmp_path / "kept"


def row_of(lane="fast", speedup=1.2, width=0.04, bound=1.3, accepted=None, config=None, fingerprint=None):
    interval = None if width is None else [speedup - width / 2, speedup + width / 2]
    config = (config or PRESETS[lane].config).differences()
    return {
        **{"lane": lane, "config": config, "adapters_fingerprint": fingerprint},
        **{"speedup": speedup, "speedup_interval": interval, "bound": bound, "accepted": accepted},
    }


def path_of(folder):
    (path,) = folder.rglob(CALIBRATION.name)
    return path


def test_every_preset_is_timed_beside_the_full_model(tiny):
    measured = Calibration(tiny, seconds=0.01)
    shares = []
    measured.go_on(tiny, progress=shares.append)
    assert measured.is_done and shares[-1] == 1.0
    rows = {row["lane"]: row for row in measured.rows()}
    assert rows.keys() == PRESETS.keys(), "without adapters there is no screened head"
    for name, row in rows.items():
        assert row["config"] == PRESETS[name].config.differences() and row["adapters_fingerprint"] is None
        assert row["bound"] > 0
        assert (row["accepted"] is not None) == (PRESETS[name].config.accept > 0)
    write_calibration(tiny, list(rows.values()))
    assert speeds_here(tiny) == rows


def test_the_screened_head_alone_is_a_row_at_its_better_period(tiny, tmp_path, monkeypatch):
    monkeypatch.setattr(find, "SHIPPED_ADAPTERS", tmp_path / "banks")
    bank = full_bank(tiny, "residual")
    bank.revision, bank.num_layers, bank.refresh, bank.kv = tiny.revision, tiny.num_layers, "repair", "write"
    bank.save(tmp_path / "banks" / "ours")
    measured = Calibration(tiny, seconds=0.01)
    measured.go_on(tiny)
    speeds, real = {"lane_7": 1.0, "lane_8": 2.0}, calibrate.beside  # after the full model and six presets
    monkeypatch.setattr(
        calibrate, "beside", lambda reports, lane: real(reports, lane) | {"speedup": speeds.get(lane, 2.0)}
    )

    def head_row():
        (row,) = (row for row in measured.rows() if row["lane"] == HEAD)
        return row, whole_setting(row["config"])["period"]

    row, period = head_row()
    assert (period, row["speedup"], row["accepted"]) == (HEAD_PERIODS[1], 2.0, 1.0)
    assert row["adapters_fingerprint"] == find.bank_fingerprint(tmp_path / "banks" / "ours")
    write_calibration(tiny, [row])
    assert speeds_here(tiny).keys() == {HEAD}
    speeds["lane_7"] = 5.0
    assert head_row()[1] == HEAD_PERIODS[0]


def test_it_stops_after_a_step_and_goes_on_later(tiny):
    measured, asked = Calibration(tiny, seconds=1e9), []

    def stop_at(count):
        asked.clear()
        measured.go_on(tiny, lambda: asked.append(None) or len(asked) >= count)
        return len(asked)

    assert stop_at(5) - 5 <= 1 and not measured.is_done, "while it warms up"
    with pytest.raises(LoraDropError, match="nothing was measured"):
        measured.rows()
    warm_up = calibrate.WARM_UP_TOKENS * len(measured.lanes)
    for count in (1, 2):
        assert stop_at(3 * warm_up) - 3 * warm_up <= 1
        steps = [one.lanes[BASELINE].standing for one in measured._reports]
        assert len(steps) == count and 0 < steps[-1] < calibrate.ANSWER_TOKENS, "what ran so far counts"
    assert len(measured.rows()) == len(PRESETS) and not measured.is_done


def test_a_prompt_that_is_answered_by_nothing_does_not_keep_it_for_ever(tiny, monkeypatch):
    monkeypatch.setattr(calibrate, "ANSWER_TOKENS", 1)
    measured = Calibration(tiny, seconds=0.01)
    measured.go_on(tiny)
    assert measured.is_done
    with pytest.raises(LoraDropError, match="nothing was measured"):
        measured.rows()


def test_the_reference_decoder_is_refused(tiny):
    plain = LoadedModel(**{**vars(tiny), "weights": None})
    with pytest.raises(LoraDropError, match="makes no claim of speed"):
        Calibration(plain)


@pytest.mark.parametrize(
    ("row", "gain"),
    [
        (row_of(), "faster"),
        (row_of(speedup=1.0), "same"),
        (row_of(speedup=0.9), "slower"),
        (row_of(width=0.4), None),
        (row_of(width=None), None),
        (row_of(speedup=1.5), None),  # beyond its bound
        (None, None),
    ],
)
def test_what_a_speed_says(row, gain):
    assert gain_here(row) == gain


def test_why_a_preset_does_not_gain():
    words = {
        "computing": no_gain_words(row_of(speedup=0.98)),
        "rejected": no_gain_words(row_of("lossless", 0.79, bound=0.99, accepted=0.66)),
        "few bytes": no_gain_words(row_of("memory", 1.01, bound=1.02)),
    }
    check_golden("no_gain", words)


def test_only_what_would_be_measured_the_same_counts(tiny, folder, monkeypatch):
    assert not is_calibrated(tiny) and speeds_here(tiny) == {}
    other_bank = row_of("balanced", fingerprint="f" * 16)
    tuned = row_of("memory", config=PRESETS["memory"].config.replace(period=9))
    unknown = row_of() | {"lane": "gone"}
    write_calibration(tiny, [row_of(), other_bank, tuned, unknown])
    assert is_calibrated(tiny) and speeds_here(tiny).keys() == {"fast"} == speeds_here(tiny, {"fast"}).keys()
    assert speeds_here(tiny, {"memory"}) == {}
    write_calibration(tiny, [row_of(speedup=1.1)])
    assert speeds_here(tiny)["fast"]["speedup"] == 1.1, "in place of the earlier one"

    about = calibration.describe_device(tiny.device)
    for change in ({"name": "another processor"}, {"threads": 99}):
        monkeypatch.setattr(calibration, "describe_device", lambda device, change=change: about | change)
        assert speeds_here(tiny) == {}
        path = calibration._folder(tiny) / CALIBRATION.name  # as if a cache had moved here
        path.parent.mkdir()
        path.write_bytes(path_of(folder).read_bytes())
        assert speeds_here(tiny) == {}
        path.unlink()


def test_another_build_of_the_kernels_is_another_calibration(tiny, monkeypatch):
    write_calibration(tiny, [row_of()])
    monkeypatch.setattr(calibration.library(), "checksum", "0" * 16)
    assert speeds_here(tiny) == {}


@pytest.mark.parametrize("content", ["", "{", "[]", '{"rows": []}', "[" * 100_000, b"\xff\x00"])
def test_a_broken_file_is_no_calibration_and_is_replaced(tiny, folder, content):
    write_calibration(tiny, [row_of()])
    path = path_of(folder)
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    assert speeds_here(tiny) == {} and not is_calibrated(tiny)
    write_calibration(tiny, [row_of()])
    assert speeds_here(tiny).keys() == {"fast"}
    changed = json.loads(path.read_text())
    changed["rows"][0]["speedup"] = "1.2"
    path.write_text(json.dumps(changed))
    assert speeds_here(tiny) == {}


def test_a_row_without_a_speed_says_no_gain(tiny):
    write_calibration(tiny, [row_of() | {"speedup": None}])
    assert calibration.gain_here(speeds_here(tiny)["fast"]) is None
    assert all("faster" not in row["short"] for row in preset_facts(tiny)["presets"])


@pytest.mark.full
def test_two_hundred_mutations_say_a_speed_or_none(tiny, folder):
    head = row_of() | {"lane": HEAD, "config": head_config(8).differences()}
    write_calibration(tiny, [row_of(), row_of("lossless", 0.7, accepted=0.6), head])
    path, rng, said = path_of(folder), random.Random(0), 0
    raw = path.read_bytes()
    for number in range(budget(200)):
        mutated = json.dumps(mutated_json(json.loads(raw), rng)).encode()
        path.write_bytes(mutated_bytes(raw, rng, [raw]) if number % 2 else mutated)
        TRIED["results"] += 1
        said += bool(speeds_here(tiny))
        preset_facts(tiny)
        preset_figures(tiny, PRESETS["fast"].config)
    assert 0 < said < budget(200)


def test_the_command_writes_it_and_prints_it(tiny, capsys):
    assert main([*TINY, "--seconds", "0.05", "--json"]) == 0
    content = json.loads(capsys.readouterr().out)
    assert {row["lane"] for row in content["rows"]} == set(PRESETS) == set(speeds_here(tiny))
    assert main([*TINY, "--seconds", "0.05"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 1 + len(PRESETS) and lines[0].split()[:2] == ["lane", "speedup"]


@pytest.mark.parametrize("seconds", ["0", "-1", "nan", "inf"])
def test_the_command_refuses_other_times(capsys, seconds):
    assert main([*TINY, "--seconds", seconds]) == 2
    assert "--seconds must be a number above 0" in capsys.readouterr().err


def test_a_folder_that_cannot_be_written_is_one_line(folder, capsys):
    folder.write_text("a file")
    assert main([*TINY, "--seconds", "0.05"]) == 2
    assert "cannot write a calibration" in capsys.readouterr().err.splitlines()[-1]
