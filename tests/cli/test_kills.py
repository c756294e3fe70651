"""Commands killed by SIGKILL at random moments: what is there afterwards is whole, and called again they end well."""

from __future__ import annotations

import json
import multiprocessing
import os
import random
import signal
import time
from pathlib import Path

import pytest

from lora_drop.adapters.bank import CHECKPOINTS, AdapterBank
from lora_drop.cli.main import main
from lora_drop.paths import DRAFT
from lora_drop.run.results.files import CSV_NAME, SWEEP
from lora_drop.training.checkpoint import CHECKPOINT

pytestmark = [pytest.mark.full, pytest.mark.timeout(600)]

KILLS = 9  # of each of the three; three of the first start are in models/test_kill.py
TINY = ["--model", "random:tiny-llama", "--device", "cpu", "--dtype", "float32"]
SMALL = ["--length", "32", "--rank", "4", "--batch-size", "2", "--max-tokens", "512", "--fit-batches", "0"]
COMMANDS = {
    "sweep": [
        *("sweep", "--data", "pairs.jsonl", "--prompt-field", "q", "--target-field", "a", *TINY),
        *("--drop-ratios", "0.25,0.5", "--periods", "2,3", "--out", "swept"),
    ],
    "train": ["train", "--data", "text.txt", *TINY, *SMALL, "--checkpoint-every", "1", "--out", "trained"],
    "export": ["replay", "run.jsonl", "--html", "run.html", "--chrome", "run.json"],
}


def works(folder: Path, argv: list[str]) -> None:
    """Runs in its own process."""
    os.chdir(folder)
    for number in (1, 2):
        os.dup2(os.open(os.devnull, os.O_WRONLY), number)
    os._exit(main(argv))


@pytest.fixture(scope="module")
def server():
    """Processes that start with everything imported: forked from one that has done nothing else."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tests.cli.test_kills", "lora_drop.evaluation.sweep", "lora_drop.training.train"])
    return context


def ends(server, folder: Path, argv: list[str], after: float | None = None) -> int:
    """The exit code of a command that is killed after so many seconds, or left in peace."""
    process = server.Process(target=works, args=(folder, argv))
    process.start()
    process.join(after)
    process.kill()
    process.join()
    return process.exitcode


@pytest.fixture
def work(tmp_path) -> Path:
    (tmp_path / "pairs.jsonl").write_text('{"q": "Why?", "a": "Because it is so."}\n')
    (tmp_path / "text.txt").write_text(
        "\n\n".join(f"Line {n}: a fox jumps over {n * 37 % 101} dogs." for n in range(60))
    )
    return tmp_path


class Kills:
    """Random moments of a command, whose whole run is made first."""

    def __init__(self, server, folder: Path, argv: list[str]):
        self.server, self.folder, self.met = server, folder, 0
        ends(server, folder, ["--help"])  # the server's own start is no part of it
        draw = random.Random(0)
        self.shares, self.took = [draw.random() for _ in range(KILLS)], float("inf")
        self.run(argv)

    def run(self, argv: list[str], share: float = 1) -> None:
        """Call it, and kill it after that share of the shortest run so far; a busy machine makes some of them long."""
        begun = time.monotonic()
        code = ends(self.server, self.folder, argv, self.took * share if share < 1 else None)
        assert code in (0, -signal.SIGKILL)
        self.met += code != 0
        if code == 0:
            self.took = min(self.took, time.monotonic() - begun)


def losses(folder: Path) -> dict[tuple, tuple]:
    """The figures of a sweep that no clock has part in, by point."""
    rows = SWEEP.read(folder / SWEEP.name)["rows"]
    return {(row["drop_ratio"], row["period"]): (row["all_steps_kl"], row["bound"], row["kv_saved"]) for row in rows}


def test_a_sweep(server, work):
    kills = Kills(server, work, COMMANDS["sweep"])
    whole, cut = losses(work / "swept"), work / "cut"
    argv = [*COMMANDS["sweep"][:-1], "cut"]
    for share in kills.shares:
        kills.run(argv, share)
        if (cut / SWEEP.name).exists():
            assert losses(cut).items() <= whole.items()
            assert len((cut / CSV_NAME).read_text().splitlines()) > len(losses(cut)), "the table has each row, too"
    assert kills.met, "at least one met it at work"
    assert ends(server, work, argv) == 0
    assert losses(cut) == whole and {path.name for path in cut.iterdir()} == {SWEEP.name, CSV_NAME}


def adapter(out: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in (out / CHECKPOINT / "adapter").iterdir()}


def test_a_training(server, work):
    kills = Kills(server, work, COMMANDS["train"])
    whole, cut = adapter(work / "trained"), work / "cut"
    argv = [*COMMANDS["train"][:-1], "cut"]
    for share in kills.shares:
        there = [cut / name for name in CHECKPOINTS if (cut / name).is_dir()]
        kills.run([*argv, *(["--resume"] if there else [])], share)
        for folder in [cut / name for name in CHECKPOINTS if (cut / name).is_dir()]:
            AdapterBank.load(folder / "adapter")
    assert kills.met, "at least one met it at work"
    there = any((cut / name).is_dir() for name in CHECKPOINTS)
    assert ends(server, work, [*argv, *(["--resume"] if there else [])]) == 0
    assert adapter(cut) == whole and {path.name for path in cut.iterdir()} == {CHECKPOINT, "train_log.jsonl"}


def test_exports(server, work):
    assert main(["run", "--prompt", "Hi", *TINY, "--max-new-tokens", "40", "--trace", str(work / "run.jsonl")]) == 0
    kills = Kills(server, work, COMMANDS["export"])
    names = ("run.html", "run.json")
    whole = {name: (work / name).read_bytes() for name in names}
    assert json.loads(whole["run.json"]) and whole["run.html"].endswith(b"</html>\n")
    for share in kills.shares:
        for name in names:
            (work / name).write_bytes(b"the old one")
        kills.run(COMMANDS["export"], share)
        assert all((work / name).read_bytes() in (b"the old one", whole[name]) for name in names)
    assert kills.met, "at least one met it at work"
    left = {path.name for path in work.iterdir() if not DRAFT.fullmatch(path.name)}
    assert left == {"pairs.jsonl", "text.txt", "run.jsonl", *names}
