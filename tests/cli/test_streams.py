"""The command's streams and folders as shells hand them over: closed, gone, and with names that need quoting."""

import json
import shlex
import subprocess
import sys

import pytest

from lora_drop.cli.main import main
from tests.support import ROOT
from tests.support.commands import TINY

pytestmark = pytest.mark.full

RUN = ["run", "--prompt", "Hi", "--max-new-tokens", "2", *TINY]


def shell(words: list[str], ending: str) -> tuple[int, str, str]:
    """The exit code of a command at a shell's hand, what went to stdout, and what to stderr."""
    line = f"{shlex.join([sys.executable, '-m', 'lora_drop', *words])} {ending}"
    done = subprocess.run(["bash", "-c", line], cwd=ROOT, capture_output=True, text=True, timeout=120)
    return done.returncode, done.stdout, done.stderr


@pytest.mark.parametrize("words", [["run", "--help"], [*RUN, "--json"]], ids=["help", "json"])
def test_a_reader_that_has_gone_ends_it_quietly(words):
    _, _, printed = shell(words, "| true")
    assert printed == ""


def test_a_closed_stdout_or_stderr_leads_nowhere(tmp_path):
    """A file that is opened first would else be in its place: the trace in place of stdout."""
    trace = tmp_path / "run.jsonl"
    assert shell([*RUN, "--json", "--trace", str(trace)], "<&- >&- 2>&-") == (0, "", "")
    assert next(json.loads(line)["type"] for line in trace.read_text().splitlines()) == "header"
    replay = ["replay", str(trace), "--json"]  # imports no torch
    code, out, _ = shell(replay, "2>&-")
    assert code == 0 and json.loads(out)
    assert shell(["run", "--prompt", "", *TINY], "2>&-") == (2, "", "")
    assert shell(replay, ">&-") == (0, "", "")


@pytest.mark.parametrize("name", ['a #"% b', "-o'\\ $(x)", "日本 \u202e"])
def test_folders_of_any_name(tmp_path, monkeypatch, capsys, name):
    work = tmp_path / name
    work.mkdir()
    (work / "pairs.jsonl").write_text('{"q": "Why?", "a": "Because it is so."}\n')
    (work / "text.txt").write_text("The quick brown fox jumps over the lazy dogs.\n\n" * 40)
    data = ["--data", str(work / "pairs.jsonl"), "--prompt-field", "q", "--target-field", "a", *TINY]
    small = ["--length", "32", "--batch-size", "2", "--max-tokens", "64", "--rank", "4", "--fit-batches", "0"]
    trace, bank = work / f"{name}.jsonl", work / "tr #"
    for words in (
        ["sweep", *data, "--periods", "2", "--drop-ratios", "0.5", "--out", str(work / "s %")],
        ["train", "--data", str(work / "text.txt"), *TINY, *small, "--out", str(work / "tr #")],
        [*RUN, "--adapters", str(bank), f"--trace={trace}"],
        ["replay", str(trace), "--html", str(work / "r #.html"), "--chrome", str(work / "r %.json")],
        ["replay-space", str(work / 'sp "'), str(trace)],
    ):
        assert main(words) == 0, capsys.readouterr().err
    pushed = shlex.split(capsys.readouterr().out.splitlines()[-1])
    assert str(work / 'sp "') in pushed
