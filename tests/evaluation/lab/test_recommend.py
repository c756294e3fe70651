"""The search: candidates measured as `evaluate` and `run` would, what cannot win left out, the frontier drawn."""

import dataclasses
import json

import pytest

from lora_drop.cli.main import main
from lora_drop.evaluation.measure import texts
from lora_drop.method.config import LoraDropConfig
from lora_drop.method.presets import Presets
from lora_drop.run.report.speed import BY_CHANCE
from scripts.lab import search as module
from scripts.lab.recommend import main as recommend
from scripts.lab.search import Axes, Limits, candidates, loss_of, search
from tests.support.parts import full_bank
from tests.support.server import deep_model

TINY = ["--model", "random:tiny-llama", "--dtype", "float32"]
SOURCE = {"file": "made up"}


@pytest.fixture(autouse=True)
def short_answers(monkeypatch):
    """Of 31 tokens none can fill the last 32 with a loop."""
    monkeypatch.setattr(texts, "ANSWER_TOKENS", 31)
    monkeypatch.setattr(module, "TIMED", 1)


@pytest.fixture
def bank(tiny, tmp_path):
    """Adapters with a screened head, for exact full steps."""

    def save(alpha=1.0):
        bank = full_bank(tiny, "residual")
        bank.revision, bank.num_layers, bank.alpha = tiny.revision, tiny.num_layers, alpha
        bank.refresh, bank.kv = "repair", "write"
        bank.save(tmp_path / "ours")
        return str(tmp_path / "ours")

    return save


def command(out, *argv):
    return [*TINY, "--limit", "2", "--out", str(out), *argv]


def test_rows_are_what_evaluate_says_and_the_frontier_is_what_no_row_beats(bank, tmp_path, capsys):
    axes = ["--counts", "1,2", "--periods", "3", "--accepts", "0,0.5", "--adapters", bank(), "--drop-order", "4,2,3"]
    axes += ["--entropies", "off"]
    out = tmp_path / "out"
    assert recommend(command(out, *axes, "--max-loss", "99")) == 0
    content = json.loads((out / "recommend.json").read_text())
    err = capsys.readouterr().err
    assert (
        "of 9 settings" in err and "2 of 2 answers" in err and content["decoder"] and content["data"]["records"] == 2
    )
    *rows, alone = sorted(content["rows"], key=lambda row: -row["layers_dropped"])
    assert alone["config"] == content["head_only"] and alone["layers_dropped"] == 0 and alone["head"] == "screened"
    assert len(rows) + len(content["left_out"]) == 8 and {tuple(row["drop_layers"]) for row in rows} <= {(4,), (2, 4)}
    for row in rows:
        assert row["config"] == LoraDropConfig(**row["config"]).differences()
        assert (row["refresh"], row["kv"], row["adapters"]) == ("repair", "write", "ours")
        assert (row["speedup_low"] or 0) <= (row["speedup_high"] or 9) and row["bound"] > 0
        assert not any(name.startswith("all_steps") for name in row), "there are no given texts"
        beaten = [
            other["speedup"] >= row["speedup"] and loss_of(other) <= loss_of(row) for other in rows if other is not row
        ]
        assert (row["config"] in content["frontier"]) == (not any(beaten))
    best = max(rows, key=lambda row: row["speedup"])
    assert content["recommended"] == best["config"]

    assert all(("free_regret" in row) == (row["accept"] > 0) for row in rows)
    assert (out / "frontier.svg").read_text().startswith("<svg ")


def test_the_words_are_a_setting_that_run_takes(bank, tmp_path, capsys):
    argv = ["--counts", "2", "--periods", "3", "--accepts", "0.1", "--heads", "screened", "--adapters", bank()]
    argv += ["--entropies", "1.5"]
    assert recommend(command(tmp_path / "out", *argv, "--max-loss", "0", "--max-regret", "99")) == 0
    lines = capsys.readouterr().out.splitlines()
    assert any(" 1.5 " in line and "<- the fastest" in line for line in lines)
    flags = next(line for line in lines if line.startswith("--")).split()
    assert main(["run", "--prompt", "Hi", *TINY, "--max-new-tokens", "4", *flags, "--json"]) == 0
    config = json.loads(capsys.readouterr().out)["config"]
    wanted = {"period": 3, "drop_layers": [3, 4], "accept": 0.1, "head": "screened", "kv": "write"}
    wanted["refresh_entropy"] = 1.5
    assert {name: config[name] for name in wanted} == wanted
    assert any("the screened head alone: " in line and "LoRA-Drop beyond it" in line for line in lines)
    assert any("for a regret of" in line and "1 settings measured" in line for line in lines)


