"""Trainings killed by SIGKILL go on to the very same adapters."""

from __future__ import annotations

import multiprocessing
import os
import shutil
import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support.workshop import die

pytestmark = pytest.mark.full

# Eight batches, a checkpoint after every second one.
OPTIONS = ["--model", "random:tiny-llama", "--dtype", "float32", "--device", "cpu", "--length", "32", "--rank", "4"]
OPTIONS += ["--batch-size", "2", "--max-tokens", "512", "--fit-batches", "2", "--checkpoint-every", "2", "--json"]
SECOND = 2  # the checkpoint at which most of the kills come: there is a good one already


def trains(text: Path, out: Path, *more: str) -> int:
    from lora_drop.cli.main import main

    return main(["train", "--data", str(text), "--out", str(out), *OPTIONS, *more])


def counted(act: Callable[..., object], at: int, instead: Callable[..., object]) -> Callable[..., object]:
    """A function that does something else at its `at`-th call."""
    calls = []

    def acting(*args, **kwargs):
        calls.append(args)
        return (instead if len(calls) == at else act)(*args, **kwargs)

    return acting


def dies_training(text: Path, out: Path, stage: str, *more: str) -> None:
    """Runs in its own process: trains, and dies at the stage."""
    import torch

    from lora_drop.adapters import bank as adapters
    from lora_drop.training import checkpoint
    from lora_drop.training.trainer import Trainer

    save_file, save, step, replace = adapters.save_file, torch.save, Trainer.train_step, os.replace

    def half(write: Callable[..., object]) -> Callable[..., None]:
        def writing(content, path) -> None:
            write(content, path)
            os.truncate(path, Path(path).stat().st_size // 2)
            die()

        return writing

    def replace_or_die(source, target) -> None:
        if Path(source).name == f"{checkpoint.CHECKPOINT}.partial" and Path(target).parent == out:
            seen.append(target)
            if stage == "first new name" or len(seen) == SECOND:
                die()
        replace(source, target)

    def rmtree(path, **options) -> None:
        if Path(path).name == f"{checkpoint.CHECKPOINT}.old" and Path(path).exists():
            die()
        shutil_rmtree(path, **options)

    seen, shutil_rmtree = [], shutil.rmtree
    if stage == "first adapter":
        adapters.save_file = half(save_file)
    elif stage == "adapter":
        adapters.save_file = counted(save_file, SECOND, half(save_file))
    elif stage == "state":
        torch.save = counted(save, SECOND, half(save))
    elif stage in ("new name", "first new name"):
        os.replace = replace_or_die
    elif stage == "old one":
        checkpoint.shutil.rmtree = rmtree
    elif stage == "batch":
        Trainer.train_step = counted(step, 4, lambda *_: die())
    trains(text, out, *more)


@pytest.fixture(scope="module")
def server():
    """Processes that start with torch imported: forked from one that has done nothing else."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["lora_drop.training.train"])
    return context


@pytest.fixture(scope="module")
def text(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("text") / "text.txt"
    path.write_text("\n\n".join(f"Line {n}: the quick brown fox jumps over {n * 37 % 101} dogs." for n in range(60)))
    return path


def adapter(out: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in (out / "checkpoint" / "adapter").iterdir()}


@pytest.fixture(scope="module")
def whole(text, tmp_path_factory) -> dict[str, bytes]:
    """The adapter folder of a run in peace."""
    out = tmp_path_factory.mktemp("whole") / "out"
    assert trains(text, out) == 0
    return adapter(out)


def killed(server, *args) -> None:
    process = server.Process(target=dies_training, args=args)
    process.start()
    process.join(120)
    assert process.exitcode == -signal.SIGKILL


@pytest.mark.parametrize(
    ("stage", "left"),
    [
        ("adapter", {"checkpoint", "checkpoint.partial"}),
        ("state", {"checkpoint", "checkpoint.partial"}),
        ("new name", {"checkpoint.old", "checkpoint.partial"}),
        ("old one", {"checkpoint", "checkpoint.old"}),
        ("batch", {"checkpoint"}),
    ],
)
def test_a_killed_training_goes_on_to_the_very_same_adapters(server, text, whole, tmp_path, capsys, stage, left):
    out = tmp_path / "out"
    killed(server, text, out, stage)
    assert {path.name for path in out.iterdir()} == left | {"train_log.jsonl"}
    assert trains(text, out) == 2
    assert "holds a checkpoint: go on with --resume" in capsys.readouterr().err
    assert trains(text, out, "--resume") == 0
    assert adapter(out) == whole
    assert {path.name for path in out.iterdir()} == {"checkpoint", "train_log.jsonl"}


def test_a_second_kill_at_the_same_place_loses_nothing(server, text, whole, tmp_path):
    """The first leaves the last good checkpoint under its old name; the second comes as the next one replaces it."""
    out = tmp_path / "out"
    killed(server, text, out, "new name")
    for _ in range(2):
        killed(server, text, out, "first new name", "--resume")
    assert trains(text, out, "--resume") == 0
    assert adapter(out) == whole


def test_a_training_killed_before_its_first_checkpoint_starts_anew(server, text, whole, tmp_path, capsys):
    out = tmp_path / "out"
    killed(server, text, out, "first adapter")
    assert trains(text, out, "--resume") == 2
    assert "there is no checkpoint in out to resume: start without --resume" in capsys.readouterr().err
    assert trains(text, out) == 0
    assert adapter(out) == whole
