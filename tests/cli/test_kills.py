"""Commands killed by SIGKILL at random function calls: what is there then is whole, and called again they end well."""

import json
import multiprocessing
import os
import random
import signal
import sys
from multiprocessing.sharedctypes import Synchronized
from pathlib import Path
from types import FrameType

import pytest

from lora_drop.adapters.bank import CHECKPOINTS, AdapterBank
from lora_drop.cli.main import main
from lora_drop.paths import DRAFT
from lora_drop.run.results.files import CSV_NAME, SWEEP
from lora_drop.training.checkpoint import CHECKPOINT
from tests.support.workshop import die

pytestmark = [pytest.mark.full, pytest.mark.timeout(600)]

KILLS = 9  # of each of the three; those of the first start are in models/test_kill.py
TINY = ["--model", "random:tiny-llama", "--device", "cpu", "--dtype", "float32"]
SMALL = ["--length", "32", "--rank", "4", "--batch-size", "2", "--max-tokens", "512", "--fit-batches", "0"]
COMMANDS = {
    "sweep": [
        *("sweep", "--data", "pairs.jsonl", "--prompt-field", "q", "--target-field", "a", *TINY),
        *("--drop-ratios", "0.25,0.5", "--periods", "2", "--out", "swept"),
    ],
    "train": ["train", "--data", "text.txt", *TINY, *SMALL, "--checkpoint-every", "1", "--out", "trained"],
    "export": ["replay", "run.jsonl", "--html", "run.html", "--chrome", "run.json"],
}


def works(folder: Path, argv: list[str], last: int, calls: Synchronized) -> None:
    """Runs in its own process: counts the calls of functions, Python's and C's, and dies at the last one."""
    count = 0

    def counts(frame: FrameType, event: str, arg: object) -> None:
        nonlocal count
        count += event in ("call", "c_call")
        if count == last:
            die()

    os.chdir(folder)
    for number in (1, 2):
        os.dup2(os.open(os.devnull, os.O_WRONLY), number)
    sys.setprofile(counts)
    code = main(argv)
    sys.setprofile(None)
    calls.value = count
    os._exit(code)


@pytest.fixture(scope="module")
def server():
    """Processes that start with everything imported: forked from one that has done nothing else."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tests.cli.test_kills", "lora_drop.evaluation.sweep", "lora_drop.training.train"])
    return context


def ends(server, folder: Path, argv: list[str], last: int = 0) -> tuple[int, int]:
    """The exit code of a command that dies at its last call, or is left in peace; and how many calls it made."""
    process = server.Process(target=works, args=(folder, argv, last, calls := server.Value("Q", 0)))
    process.start()
    process.join()
    return process.exitcode, calls.value


@pytest.fixture
def work(tmp_path) -> Path:
    (tmp_path / "pairs.jsonl").write_text('{"q": "Why?", "a": "Because it is so."}\n')
    (tmp_path / "text.txt").write_text(
        "\n\n".join(f"Line {n}: a fox jumps over {n * 37 % 101} dogs." for n in range(60))
    )
    return tmp_path


class Kills:
    """Random calls within a command, whose whole run is made first."""

    def __init__(self, server, folder: Path, argv: list[str]):
        self.server, self.folder, self.met = server, folder, 0
        draw = random.Random(0)
        self.shares = [draw.random() for _ in range(KILLS)]
        code, self.calls = ends(server, folder, argv)
        assert code == 0

    def run(self, argv: list[str], share: float) -> None:
        """Run it until that share of its last whole run's calls; one that goes on with a former's work has fewer."""
        code, calls = ends(self.server, self.folder, argv, int(share * self.calls))
        assert code in (0, -signal.SIGKILL)
        self.met += code != 0
        if code == 0:
            self.calls = calls


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
    assert ends(server, work, argv)[0] == 0
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
    assert ends(server, work, [*argv, *(["--resume"] if there else [])])[0] == 0
    names = {path.name for path in cut.iterdir()}
    assert adapter(cut) == whole and names == {CHECKPOINT, "train_log.jsonl", "loss.svg", "presets.json"}


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
