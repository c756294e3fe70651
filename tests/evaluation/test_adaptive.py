"""The comparison at equal average period: its arithmetic by hand, its verdict both ways, its command."""

import json

import pytest
import torch

from lora_drop.adapters.bank import AdapterBank
from lora_drop.cli.main import main
from lora_drop.errors import LoraDropError
from lora_drop.evaluation import adaptive
from lora_drop.evaluation.measure.metrics import evaluate
from lora_drop.evaluation.measure.texts import given_texts
from lora_drop.method.config import LoraDropConfig

ARGS = ["--prompt-field", "q", "--target-field", "a", "--model", "random:tiny-llama", "--dtype", "float32"]
PAIRS = [("Why?", "Because it can, and it will."), ("What is it?", "It is a small cat.")]


@pytest.fixture
def data(tmp_path):
    path = tmp_path / "pairs.jsonl"
    path.write_text("".join(json.dumps({"q": q, "a": a}) + "\n" for q, a in PAIRS))
    return path


def test_the_curve_is_straight_between_its_points():
    points = [(0.5, 1.0), (0.25, 3.0), (0.25, 5.0), (1.0, 0.0)]
    xs = [0.1, 0.25, 0.375, 0.5, 0.75, 1.0]
    assert [adaptive.interpolate(points, x) for x in xs] == [4.0, 4.0, 2.5, 1.0, 0.5, 0.0]


def test_quantiles_are_values_that_were_seen():
    values = [3.0, 1.0, 2.0, 4.0]
    assert [adaptive.quantile(values, q) for q in (0, 0.25, 0.5, 0.51, 0.99)] == [1.0, 1.0, 2.0, 3.0, 4.0]


def test_the_points_are_what_evaluate_gives(tiny):
    config = LoraDropConfig(period=4, drop_ratio=1.0, adapters="none")
    result = adaptive.compare(tiny, config, PAIRS, ["entropy"], [0.3, 0.8])
    assert [row["period"] for row in result["choosing"]["fixed"]] == [2, 3, 4]
    for part, pairs in (("choosing", PAIRS[:1]), ("judging", PAIRS[1:])):
        for row in [*result[part]["fixed"], *result[part]["adaptive"]]:
            changed = {"period": row["period"]} if "period" in row else {"refresh_entropy": row["threshold"]}
            alone = evaluate(tiny, config.replace(**changed), given_texts(tiny, pairs))
            every = alone["all_steps"]
            assert row["nll_gap"] == pytest.approx(every["nll_lora_drop"] - every["nll_baseline"])
            assert row["agreement"] == every["top1_agreement"] and row["kl"] == pytest.approx(every["kl"])
            assert row["average_period"] == alone["config"]["average_period"]
            assert row["refreshes"] == alone["config"]["refreshes"]
    some = [row["full_share"] for row in result["choosing"]["adaptive"]]
    assert some[0] > some[1] > result["choosing"]["fixed"][-1]["full_share"], "a lower threshold refreshes more"
    best = max(result["choosing"]["adaptive"], key=lambda row: row["nll_gain"])
    assert result["chosen"] == {"trigger": "entropy", "threshold": best["threshold"]}
    judged = result["judging"]["adaptive"][0]
    assert judged["threshold"] == best["threshold"]
    assert result["wins"] == (judged["nll_gain"] > 0 and judged["agreement_gain"] >= 0)
    assert json.dumps(result, allow_nan=False)


@pytest.mark.parametrize(("better", "wins"), [(0.1, True), (-0.1, False)])
def test_the_verdict_is_at_equal_average_period(tiny, monkeypatch, better, wins):
    """Fixed schedules lose 2 * (1 - share of full steps) nats; adaptive ones `better` less than that."""

    def fake(loaded, config, texts, *, after_step):
        assert len(texts.pairs) == 1
        early = config.refresh_entropy is not None and config.refresh_entropy < adaptive.NEVER
        share = 0.4 if early else 1 / config.period
        if config.refresh_entropy == adaptive.NEVER:
            for value in (1.0, 2.0):
                after_step(type("Refresher", (), {"entropy": value, "norm": None}))
        gap = 2 * (1 - share) - (better if early else 0)
        every = {"nll_baseline": 1.0, "nll_lora_drop": 1.0 + gap, "kl": gap, "top1_agreement": 1 - gap / 4}
        pace = {"decode_steps": 1000, "refreshes": round(1000 * share), "average_period": 1 / share, "notes": []}
        return {"tokens": 1001, "all_steps": every, "config": pace}

    monkeypatch.setattr(adaptive, "evaluate", fake)
    result = adaptive.compare(tiny, LoraDropConfig(period=8, drop_ratio=1.0), PAIRS, quantiles=[0.5])
    assert [row["period"] for row in result["judging"]["fixed"]] == [2, 3, 4, 5, 6, 8]
    judged = result["judging"]["adaptive"][0]
    assert judged["fixed_nll_gap"] == pytest.approx(2 * 0.6, abs=2e-3)
    assert judged["nll_gain"] == pytest.approx(better, abs=2e-3)
    assert judged["agreement_gain"] == pytest.approx(better / 4, abs=1e-3)
    assert result["wins"] is wins
    assert [row["trigger"] for row in result["choosing"]["adaptive"]] == ["entropy"], "no norm was seen"


