"""One wheel for all tests of this folder, and venvs with it."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from lora_drop.paths import CHECKOUT

PAGE = re.compile("gradio|hf_gradio", re.IGNORECASE)


@pytest.fixture(scope="session")
def wheel(tmp_path_factory) -> Path:
    """Built from the sdist, which is built from the checkout."""
    out = tmp_path_factory.mktemp("dist")
    subprocess.run([sys.executable, "-m", "build", "--no-isolation", "--outdir", out, CHECKOUT], check=True)
    return next(out.glob("*.whl"))


def install(folder: Path, *packages: str | Path, without: re.Pattern[str] | None = None) -> Path:
    """A venv with these packages; the others are links to this venv's, but for those that are named."""
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder], check=True)
    target = next(folder.glob("lib/python*/site-packages"))
    for place in (Path(path) for path in sys.path if path.endswith("site-packages")):
        for entry in place.iterdir():
            hidden = entry.suffix == ".pth" or (without and without.match(entry.name))
            if not hidden and not (target / entry.name).exists():
                (target / entry.name).symlink_to(entry)
    python = folder / "bin" / "python"
    uv = [sys.executable, "-m", "uv", "pip", "install", "--offline", "--no-deps", "--python", python, *packages]
    subprocess.run(uv, check=True)
    launcher = folder / "bin" / "accelerate"  # as its wheel brings it
    launcher.write_text(f"#!{python}\nfrom accelerate.commands.accelerate_cli import main\nmain()\n")
    launcher.chmod(0o755)
    return folder / "bin"


@pytest.fixture(scope="session")
def bare(wheel, tmp_path_factory) -> Path:
    """The programs of a venv with the wheel and no extra."""
    return install(tmp_path_factory.mktemp("bare") / "venv", wheel, without=PAGE)


@pytest.fixture(scope="session")
def programs(wheel, tmp_path_factory) -> Path:
    """The programs of a venv with the wheel and all extras."""
    return install(tmp_path_factory.mktemp("whole") / "venv", wheel)
