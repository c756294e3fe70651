"""The presets: their bounds, the files that measure them, and what is read off those files."""

import dataclasses
import hashlib
import json

import pytest

from lora_drop.adapters import find
from lora_drop.cli.main import main
from lora_drop.decode.head import CODE_BYTES
from lora_drop.evaluation import presets as module
from lora_drop.evaluation.measure import texts
from lora_drop.method.cost import Corrections, ModelShape, speed_bound
from lora_drop.method.presets import COMPARISONS, PRESETS, Presets
from lora_drop.run.results import bank_presets
from lora_drop.run.results.bank_presets import presets_of
from lora_drop.run.results.preset_results import measured_presets
from lora_drop.run.results.prompts import EXAMPLES, SAMPLE_PROMPTS
from tests.support.parts import full_bank
from tests.support.presets import BUNDLED as UNLOADED

TINY = ["--model", "random:tiny-llama", "--dtype", "float32"]
BUNDLED = ModelShape(30, 576, 9, 3, 64, 1536, 49_152, tied=True)  # a test holds it against the model itself


def test_the_presets_have_the_bounds_that_they_promise():
    """Weights only, on the bundled model's shape, with the corrections of rank 64 read too; packed or not."""
    packed = dataclasses.replace(BUNDLED, matrix_size=0.3125, head_size=0.53125, part_size=0.53125)
    for presets, shapes in ((PRESETS, [BUNDLED]), (presets_of(UNLOADED), [BUNDLED, packed])):
        for shape in shapes:
            schedules = {name: preset.config.schedule_for(30) for name, preset in presets.items()}
            bounds = {name: speed_bound(shape, one, corrections=Corrections(64)) for name, one in schedules.items()}
            assert set(bounds) == {"balanced", "copying", "fast", "lossless", "memory", "paper"}
            assert bounds["balanced"] >= 1.12 and bounds["fast"] >= 1.14, "with the whole head"
    assert (PRESETS["memory"].config.kv, PRESETS["paper"].config.reuse) == ("skip", "state")
    assert PRESETS["paper"].config.period == 4 and PRESETS["paper"].config.drop_ratio == 0.5


def test_the_shape_is_the_bundled_models(bundled):
    assert dataclasses.replace(bundled.shape, code_size=1.0) == BUNDLED
    assert bundled.shape.code_size * 4 in (18 / 32, CODE_BYTES)  # float32; codes in blocks of Q4_0, or without C


def test_a_comparison_changes_what_it_says_and_nothing_else():
    for name, comparison in COMPARISONS.items():
        for preset in PRESETS.values():
            before, after = preset.config.to_dict(), comparison.applied_to(preset.config).to_dict()
            changed = {key for key in before if before[key] != after[key]}
            assert changed == {key for key, value in comparison.changes.items() if before[key] != value}, name


def test_the_samples_answer_the_pages_examples_and_two_more():
    assert set(EXAMPLES.values()) < set(SAMPLE_PROMPTS) and len(set(SAMPLE_PROMPTS)) == 6


# ---- the command ----


def command(data, out, *argv):
    fields = ["--prompt-field", "q", "--target-field", "a", "--prompts", str(data.with_name("asked.jsonl"))]
    return ["presets", "--data", str(data), *fields, *TINY, "--out", str(out), *argv]


def measure(capsys, data, out):
    assert main(command(data, out, "--json")) == 0
    captured = capsys.readouterr()
    return json.loads(captured.out), captured.err


@pytest.fixture
def short(data, monkeypatch):
    """Three prompts and short answers: what is tested does not depend on how many."""
    asked = ({"prompt": "Why?", "kind": "chat"}, {"prompt": "How?", "kind": "code"}, {"prompt": "When?"})
    data.with_name("asked.jsonl").write_text("".join(json.dumps(record) + "\n" for record in asked))
    monkeypatch.setattr(texts, "ANSWER_TOKENS", 24)


