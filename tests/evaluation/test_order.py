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
def texts(tiny):
    """Two texts with prompts of 8 and 5 tokens."""
    ids = torch.randint(0, 200, (2, 32), generator=torch.Generator().manual_seed(0))
    return [(ids[:1], 8), (ids[1:, :27], 5)]


def kl(tiny, texts, config, dropped):
    """The same figure written plainly, from the whole vocabulary."""
    schedule, losses = config.replace(drop_layers=dropped).schedule_for(tiny.num_layers), []
    for tokens, prompt_tokens in texts:
        with torch.no_grad():
            if schedule.repairs:
                ours, _, lora = exact_states(tiny.model, tokens, prompt_tokens, schedule, None)
            else:
                states, lora = student_states(tiny.model, tokens, prompt_tokens, schedule, None)
                ours = states[:, lora]
            ours = tiny.model.lm_head(ours).log_softmax(-1)
            full = tiny.model(tokens).logits.log_softmax(-1)[:, lora]
        losses.append((full.exp() * (full - ours)).sum(-1)[0])
    return float(torch.cat(losses).mean())


@pytest.mark.parametrize("rules", [{}, {"refresh": "repair", "kv": "write"}, {"refresh": "repair"}])
def test_each_layer_is_the_one_that_adds_least(tiny, texts, rules):
    """With every layer a candidate the search is plain greedy."""
    config = LoraDropConfig(period=4, layers=(1, 4), **rules)
    rows = drop_order(tiny, texts, config, None, 3, candidates=4)
    chosen: list[int] = []
    for row in rows:
        found = {i: kl(tiny, texts, config, (*chosen, i)) for i in range(1, 5) if i not in chosen}
        assert row["layer"] == min(found, key=found.get)
        assert row["kl"] == pytest.approx(found[row["layer"]], rel=1e-4)
        assert row["alone"] == pytest.approx(kl(tiny, texts, config, (row["layer"],)), rel=1e-4)
        chosen.append(row["layer"])


def test_a_lazy_search_measures_fewer(tiny, texts):
    rows = drop_order(tiny, texts, LoraDropConfig(period=4, layers=(1, 4)), None, 4, candidates=1)
    assert sorted(row["layer"] for row in rows) == [1, 2, 3, 4]
    assert rows[0]["kl"] == rows[0]["alone"]


def test_the_command(tmp_path, capsys):
    (tmp_path / "text.txt").write_text("\n\n".join(f"The {n}th sentence of a text." for n in range(60)))
    argv = ["drop-order", "--data", str(tmp_path / "text.txt"), "--model", "random:tiny-llama", "--dtype", "float32"]
    assert main([*argv, "--layers", "1-4", "--count", "2", "--windows", "2", "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert len(result["order"]) == 2 and result["tokens"] == 512
    assert result["order"] == [row["layer"] for row in result["rows"]]


def test_of_replies_the_decode_steps_count(tmp_path, monkeypatch, capsys):
    replies = [{"prompt": f"Say {n}.", "target": "word " * 90 + str(n)} for n in range(9)]
    (tmp_path / "own.jsonl").write_text("".join(json.dumps(reply) + "\n" for reply in replies))
    seen = []
    monkeypatch.setattr(
        "lora_drop.evaluation.order.drop_order", lambda _, texts, *rest, **more: seen.extend(texts) or []
    )
    argv = ["drop-order", "--data", str(tmp_path / "own.jsonl"), "--chat", "prompt:target", "--windows", "3"]
    assert main([*argv, "--model", "random:tiny-llama", "--layers", "1-4", "--json"]) == 0
    assert len(seen) == 3 and len({prompt for _, prompt in seen}) == 1
    for tokens, prompt in seen:
        assert 0 < prompt < 64 and tokens.shape == (1, 256)
