"""The program where Python lacks what only Unix has, as on Windows: these calls are taken away before it starts."""

from __future__ import annotations

import os
import subprocess
import sys
import types
from pathlib import Path

import pytest

from lora_drop import paths
from lora_drop.errors import LoraDropError
from lora_drop.paths import CHECKOUT, bytes_on_disk, only_writer

WITHOUT = """
import os, sys
import filelock, psutil  # have forms of their own for Windows, and take Linux's here
for name in "pread pwrite killpg getpgid setsid fork nice O_NOFOLLOW O_NONBLOCK".split():
    delattr(os, name)
sys.modules["fcntl"] = sys.modules["resource"] = None
"""
COMMAND = WITHOUT + "from lora_drop.cli.main import main\nsys.exit(main(sys.argv[1:]))\n"
KERNELS = WITHOUT + "from lora_drop.decode.native.loader import library\nprint(library().about)\n"
PROGRAM = """
from lora_drop.errors import LoraDropError
from lora_drop.evaluation.tasks.sandbox import run_program
try:
    run_program("pass")
except LoraDropError as error:
    print(error)
"""


def run(code: str, *words: str, cwd: Path) -> str:
    environment = os.environ | {"PYTHONPATH": str(CHECKOUT), "LORA_DROP_CACHE": str(cwd / "cache")}
    command = [sys.executable, "-c", code, *words]
    done = subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_a_run_writes_its_trace(tmp_path):
    tiny = ("run", "--model", "random:tiny-llama", "--prompt", "hi", "--max-new-tokens", "4", "--json")
    assert '"baseline"' in run(COMMAND, *tiny, "--trace", "run.jsonl", cwd=tmp_path)
    assert (tmp_path / "run.jsonl").is_file()


def test_kernels_are_compiled_and_loaded(tmp_path):
    for _ in range(2):
        assert run(KERNELS, cwd=tmp_path).startswith("built here")
    assert len(list((tmp_path / "cache" / "native").iterdir())) == 1, "the second start loads the first one's"


def test_a_generated_program_is_refused_in_one_line(tmp_path):
    (line,) = run(WITHOUT + PROGRAM, cwd=tmp_path).splitlines()
    assert "cannot limit them: run this task on Linux or macOS" in line


def test_bytes_are_counted_where_blocks_are_not(tmp_path, monkeypatch):
    (tmp_path / "file").write_bytes(b"12345")
    monkeypatch.setattr(os, "stat", lambda path: types.SimpleNamespace(st_size=5))
    assert bytes_on_disk(tmp_path) == 5


def test_a_folder_has_one_writer(tmp_path, monkeypatch):
    monkeypatch.setattr(paths, "fcntl", None)
    for _ in range(2):
        with (
            only_writer(tmp_path, "a sweep"),
            pytest.raises(LoraDropError, match="another command is writing"),
            only_writer(tmp_path, "a sweep"),
        ):
            pytest.fail("two at once")
    assert list(tmp_path.iterdir()) == []
