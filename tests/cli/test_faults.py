"""Every command on a damaged model, out of memory and on a full disk."""

import json
import re
import subprocess
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest
import torch

from lora_drop.cli.main import main
from lora_drop.paths import SHIPPED_SWEEPS, only_writer
from lora_drop.run.trace.trace import read_trace
from scripts import screenshots
from tests.support.faults import damaged, files_of_at_most, fresh, on_a_full_disk, raising

pytestmark = pytest.mark.full

SHIPPED_SWEEP = SHIPPED_SWEEPS / "sweep.json"
SMALL = ["--length", "32", "--batch-size", "2", "--max-tokens", "384", "--rank", "4", "--fit-batches", "0"]
COMMANDS = {
    "run": ["run", "--prompt", "Hello", "--max-new-tokens", "4", "--temperature", "1"],
    "evaluate": ["evaluate", "PAIRS"],
    "sweep": ["sweep", "PAIRS", "--out", "OUT", "--periods", "2", "--drop-ratios", "0.5"],
    "presets": ["presets", "PAIRS", "--prompts", "ASKED", "--out", "OUT"],
    "bench": ["bench", "--prompt-tokens", "8", "--new-tokens", "4", "--rounds", "1", "--no-hf"],
    "drop-order": ["drop-order", "--data", "TEXT", "--windows", "1", "--count", "2"],
    "train": ["train", "--data", "TEXT", "--out", "OUT", *SMALL],
    "self-generate": ["train", "--self-generate", "2", "--out", "OUT", *SMALL],
}


@pytest.fixture
def command(tmp_path) -> Callable[[str], list[str]]:
    """The arguments of one of `COMMANDS`, with its files in place."""
    (tmp_path / "pairs.jsonl").write_text('{"q": "Hello", "a": "there, and more"}\n' * 3)
    (tmp_path / "text.txt").write_text("The quick brown fox jumps over the lazy dogs.\n\n" * 40)
    (tmp_path / "asked.jsonl").write_text('{"prompt": "Hello"}\n')
    pairs = ["--data", str(tmp_path / "pairs.jsonl"), "--prompt-field", "q", "--target-field", "a"]
    words = {
        "PAIRS": pairs,
        "TEXT": [str(tmp_path / "text.txt")],
        "ASKED": [str(tmp_path / "asked.jsonl")],
        "OUT": [str(tmp_path / "out")],
    }

    def arguments(name: str) -> list[str]:
        line = [part for word in COMMANDS[name] for part in words.get(word, [word])]
        return [*line, "--model", "random:tiny-llama", "--dtype", "float32"]

    return arguments


@pytest.mark.parametrize("name", ["sweep", "presets", "train", "benchmark"])
def test_a_second_command_that_writes_to_one_folder_is_one_line(command, task_data, tmp_path, capsys, name):
    out, model = tmp_path / "out", ["--model", "random:tiny-llama", "--dtype", "float32"]
    others = {"benchmark": ["benchmark", "--data-dir", str(task_data), "--limit", "1", "--out", str(out), *model]}
    with only_writer(out, "anything"):
        assert main(others.get(name) or command(name)) == 2
    line = last_line(capsys)
    assert re.fullmatch("lora-drop: another command is writing (a|presets).* to out: wait for its end.*", line), line


def last_line(capsys) -> str:
    """The command's last line: stdout is empty, and stderr has nothing but its progress before that line."""
    captured = capsys.readouterr()
    assert captured.out == "" and "Traceback" not in captured.err
    return captured.err.splitlines()[-1]


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_names_a_damaged_model(command, capsys, monkeypatch, name):
    monkeypatch.setattr("lora_drop.models.load.load_model", lambda *_, **__: damaged("reference"))
    assert main(command(name)) == 2
    assert re.match("lora-drop: .*(are|is) NaN or infinite.*(damaged|overflow)", last_line(capsys))


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_names_memory_that_runs_out(command, capsys, monkeypatch, name):
    model = fresh("reference")
    monkeypatch.setattr("lora_drop.models.load.load_model", lambda *_, **__: model)
    with monkeypatch.context() as patch:
        patch.setattr(torch.nn.Linear, "forward", lambda *_: raising(torch.OutOfMemoryError, "CUDA\nmemory")(None))
        assert main(command(name)) == 2
    assert re.match("lora-drop: .*memory.*(take|lower)", last_line(capsys))


