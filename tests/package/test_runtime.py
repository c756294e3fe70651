"""OpenMP's waiting is chosen before torch is imported, a user's own choice stays; old packages are refused."""

import os
import subprocess
import sys
from importlib import metadata

import pytest

import lora_drop
from lora_drop import paths, runtime
from lora_drop.cli.main import main
from lora_drop.errors import LoraDropError
from lora_drop.runtime import core_share


@pytest.mark.parametrize(
    ("chosen", "expected"),
    [({}, "passive"), ({"OMP_WAIT_POLICY": "active"}, "active"), ({"GOMP_SPINCOUNT": "1000"}, "None")],
)
def test_waiting(chosen, expected):
    env = {k: v for k, v in os.environ.items() if k not in ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT")} | chosen
    code = "import sys, os, lora_drop; print('torch' in sys.modules, os.environ.get('OMP_WAIT_POLICY'))"
    run = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, check=True)
    assert run.stdout.split() == ["False", expected]


def test_after_torch_nothing_is_claimed():
    env = {k: v for k, v in os.environ.items() if k not in ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT")}
    code = "import torch, lora_drop, os; print(os.environ.get('OMP_WAIT_POLICY'))"
    run = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "None"


@pytest.mark.parametrize(
    ("files", "share"),
    [
        ({}, None),
        ({"cpu.max": "max 100000\n"}, None),
        ({"cpu.max": "200000 100000\n"}, 2.0),
        ({"cpu.max": "50000 100000\n"}, 0.5),
        ({"cpu.max": "broken"}, None),
        ({"cpu/cpu.cfs_quota_us": "-1\n", "cpu/cpu.cfs_period_us": "100000\n"}, None),
        ({"cpu/cpu.cfs_quota_us": "150000\n", "cpu/cpu.cfs_period_us": "100000\n"}, 1.5),
    ],
)
def test_a_containers_share_of_the_cores(tmp_path, files, share):
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    assert core_share(tmp_path) == share


@pytest.mark.parametrize(("chosen", "expected"), [({}, "1"), ({"OMP_NUM_THREADS": "3"}, "3")])
def test_no_more_threads_than_the_share(chosen, expected):
    """Also where torch would count more cores; the user's own choice is left alone."""
    env = {k: v for k, v in os.environ.items() if k != "OMP_NUM_THREADS"} | chosen
    code = (
        "from lora_drop import runtime\n"
        "runtime.core_share, runtime.os.cpu_count = lambda: 1.5, lambda: 16\n"
        "runtime.configure()\n"
        "import torch; print(runtime.os.environ['OMP_NUM_THREADS'], torch.get_num_threads())"
    )
    run = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, check=True)
    asked, used = run.stdout.split()
    assert asked == expected and int(used) <= int(asked)


@pytest.fixture
def versions(tmp_path, monkeypatch):
    """Make these requirements the program's, and these versions the installed ones."""

    def lay(requirements: str, installed: dict[str, str]) -> None:
        def version(name: str) -> str:
            if name not in installed:
                raise metadata.PackageNotFoundError(name)
            return installed[name]

        (tmp_path / "requirements.txt").write_text(requirements)
        monkeypatch.setattr(paths, "CHECKOUT", tmp_path)
        monkeypatch.setattr(metadata, "version", version)
        runtime.check_versions.cache_clear()

    yield lay
    runtime.check_versions.cache_clear()


def test_an_older_version_is_one_line(versions, capsys):
    versions("# a remark\ntransformers>=5.24,<6\ntorch>=2.9\n", {"transformers": "5.23.1", "torch": "2.10.0+cpu"})
    line = "transformers 5.23.1 is installed, and 5.24 or newer is needed: pip install 'transformers>=5.24,<6'"
    with pytest.raises(LoraDropError) as refused:
        runtime.check_versions()
    assert str(refused.value) == line
    with pytest.raises(LoraDropError):
        lora_drop.load_model  # noqa: B018
    assert main(["replay", "gone.jsonl"]) == 2
    assert capsys.readouterr().err == f"lora-drop: {line}\n"


@pytest.mark.parametrize("installed", ["2.9", "2.9.0", "2.9.0+cu128", "2.10.1", "3.0", "2.9.0.dev20250801", None])
def test_a_version_that_will_do_passes(versions, installed):
    versions("torch>=2.9,<3\n", {"torch": installed} if installed else {})
    runtime.check_versions()


@pytest.mark.parametrize(("installed", "is_untested"), [("6.31.0", False), ("6.31.4", False), ("6.32.0", True)])
def test_a_version_above_the_bounds_passes_and_is_called_untested(versions, installed, is_untested):
    versions("gradio>=6.31,<6.32\n", {"gradio": installed})
    runtime.check_versions()
    [package] = runtime.package_versions()
    assert package["is_untested"] == is_untested


def test_a_wheel_asks_by_its_metadata(versions, monkeypatch):
    asked = ["torch<3,>=2.9", "gradio<6.32,>=6.31; extra == 'page'", 'lm-eval>=0.4.13; extra == "benchmark"']
    versions("", {"torch": "2.9", "gradio": "5.1", "lm-eval": "0.1"})
    monkeypatch.setattr(paths, "CHECKOUT", None)
    monkeypatch.setattr(metadata, "requires", lambda name: asked if name == "lora-drop" else None)
    runtime.check_versions()
    with pytest.raises(LoraDropError, match=r"^gradio 5.1 is installed, and 6.31 or newer is needed: pip [^;]*$"):
        runtime.check_versions("page")


def test_the_versions_are_looked_at_without_an_import():
    code = (
        "import sys; from lora_drop.runtime import check_versions; check_versions('page')\n"
        "print({'torch', 'transformers', 'gradio', 'numpy'} & {*sys.modules})"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"


def test_without_docstrings_it_is_refused_in_one_line():
    words = [sys.executable, "-OO", "-m", "lora_drop", "run", "--model", "random:tiny-llama", "--prompt", "Hi"]
    done = subprocess.run(words, capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1) and "use -O" in done.stderr


def test_a_warning_of_a_program_is_one_line():
    """Before: two, the second with the place in the code that gave it."""
    words = "from lora_drop.runtime import one_line_warnings as own; own(); import warnings; warnings.warn('no GPU')"
    done = subprocess.run([sys.executable, "-c", words], capture_output=True, text=True)
    assert done.stderr == "warning: no GPU\n"