def test_a_model_may_have_a_drop_order_and_others_have_evenly_spaced_layers(tiny, monkeypatch):
    deep = deep_model()
    ordered = dataclasses.replace(deep, id="ordered")
    order_of = {"ordered": (12, 5, 17, 6, 4, 14, 13, 7)}
    monkeypatch.setattr(module, "presets_of", lambda loaded: Presets((), order_of.get(loaded.id, ())))
    for loaded, base, order, first in (
        (ordered, LoraDropConfig(adapters="none"), (), [(5, 6, 12, 17), (4, 5, 6, 7, 12, 13, 14, 17)]),
        (ordered, LoraDropConfig(adapters="none"), (9, 8, 7, 6, 5), [(6, 7, 8, 9), (5, 6, 7, 8, 9)]),
        (deep, LoraDropConfig(adapters="none", layers=(3, 28)), (), [(6, 12, 19, 25)]),
        (tiny, LoraDropConfig(adapters="none"), (), [(4,)]),
    ):
        chosen = [config.drop_layers for config in candidates(loaded, base, Axes(periods=(2,)), order)]
        assert list(dict.fromkeys(chosen))[: len(first)] == first
    plain = LoraDropConfig(adapters="none")
    assert {c.refresh_entropy for c in candidates(tiny, plain, Axes(), ())} == {None, 1.0}
    configs = candidates(tiny, plain, Axes(refreshes=("single", "repair")), ())
    assert {(c.refresh, c.kv, c.accept) for c in configs} == {
        ("single", "skip", 0.0), *(("repair", "write", accept) for accept in (0.0, 0.1, 0.3)),
    }  # fmt: skip


# ---- made-up figures ----


def made_up(speeds, losses, calls):
    """A stand-in for `measure`: speed and loss by how many layers are skipped and the period."""

    def measure(loaded, point, pairs, context_tokens, answers, free, prompts, progress):
        count, period = len(point.config.drop_layers), point.config.period
        calls.append((count, period))
        return {
            **point.config.to_dict(), "adapters": point.adapters, "adapters_fingerprint": point.fingerprint,
            "layers_dropped": count, "speedup": speeds.get((count, period), 1.0), "speedup_low": None,
            "speedup_high": None, "bound": point.bound, "kv_saved": 0.0, "accepted": None, "decoder": "none",
            "own_all_steps_kl": losses.get((count, period), 0.0),
        }  # fmt: skip

    return measure


@pytest.fixture
def found(tiny, tmp_path, monkeypatch):
    """A search over two counts and two periods with made-up figures; gives what it found and what it measured."""

    def run(speeds, losses, limit, periods=(2, 4), adapters="none", out="out"):
        calls = []
        monkeypatch.setattr(module, "measure", made_up(speeds, losses, calls))
        axes = Axes(counts=(1, 2), periods=periods, accepts=(0.0,), heads=("full",), entropies=(None,))
        base = LoraDropConfig(adapters=adapters)
        result = search(tiny, base, axes, Limits(limit, limit), ["Hi", "Ho"], SOURCE, tmp_path / out)
        return result, calls

    return run


def bounds(found):
    rows = [(row["layers_dropped"], row["period"], row["bound"]) for row in found.content["rows"]]
    left = [
        (len(c["config"]["drop_layers"]), c["config"].get("period", 4), c["bound"]) for c in found.content["left_out"]
    ]
    return {(count, period): bound for count, period, bound in rows + left}


