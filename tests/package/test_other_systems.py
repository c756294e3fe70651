"""The program where Python lacks what only Unix has, as on Windows: these calls are taken away before it starts."""

import json
import os
import subprocess
import sys
import types
from pathlib import Path

import pytest

from lora_drop import paths
from lora_drop.paths import CHECKOUT, bytes_on_disk, cache_dir

WITHOUT = """
import os, sys
import filelock, platformdirs, psutil  # have forms for Windows, and take Linux's here
del psutil.Process.rlimit
for name in "pread pwrite killpg getpgid setsid fork nice getuid geteuid O_NOFOLLOW O_NONBLOCK".split():
    delattr(os, name)
sys.modules["fcntl"] = sys.modules["resource"] = None
"""
COMMAND = WITHOUT + "from lora_drop.cli.main import main\nsys.exit(main(sys.argv[1:]))\n"
KERNELS = WITHOUT + "from lora_drop.decode.native.loader import library\nprint(library().about)\n"
PROGRAM = """
from lora_drop.errors import LoraDropError
from lora_drop.evaluation.tasks.sandbox import run_program
for way in (None, "limits", "namespaces"):
    try:
        run_program("pass", way=way)
    except LoraDropError as error:
        print(error)
"""
LIMITS = """
from lora_drop import system
system.limit_memory(1 << 29)
system.step_back(1)
print(system.descriptors(2000), system.limits_programs(), system.is_mine(os.stat(".")))
"""


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    """A folder with a cache, in which the kernels are compiled once."""
    return tmp_path_factory.mktemp("place")


def run(code: str, *words: str, cwd: Path) -> str:
    environment = os.environ | {"PYTHONPATH": str(CHECKOUT), "LORA_DROP_CACHE": str(cwd / "cache")}
    command = [sys.executable, "-c", code, *words]
    done = subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_kernels_are_compiled_and_a_run_with_them_writes_its_trace(place):
    assert run(KERNELS, cwd=place).startswith("built here")
    tiny = ("run", "--model", "random:tiny-llama", "--prompt", "hi", "--max-new-tokens", "4", "--json")
    assert '"baseline"' in run(COMMAND, *tiny, "--trace", "run.jsonl", cwd=place)
    header = json.loads((place / "run.jsonl").read_text().splitlines()[0])
    assert header["device"]["kernels"].startswith("built here")
    assert len(list((place / "cache" / "native").iterdir())) == 1, "the second start loads the first one's"


def test_a_generated_program_is_refused_in_one_line_whichever_way_is_asked_for(tmp_path):
    lines = run(WITHOUT + PROGRAM, cwd=tmp_path).splitlines()
    assert len(lines) == 3 and len(set(lines)) == 1
    assert "cannot limit them: run this task on Linux or macOS" in lines[0]


def test_a_process_goes_on_without_the_limits_that_the_system_lacks(tmp_path):
    assert run(WITHOUT + LIMITS, cwd=tmp_path) == "None False True\n"


def test_bytes_are_counted_where_blocks_are_not(tmp_path, monkeypatch):
    (tmp_path / "file").write_bytes(b"12345")
    monkeypatch.setattr(os, "stat", lambda path: types.SimpleNamespace(st_size=5))
    assert bytes_on_disk(tmp_path) == 5


def test_the_cache_stays_where_it_is_and_a_new_one_is_where_the_system_has_caches(tmp_path, monkeypatch):
    for name in ("LORA_DROP_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    usual, elsewhere = tmp_path / ".cache" / "lora-drop", tmp_path / "Library" / "Caches" / "lora-drop"
    monkeypatch.setattr(paths, "user_cache_path", lambda *_, **__: elsewhere)
    assert cache_dir() == usual, "on Linux"
    monkeypatch.setattr(sys, "platform", "darwin")
    assert cache_dir() == elsewhere
    usual.mkdir(parents=True)
    assert cache_dir() == usual, "an older version's"
