"""Training: the loss falls, a resumed run is the run, bad text and settings are refused."""

import dataclasses
import json
import os
import shlex
from pathlib import Path
from typing import get_args
from xml.etree import ElementTree

import accelerate.tracking
import pytest
import torch
from accelerate.tracking import GeneralTracker
from accelerate.utils import LoggerType
from torch.nn.functional import cross_entropy

import lora_drop
from lora_drop.adapters.bank import AdapterBank
from lora_drop.adapters.preview import with_codes
from lora_drop.cli.main import _parser, main
from lora_drop.errors import LoraDropError
from lora_drop.method.presets import PRESETS, READABLE, config_from
from lora_drop.method.schedule import Schedule
from lora_drop.models.load import load_model
from lora_drop.models.tokens import encode_prompt, encode_text
from lora_drop.run.results.bank_presets import presets_of
from lora_drop.training import trainer as trainer_module
from lora_drop.training.checkpoint import CHECKPOINT, STATE
from lora_drop.training.data import Turn, read_texts, to_rows, to_windows
from lora_drop.training.distill import distillation
from lora_drop.training.draw import draw
from lora_drop.training.parts import HEAD_WINDOWS, screened_head
from lora_drop.training.picture import PICTURE, loss_picture
from lora_drop.training.self_generate import Text
from lora_drop.training.settings import Loss, TrainJob, TrainSettings, run_settings
from lora_drop.training.student import student_states
from lora_drop.training.trainer import LOG, Trainer
from tests.support.decoding import random_bank
from tests.support.presets import BUNDLED

SMALL = TrainSettings(
    rank=8, alpha=8.0, length=48, batch_size=4, max_tokens=48 * 4 * 24, learning_rate=2e-2, fit_batches=0
)
TEXT = "\n\n".join(f"Line {n}: the quick brown fox jumps over {n * 37 % 101} lazy dogs." for n in range(200))


@pytest.fixture
def windows(tiny, tmp_path):
    (tmp_path / "text.txt").write_text(TEXT)
    return to_windows(read_texts(tiny, [tmp_path / "text.txt"]), SMALL.length)


def small(**changes):
    return dataclasses.replace(SMALL, **changes)


def trainer(tiny, windows, out, settings=SMALL):
    out.mkdir(exist_ok=True)
    return Trainer(tiny, settings, TrainJob(out, [Path("text.txt")]), windows)


@pytest.mark.parametrize(("reuse", "dtype"), [("state", "float32"), ("residual", "bfloat16")])
def test_the_loss_falls_and_the_bank_helps(windows, tmp_path, reuse, dtype):
    loaded = load_model("random:tiny-llama", "cpu", dtype)
    settings = small(reuse=reuse, period=3, drop_ratio=1.0)
    trainer(loaded, windows, tmp_path / "fitted", dataclasses.replace(settings, fit_batches=2)).prepare()
    run = trainer(loaded, windows, tmp_path / "out", settings)
    assert all(tensor.dtype == torch.float32 for tensor in run.parameters)
    before = run.evaluate()["schedules"][0]
    after = run.run(100, 100)["schedules"][0]
    assert after["kl"] < 0.9 * before["kl"]
    bank = AdapterBank.load(tmp_path / "out" / CHECKPOINT / "adapter")
    assert bank.check(loaded, "out", reuse, "block") is None
    assert bank.meta["tokens"] == SMALL.max_tokens and bank.meta["quality"]["schedules"][0] == after


def test_a_resumed_run_is_the_run(tiny, windows, tmp_path):
    whole = trainer(tiny, windows, tmp_path / "whole")
    whole.run(100, 100)
    cut = trainer(tiny, windows, tmp_path / "cut")
    for _ in range(11):
        cut.train_step()
    cut.save(None)
    cut.train_step()  # lost when the run is killed here
    resumed = trainer(tiny, windows, tmp_path / "cut")
    resumed.resume()
    assert resumed.step == 11
    resumed.run(100, 100)
    for one, other in zip(whole.parameters, resumed.parameters, strict=True):
        assert torch.equal(one, other)


def test_other_settings_do_not_resume(tiny, windows, tmp_path):
    run = trainer(tiny, windows, tmp_path / "out")
    with pytest.raises(LoraDropError, match="no checkpoint in out"):
        run.resume()
    run.save(None)
    other = trainer(tiny, windows, tmp_path / "out", small(rank=4))
    with pytest.raises(LoraDropError, match="made with rank 8, this run has 4"):
        other.resume()
    with pytest.raises(LoraDropError, match="made with loss kl, this run has argmax"):
        trainer(tiny, windows, tmp_path / "out", small(loss="argmax")).resume()


