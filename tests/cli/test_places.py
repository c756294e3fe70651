"""Where a user's files may lie, and which Python runs the program: it works, or says so in one line."""

import os
import shlex
import shutil
import subprocess
import sys

import pytest

from lora_drop.adapters.bank import AdapterBank
from lora_drop.cli.main import main
from lora_drop.run.trace.trace import read_trace
from tests.support import ROOT

TINY = ["--model", "random:tiny-llama", "--dtype", "float32"]
RUN = ["run", "--prompt", "Hi", *TINY, "--max-new-tokens", "4"]


@pytest.fixture
def place(tmp_path):
    """A folder with spaces and umlauts whose path has more than 260 characters."""
    place = tmp_path / "Ein Ordner für Übungen" / ("ä ö ü " * 20) / ("Straße " * 20)
    place.mkdir(parents=True)
    assert len(str(place)) > 260
    return place


def test_a_path_of_spaces_umlauts_and_260_characters(tiny, place, capsys):
    bank = AdapterBank.new([2, 3], tiny.shape.hidden_size, rank=2)
    bank.revision, bank.num_layers = tiny.revision, tiny.num_layers
    bank.save(place / "Bänke 1")
    assert main([*RUN, "--adapters", str(place / "Bänke 1"), "--trace", str(place / "Spur ü.jsonl")]) == 0
    assert read_trace(place / "Spur ü.jsonl").header.main["config"]["adapters"] == "Bänke 1"
    (place / "Text ß.txt").write_text("The quick brown fox jumps over the lazy dog. " * 40)
    small = ["--length", "32", "--batch-size", "2", "--max-tokens", "200", "--rank", "4"]
    train = ["train", "--data", str(place / "Text ß.txt"), "--out", str(place / "neue Bänke"), *TINY, *small]
    capsys.readouterr()
    assert main(train) == 0
    command = shlex.split(capsys.readouterr().out.splitlines()[-1])
    assert command[-1] == str(place / "neue Bänke")
    assert main([*command[3:], "--max-new-tokens", "4", "--dtype", "float32"]) == 0


@pytest.mark.parametrize("option", ["--adapters", "--trace"])
def test_a_name_of_260_characters_is_refused_in_one_line(option, tmp_path, capsys):
    assert main([*RUN, option, str(tmp_path / ("ü" * 260))]) == 2
    captured = capsys.readouterr()
    assert "name too long" in captured.err and captured.err.count("\n") == 1


@pytest.mark.parametrize(
    ("argv", "says"),
    [
        ([*RUN, "--trace", "/dev/null/run.jsonl"], "cannot write the trace run.jsonl"),
        (["train", "--self-generate", "2", *TINY, "--out", "/dev/null/bank"], "cannot write a training to bank"),
        (["reproduce", "README", "--limit", "1"], "cannot"),
        (["fetch"], "cannot write to the cache folder"),
    ],
)
def test_a_folder_that_cannot_be_written_is_one_line(argv, says, monkeypatch, capsys):
    monkeypatch.setenv("LORA_DROP_CACHE", "/dev/null/cache")
    assert main(argv) == 2
    *_, line = capsys.readouterr().err.splitlines()
    assert line.startswith("lora-drop: ") and says in line


@pytest.mark.full
def test_a_read_only_checkout_runs(tmp_path):
    """Mounted so in a namespace: rights do not bind root, who runs these tests in a container."""
    mount = f"mount --bind {ROOT} {ROOT} && mount -o remount,ro,bind {ROOT}"
    if not shutil.which("unshare") or subprocess.run(["unshare", "-rm", "sh", "-c", mount]).returncode:
        pytest.skip("no namespaces here")
    script = f"{mount} && ! touch {ROOT}/x && cd {ROOT} && exec {sys.executable} -m lora_drop {shlex.join(RUN)}"
    env = os.environ | {"LORA_DROP_CACHE": str(ROOT / "cache")}
    done = subprocess.run(["unshare", "-rm", "sh", "-c", script], capture_output=True, text=True, env=env)
    assert done.returncode == 0 and "Traceback" not in done.stderr, done.stderr
    assert "set LORA_DROP_CACHE to a folder of your own" in done.stderr


@pytest.mark.parametrize("words", [["-m", "lora_drop", *RUN], ["app.py"]])
def test_a_python_without_the_packages_is_one_line(words):
    done = subprocess.run([sys.executable, "-S", *words], cwd=ROOT, capture_output=True, text=True)
    (line,) = done.stderr.splitlines()
    assert done.returncode and sys.executable in line and "has no package" in line and ".venv/bin/activate" in line


def test_a_package_that_is_missing_later_is_one_line(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "tqdm", None)
    assert main(RUN) == 2
    assert "has no package tqdm" in capsys.readouterr().err
