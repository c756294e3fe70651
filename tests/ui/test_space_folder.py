"""The folder of a Space: whole, without what it does not need, and with a front matter that Spaces take."""

import json
import re
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from huggingface_hub import SpaceHardware, metadata_load
from packaging.requirements import Requirement

from lora_drop.cli.main import main
from lora_drop.ui.serve import space_folder
from scripts import space_check
from tests.support import ROOT

README = (ROOT / "README.md").read_text(encoding="utf-8")
REQUIREMENTS = (ROOT / "requirements.txt").read_text(encoding="utf-8")
META = metadata_load(ROOT / "README.md")
COLORS = ("red", "yellow", "green", "blue", "indigo", "purple", "pink", "gray")


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("space") / "folder"
    space_folder.build(out, "someone/studio")
    return out


def test_the_front_matter_is_what_spaces_take():
    texts = ("title", "emoji", "license", "sdk_version", "python_version")
    assert all(isinstance(META[name], str) for name in texts)  # an unquoted 3.10 is the number 3.1
    assert META["sdk"] == "gradio" and META["colorFrom"] in COLORS and META["colorTo"] in COLORS
    assert len(META["short_description"]) <= 60 and (ROOT / META["app_file"]).is_file()
    assert META["python_version"] == "3.12.12"  # ZeroGPU also lists 3.10.13, too old for transformers 5.24
    assert META["suggested_hardware"] in list(SpaceHardware)
    assert META["models"] == ["HuggingFaceTB/SmolLM2-135M-Instruct"]
    assert "https://arxiv.org/abs/2601.02569" in README  # the Hub makes its tag from this link


def test_the_folder_is_whole(folder):
    for name in ("app.py", "requirements.txt", "README.md", "LICENSE", "assets/presets/samples.json"):
        assert (folder / name).is_file()
    shipped = sorted(path.relative_to(ROOT) for path in (ROOT / "assets" / "adapters").rglob("*") if path.is_file())
    assert shipped and all((folder / path).is_file() for path in shipped)
    assert all((folder / "lora_drop" / "decode" / "native" / name).is_file() for name in ("step.c", "abi.h"))
    links = [name for name in space_folder.linked(README) if (ROOT / name).exists()]
    assert links and all((folder / name).exists() for name in links)


def test_the_guide_says_how_large_it_is(folder):
    size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) / 1e6
    guide = (ROOT / "Spaces.md").read_text(encoding="utf-8")
    assert int(re.search(r"with its size \((\d+) MB\)", guide)[1]) == pytest.approx(size, abs=1)


def test_the_folder_has_nothing_else(folder):
    links = space_folder.linked(README)
    wanted = {*space_folder.FILES, "lora_drop", "assets", *(name.split("/")[0] for name in links)}
    assert {path.name for path in folder.iterdir()} <= wanted and "tests" not in wanted
    names = [path.name for path in folder.rglob("*")]
    assert not [name for name in names if name.startswith(".") or name.endswith((".pyc", ".pyi", "__pycache__"))]
    pictures = {f"assets/screenshots/{path.name}" for path in (folder / "assets" / "screenshots").iterdir()}
    assert pictures <= {space_folder.PICTURE, *links}


def test_the_thumbnail_is_the_spaces_own_picture(folder):
    meta = metadata_load(folder / "README.md")
    start = "https://huggingface.co/spaces/someone/studio/resolve/main/"
    assert meta["thumbnail"].startswith(start) and (folder / meta["thumbnail"].removeprefix(start)).is_file()
    assert meta | {"thumbnail": None} == META | {"thumbnail": None}


@pytest.mark.full
def test_the_folder_runs_from_itself(folder):
    """Imported from there, the package finds its presets and adapters there."""
    code = "from lora_drop.paths import SHIPPED_ADAPTERS, SHIPPED_PRESETS; print(SHIPPED_ADAPTERS, SHIPPED_PRESETS)"
    done = subprocess.run([sys.executable, "-c", code], cwd=folder, capture_output=True, text=True, check=True)
    assert done.stdout.split() == [str(folder / "assets" / name) for name in ("adapters", "presets")]


def test_zero_gpu_asks_for_a_torch_that_it_lists(tmp_path):
    space_folder.build(tmp_path / "space", zero_gpu=True)
    lines = (tmp_path / "space" / "requirements.txt").read_text().splitlines()
    asked = [line for line in lines if line.startswith("torch")]
    assert asked == [f"torch=={space_folder.ZERO_GPU_TORCH}"]
    meta = metadata_load(tmp_path / "space" / "README.md")
    assert "thumbnail" not in meta and meta["suggested_hardware"] == "zero-a10g"
    assert META["suggested_hardware"] == "cpu-basic"


def test_a_model_can_be_downloaded_while_the_space_is_built(tmp_path):
    space_folder.build(tmp_path / "space", preload="Qwen/Qwen2.5-0.5B-Instruct")
    meta = metadata_load(tmp_path / "space" / "README.md")
    assert meta == META | {"preload_from_hub": ["Qwen/Qwen2.5-0.5B-Instruct"]}


@pytest.mark.parametrize(
    ("option", "value", "line"),
    [
        ("--space", "no name", "--space must be OWNER/NAME"),
        ("--preload", "name", "--preload must be OWNER/NAME"),
        ("--torch-index", "cpu", "must be an address"),
        ("--torch-index", "https://me:secret@host/simple", "without a password"),
        ("--torch-index", "https://host/simple\ntorch==0.1", "must be an address"),
    ],
)
def test_a_mistake_is_one_line_and_no_folder(tmp_path, capsys, option, value, line):
    assert main(["space", str(tmp_path / "space"), option, value]) == 2
    assert line in capsys.readouterr().err and not (tmp_path / "space").exists()