def test_a_checkpoint_older_than_a_setting_had_its_former_default(tiny, windows, tmp_path):
    """Before: it went on with exact refreshes, which its corrections were not trained for."""
    trainer(tiny, windows, tmp_path / "out", small(kv="skip", refresh="single", head_rank=0)).save(None)
    path = tmp_path / "out" / CHECKPOINT / STATE
    state = torch.load(path, weights_only=True)
    for name in ("kv", "refresh", "head_rank"):
        del state["settings"][name]
    torch.save(state, path)
    with pytest.raises(LoraDropError, match="made with kv skip, this run has write: use the same settings"):
        trainer(tiny, windows, tmp_path / "out").resume()
    trainer(tiny, windows, tmp_path / "out", small(kv="skip", refresh="single", head_rank=0)).resume()


def test_the_losses_are_drawn_beside_the_bank(tiny, windows, tmp_path):
    trainer(tiny, windows, tmp_path / "out", small(max_tokens=48 * 4 * 3)).run(2, 100)
    picture, log = ((tmp_path / "out" / name).read_text() for name in (PICTURE, LOG))
    ElementTree.fromstring(picture)
    assert picture == loss_picture(log) and "period 2, ratio 0.25" in picture
    *_, second, third = log.splitlines(keepends=True)
    assert loss_picture(log + second[:20]) == picture, "a kill may cut a line short"
    assert loss_picture(log + second + third) == picture, "a resumed run repeats steps"


def test_another_text_does_not_resume(tiny, windows, tmp_path):
    trainer(tiny, windows, tmp_path / "out").save(None)
    with pytest.raises(LoraDropError, match="trained on another text"):
        trainer(tiny, windows.flip(0), tmp_path / "out").resume()
    counted = torch.ones_like(windows).bool()
    counted[:, 0] = False
    with pytest.raises(LoraDropError, match="trained on another text"):
        Trainer(tiny, SMALL, TrainJob(tmp_path / "out"), windows, counted).resume()


def test_a_constant_rate_decays_from_any_checkpoint(tiny, windows, tmp_path):
    constant = small(decay=0)
    run = trainer(tiny, windows, tmp_path / "out", constant)
    assert {run.learning_rate(step) for step in range(1, run.steps)} == {SMALL.learning_rate}
    for _ in range(6):
        run.train_step()
    run.save(None)
    shorter = small(decay=0.25, max_tokens=8 * 4 * 48)
    branch = trainer(tiny, windows, tmp_path / "out", shorter)
    branch.resume()
    assert [branch.learning_rate(step) for step in (5, 6, 7)] == [2e-2, 2e-2, 1e-2]
    branch.run(100, 100)
    assert branch.step == 8
    cosine = trainer(tiny, windows, tmp_path / "cosine", SMALL)
    cosine.save(None)
    with pytest.raises(LoraDropError, match="made with max_tokens"):
        trainer(tiny, windows, tmp_path / "cosine", shorter).resume()


def test_a_reply_has_a_window_of_its_own_and_its_decode_steps_count():
    plain = Text(range(100, 150))
    texts = [Text(range(40), 10), plain, Text(range(40, 50), 4), Text(range(50, 130), 70)]
    windows, counted = to_rows(texts, 32)
    row = [*range(40), *range(40, 50), *range(50, 130)]
    # The second reply has too few tokens, and so have the first two windows of the third and the first one's rest.
    assert windows.tolist() == [row[:32], [*plain[:32]]]
    assert counted.tolist() == [[place >= 10 for place in range(32)], [True] * 32]
    windows, counted = to_rows(texts[:1] + texts[3:], 40)
    assert windows.tolist() == [[*range(40)]]
    assert counted.tolist() == [[10 <= place < 39 for place in range(40)]]
    short = [Text(range(12), 10)] * 4
    assert to_rows(short, 16)[1].all()  # no reply is long enough: all is text


@pytest.mark.parametrize("refresh", ["single", "repair"])
def test_what_does_not_count_changes_nothing(tiny, windows, tmp_path, refresh):
    settings = small(refresh=refresh, kv="write", period=3, batch_size=1)
    counted = torch.zeros_like(windows).bool()
    counted[:, 30:40] = True
    other = windows.clone()
    other[:, 40:] = 7
    losses = []
    for text in (windows, other):
        run = Trainer(tiny, settings, TrainJob(tmp_path), text, counted)
        losses.append(run.train_step())
    assert losses[0] == losses[1] and losses[0][0] > 0


