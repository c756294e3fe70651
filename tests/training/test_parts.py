"""Training with exact refreshes: settings, start, accumulation, held-out text."""

import dataclasses
from pathlib import Path

import pytest
import torch

from lora_drop.adapters.bank import AdapterBank
from lora_drop.errors import LoraDropError
from lora_drop.method.schedule import Schedule
from lora_drop.models.tokens import encode_text
from lora_drop.training.checkpoint import CHECKPOINT
from lora_drop.training.data import read_texts, to_windows
from lora_drop.training.distill import both, figures
from lora_drop.training.draw import draw
from lora_drop.training.parts import bank_of, parameters_of
from lora_drop.training.self_generate import Sampling, read_replies, self_generate
from lora_drop.training.settings import TrainJob, TrainSettings
from lora_drop.training.trainer import Trainer

EXACT = {
    **{"rank": 4, "alpha": 4.0, "length": 32, "batch_size": 2, "fit_batches": 2, "learning_rate": 1e-2},
    **{"refresh": "repair", "kv": "write", "drop_order": "4,2,3", "drop_count": 2},
}


def settings(**changes):
    return TrainSettings(**{**EXACT, "max_tokens": 32 * 2 * 8, **changes})


@pytest.fixture
def windows(tiny):
    text = "\n\n".join(f"Line {n}: the quick brown fox jumps over {n * 37 % 101} lazy dogs." for n in range(16))
    return to_windows([encode_text(tiny.tokenizer, text)], 32)


def trainer(tiny, windows, out, own=None, held_out=None, **job):
    out.mkdir(exist_ok=True)
    return Trainer(tiny, own or settings(), TrainJob(out, [Path("text.txt")], **job), windows, None, held_out)


@pytest.mark.parametrize("refresh", ["repair", "single"])
def test_corrections_learn_and_stand_in_the_folder(tiny, windows, tmp_path, refresh):
    run = trainer(tiny, windows, tmp_path / "out", settings(max_tokens=32 * 2 * 40, refresh=refresh))
    before = run.evaluate()["schedules"]
    after = run.run(100, 100)["schedules"]
    assert [(row["period"], row["drop_layers"]) for row in after] == [(2, [2, 4]), (3, [2, 4]), (4, [2, 4])]
    assert sum(row["kl_all_steps"] for row in after) < 0.99 * sum(row["kl_all_steps"] for row in before)
    bank = AdapterBank.load(tmp_path / "out" / CHECKPOINT / "adapter")
    assert bank.rank == 4 and all(bank.b[i].any() for i in (2, 3, 4))
    assert bank.meta["trained_schedules"]["refresh"] == refresh


def test_a_bank_is_trained_further(tiny, windows, tmp_path):
    first = trainer(tiny, windows, tmp_path / "first")
    first.prepare()
    first.run(100, 100)
    folder = tmp_path / "first" / CHECKPOINT / "adapter"
    run = trainer(tiny, windows, tmp_path / "second", settings(alpha=16.0), start=folder)
    run.prepare()
    start = AdapterBank.load(folder)
    for i in start.layers:  # saved in bfloat16; its units were taken and given back
        ours, theirs = (bank.scale * bank.b[i].float() @ bank.a[i].float() for bank in (run.bank, start))
        torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=1e-2)
    run.run(100, 100)
    start = tmp_path / "second" / CHECKPOINT / "adapter"
    with pytest.raises(LoraDropError, match="rank 4, this run has 8"):
        trainer(tiny, windows, tmp_path / "third", settings(rank=8), start=start).prepare()


def test_parameters_make_the_bank_they_came_from(tiny, windows, tmp_path):
    run = trainer(tiny, windows, tmp_path / "out")
    bank = dataclasses.replace(run.start, **run.start.mapped(torch.randn_like))
    again = bank_of(parameters_of(bank, run.scales), bank, run.scales)
    for name in ("a", "b", "gate"):
        torch.testing.assert_close(getattr(again, name), getattr(bank, name))


def test_batches_of_a_step_add_up(tiny, windows, tmp_path):
    """Two batches of two windows are a step of four, where both have one schedule."""
    same = {"period": 3, "drop_count": 3, "max_tokens": 32 * 4}
    one = trainer(tiny, windows, tmp_path / "one", settings(**same, batch_size=2, accumulate=2))
    assert one.steps == 1 and one.tokens_per_step == 128
    drawn = [draw(one.settings, k, len(one.windows), tiny.num_layers) for k in range(2)]
    loss, _ = one.train_step()
    losses = []
    for batch in drawn:
        fresh = trainer(tiny, windows, tmp_path / "two", settings(**same)).bank
        ours, full, _ = both(tiny, one.windows[batch.windows], batch.prompt_tokens, batch.schedule, fresh)
        losses.append((full.exp() * (full - ours)).sum(-1).mean().item())
    assert loss == pytest.approx(sum(losses) / 2, rel=1e-4) and one.step == 1


@torch.no_grad()
def test_held_out_replies(tiny, windows, tmp_path):
    path = tmp_path / "own.jsonl"
    self_generate(tiny, 3, path, Sampling(max_new_tokens=12))
    texts = read_replies(path, tiny)
    assert [tokens[0].tolist() for tokens, _ in texts] == read_texts(tiny, [path])
    run = trainer(tiny, windows, tmp_path / "out", held_out=texts)
    assert len(run.windows) == len(windows)
    report = run.evaluate()
    assert report["tokens"] == sum(tokens.numel() for tokens, _ in texts)
    schedule = Schedule(2, tiny.num_layers, (2, 4), kv="write", refresh="repair")
    row = figures(tiny, texts, schedule, run.bank)
    assert row.items() <= report["schedules"][0].items()
    # By hand: at period 2 every other new token is a LoRA step.
    gaps, divergences, decoded = [], [], 0
    for tokens, prompt in texts:
        ours, full, lora = both(tiny, tokens, prompt, schedule, run.bank)
        assert lora.nonzero()[:, 0].tolist() == [*range(prompt, tokens.shape[1], 2)]
        divergences += (full.exp() * (full - ours)).sum(-1)[0].tolist()
        for place, token in enumerate(tokens[0, prompt + 1 :: 2]):
            gaps.append(float(full[0, place, token] - ours[0, place, token]))
        decoded += tokens.shape[1] - prompt
    assert row["nll_gap"] == pytest.approx(sum(gaps) / len(gaps), abs=1e-5)
    assert row["kl"] == pytest.approx(sum(divergences) / len(divergences), abs=1e-5)
    assert row["kl_all_steps"] == pytest.approx(sum(divergences) / decoded, abs=1e-5)


def test_schedules_are_drawn_around_the_count():
    around = settings(drop_order="5,9,2,7,4,3,8,6", drop_count=4)
    drawn = [draw(around, step, 50, 12) for step in range(300)]
    counts = [len(one.schedule.dropped) for one in drawn]
    assert 0.6 < sum(count == 4 for count in counts) / 300 < 0.85 and set(counts) == {2, 3, 4, 5, 6, 7, 8}
    assert {one.schedule.period for one in drawn} == {2, 3, 4, 6, 8} and all(one.schedule.repairs for one in drawn)
    # The first token, whose state is of its own kind, is no anchor.
    assert all(4 <= one.prompt_tokens <= one.schedule.period + 3 for one in drawn)
