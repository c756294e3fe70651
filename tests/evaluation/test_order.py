"""The greedy order: it finds what skipping costs, and the command shows it."""

import json

import pytest
import torch

from lora_drop.cli.main import main
from lora_drop.evaluation.order import drop_order
from lora_drop.method.config import LoraDropConfig
from lora_drop.training.exact import exact_states
from lora_drop.training.student import student_states


@pytest.fixture
def windows(tiny):
    return torch.randint(0, 200, (3, 32), generator=torch.Generator().manual_seed(0))


def kl(tiny, windows, config, dropped):
    """The same figure written plainly, from the whole vocabulary of the whole text."""
    schedule = config.replace(drop_layers=dropped).schedule_for(tiny.num_layers)
    with torch.no_grad():
        if schedule.repairs:
            ours, _, lora = exact_states(tiny.model, windows, 8, schedule, None)
        else:
            states, lora = student_states(tiny.model, windows, 8, schedule, None)
            ours = states[:, lora]
        ours = tiny.model.lm_head(ours).log_softmax(-1)
        full = tiny.model(windows).logits.log_softmax(-1)[:, lora]
    return float((full.exp() * (full - ours)).sum(-1).mean())


@pytest.mark.parametrize("rules", [{}, {"refresh": "repair", "kv": "write"}, {"refresh": "repair"}])
def test_each_layer_is_the_one_that_adds_least(tiny, windows, rules):
    """With every layer a candidate the search is plain greedy."""
    config = LoraDropConfig(period=4, layers=(1, 4), **rules)
    rows = drop_order(tiny, windows, config, None, 3, candidates=4)
    chosen: list[int] = []
    for row in rows:
        found = {i: kl(tiny, windows, config, (*chosen, i)) for i in range(1, 5) if i not in chosen}
        assert row["layer"] == min(found, key=found.get)
        assert row["kl"] == pytest.approx(found[row["layer"]], rel=1e-4)
        assert row["alone"] == pytest.approx(kl(tiny, windows, config, (row["layer"],)), rel=1e-4)
        chosen.append(row["layer"])


def test_a_lazy_search_measures_fewer(tiny, windows):
    rows = drop_order(tiny, windows, LoraDropConfig(period=4, layers=(1, 4)), None, 4, candidates=1)
    assert sorted(row["layer"] for row in rows) == [1, 2, 3, 4]
    assert rows[0]["kl"] == rows[0]["alone"]


def test_the_command(tmp_path, capsys):
    (tmp_path / "text.txt").write_text("\n\n".join(f"The {n}th sentence of a text." for n in range(60)))
    argv = ["drop-order", "--data", str(tmp_path / "text.txt"), "--model", "random:tiny-llama", "--dtype", "float32"]
    assert main([*argv, "--layers", "1-4", "--count", "2", "--windows", "2", "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert len(result["order"]) == 2 and result["tokens"] == 512
    assert result["order"] == [row["layer"] for row in result["rows"]]
