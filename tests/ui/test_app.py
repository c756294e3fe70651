"""app.py's own mistakes: one line, exit code 2, before anything loads."""

import importlib.util
import subprocess
import sys

import pytest

from tests.support import ROOT

APP = ROOT / "app.py"


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--model", "random:nope"], "no shape 'nope'"),
        (["--device", "toaster"], "unknown device 'toaster'"),
        pytest.param(
            ["--mcp"],
            "pip install 'gradio[mcp]'",
            marks=pytest.mark.skipif(importlib.util.find_spec("mcp") is not None, reason="mcp is installed"),
        ),
    ],
)
def test_a_mistake_is_one_line(options, words):
    done = subprocess.run([sys.executable, APP, *options], capture_output=True, text=True)
    assert done.returncode == 2 and words in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1 and "Traceback" not in done.stderr
