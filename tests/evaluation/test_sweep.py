"""The grid: every point is what evaluate and run give."""

import csv
import json

import pytest

from lora_drop.adapters import find
from lora_drop.adapters.bank import AdapterBank
from lora_drop.cli.main import main
from lora_drop.evaluation import sweep as module
from lora_drop.evaluation.measure import metrics, point, texts
from lora_drop.evaluation.sweep import key_of
from lora_drop.method.presets import PRESETS
from lora_drop.run.results.prompts import HELD_OUT

ARGS = ["--prompt-field", "q", "--target-field", "a", "--model", "random:tiny-llama", "--dtype", "float32"]


@pytest.fixture(autouse=True)
def few_answers(monkeypatch):
    """Two prompts, short answers and runs; of 31 tokens none can fill the last 32 with a loop."""
    monkeypatch.setattr(module, "OWN_PROMPTS", HELD_OUT[:2])
    monkeypatch.setattr(texts, "ANSWER_TOKENS", 31)
    monkeypatch.setattr(point, "SPEED_TOKENS", 33)
    monkeypatch.setitem(module.SAMPLE_SETTINGS, "max_new_tokens", 32)


def test_the_grid_is_what_evaluate_and_the_formula_give(data, tmp_path, capsys):
    grid = ["--drop-ratios", "0.5,1", "--periods", "1,3", "--reuse", "state", "--adapters", "none"]
    assert main(["sweep", "--data", str(data), *ARGS, *grid, "--out", str(tmp_path / "out"), "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert result == json.loads((tmp_path / "out" / "sweep.json").read_text())
    rows = {(row["drop_ratio"], row["period"]): row for row in result["rows"]}
    assert list(rows) == [(0.5, 1), (0.5, 3), (1.0, 1), (1.0, 3)]
    assert rows[1.0, 1]["bound"] == 1.0 and rows[1.0, 1]["kv_saved"] == 0 and rows[1.0, 3]["kv_saved"] > 0
    setting = ["--drop-ratio", "1", "--period", "3", "--reuse", "state", "--adapters", "none", "--json"]
    assert main(["evaluate", "--data", str(data), *ARGS, *setting]) == 0
    alone = json.loads(capsys.readouterr().out)
    for steps in ("lora_steps", "full_steps", "all_steps"):
        assert {name: rows[1.0, 3][f"{steps}_{name}"] for name in alone[steps]} == pytest.approx(alone[steps])
    assert [rows[1.0, 3]["loss_low"], rows[1.0, 3]["loss_high"]] == [None, None], "one prompt has no interval"
    assert main(["evaluate", *ARGS[4:], "--target", "own", "--limit", "2", *setting]) == 0
    own = json.loads(capsys.readouterr().out)
    assert rows[1.0, 3]["own_all_steps_kl"] == pytest.approx(own["all_steps"]["kl"])
    assert [rows[1.0, 3]["own_loss_low"], rows[1.0, 3]["own_loss_high"]] == pytest.approx(own["loss_interval"])
    assert rows[1.0, 3]["own_answers_sha256"] == own["config"]["answers_sha256"]
    assert main(["evaluate", *ARGS[4:], "--free", "--limit", "2", *setting]) == 0
    free = json.loads(capsys.readouterr().out)["free"]
    assert {name: rows[1.0, 3][f"free_{name}"] for name in ("regret", "repeated_4grams")} == {
        name: pytest.approx(free[name]) for name in ("regret", "repeated_4grams")
    }
    assert main(["run", "--prompt", result["sample"]["prompt"], *ARGS[4:], *setting, "--max-new-tokens", "32"]) == 0
    written = json.loads(capsys.readouterr().out)
    assert rows[1.0, 3]["sample"] == written["lora_drop"]["text"]
    assert result["sample"]["text"] == written["baseline"]["text"]
    assert rows[1.0, 3]["speedup_low"] <= rows[1.0, 3]["speedup_high"] and rows[1.0, 3]["decoder"]
    with (tmp_path / "out" / "sweep.csv").open() as file:
        written = list(csv.DictReader(file))
    assert [float(row["speedup"]) for row in written] == [row["speedup"] for row in result["rows"]]


@pytest.fixture
def banks(tiny, tmp_path, monkeypatch):
    """A folder of shipped banks with one for residual, block; it stands in for assets/adapters."""
    monkeypatch.setattr(find, "SHIPPED_ADAPTERS", tmp_path / "banks")

    def save(name, **rules):
        bank = AdapterBank.new([2, 3, 4], tiny.shape.hidden_size, rank=2, **rules)
        bank.revision, bank.num_layers = tiny.revision, tiny.num_layers
        bank.gate = {i: gate * 0.5 for i, gate in bank.gate.items()}
        bank.save(tmp_path / "banks" / name)
        return tmp_path / "banks" / name

    save("ours")
    return save


def swept(capsys, data, out, *argv):
    assert main(["sweep", "--data", str(data), *ARGS, "--out", str(out), "--json", *argv]) == 0
    captured = capsys.readouterr()
    return json.loads(captured.out), captured.err


def test_rules_parts_and_adapters_are_axes(data, banks, tmp_path, capsys):
    grid = ["--drop-ratio", "0.5", "--periods", "1,3", "--reuse", "residual,state", "--part", "block, attention"]
    result, err = swept(capsys, data, tmp_path / "out", *grid, "--adapters", "auto,none")
    points = [key_of(row) for row in result["rows"]]
    assert len(set(points)) == len(points) == 9  # `auto` is another point than `none` only where a bank is shipped
    by_bank = {row["adapters"]: row for row in result["rows"] if row["reuse"] == "residual" and row["period"] == 3}
    assert set(by_bank) == {"ours", "none"} and by_bank["ours"]["rank"] == 2 and by_bank["none"]["rank"] == 0
    ours = [row for row in result["rows"] if row["adapters"] == "ours"]
    assert [(r["reuse"], r["part"], r["drop_ratio"], r["period"]) for r in ours] == [("residual", "block", 0.5, 3)]
    assert "untrained rule" in err and any("untrained rule" in note for note in result["notes"])
    assert result["data"].pop("own")["prompts"] == 2
    assert result["data"] | {"sha256": ""} == {
        "file": "pairs.jsonl", "prompt_field": "q", "target_field": "a", "limit": None, "records": 1, "sha256": "",
    }  # fmt: skip
    assert result["settings"]["layers"] == [3, 4] and result["software"]["torch"] and result["date"]
    for row in result["rows"]:
        for steps in ("lora_steps", "all_steps"):
            gap, ours, full = (row[f"{steps}_{name}"] for name in ("nll_gap", "nll_lora_drop", "nll_baseline"))
            assert gap == (None if ours is None else ours - full)
        assert row["kv_saved"] == pytest.approx(1 - row["kv_bytes"] / row["kv_bytes_baseline"], abs=1e-6)
        assert row["ms_baseline"] > 0 and (row["ms_lora"] is None) == (row["period"] == 1)


def test_a_preset_is_that_of_the_weights(tiny, data, banks, tmp_path, capsys):
    banks("ours")
    config, model = PRESETS["fast"].config.replace(accept=0.3), {"id": "m", "revision": tiny.revision, "dtype": "d"}
    content = {"model": model, "presets": {"fast": {"note": "", "config": config.differences()}}, "rows": []}
    (tmp_path / "banks" / "ours" / "presets.json").write_text(json.dumps(content))
    grid = ["--preset", "fast", "--drop-ratios", "0.5", "--periods", "2"]
    result, _ = swept(capsys, data, tmp_path / "out", *grid)
    assert [row["accept"] for row in result["rows"]] == [0.3]


def test_a_killed_sweep_keeps_its_points_and_goes_on(data, banks, tmp_path, capsys, monkeypatch):
    grid, out = ["--drop-ratios", "0.5", "--periods", "2,3,4"], tmp_path / "out"
    real, measured = module.measure, []

    def measure_at_most(count):
        def measure(loaded, point, *rest, **more):
            if len(measured) == count:
                raise KeyboardInterrupt
            measured.append(point.config.period)
            return real(loaded, point, *rest, **more)

        measured.clear()
        monkeypatch.setattr(module, "measure", measure)

    measure_at_most(2)
    assert main(["sweep", "--data", str(data), *ARGS, "--out", str(out), *grid]) == 130
    kept = json.loads((out / "sweep.json").read_text())["rows"]
    assert [row["period"] for row in kept] == [2, 3] and len((out / "sweep.csv").read_text().splitlines()) == 3
    assert "the same command goes on" in capsys.readouterr().err

    measure_at_most(9)
    result, err = swept(capsys, data, out, *grid)
    assert measured == [4] and result["rows"][:2] == kept
    assert [line for line in err.splitlines() if "points" in line][:2] == ["2 of 3 points", "3 of 3 points"]
    banks("ours", alpha=1.0)  # trained further, under the same name
    result, _ = swept(capsys, data, out, *grid)
    assert measured == [4, 2, 3, 4] and len(result["rows"]) == 3
    assert sorted(path.name for path in out.iterdir()) == ["sweep.csv", "sweep.json"]


def test_a_sweep_stopped_in_its_first_point_goes_on_with_the_next_text(data, tmp_path, capsys, monkeypatch):
    grid, read = ["--drop-ratios", "0.5", "--periods", "2", "--adapters", "none"], []
    real, stop = metrics.decode_target, 2  # the data's text and an answer

    def decode_target(decoder, schedule, bank, prompt_ids, target_ids, after_step):
        if len(read) == stop:
            raise KeyboardInterrupt
        read.append(target_ids)
        return real(decoder, schedule, bank, prompt_ids, target_ids, after_step)

    monkeypatch.setattr(metrics, "decode_target", decode_target)
    assert main(["sweep", "--data", str(data), *ARGS, "--out", str(tmp_path / "out"), *grid]) == 130
    first, stop = list(read), None
    read.clear()
    result, _ = swept(capsys, data, tmp_path / "out", *grid)
    rest = list(read)
    read.clear()
    whole, _ = swept(capsys, data, tmp_path / "whole", *grid)
    assert len(first) == 2 and rest and first + rest == read
    [ours], [theirs] = (content["rows"] for content in (result, whole))
    scores = [name for name in theirs if "nll" in name or "kl" in name or "agreement" in name]
    assert len(scores) > 20 and {name: ours[name] for name in scores} == {name: theirs[name] for name in scores}
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["sweep.csv", "sweep.json"]


def test_a_folder_holds_one_sweep(data, tmp_path, capsys):
    grid, out = ["--drop-ratios", "0.5", "--periods", "2", "--adapters", "none"], tmp_path / "out"
    swept(capsys, data, out, *grid)
    before = (out / "sweep.json").read_text()
    for argv, says in (
        (["--refresh-entropy", "2"], "settings"),
        (["--limit", "5"], "data"),
        (["--dtype", "bfloat16"], "model"),
    ):
        assert main(["sweep", "--data", str(data), *ARGS, "--out", str(out), *grid, *argv]) == 2
        err = capsys.readouterr().err
        assert f"out already holds a sweep of another {says}: name another --out" in err and err.count("\n") == 1
    assert (out / "sweep.json").read_text() == before
    (out / "sweep.json").write_text(before[:-20])
    assert main(["sweep", "--data", str(data), *ARGS, "--out", str(out), *grid]) == 2
    assert "not a sweep.json" in capsys.readouterr().err


def test_another_way_of_skipping_adds_to_the_sweep(data, banks, tmp_path, capsys):
    grid, out = ["--drop-ratios", "0.5", "--periods", "2"], tmp_path / "out"
    first, _ = swept(capsys, data, out, *grid)
    exact = ["--refresh", "repair", "--kv", "write", "--accept", "0.1", "--adapters", "none"]
    both, _ = swept(capsys, data, out, *grid, *exact)
    assert both["rows"][0] == first["rows"][0] and len(both["rows"]) == 2 and both["sample"] == first["sample"]
    chosen, err = swept(capsys, data, out, *grid, *exact, "--drop-order", "4,2,3")
    assert err.startswith("0 of 1 points") and [r["drop_layers"] for r in chosen["rows"]] == [None, None, [4]]
    assert main(["sweep", "--data", str(data), *ARGS, "--out", str(out), "--periods", "2", "--drop-order", "4"]) == 2
    assert "skips 2 layers, but the drop order has 1" in capsys.readouterr().err
    assert "sample" not in (out / "sweep.csv").read_text().splitlines()[0]


def test_a_bank_of_another_rule_is_reported_before_anything_runs(data, banks, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(module, "measure", None)
    sweep = ["sweep", "--data", str(data), *ARGS, "--out", str(tmp_path / "out"), "--periods", "2"]
    path = str(banks("mine"))
    other = str(AdapterBank.load(path).save(tmp_path / "mine") or tmp_path / "mine")
    banks("mine", alpha=1.0)
    for argv, says in (
        (["--reuse", "residual,state", "--adapters", path], "mine were trained for reuse residual"),
        (["--adapters", f"{path},{other}"], "two different adapter folders are called mine"),
        (["--adapters", "none,gone"], "cannot read the adapters in gone"),
    ):
        assert main([*sweep, *argv]) == 2
        assert says in capsys.readouterr().err and not (tmp_path / "out").exists()