def test_what_cannot_be_the_fastest_is_left_out_and_measured_where_the_limit_asks_for_it(found, tmp_path):
    speeds, losses = {(2, 4): 1.5, (1, 4): 1.4}, {(2, 4): 0.9, (1, 4): 0.1}
    first, calls = found(speeds, losses, limit=1)
    of = bounds(first)
    assert calls == [(2, 4)], "the one with the most to gain, which then beats every bound"
    assert all(of[key] * BY_CHANCE < 1.5 for key in ((2, 2), (1, 4), (1, 2)))
    assert first.recommended["speedup"] == 1.5 and len(first.content["left_out"]) == 3

    again, calls = found(speeds, losses, limit=0.5)
    order = sorted(((2, 2), (1, 4), (1, 2)), key=of.__getitem__, reverse=True)
    assert calls == order[: order.index((1, 4)) + 1], "the row there is kept; it is not within this limit"
    assert (again.recommended["layers_dropped"], again.recommended["period"]) == (1, 4)
    assert [row["speedup"] for row in again.frontier][-2:] == [1.4, 1.5]
    none, calls = found(speeds, losses, limit=0.5)
    assert not calls and none.recommended == again.recommended

    # A speed that chance may have added does not leave out the bound just below it.
    _, calls = found({(2, 4): max(of[1, 4], of[2, 2]) * 1.02}, {}, limit=1, out="other")
    assert len(calls) >= 2


def test_a_speed_far_beyond_its_bound_does_not_choose(found):
    of = bounds(found({}, {}, limit=1, periods=(4,), out="bounds")[0])
    speeds, losses = {(2, 4): of[2, 4], (1, 4): 9.0}, {(2, 4): 0.9}
    assert found(speeds, losses, limit=0.5, periods=(4,))[0].recommended["layers_dropped"] == 1, "all there is"
    both, calls = found(speeds, losses, limit=1, periods=(4,))
    assert not calls and of[1, 4] * BY_CHANCE < of[2, 4] and both.recommended["layers_dropped"] == 2


def test_a_search_goes_on_where_it_ended_and_keeps_what_it_did_not_ask_for(found, tmp_path, bank):
    path = bank()
    _, calls = found({}, {}, limit=1, adapters=path)
    assert len(calls) == 4
    more, calls = found({}, {}, limit=1, periods=(2, 3), adapters=path)
    assert sorted(calls) == [(1, 3), (2, 3)] and len(more.content["rows"]) == 6
    assert {row["period"] for row in more.rows} == {2, 3} and len(more.rows) == 4
    bank(alpha=2.0)  # trained further, under the same name
    renewed, calls = found({}, {}, limit=1, adapters=path)
    assert len(calls) == 4 and len(renewed.content["rows"]) == 6
    assert json.loads((tmp_path / "out" / "recommend.json").read_text()) == renewed.content


def test_a_folder_holds_one_search(found, tmp_path, capsys):
    found({}, {}, limit=1)
    axes = ["--counts", "1", "--periods", "2", "--adapters", "none", "--max-loss", "1"]
    assert recommend(command(tmp_path / "out", *axes)) == 2
    assert "out already holds a search of another data: name another --out" in capsys.readouterr().err


def test_nothing_within_the_limit_is_one_line_and_the_files_stay(tmp_path, capsys):
    argv = ["--counts", "2", "--periods", "3", "--accepts", "0", "--adapters", "none", "--max-loss", "0"]
    argv += ["--entropies", "off"]
    assert recommend(command(tmp_path / "out", *argv)) == 2
    assert "no setting stays within that limit" in capsys.readouterr().err
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["frontier.svg", "recommend.json"]


@pytest.mark.parametrize(
    ("argv", "line"),
    [
        ("--max-loss -1", "max_loss must be a finite number from 0 upwards, got -1."),
        ("--max-loss 1 --counts 9", "counts must lie between 1 and 2, the layers to choose from; got 9."),
        ("--max-loss 1 --counts a", "counts must be a whole number from 1 to 100,000; got 'a'."),
        ("--max-loss 1 --periods 1", "no combination skips a layer: take counts from 1, periods from 2"),
        ("--max-loss 1 --heads screened --adapters none", "these adapters have no screened head: take heads full."),
        ("--max-loss 1 --before gone.json", "cannot read gone.json: No such file or directory."),
        ("", "the following arguments are required: --max-loss"),
    ],
)
def test_a_mistake_is_one_line(argv, line, tmp_path, capsys):
    assert recommend(command(tmp_path / "out", *argv.split())) == 2
    assert capsys.readouterr().err.startswith(f"python -m scripts.lab.recommend: {line}")


def test_a_setting_that_cannot_be_timed_is_one_line(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(module, "measure", lambda *_, **more: {"speedup": None})
    assert recommend(command(tmp_path / "out", "--counts", "2", "--max-loss", "9")) == 2
    assert "too noisy to time a setting" in capsys.readouterr().err
