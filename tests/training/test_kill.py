"""Trainings killed by SIGKILL go on to the very same adapters."""

import multiprocessing
import os
import pkgutil
import signal
from pathlib import Path

import pytest

from tests.support.workshop import die

pytestmark = pytest.mark.full

# Eight batches, a checkpoint before the first and after every second one.
OPTIONS = ["--model", "random:tiny-llama", "--dtype", "float32", "--device", "cpu", "--length", "32", "--rank", "4"]
OPTIONS += ["--batch-size", "2", "--max-tokens", "512", "--fit-batches", "2", "--checkpoint-every", "2", "--json"]
# Where a training dies: in a function, at which of its calls, and of which path where others are handled too. A
# function that writes a file has written half of it.
PLACES = {
    "adapter": ("lora_drop.adapters.bank", "save_file", None),
    "state": ("torch", "save", None),
    "new name": ("os", "replace", "checkpoint.partial"),
    "old one": ("shutil", "rmtree", "checkpoint.old"),
    "batch": ("lora_drop.training.trainer:Trainer", "train_step", None),
}


def trains(text: Path, out: Path, *more: str) -> int:
    from lora_drop.cli.main import main

    return main(["train", "--data", str(text), "--out", str(out), *OPTIONS, *more])


def dies_training(text: Path, out: Path, place: str, at: int, *more: str) -> None:
    """Runs in its own process: trains, and dies at the `at`-th call of the place."""
    owner, name, path = PLACES[place]
    owner, calls = pkgutil.resolve_name(owner), []
    act = getattr(owner, name)

    def acting(*args, **options):
        if path is None or (Path(args[0]).name == path and Path(args[0]).exists()):
            calls.append(args)
            if len(calls) == at:
                if place in ("adapter", "state"):
                    act(*args)
                    os.truncate(args[1], Path(args[1]).stat().st_size // 2)
                die()
        return act(*args, **options)

    setattr(owner, name, acting)
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
    ("place", "at", "left"),
    [
        ("adapter", 3, {"checkpoint", "checkpoint.partial"}),
        ("state", 3, {"checkpoint", "checkpoint.partial"}),
        ("new name", 3, {"checkpoint.old", "checkpoint.partial"}),
        ("old one", 2, {"checkpoint", "checkpoint.old"}),
        ("batch", 4, {"checkpoint"}),
    ],
)
def test_a_killed_training_goes_on_to_the_very_same_adapters(server, text, whole, tmp_path, capsys, place, at, left):
    out = tmp_path / "out"
    killed(server, text, out, place, at)
    assert {path.name for path in out.iterdir()} == left | {"train_log.jsonl", "loss.svg"}
    assert trains(text, out) == 2
    assert "holds a checkpoint: go on with --resume" in capsys.readouterr().err
    assert trains(text, out, "--resume") == 0
    assert adapter(out) == whole
    assert {path.name for path in out.iterdir()} == {"checkpoint", "train_log.jsonl", "loss.svg", "presets.json"}


def test_a_second_kill_at_the_same_place_loses_nothing(server, text, whole, tmp_path):
    """The first leaves the last good checkpoint under its old name; the second comes as the next one replaces it."""
    out = tmp_path / "out"
    killed(server, text, out, "new name", 2)
    for _ in range(2):
        killed(server, text, out, "new name", 1, "--resume")
    assert trains(text, out, "--resume") == 0
    assert adapter(out) == whole


def test_a_training_killed_before_its_first_checkpoint_starts_anew(server, text, whole, tmp_path, capsys):
    out = tmp_path / "out"
    killed(server, text, out, "adapter", 1)
    assert trains(text, out, "--resume") == 2
    assert "there is no checkpoint in out to resume: start without --resume" in capsys.readouterr().err
    assert trains(text, out) == 0
    assert adapter(out) == whole