def test_one_record_is_scanned_and_not_judged(tiny, data, capsys):
    argv = ["adaptive", "--data", str(data), *ARGS, "--limit", "1", "--period", "3", "--drop-ratio", "1"]
    assert main([*argv, "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["judging"] is None and result["wins"] is None and result["chosen"]["trigger"] == "entropy"
    assert any("refresh_norm never fires" in note for note in result["config"]["notes"])
    assert main([*argv, "--triggers", "entropy"]) == 0
    out = capsys.readouterr().out
    assert "give more" in out and "--refresh-entropy" in out and "never fires" not in out
    assert main([*argv, "--triggers", "norm"]) == 0
    assert "No trigger saw anything" in capsys.readouterr().out


def test_with_corrections_the_norm_is_scanned_too(tiny, tmp_path):
    torch.manual_seed(0)
    bank = AdapterBank.new([1, 2, 3, 4], tiny.shape.hidden_size, rank=4)
    bank.b = {i: 0.3 * torch.randn_like(b) for i, b in bank.b.items()}
    bank.save(tmp_path / "bank")
    config = LoraDropConfig(period=4, layers=(1, 4), drop_ratio=1.0, adapters=str(tmp_path / "bank"))
    result = adaptive.compare(tiny, config, PAIRS, ["norm"], [0.2, 0.8])
    low, high = result["choosing"]["adaptive"]
    assert low["trigger"] == high["trigger"] == "norm" and 0 < low["threshold"] < high["threshold"]
    assert low["full_share"] > high["full_share"] > result["choosing"]["fixed"][-1]["full_share"]


def test_people_get_a_table_and_a_verdict(data, capsys):
    assert main(["adaptive", "--data", str(data), *ARGS, "--period", "3", "--drop-ratio", "1"]) == 0
    out = capsys.readouterr().out
    assert "period 2" in out and "entropy >= " in out and "against a fixed schedule of the same average period" in out


@pytest.mark.parametrize(
    ("argv", "says"),
    [
        (["--refresh-entropy", "1"], "leave both out"),
        (["--period", "1"], "nothing to compare"),
        (["--drop-ratio", "0"], "nothing to compare"),
        (["--triggers", "mood"], "the triggers are entropy, norm"),
        (["--quantiles", "half"], "--quantiles must be numbers"),
        (["--quantiles", "1"], "a quantile lies in"),
        (["--quantiles", "nan"], "a quantile lies in"),
    ],
)
def test_bad_input_is_one_clear_line(data, capsys, argv, says):
    assert main(["adaptive", "--data", str(data), *ARGS, *argv]) == 2
    captured = capsys.readouterr()
    assert says in captured.err and captured.err.count("\n") == 1 and captured.out == ""


def test_a_threshold_that_never_fires_is_the_fixed_schedule(tiny):
    """The probe of the longest gap is also its point of the curve: measuring must not change it."""
    config = LoraDropConfig(period=3, drop_ratio=1.0)
    plain = evaluate(tiny, config, given_texts(tiny, PAIRS))["all_steps"]
    probe = evaluate(tiny, config.replace(refresh_entropy=adaptive.NEVER), given_texts(tiny, PAIRS))["all_steps"]
    assert plain == probe


def test_the_error_is_the_librarys_own(tiny):
    with pytest.raises(LoraDropError, match="nothing to compare"):
        adaptive.compare(tiny, LoraDropConfig(period=1), PAIRS)