@torch.no_grad()
@pytest.mark.parametrize("loss", get_args(Loss))
def test_each_loss_by_hand(tiny, windows, loss):
    schedule, counted = Schedule(3, tiny.num_layers, (2, 4)), torch.ones(1, 48).bool()
    counted[:, 20:30] = False
    bank, tokens = random_bank(tiny, layers=list(schedule.dropped)), windows[:1]
    value, agreed = distillation(tiny, tokens, counted, 12, schedule, bank, loss)
    places = [t for t in range(12, 48 - (loss == "text")) if counted[0, t]]
    ours = tiny.model.get_output_embeddings()(student_states(tiny.model, tokens, 12, schedule, bank)[0])[0, places]
    full = tiny.model(tokens).logits[0, places]
    q = full.softmax(-1) if loss == "kl" else (full / 0.5).softmax(-1)
    if loss in ("argmax", "text"):
        expected = cross_entropy(ours, full.argmax(-1) if loss == "argmax" else tokens[0, [t + 1 for t in places]])
    else:
        expected = (q * (q.log() - ours.log_softmax(-1))).sum(-1).mean()
    assert float(value) == pytest.approx(float(expected), rel=1e-4)
    assert float(agreed) == pytest.approx((ours.argmax(-1) == full.argmax(-1)).float().mean().item())