@pytest.mark.parametrize("size", [300, 1200], ids=["sweep.csv", "sweep.json"])
def test_a_sweep_that_meets_a_full_disk(command, capsys, tmp_path, size):
    """The files of the last point stay; a sweep that has none leaves no folder."""
    out = tmp_path / "out"
    with files_of_at_most(size):
        assert main(command("sweep")) == 2
    assert "cannot write a sweep to out: File too large" in last_line(capsys)
    assert not out.exists()
    assert main(command("sweep")) == 0
    before = {path.name: path.read_bytes() for path in out.iterdir()}
    assert before.keys() == {"sweep.csv", "sweep.json"} and len(before["sweep.csv"]) > 300
    capsys.readouterr()
    with files_of_at_most(size):
        assert main([*command("sweep"), "--periods", "2,3"]) == 2
    assert {path.name: path.read_bytes() for path in out.iterdir()} == before
    assert main([*command("sweep"), "--periods", "2,3"]) == 0
    rows = json.loads((out / "sweep.json").read_text())["rows"]
    assert len(rows) == 2 and len((out / "sweep.csv").read_text().splitlines()) == 3


def test_figures_and_replays_that_meet_a_full_disk(command, capsys, tmp_path):
    """`--trace` on a full disk from the start is in test_cli.py."""
    out = tmp_path / "out"
    out.mkdir()
    (out / "sweep.json").write_text(SHIPPED_SWEEP.read_text())
    on_a_full_disk(tmp_path / "figures" / "pareto-own.svg")
    capsys.readouterr()
    assert main(["sweep-figures", str(out), "--out", str(tmp_path / "figures")]) == 2
    assert last_line(capsys) == "lora-drop: cannot write the figures to figures: No space left on device."
    trace = str(tmp_path / "run.jsonl")
    assert main([*command("run"), "--trace", trace]) == 0
    for option in ("--html", "--chrome", "--svg"):
        capsys.readouterr()
        assert main(["replay", trace, option, "/dev/full"]) == 2
        assert "cannot write /dev/full: No space left on device" in last_line(capsys)


def test_a_trace_that_fills_the_disk_in_the_middle_still_reads(command, capsys, tmp_path):
    path = tmp_path / "run.jsonl"
    with files_of_at_most(6_000):
        code = main([*command("run"), "--max-new-tokens", "200", "--ignore-eos", "--trace", str(path)])
    assert code == 2
    assert last_line(capsys) == "lora-drop: the trace could not be written to the end: File too large."
    assert path.stat().st_size <= 6_000 and read_trace(path).steps["baseline"]


def test_screenshots_without_a_folder(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setattr("sys.argv", ["screenshots", "--out", str(tmp_path / "file" / "out")])
    with pytest.raises(SystemExit, match="screenshots: cannot make the folder .*: Not a directory."):
        screenshots.main()


@pytest.fixture
def small_disk(tmp_path) -> Iterator[Path]:
    """A disk of 200 kB."""
    disk = tmp_path / "disk"
    disk.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=200k", "tmpfs", disk], capture_output=True).returncode:
        pytest.skip("this user cannot mount a disk")
    yield disk
    subprocess.run(["umount", disk], check=True)


def test_exports_that_meet_a_full_disk(command, capsys, tmp_path, small_disk):
    trace, page, space = tmp_path / "run.jsonl", small_disk / "run.html", small_disk / "space"
    assert main([*command("run"), "--trace", str(trace)]) == 0
    page.write_text("the old page")
    for words in (["replay", str(trace), "--html", str(page)], ["replay-space", str(space), str(trace)]):
        capsys.readouterr()
        assert main(words) == 2
        assert "No space left on device" in last_line(capsys)
        assert [path.name for path in small_disk.iterdir()] == ["run.html"] and page.read_text() == "the old page"


def test_a_training_on_a_disk_that_fills_up(command, capsys, small_disk):
    out, other = small_disk / "out", small_disk / "other"
    with suppress(OSError):
        other.write_bytes(bytes(300_000))
    words = [str(out) if "/out" in word else word for word in command("train")]
    assert main(words) == 2
    assert "make room, then --resume" in capsys.readouterr().err and not list(out.glob("checkpoint*"))
    other.unlink()
    assert main(words) == 0