def stub(index: Path, name: str, version: str, *needs: str) -> None:
    """Put a wheel without code into a folder that is a package index."""
    home = index / name.replace("_", "-")
    home.mkdir(parents=True, exist_ok=True)
    info = f"{name}-{version}.dist-info"
    with zipfile.ZipFile(home / f"{name}-{version}-py3-none-any.whl", "w") as wheel:
        lines = [f"Name: {name}", f"Version: {version}", *(f"Requires-Dist: {need}" for need in needs)]
        wheel.writestr(f"{info}/METADATA", "\n".join(["Metadata-Version: 2.1", *lines, ""]))
        wheel.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        wheel.writestr(f"{info}/RECORD", "")
    (home / "index.html").write_text("".join(f'<a href="{path.name}">{path.name}</a>' for path in home.glob("*.whl")))


@pytest.mark.full
def test_with_an_index_of_cpu_torch_nothing_of_cuda_is_installed(tmp_path):
    """pip's own resolver on two small indexes: everybody's, whose torch is the one for CUDA, and the owner's."""
    everybody, owner = tmp_path / "everybody", tmp_path / "owner"
    for line in REQUIREMENTS.splitlines():
        if not line.startswith(("#", "gradio")):
            needs = Requirement(line)
            version = next(one.version for one in needs.specifier if one.operator == ">=")
            stub(everybody, needs.name, version, *(["nvidia-cudnn"] if needs.name == "torch" else []))
            if needs.name == "torch":
                stub(owner, "torch", f"{version}+cpu")
    stub(everybody, "gradio", META["sdk_version"])
    stub(everybody, "nvidia_cudnn", "9.0")
    venv = tmp_path / "venv"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", venv], check=True)
    resolved = {}
    for name, index in (("plain", None), ("cpu", owner.as_uri())):
        space_folder.build(tmp_path / name, torch_index=index)
        gradio = f"gradio=={META['sdk_version']}"  # as a Space adds it
        resolved[name] = space_check.resolve(
            venv / "bin" / "python", tmp_path / name, "--index-url", everybody.as_uri(), "--isolated"
        )
        assert gradio in resolved[name]
    assert {"torch==2.9", "nvidia_cudnn==9.0"} <= set(resolved["plain"])
    assert "torch==2.9+cpu" in resolved["cpu"] and not [one for one in resolved["cpu"] if one.startswith("nvidia")]


def test_the_report_adds_up():
    report = space_folder.report({"a/b/c": 2000, "a/b/d": 1000, "a/e": 500_000, "f": 1})
    assert report.splitlines()[-1].split() == ["503", "kB", "in", "4", "files"]
    assert "3 kB  a/b/" in report and "500 kB  a/" in report


def test_the_command_says_what_it_made_and_how_to_push_it(tmp_path, capsys):
    assert main(["space", str(tmp_path / "one"), "--space", "me/mine"]) == 0
    out = capsys.readouterr().out
    assert "kB  in " in out and out.endswith(f"hf upload me/mine {tmp_path / 'one'} . --repo-type space\n")
    assert main(["space", str(tmp_path / "two"), "--json"]) == 0
    made = json.loads(capsys.readouterr().out)
    assert made["folder"] == str(tmp_path / "two") and made["files"]["README.md"] > 1000


def test_the_check_starts_it_with_a_spaces_environment(monkeypatch, tmp_path):
    monkeypatch.setenv("LORA_DROP_CACHE", "ours")
    monkeypatch.setenv("GRADIO_TEMP_DIR", "ours")
    env = space_check.environment(tmp_path, 1234, LORA_DROP_MODEL="random:tiny-llama")
    assert "ours" not in env.values() and env["LORA_DROP_MODEL"] == "random:tiny-llama"
    assert env["SPACE_ID"] and env["HOME"] == str(tmp_path) and env["GRADIO_SERVER_PORT"] == "1234"


def test_the_check_says_what_failed(capsys):
    check = space_check.Checks()
    assert check("good", lambda: "fine") and not check("bad", lambda: space_check.hold(False, "why"))
    assert not check("broken", lambda: 1 / 0)
    lines = capsys.readouterr().out.splitlines()
    assert [line[:4] for line in lines] == ["ok  ", "FAIL", "FAIL"] and "bad: why" in lines[1]
    assert check.failed == 2


@pytest.mark.full
def test_the_check_drives_a_server(tmp_path, monkeypatch, capsys):
    """The driver itself, on a tiny model and this interpreter; `make space-check` is the same in a venv of its own."""
    folder, home = tmp_path / "app", tmp_path / "home"
    space_folder.build(folder)
    home.mkdir()
    venv = tmp_path / "venv"
    (venv / "bin").mkdir(parents=True)
    (venv / "bin" / "python").write_text(f'#!/bin/sh\nexec "{sys.executable}" "$@"\n')
    (venv / "bin" / "python").chmod(0o755)
    check = space_check.Checks()
    env = space_check.environment(home, space_check.free_port(), LORA_DROP_MODEL="random:tiny-llama")
    space_check.drive(check, venv, folder, tmp_path / "log.txt", env, "tiny")
    assert check.failed == 0, capsys.readouterr().out


def test_it_has_the_kernels_for_linux_or_says_that_it_lacks_them(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(space_folder, "built_for_wheels", lambda: tmp_path)
    assert main(["space", str(tmp_path / "without"), "--json"]) == 0
    assert "no C kernels for Linux" in capsys.readouterr().err
    (tmp_path / Path(space_folder.KERNELS).name).write_bytes(b"ELF")
    assert main(["space", str(tmp_path / "with"), "--json"]) == 0
    captured = capsys.readouterr()
    assert json.loads(captured.out)["files"][space_folder.KERNELS] == 3 and not captured.err
