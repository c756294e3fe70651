"""app.py's own mistakes: one line, exit code 2, before anything loads."""

import re
import subprocess
import sys

import pytest

from lora_drop.paths import SHIPPED_RECORDED
from lora_drop.run.trace.trace import read_trace
from tests.support import ROOT

APP = ROOT / "app.py"


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--model", "random:nope"], "no random shape 'nope'"),
        pytest.param(["--device", "toaster"], "unknown device 'toaster'", marks=pytest.mark.full),
    ],
)
def test_a_mistake_is_one_line(options, words):
    done = subprocess.run([sys.executable, APP, *options], capture_output=True, text=True)
    assert done.returncode == 2 and words in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1 and "Traceback" not in done.stderr


def test_the_recorded_run_is_what_show_me_asks_for_with_its_day_and_machine():
    trace = read_trace(SHIPPED_RECORDED)
    assert [lane["id"] for lane in trace.header.lanes] == ["baseline", "lora_drop", "third"]
    assert re.fullmatch(r"20\d\d-\d\d-\d\d", trace.header.software["date"]) and trace.header.device["name"]
    assert trace.summary and trace.header.sampling["compare"] == "corrections-off"
    assert SHIPPED_RECORDED.stat().st_size < 300_000