def test_rows_have_adapters_and_none(data, bank, short, tmp_path, capsys):
    content, _ = measure(capsys, data, tmp_path / "out")
    assert content == json.loads((tmp_path / "out" / "presets.json").read_text())
    found = [(row["preset"], row["adapters"]) for row in content["rows"]]
    # On this model `lossless` drops nothing, and so takes no adapters.
    assert found == [
        *(("balanced", "ours"), ("balanced", "none"), ("copying", "ours"), ("copying", "none"), ("fast", "ours")),
        *(("fast", "none"), ("lossless", "none"), ("memory", "ours"), ("memory", "none"), ("paper", "none")),
    ]
    assert content["data"]["file"] == "pairs.jsonl" and len(content["data"]["file_sha256"]) == 64
    assert content["model"]["revision"] and content["software"]["torch"] and content["date"]
    rows = {pair: row for pair, row in zip(found, content["rows"], strict=True)}
    assert "free_regret" in rows["fast", "ours"] and "free_regret" in rows["fast", "none"]
    assert all("own_loss_low" in row and "loss_low" in row for row in content["rows"])
    assert rows["fast", "ours"]["all_steps_kl"] != rows["fast", "none"]["all_steps_kl"]
    digest = hashlib.sha256((tmp_path / "asked.jsonl").read_bytes()).hexdigest()
    assert content["data"]["own"] == {"file": "asked.jsonl", "sha256": digest, "prompts": 3}
    assert {row["free_texts"] for row in content["rows"]} == {3}
    assert all(row["speedup_low"] <= row["speedup"] <= row["speedup_high"] for row in content["rows"])
    assert all(row["by_kind"].keys() == {"chat", "code"} for row in content["rows"])
    assert all(row["free_regret_low"] <= row["free_regret"] <= row["free_regret_high"] for row in content["rows"])


def test_a_preset_without_its_corrections_is_timed_by_itself(tiny, tmp_path, monkeypatch):
    """Also where its screened head is in the same adapters."""
    monkeypatch.setattr(find, "SHIPPED_ADAPTERS", tmp_path / "banks")
    bank = full_bank(tiny, "residual")
    bank.revision, bank.num_layers, bank.refresh, bank.kv = tiny.revision, tiny.num_layers, "repair", "write"
    bank.save(tmp_path / "banks" / "ours")
    cases = module._cases(tiny, presets_of(tiny), "Why?")
    assert len({case.name for case in cases}) == len(cases) > len(PRESETS)


def test_a_killed_measurement_goes_on_and_what_is_out_of_date_is_renewed(
    data, bank, short, tmp_path, capsys, monkeypatch
):
    out, real, calls = tmp_path / "out", module.measure, []

    def measure_at_most(count):
        def dies(loaded, point, *rest, **more):
            if len(calls) == count:
                raise KeyboardInterrupt
            calls.append((point.config.reuse, point.adapters))
            return real(loaded, point, *rest, **more)

        calls.clear()
        monkeypatch.setattr(module, "measure", dies)

    measure_at_most(3)
    assert main(command(data, out)) == 130
    assert len(json.loads((out / "presets.json").read_text())["rows"]) == 3
    capsys.readouterr()
    measure_at_most(9)
    whole, err = measure(capsys, data, out)
    assert len(calls) == 7 and "3 of 10 rows" in err

    # The bank is trained further: its rows are renewed, the others stay.
    bank(seed=1)
    calls.clear()
    renewed, _ = measure(capsys, data, out)
    assert calls == [("residual", "ours")] * 4
    rows = [content["rows"] for content in (whole, renewed)]
    renewed = [a != b for a, b in zip(*rows, strict=True)]
    assert [at for at, is_renewed in enumerate(renewed) if is_renewed] == [0, 2, 4, 7], "those with the bank"
    assert sorted(path.name for path in out.iterdir()) == ["presets.json"]

    assert main(command(data, out, "--context-tokens", "5")) == 2
    assert "out already holds presets of another settings" in capsys.readouterr().err


def test_a_bank_gets_figures_in_its_presets_file(tiny, data, bank, short, tmp_path, capsys, monkeypatch):
    """Also where the settings alone were in it, as `train` leaves it; nothing in it is a path of this machine."""
    folder, config = tmp_path / "banks" / "ours", PRESETS["fast"].config.replace(drop_layers=(3, 4))
    monkeypatch.setattr(find, "SHIPPED_ADAPTERS", tmp_path / "none")
    model = {"id": tiny.id, "revision": tiny.revision, "dtype": "float32"}
    presets = {"fast": {"note": "Ours.", "config": config.differences()}}
    (folder / "presets.json").write_text(json.dumps({"model": model, "order": [4, 3], "presets": presets, "rows": []}))
    monkeypatch.setattr(bank_presets, "PRESETS", Presets([PRESETS["fast"]]))
    assert main(command(data, folder, "--adapters", str(folder), "--json")) == 0
    content = json.loads((folder / "presets.json").read_text())
    assert (content["order"], content["presets"]) == ([4, 3], presets)
    assert [(row["preset"], row["adapters"]) for row in content["rows"]] == [("fast", "ours"), ("fast", "none")]
    assert str(tmp_path) not in json.dumps(content)
    assert measured_presets(tiny, str(folder)).rows == {"fast": content["rows"][0]}
    assert not measured_presets(tiny).rows
