"""The grid: every point is what evaluate and run give, and the recommendation is the fastest within the limit."""

import csv
import json

import pytest

from lora_drop.cli import main
from lora_drop.evaluation.sweep import median_rates
from lora_drop.trace import StepRecord

ARGS = ["--prompt-field", "q", "--target-field", "a", "--model", "random:tiny-llama", "--dtype", "float32"]


@pytest.fixture
def data(tmp_path):
    path = tmp_path / "pairs.jsonl"
    path.write_text(json.dumps({"q": "What is it?", "a": "It is a cat."}) + "\n")
    return path


def test_the_grid_is_what_evaluate_and_the_formula_give(data, tmp_path, capsys):
    grid = ["--drop-ratios", "0.5,1", "--periods", "1,3", "--reuse", "state", "--adapters", "none"]
    assert main(["sweep", "--data", str(data), *ARGS, *grid, "--out", str(tmp_path / "out"), "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert result == json.loads((tmp_path / "out" / "sweep.json").read_text())
    rows = {(row["drop_ratio"], row["period"]): row for row in result["rows"]}
    assert list(rows) == [(0.5, 1), (0.5, 3), (1.0, 1), (1.0, 3)]
    assert rows[1.0, 1]["bound"] == 1.0 and rows[1.0, 1]["kv_saved"] == 0 and rows[1.0, 3]["kv_saved"] > 0
    point = ["--drop-ratio", "1", "--period", "3", "--reuse", "state", "--adapters", "none", "--json"]
    assert main(["evaluate", "--data", str(data), *ARGS, *point]) == 0
    alone = json.loads(capsys.readouterr().out)
    for steps in ("lora_steps", "all_steps"):
        assert {name: rows[1.0, 3][f"{steps}_{name}"] for name in alone[steps]} == pytest.approx(alone[steps])
    with (tmp_path / "out" / "sweep.csv").open() as file:
        written = list(csv.DictReader(file))
    assert [float(row["speedup"]) for row in written] == [row["speedup"] for row in result["rows"]]


def test_recommend_takes_the_fastest_within_the_limit(tmp_path, capsys):
    def row(speedup, agreement, gap):
        return {
            "drop_ratio": 0.5, "period": 2, "reuse": "residual", "part": "block", "kv": "skip", "speedup": speedup,
            "bound": 2.0, "kv_saved": 0.2, "lora_steps_top1_agreement": agreement, "all_steps_nll_baseline": 1.0,
            "all_steps_nll_lora_drop": 1.0 + gap,
        }  # fmt: skip

    rows = [row(1.0, None, 0.0), row(1.1, 0.95, 0.05), row(1.2, 0.92, 0.2), row(1.9, 0.3, 2.0)]
    path = tmp_path / "sweep.json"
    path.write_text(json.dumps({"rows": rows}))

    def chosen(*limits):
        assert main(["recommend", str(path), *limits, "--json"]) == 0
        return json.loads(capsys.readouterr().out)["speedup"]

    assert chosen("--min-agreement", "0.9") == 1.2
    assert chosen("--max-nll-gap", "0.1") == 1.1
    assert chosen("--min-agreement", "0", "--max-nll-gap", "9") == 1.9
    for argv, says in (
        ([], "name a limit"),
        (["--min-agreement", "0.99"], "no setting"),
    ):
        assert main(["recommend", str(path), *argv]) == 2 and says in capsys.readouterr().err
    path.write_text("{}")
    assert main(["recommend", str(path), "--max-nll-gap", "1"]) == 2
    assert "not a sweep.json" in capsys.readouterr().err


def test_rates_come_from_medians():
    def lane(name, ms):
        kinds = ["prefill"] + ["lora" if s % 2 else "refresh" for s in range(1, len(ms))]
        return [
            StepRecord(name, s, 0, "", kind, [], m, 0, None) for s, (kind, m) in enumerate(zip(kinds, ms, strict=True))
        ]

    class Run:
        steps = {
            "baseline": lane("baseline", [99, 10, 10, 10, 10, 900, 10]),
            "lora_drop": lane("b", [99, 5, 10, 5, 10, 5, 70]),
        }

    baseline, ours = median_rates(Run)
    assert baseline == pytest.approx(100) and ours == pytest.approx(1000 / 7.5)


@pytest.mark.parametrize(
    ("argv", "says"),
    [
        (["--periods", "two"], "numbers with commas"),
        (["--periods", "0"], "period"),
        (["--drop-ratios", "2"], "between 0 and 1"),
        (["--layers", "3-9"], "0-5 and 1-5"),
    ],
)
def test_bad_grids_are_one_line(data, tmp_path, capsys, argv, says):
    assert main(["sweep", "--data", str(data), *ARGS, "--out", str(tmp_path), *argv]) == 2
    err = capsys.readouterr().err
    assert says in err and err.count("\n") == 1
