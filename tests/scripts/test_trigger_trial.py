"""The trial's table and its triggers against real decoding; what a network learns; the comparison's arithmetic."""

import pytest
import torch

from lora_drop.adapters.find import find_bank
from lora_drop.evaluation.measure.metrics import evaluate
from lora_drop.evaluation.measure.texts import Texts
from lora_drop.method.config import LoraDropConfig
from scripts import trigger_trial as trial
from tests.support.parts import full_bank

PAIRS = [([7, 3, 9, 4], [(k * 37 + 11) % 250 for k in range(23)]), ([5], [(k * 53 + 2) % 250 for k in range(9)])]


@pytest.fixture
def config(tiny, tmp_path):
    bank = full_bank(tiny, "residual")
    bank.revision, bank.refresh, bank.kv = tiny.revision, "repair", "write"
    bank.save(tmp_path / "bank")
    return LoraDropConfig(
        period=4, layers=(1, 4), drop_ratio=0.5, adapters=str(tmp_path / "bank"), refresh="repair", kv="write"
    )


@pytest.fixture
def tables(tiny, config):
    schedule = config.replace(period=6).schedule_for(tiny.num_layers)
    bank, _ = find_bank(tiny, config, schedule)
    return [trial.table(tiny, schedule, bank, *pair) for pair in PAIRS]


@pytest.mark.parametrize("triggered", [{}, {"refresh_entropy": 5.2}, {"refresh_norm": 0.2}])
def test_a_trigger_on_the_table_is_the_trigger_in_decoding(tiny, config, tables, triggered):
    texts = Texts(PAIRS)
    seen = []
    watching = config.replace(refresh_entropy=trial.NEVER, refresh_norm=trial.NEVER)
    evaluate(tiny, watching, texts, after_step=lambda refresher: seen.append((refresher.entropy, refresher.norm)))
    column, (name, level) = 0, next(iter(triggered.items()), ("refresh_entropy", trial.NEVER))
    if name == "refresh_norm":
        column = 1
    values = sorted(value for pair in seen if (value := pair[column]) is not None)
    level = values[len(values) // 2] * 1.0001 if triggered else level  # some steps reach it
    found = evaluate(tiny, config.replace(**{name: level}), texts)
    rows = [trial.played(one, one.before[..., column].nan_to_num(), level, 4) for one in tables]
    sums = torch.tensor(rows).sum(0).tolist()
    lora = found["lora_steps"]
    assert sums[trial.STEPS] == found["config"]["decode_steps"] == 30
    assert sums[trial.LORA] == lora["count"]
    assert sums[trial.LOSS] / lora["count"] == pytest.approx(lora["kl"], rel=1e-3)
    if triggered:
        assert found["config"]["refreshes"] > evaluate(tiny, config, texts)["config"]["refreshes"]


def made_up(seed, steps=80, size=4):
    """A text whose loss is told by a number of the state, and by nothing of the step before."""
    generator = torch.Generator().manual_seed(seed)
    entered = torch.randn(steps, size, generator=generator)
    kl = (entered[:, :1] > 0.5).float().expand(steps, 5) + 0.01
    before = torch.rand(steps, 5, 2, generator=generator)
    return trial.Table(kl.clone(), 3 * kl, before, entered)


def test_a_network_learns_what_there_is_to_learn():
    learn, judge = [made_up(seed) for seed in range(24)], [made_up(seed) for seed in range(100, 106)]
    schedules, scorers = trial.fixed(judge), trial.triggers(learn)
    curves = {name: trial.curve(judge, scorer, 4) for name, scorer in scorers.items()}
    gain, low, high = trial.interval(curves["learned, state"], schedules, 0.5)
    assert low <= gain <= high < -0.05
    blind = trial.interval(curves["learned, last step"], schedules, 0.5)
    assert blind[1] < 0 < blind[2] or abs(blind[0]) < 0.05
    best = trial.interval(curves["best there is"], curves["learned, state"], 0.5)[0]
    assert best <= 0.01


def test_figures_at_a_share_lie_between_the_points():
    curve = torch.tensor([[[0.0, 0, 0, 10], [0.0, 0, 0, 10]], [[4.0, 1, 5, 10], [8.0, 3, 5, 10]]])
    ones = torch.ones(2)
    assert trial.at_share(curve, 0.5, trial.LOSS, ones) == pytest.approx(0.6)
    assert trial.at_share(curve, 0.25, trial.TAKEN, ones) == pytest.approx(0.1)
    assert trial.at_share(curve, 0.5, trial.LOSS, torch.tensor([2.0, 0.0])) == pytest.approx(0.4)


def test_the_command_prints_a_row_a_trigger(tables, monkeypatch):
    monkeypatch.setattr(trial, "SHARES", {3: (0.5,), 4: (0.9,)})
    monkeypatch.setattr(trial, "DRAWS", 10)
    head, _, *rows = trial.lines([made_up(seed) for seed in range(7)], [made_up(9), made_up(10)])
    names = [row.split("|")[3].strip() for row in rows]
    assert names == ["fixed", "entropy", "norm", "learned, last step", "learned, state", "best there is"]
    assert all(row.count("|") == head.count("|") for row in rows), "and no share that a gap cannot reach"


def test_a_step_that_is_expected_to_lose_much_is_full(tiny, config, tables):
    """At a threshold that nothing reaches the text is the preset's own; at one that all reach every step is full."""
    prompts = [prompt for prompt, _ in PAIRS]
    setting = config.replace(period=4, accept=0.5, refresh_entropy=trial.NEVER)
    plain = trial.answered(tiny, tiny.new_decoder(), setting, prompts, (0.6, 0.1))
    scorer = trial.learned([made_up(seed, size=64) for seed in range(6)], state=True)
    assert trial.answered(tiny, trial.Looking(tiny, scorer, trial.NEVER), setting, prompts, (0.6, 0.1)) == plain
    always = trial.answered(tiny, trial.Looking(tiny, scorer, -trial.NEVER), setting, prompts, (0.6, 0.1))
    cells = [cell.strip() for cell in always.split("|")[1:-1]]
    assert cells[2:] == ["0.000", "0.00", "100.0%", cells[5], "0.00", "1.000"], "the full model's own text and cost"
    assert plain != always


def test_free_running_has_a_row_for_the_preset_and_each_threshold(tiny, config, monkeypatch):
    monkeypatch.setattr(trial, "FREE", ((3, 0.5),))
    learn = [made_up(seed, size=64) for seed in range(6)]
    head, _, *rows = trial.free_lines(tiny, config.replace(accept=0.1), learn, [PAIRS[0][0]], (0.6, 0.1))
    assert len(rows) == 2 and all(row.count("|") == head.count("|") for row in rows)
    assert rows[0].startswith("| fixed | 4 | 0.1 |") and rows[1].split("|")[2].strip() == "3"
