"""The wheel, built as for a release and installed in an empty venv outside the checkout: it carries what it needs."""

import json
import os
import re
import socket
import subprocess
import time
import zipfile
from pathlib import Path
from urllib.request import urlopen

import pytest

from lora_drop.errors import GET_PAGE
from lora_drop.evaluation.tasks.utils import TASKS
from lora_drop.paths import ASSETS, CHECKOUT
from lora_drop.ui.components import ENTRY, address
from lora_drop.ui.serve import space_folder

pytestmark = [pytest.mark.full, pytest.mark.timeout(600)]


def call(*command: str | Path, cwd: Path) -> subprocess.CompletedProcess[str]:
    env = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    return subprocess.run(command, cwd=cwd, env=env, capture_output=True, text=True)


def test_it_holds_the_package_and_its_assets(wheel):
    with zipfile.ZipFile(wheel) as archive:
        packed = {name for name in archive.namelist() if name.startswith("lora_drop/")}
    kept = [*(CHECKOUT / "lora_drop").rglob("*"), *ASSETS.rglob("*")]
    names = {path.relative_to(CHECKOUT).as_posix() for path in kept if path.is_file()}
    names = {name.replace("assets/", "lora_drop/assets/", 1) if name.startswith("assets/") else name for name in names}
    space = {name for name in packed if name.startswith("lora_drop/space/")}  # see below
    assert "lora_drop/space/docs/method.md" in space and "lora_drop/space/docs/training-log.md" not in space
    packed -= space
    assert packed == {name for name in names if not re.search(r"/(__pycache__|screenshots)/|\.py[ci]$", name)}
    assert {"lora_drop/py.typed", *(f"lora_drop/evaluation/tasks/{name}.yaml" for name in TASKS)} <= packed


def test_without_extras_it_runs(bare, tmp_path):
    done = call(bare / "python", "-c", "import gradio", cwd=tmp_path)
    assert "No module named 'gradio'" in done.stderr
    tiny = ("run", "--model", "random:tiny-llama", "--prompt", "hi", "--max-new-tokens", "4", "--json")
    done = call(bare / "lora-drop", *tiny, "--trace", "run.jsonl", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert len(json.loads(done.stdout)["baseline"]["token_ids"]) == 4
    again = call(bare / "python", "-m", "lora_drop", "replay", "run.jsonl", "--json", cwd=tmp_path)
    assert again.stdout == done.stdout
    shipped = "from lora_drop.paths import SHIPPED_ADAPTERS as at; print(len(list(at.glob('*/*.safetensors'))))"
    assert int(call(bare / "python", "-c", shipped, cwd=tmp_path).stdout) > 0


def test_the_harness_finds_its_model(programs, tmp_path):
    """As lm-evaluation-harness looks for one, in a venv with the wheel."""
    find = "from importlib.metadata import entry_points as of; print(of(group='lm_eval.models')['lora_drop'].load())"
    done = call(programs / "python", "-c", find, cwd=tmp_path)
    assert "lora_drop.evaluation.tasks.model.LoraDropLM" in done.stdout, done.stderr


def test_its_space_is_the_checkouts(bare, tmp_path):
    done = call(bare / "lora-drop", "space", "my-space", "--json", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    checkouts = space_folder.build(tmp_path / "other")
    checkouts.pop(space_folder.KERNELS, None)  # left by `make wheels`; the wheel of these tests has none
    assert json.loads(done.stdout)["files"] == checkouts


def test_without_the_page_extra_a_line_names_it(bare, tmp_path):
    done = call(bare / "lora-drop", "page", cwd=tmp_path)
    assert done.returncode == 2 and GET_PAGE in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1


def test_without_extras_it_draws(bare, tmp_path):
    (tmp_path / "grid").symlink_to(ASSETS / "sweeps")
    (tmp_path / "run.jsonl").symlink_to(CHECKOUT / "tests" / "corpus" / "traces" / "good_three_lanes.jsonl")
    for command in (
        "replay run.jsonl --html run.html --svg run.svg --png run.png",
        "sweep-figures grid --out figures",
    ):
        done = call(bare / "lora-drop", *command.split(), cwd=tmp_path)
        assert done.returncode == 0, done.stderr
    assert (tmp_path / "run.png").read_bytes().startswith(b"\x89PNG")


def test_it_opens_the_page(programs, tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    env = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    command = [programs / "lora-drop", "page", "--model", "random:tiny-llama", "--port", str(port)]
    log = tmp_path / "log"
    with log.open("w") as output:
        page = subprocess.Popen(command, cwd=tmp_path, env=env, stdout=output, stderr=output)
    try:
        while "is ready" not in log.read_text():
            assert page.poll() is None, log.read_text()
            time.sleep(0.2)
        with urlopen(f"http://127.0.0.1:{port}/") as answer:
            assert "LoRA-Drop Studio" in answer.read().decode()
        with urlopen(f"http://127.0.0.1:{port}/{address()}/{ENTRY}") as answer:
            assert answer.read() == (ASSETS / "js" / ENTRY).read_bytes()
    finally:
        page.terminate()
        page.wait()
