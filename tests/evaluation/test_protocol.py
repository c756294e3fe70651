"""One protocol for every speed: what is measured together, again, and after a stop."""

import dataclasses
import json

import pytest

from lora_drop.evaluation.measure import calibrate, protocol
from lora_drop.evaluation.measure.calibrate import Calibration
from lora_drop.evaluation.measure.pairs import PromptSet
from lora_drop.evaluation.measure.protocol import COUNTS, TRIES, measure_lanes
from lora_drop.evaluation.presets import measure_presets
from lora_drop.evaluation.rivals import compare_methods
from lora_drop.method.config import LoraDropConfig
from lora_drop.method.presets import PRESETS
from lora_drop.method.quality import REPETITION
from lora_drop.run.request import lane_plan

PROMPTS = PromptSet(("a b a b", "c d", "e f g"), ("chat", "code", "chat"), {"file": "x", "sha256": "0", "prompts": 3})


@pytest.fixture
def lanes(tiny):
    settings = {"skip": LoraDropConfig(2, reuse="skip", adapters="none"), "full": LoraDropConfig(1, adapters="none")}
    return {name: lane_plan(tiny, config, name)[0] for name, config in settings.items()}


def test_presets_compare_and_calibrate_have_the_same_rows(tiny, tmp_path, monkeypatch, set_clocks):
    set_clocks(0.001)  # every pass takes as long: what is left are the counts
    two = dataclasses.replace(PROMPTS, texts=PROMPTS.texts[:2], kinds=PROMPTS.kinds[:2])
    monkeypatch.setattr(calibrate, "read_prompt_set", lambda: two)
    pairs = [("What is it?", "It is a cat.")]
    presets = measure_presets(tiny, pairs, {"file": "x"}, two, tmp_path / "presets")["rows"]
    methods = compare_methods(tiny, PRESETS, two, ["g"], tmp_path / "methods", 128)["rows"]
    calibration = Calibration(tiny, seconds=1e9)
    calibration.go_on(tiny, lambda: calibration._begun == len(two.texts))
    here = {row["lane"]: row for row in calibration.rows()}
    assert {row["preset"] for row in presets} == {row["method"] for row in methods} == here.keys() == PRESETS.keys()
    for preset in presets:
        (method,) = (row for row in methods if row["method"] == preset["preset"])
        row = here[preset["preset"]]
        assert {name: method[name] for name in preset.keys() & method} == {
            name: preset[name] for name in preset.keys() & method
        }
        assert (preset["free_regret"], preset["free_worst"]) == pytest.approx((method["regret"], method["worst"]))
        for name in ("speedup", "bound", "accepted"):
            assert preset[name] == row[name], (preset["preset"], name)
        assert [preset["speedup_low"], preset["speedup_high"]] == row["speedup_interval"]
    assert not (tmp_path / "presets" / COUNTS).exists() and not (tmp_path / "methods" / COUNTS).exists()


def test_rows_are_split_by_kind_and_by_what_the_full_model_repeats(tiny, lanes, tmp_path):
    rows = measure_lanes(tiny, lanes, PROMPTS, tmp_path, tokens=24)
    for row in rows.values():
        assert {kind: part["prompts"] for kind, part in row["by_kind"].items()} == {"chat": 2, "code": 1}
        assert sum(part["prompts"] for part in row["by_repeats"].values()) == 3 == row["texts"]
        assert row["by_repeats"].keys() <= REPETITION.keys()
        assert row["speedup_low"] <= row["speedup"] <= row["speedup_high"]
    assert rows["full"]["same_texts"] == 3 and rows["full"]["regret"] == 0 < rows["skip"]["regret"]


def test_a_measurement_that_was_stopped_goes_on_with_the_next_prompt(tiny, lanes, tmp_path, monkeypatch):
    real, asked = protocol.time_lanes, []

    def stops(loaded, timed, ids, *rest, **more):
        asked.append(tuple(ids))
        if len(asked) == 4:
            raise KeyboardInterrupt
        return real(loaded, timed, ids, *rest, **more)

    monkeypatch.setattr(protocol, "time_lanes", stops)
    with pytest.raises(KeyboardInterrupt):
        measure_lanes(tiny, lanes, PROMPTS, tmp_path, tokens=6)
    text = (tmp_path / COUNTS).read_text()
    assert len(text.splitlines()) == 2 * len(lanes)
    (tmp_path / COUNTS).write_text(text + text.splitlines()[0][:40])  # cut short amid a line
    asked[:], done = [None] * 4, []
    rows = measure_lanes(tiny, lanes, PROMPTS, tmp_path, tokens=6, progress=lambda *count: done.append(count))
    assert len(asked) == 4 + 2 and done[-1] == (3, 3), "a warm-up, and the last prompt"
    records = [json.loads(line) for line in (tmp_path / COUNTS).read_text().splitlines()]
    assert [record["prompt"] for record in records] == [0, 0, 1, 1, 2, 2]
    assert all(row["texts"] == 3 for row in rows.values())


def test_a_row_whose_full_model_was_faster_than_the_others_is_refused(tiny, lanes, tmp_path, set_clocks):
    set_clocks(0.001)
    usual = measure_lanes(tiny, lanes, PROMPTS, tmp_path, tokens=6)
    rate = usual["skip"]["baseline_tokens_per_second"]
    for factor, is_refused in ((1.09, False), (1.12, True)):
        others = [{"baseline_tokens_per_second": factor * rate}] * 3 + [{"baseline_tokens_per_second": None}]
        folder = tmp_path / str(factor)
        folder.mkdir()
        row = measure_lanes(tiny, {"skip": lanes["skip"]}, PROMPTS, folder, others, 6)["skip"]
        assert ("refused" in row) == (row["speedup"] is None) == is_refused
        lines = (folder / COUNTS).read_text().splitlines()
        assert len(lines) == 3 * (TRIES if is_refused else 1)
    assert "Leave the machine idle and run the same command again" in row["refused"] and "\n" not in row["refused"]