def test_no_prompt_of_a_batch_has_lora_steps_with_single_refreshes(tiny, windows, tmp_path, monkeypatch):
    counted, prompts = torch.zeros_like(windows).bool(), []
    counted[::2, 20:40] = True
    counted[1::2, 25:45] = True
    monkeypatch.setattr(
        trainer_module, "distillation", lambda *args: prompts.append(args[3]) or (torch.zeros(()),) * 2
    )
    run = Trainer(tiny, small(batch_size=len(windows) // 2, refresh="single"), TrainJob(tmp_path), windows, counted)
    run.prepare()
    run._first_loss(run.bank)
    assert prompts == [25]


def test_every_epoch_reads_every_window_once():
    seen = [w for step in range(10) for w in draw(SMALL, step, 20, 6).windows]
    assert sorted(seen[:20]) == sorted(seen[20:]) == list(range(20)) and seen[:20] != seen[20:]
    uneven = [w for step in range(7) for w in draw(SMALL, step, 14, 6).windows]
    assert sorted(uneven[:14]) == sorted(uneven[14:]) == list(range(14))
    assert draw(SMALL, 3, 20, 6) == draw(SMALL, 3, 20, 6) != draw(SMALL, 4, 20, 6)
    assert len({draw(SMALL, step, 20, 30).schedule.period for step in range(40)}) == 5


def test_text_comes_from_txt_json_and_jsonl(tiny, tmp_path):
    records = [{"q": "a" * 40, "list": [{"x": "b" * 40}], "n": 3}]
    (tmp_path / "a.json").write_text(json.dumps(records))
    (tmp_path / "b.jsonl").write_text(json.dumps(records[0]) + "\n")
    one, two = (to_windows(read_texts(tiny, [tmp_path / name]), 16) for name in ("a.json", "b.jsonl"))
    assert torch.equal(one, two)
    assert bytes(one.flatten().tolist()[:45]) == b"a" * 40 + b"\n" + b"b" * 4


@pytest.mark.parametrize(
    ("content", "argv", "says"),
    [
        (b"\xff\xfe\x00", [], "not UTF-8"),
        (b"short", [], "less than one window of 256"),
        (b"x" * 300, [], "at least two"),
        (b"x" * 900, ["--drop-ratio", "0.01"], "skips no layer"),
    ],
)
def test_bad_input_is_one_line(tmp_path, capsys, content, argv, says):
    (tmp_path / "text.txt").write_bytes(content)
    base = ["train", "--data", str(tmp_path / "text.txt"), "--out", str(tmp_path / "out")]
    assert main([*base, "--model", "random:tiny-llama", *argv]) == 2
    captured = capsys.readouterr()
    assert says in captured.err and captured.err.count("\n") == 1


def test_the_command_leaves_a_bank_that_run_takes(tmp_path, capsys):
    (tmp_path / "text.txt").write_text(TEXT)
    tiny = ["--model", "random:tiny-llama", "--dtype", "float32"]
    base = ["train", "--data", str(tmp_path / "text.txt"), "--out", str(tmp_path / "out"), *tiny]
    small = ["--length", "32", "--batch-size", "2", "--max-tokens", "200", "--rank", "4", "--json"]
    assert main([*base, *small]) == 0
    result = json.loads(capsys.readouterr().out)
    assert main(["train", "--resume", *base[1:], *small[:-1]]) == 0
    command = shlex.split(capsys.readouterr().out.splitlines()[-1])
    assert command[:4] == ["python", "-m", "lora_drop", "run"] and command[-1] == str(tmp_path / "out")
    capsys.readouterr()
    assert main([*command[3:], "--max-new-tokens", "4", "--no-own-repeats", "--dtype", "float32", "--json"]) == 0
    captured = capsys.readouterr()
    config = json.loads(captured.out)["config"]
    wanted = {"period": 3, "refresh": "repair", "kv": "write", "accept": 0.15, "head": "screened"}
    assert wanted.items() <= config.items() and not config["own_repeats"]  # an option comes before the bank's setting
    assert f"note: settings of adapters {tmp_path / 'out'}: period 3, " in captured.err
    assert main([*base, *small]) == 2 and "--resume" in capsys.readouterr().err
    run = ["run", "--prompt", "Hello", *tiny, "--max-new-tokens", "6", "--adapters", str(tmp_path / "out"), "--json"]
    assert result["adapters"] == str(tmp_path / "out") and main(run) == 0
    answer = json.loads(capsys.readouterr().out)
    assert answer["config"]["rank"] == 4
    os.replace(tmp_path / "out" / CHECKPOINT, tmp_path / "out" / "checkpoint.old")  # as a kill may leave it
    assert main(run) == 0
    assert json.loads(capsys.readouterr().out)["lora_drop"]["token_ids"] == answer["lora_drop"]["token_ids"]


def test_python_trains_and_saves_as_documented(tmp_path):
    (tmp_path / "text.txt").write_text(TEXT)
    job = lora_drop.TrainJob(tmp_path / "out", data=[tmp_path / "text.txt"], model="random:tiny-llama")
    lines = []
    result = lora_drop.train(small(max_tokens=48 * 4), job, tell=lines.append)
    assert result["steps"] == 1 and [line.partition(":")[0] for line in lines] == ["memory", "time"]
    lora_drop.AdapterBank.load(tmp_path / "out").save_pretrained(tmp_path / "bank")
    assert AdapterBank.load(tmp_path / "bank").meta["tokens"] == 48 * 4
    presets = presets_of(load_model(job.model, "cpu"), str(job.out))
    assert presets[READABLE].note == "The settings that these corrections were trained for."
    assert presets[READABLE].config.adapters == str(job.out) and presets[READABLE].config.accept == 0.15


def test_the_regression_alone_already_helps(tiny, windows, tmp_path):
    settings = small(drop_ratio=1.0, period=3, fit_batches=12, rank=32)
    run = trainer(tiny, windows, tmp_path / "out", settings)
    before = run.evaluate()["schedules"][0]["kl"]
    run.prepare()
    assert run.evaluate()["schedules"][0]["kl"] < 0.95 * before and run.fit_tokens == 12 * 48 * 4


def test_the_regression_reports_its_batches(tiny, windows, tmp_path):
    calls = []
    trainer(tiny, windows, tmp_path, small(fit_batches=3)).prepare(lambda *call: calls.append(call))
    assert calls == [(done, 3, "") for done in range(4)]


def test_a_tracker_gets_the_figures_of_the_log(tiny, windows, tmp_path, monkeypatch, capsys):
    """A stand-in, as accelerate makes the real ones; one that is not installed is one line."""
    seen = []

    class Tracker(GeneralTracker):
        name, requires_logging_directory, tracker = "tensorboard", True, None

        def __init__(self, run_name, logging_dir):
            super().__init__()
            seen.append(logging_dir)

        def store_init_configuration(self, values):
            seen.append(values)

        def log(self, values, step):
            seen.append((step, values))

        def finish(self):
            seen.append("finished")

    files = ["--data", str(tmp_path / "text.txt"), "--out", str(tmp_path / "a")]
    argv = ["train", "--model", "random:tiny-llama", *files]
    monkeypatch.setattr(accelerate.tracking, "_available_trackers", [])
    assert main([*argv, "--report-to", "wandb"]) == 2 and "pip install wandb" in capsys.readouterr().err
    monkeypatch.setattr(accelerate.tracking, "_available_trackers", [LoggerType.TENSORBOARD])
    monkeypatch.setitem(accelerate.tracking.LOGGER_TYPE_TO_CLASS, "tensorboard", Tracker)
    (tmp_path / "out").mkdir()
    job = TrainJob(tmp_path / "out", [Path("text.txt")], report_to="tensorboard")
    Trainer(tiny, small(max_tokens=48 * 4 * 2), job, windows).run(100, 100)
    folder, settings, *rows, end = seen
    assert folder == str(tmp_path / "out") and settings["rank"] == 8 and end == "finished"
    log = [json.loads(line) for line in (tmp_path / "out" / trainer_module.LOG).read_text().splitlines()]
    assert [step for step, _ in rows] == [entry["step"] for entry in log] == [0, 1, 2]
    assert rows[1][1]["loss"] == log[1]["loss"]
    assert [value for name, value in rows[2][1].items() if name.startswith("kl")] == [
        row["kl"] for row in log[2]["evaluation"]["schedules"]
    ]


def test_the_model_can_write_its_own_text(tmp_path, capsys):
    base = ["train", "--model", "random:tiny-llama", "--dtype", "float32", "--out", str(tmp_path / "out"), "--json"]
    small = ["--length", "32", "--batch-size", "2", "--max-tokens", "200", "--rank", "4", "--fit-batches", "0"]
    assert main([*base, *small]) == 2 and "no text to train on" in capsys.readouterr().err
    assert main([*base, *small, "--self-generate", "2"]) == 0
    folder = json.loads(capsys.readouterr().out)["adapters"]
    assert AdapterBank.load(folder).meta["data"] == ["2 texts that the model wrote itself"]
    assert len((tmp_path / "out" / "self_generated.jsonl").read_text().splitlines()) == 3


def test_pairs_go_through_the_chat_template_and_other_records_do_not(bundled, tmp_path):
    """As decoding will see them: the same tokens as a prompt of the page, then the answer and the end token."""
    records = [
        {"instruction": "Add.", "input": "1 and 2", "output": "3"},
        {"instruction": "Say hello.", "input": "", "output": "Hello!"},
        {"text": "A plain text."},
        {"instruction": "No answer.", "input": "", "output": " "},
    ]
    (tmp_path / "pairs.jsonl").write_text("\n".join(map(json.dumps, records)))
    turns = [Turn.parse("instruction+input:output")]
    add, hello, plain, unanswered = read_texts(bundled, [tmp_path / "pairs.jsonl"], turns)
    end = sorted(bundled.stop_ids)[:1]
    assert add == [*encode_prompt(bundled.tokenizer, "Add.\n\n1 and 2"), *encode_text(bundled.tokenizer, "3"), *end]
    assert hello[: -1 - len(end)] == encode_prompt(bundled.tokenizer, "Say hello.") + encode_text(
        bundled.tokenizer, "Hello"
    )
    assert plain == [*encode_text(bundled.tokenizer, "A plain text."), *end]
    assert unanswered == [*encode_text(bundled.tokenizer, "No answer.\n\n "), *end]


def test_chat_fields_that_lie_deeper():
    turn = Turn.parse("task+of.0.in:of.0.out")
    assert turn.of({"task": "Add.", "of": [{"in": "1, 2", "out": "3"}]}) == ("Add.\n\n1, 2", "3")
    for record in ({"task": "Add.", "of": []}, {"task": "Add.", "of": {"0": 3}}, {"task": 3, "of": [{}]}, [], "of"):
        assert turn.of(record) is None


@pytest.mark.parametrize("text", ["question", "question:", ":answer", "a++b:c"])
def test_chat_fields_that_are_none(text):
    with pytest.raises(LoraDropError, match="chat fields are PROMPT:TARGET"):
        Turn.parse(text)


def test_chat_fields_that_no_record_has(tiny, tmp_path):
    (tmp_path / "a.jsonl").write_text('{"question": "?", "answer": "!"}\n')
    with pytest.raises(LoraDropError, match="no record has the chat fields a:b"):
        read_texts(tiny, [tmp_path / "a.jsonl"], [Turn.parse("question:answer"), Turn.parse("a:b")])


def test_a_long_file_gives_its_share_only(tiny, tmp_path):
    for name in ("one", "two"):
        (tmp_path / f"{name}.txt").write_text("\n\n".join(["x" * 9] * 50))
    texts = read_texts(tiny, [tmp_path / "one.txt", tmp_path / "two.txt"], file_tokens=35)
    assert len(texts) == 2 * 4 and len(texts[0]) == 10


def test_half_of_the_batches_drop_the_first_layers_of_an_order(tiny):
    settings = small(drop_order="4,2,3,1")
    drawn = [draw(settings, step, 40, 6).schedule.dropped for step in range(200)]
    firsts = {tuple(sorted(settings.order[:n])) for n in range(1, 5)}
    assert firsts <= set(drawn)
    plain = [draw(SMALL, step, 40, 6).schedule.dropped for step in range(200)]
    assert set(plain) - firsts and 60 < sum(one != other for one, other in zip(drawn, plain, strict=True)) < 140


def test_the_card_says_how_to_make_the_bank_again(tiny, windows, tmp_path):
    settings = small(max_tokens=48 * 4, drop_order="4,2,3")
    (tmp_path / "out").mkdir()
    run = Trainer(tiny, settings, TrainJob(tmp_path / "out", [Path("a.jsonl")], ["q:a", "b:c"]), windows)
    rows = run.run(100, 100)["schedules"]
    assert [row["drop_layers"] for row in rows if "drop_layers" in row] == [[2, 4], [2, 3, 4]]
    text = (tmp_path / "out" / CHECKPOINT / "adapter" / "README.md").read_text()
    facts = ("Tokens: 192 ", "Text: a.jsonl.", "of 4, 2, 3.", "| 4 | layers 2, 3, 4 |", "reuse residual")
    assert tiny.revision in text
    assert all(fact in text for fact in facts)
    command = shlex.split(next(line for line in text.splitlines() if line.startswith("python -m lora_drop train")))
    args = _parser().parse_args(command[3:])
    assert {name: getattr(args, name) for name in vars(settings)} == vars(settings)
    assert ([str(path) for path in args.data], args.chat) == (["a.jsonl"], ["q:a", "b:c"])


def test_the_defaults_are_what_the_presets_run_with(tiny, windows, tmp_path):
    settings = TrainSettings()
    assert settings.exact and (settings.head_rank, settings.head_best) == (192, 1024)
    trainer(tiny, windows, tmp_path / "out", small(max_tokens=192)).run(1, 1)
    bank = AdapterBank.load(tmp_path / "out")
    assert (bank.refresh, bank.kv) == ("repair", "write")
    assert (bank.head.rank, bank.head.best) == (64, 258)  # all that a tiny model has


@pytest.mark.parametrize("presets", [PRESETS, presets_of(BUNDLED)])
@pytest.mark.parametrize("order", [None, "9,4,7"])
def test_the_settings_of_a_bank_are_those_of_the_preset(presets, order):
    texts = run_settings(TrainSettings(drop_order=order), 30, presets)
    config, preset = config_from({"adapters": "ours"}, presets, texts), presets[READABLE].config
    skipped = (4, 7, 9) if order else preset.schedule_for(30).dropped
    assert config.adapters == "ours" and config.schedule_for(30).dropped == skipped
    same = {"adapters": "auto", "drop_layers": None, "drop_ratio": 1.0}
    assert config.replace(**same) == preset.replace(**same)


def test_a_run_can_leave_a_screened_head(tiny, windows, tmp_path):
    settings = small(max_tokens=192, head_rank=48, head_best=32)
    trainer(tiny, windows, tmp_path / "out", settings).run(1, 1)
    head = with_codes(AdapterBank.load(tmp_path / "out" / CHECKPOINT / "adapter").head, tiny)
    assert head is not None and (head.rank, head.best) == (48, 32)
    with torch.no_grad():
        states = tiny.model.model(windows[-4:]).last_hidden_state.flatten(0, 1)
        exact = tiny.model.get_output_embeddings()(states)
    logits = head.logits(states, tiny.model.get_output_embeddings().weight)
    assert (logits.argmax(-1) == exact.argmax(-1)).float().mean() > 0.95


def test_a_preview_knows_the_last_of_the_texts_too(tiny):
    first, last = (torch.full((HEAD_WINDOWS, 16), token).add_(torch.arange(16) % 3) for token in (20, 120))
    with torch.no_grad():
        states = tiny.model.model(last[:1]).last_hidden_state[0]
        exact = tiny.model.get_output_embeddings()(states)
    both, without = (screened_head(tiny, windows, 8, 1) for windows in (torch.cat((first, last)), first))
    assert (both.preview(states) - exact).norm() < 0.8 * (without.preview(states) - exact).norm()
