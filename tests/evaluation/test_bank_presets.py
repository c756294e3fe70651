"""The presets.json beside a bank: it brings its model's presets to every command and to the page."""

from __future__ import annotations

import json

import pytest

from lora_drop.adapters import find
from lora_drop.cli.main import main
from lora_drop.errors import LoraDropError
from lora_drop.evaluation.measure.pairs import PromptSet
from lora_drop.evaluation.rivals import compare_methods
from lora_drop.method.config import LoraDropConfig
from lora_drop.method.presets import PRESETS, UNTRAINED, config_from
from lora_drop.paths import PRESETS_NAME
from lora_drop.run.request import Request, plan
from lora_drop.run.results import store
from lora_drop.run.results.bank_presets import presets_of
from lora_drop.run.results.calibration import settings_here
from lora_drop.run.trace.trace import read_trace
from lora_drop.ui.facts import page_facts

RUN = ["run", "--prompt", "Hi", "--model", "random:tiny-llama", "--dtype", "float32", "--max-new-tokens", "4"]
OURS = LoraDropConfig(period=3, drop_layers=(2, 4), refresh="repair", kv="write", accept=0.2)
ENTRY = {"note": "Ours.", "config": OURS.differences()}


@pytest.fixture
def lay(tiny, bank, tmp_path):
    """Write the file beside the shipped bank, with changes; returns its folder."""

    def lay(**changes):
        content = {
            "model": {"id": tiny.id, "revision": tiny.revision, "dtype": "float32"},
            "order": [4, 2, 3],
            "presets": {"balanced": ENTRY},
            "rows": [],
        }
        folder = tmp_path / "banks" / "ours"
        (folder / PRESETS_NAME).write_text(json.dumps(content | changes))
        return folder

    return lay


def test_a_shipped_bank_brings_its_models_presets_everywhere(tiny, lay, tmp_path):
    prompts = PromptSet(("a b",), ("chat",), {"file": "x", "sha256": "0", "prompts": 1})
    lanes = f"full,balanced,draft-verify:{len(OURS.drop_layers)}:1"

    def compared(name):
        (row,) = compare_methods(tiny, ["balanced"], prompts, ["g"], tmp_path / name, 8)["rows"]
        return row["bound"]

    before = compared("generic")
    lay()
    assert main([*RUN, "--preset", "balanced", "--trace", str(tmp_path / "run.jsonl")]) == 0
    assert OURS.differences().items() <= read_trace(tmp_path / "run.jsonl").header.main["config"].items()
    assert compared("ours") != before
    schedules = [lane.schedule.dropped for lane in plan(tiny, Request("Hi", lanes=lanes)).lanes.values()]
    assert schedules == [(), OURS.drop_layers, OURS.drop_layers], "the order chooses for other methods too"
    facts = page_facts(tiny)
    first, second = facts["presets"]["presets"][:2]
    assert (first["name"], first["note"], second["note"]) == ("balanced", "Ours.", PRESETS["copying"].note)
    assert facts["presets"]["default"] == "balanced" and facts["presets"]["missing"] == "not measured on this model"
    assert facts["settings"]["balanced"]["period"] == OURS.period
    assert settings_here(tiny)["balanced"] == [OURS]


def test_named_adapters_bring_theirs(tiny, lay, tmp_path, monkeypatch):
    folder = lay(presets={"balanced": ENTRY, "paper": {"note": "", "config": {"adapters": "none"}}})
    monkeypatch.setattr(find, "SHIPPED_ADAPTERS", tmp_path / "none")
    assert all(preset.note.endswith(UNTRAINED) for preset in presets_of(tiny).values())
    presets = presets_of(tiny, str(folder))
    assert {name: preset.config.adapters for name, preset in presets.items()} == {
        name: "none" if name == "paper" else str(folder) for name in PRESETS
    }
    assert presets.stored(presets["balanced"]) == OURS and presets["fast"].note == PRESETS["fast"].note
    assert config_from({"preset": "fast", "adapters": "none"}, presets).adapters == "none", "an option comes first"
    named = ["--preset", "balanced", "--adapters", str(folder), "--trace", str(tmp_path / "run.jsonl")]
    assert main([*RUN, *named]) == 0
    config = read_trace(tmp_path / "run.jsonl").header.main["config"]
    assert (config["drop_layers"], config["adapters"], config["rank"]) == ([2, 4], "ours", 2)
    (folder / PRESETS_NAME).unlink()
    assert presets_of(tiny, str(folder))["balanced"].config == PRESETS["balanced"].config.replace(adapters=str(folder))


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"model": {"id": "other", "revision": "r", "dtype": "d"}}, "ours: they are of another model, other: put"),
        ({"order": [2, 9]}, "ours: drop_layers contains 9, but this model's layers are 0-5"),
        ({"order": [2, 2]}, "ours: drop_layers"),
        ({"presets": {"gentle": ENTRY}}, "ours: there is no preset 'gentle'; the presets are balanced, copying"),
        ({"presets": {"fast": ENTRY | {"config": {"periods": 3}}}}, "ours: unknown setting 'periods'"),
        ({"presets": {"fast": ENTRY | {"config": {"accept": 0.5}}}}, "ours: accept 0.5 needs exact full steps"),
        ({"presets": {"fast": ENTRY | {"config": {"drop_layers": [9]}}}}, "ours: drop_layers contains 9"),
        (
            {"presets": {"fast": ENTRY | {"config": {"adapters": "/etc"}}}},
            "ours: adapters of fast must be auto or none",
        ),
        ({"presets": {"fast": ENTRY | {"note": "n" * 301}}}, "is not a presets.json of the presets command"),
        ({"presets": {"p" * 81: ENTRY}}, "is not a presets.json of the presets command"),
        ({"order": "4,2"}, "is not a presets.json of the presets command"),
    ],
)
def test_a_broken_or_foreign_file_is_one_line(tiny, lay, capsys, changes, says):
    lay(**changes)
    with pytest.raises(LoraDropError) as error:
        presets_of(tiny)
    assert says in str(error.value) and str(error.value).isprintable()
    assert main([*RUN, "--preset", "balanced"]) == 2
    assert capsys.readouterr().err == f"lora-drop: {error.value}\n"


def test_a_file_that_is_too_large_is_one_line(tiny, lay, monkeypatch):
    lay()
    monkeypatch.setattr(store, "MAX_BYTES", 100)
    with pytest.raises(LoraDropError, match="^presets.json is not a presets.json of the presets command.$"):
        presets_of(tiny)
