"""The checkout, installed as a developer does: `pip install -e .` and `uv sync` run its files where they lie."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from lora_drop.paths import CHECKOUT
from tests.package.conftest import install

pytestmark = [pytest.mark.full, pytest.mark.timeout(600)]

FACTS = "from lora_drop.paths import CHECKOUT, SHIPPED_ADAPTERS; print(CHECKOUT, SHIPPED_ADAPTERS.is_dir())"
EDITABLE = ("--no-build-isolation", "-e", CHECKOUT)
TINY = ("run", "--model", "random:tiny-llama", "--prompt", "hi", "--max-new-tokens", "4", "--json")


def call(*command: str | Path, cwd: Path, **more: str) -> str:
    env = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "VIRTUAL_ENV")} | more
    done = subprocess.run(command, cwd=cwd, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_pip_installs_it(tmp_path):
    bin_folder = install(tmp_path / "venv", *EDITABLE)
    assert call(bin_folder / "python", "-c", FACTS, cwd=tmp_path).split() == [str(CHECKOUT), "True"]
    assert "baseline" in call(bin_folder / "lora-drop", *TINY, cwd=tmp_path)


def test_uv_syncs_it_and_runs_it(tmp_path):
    """Without the packages it asks for, which would be downloaded."""
    files = subprocess.run(["git", "ls-files", "-z"], cwd=CHECKOUT, capture_output=True, text=True, check=True).stdout
    copy = tmp_path / "checkout"
    for name in filter(None, files.split("\0")):
        if (CHECKOUT / name).is_file():
            (copy / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(CHECKOUT / name, copy / name)
    project = copy / "pyproject.toml"
    text = project.read_text(encoding="utf-8")
    project.write_text(
        re.sub(r"(?ms)^dependencies = \[.*?^\]\n|^\[project.optional.*?\n\n", "", text), encoding="utf-8"
    )
    venv = install(tmp_path / "venv", *EDITABLE).parent
    uv = (sys.executable, "-m", "uv")
    offline = ("--offline", "--no-config")
    call(*uv, "sync", *offline, "--inexact", "--no-build-isolation", cwd=copy, UV_PROJECT_ENVIRONMENT=str(venv))
    for command, output in ((("python", "-c", FACTS), str(copy)), (("lora-drop", *TINY), "baseline")):
        assert output in call(*uv, "run", *offline, "--no-sync", *command, cwd=copy, UV_PROJECT_ENVIRONMENT=str(venv))
