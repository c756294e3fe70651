"""app.py's own mistakes: one line, exit code 2, before anything loads."""

import re
import signal
import sys

import pytest

from lora_drop.paths import SHIPPED_RECORDED
from lora_drop.run.trace.trace import read_trace
from lora_drop.ui import start


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--model", "random:nope"], "no random shape 'nope'"),
        (["--device", "toaster"], "unknown device 'toaster'"),
        (["--device", "mps"], "Apple's GPU (mps) is not supported: use auto or cpu."),
    ],
)
def test_a_mistake_is_one_line(monkeypatch, capsys, tmp_path, options, words):
    monkeypatch.setenv("GRADIO_TEMP_DIR", str(tmp_path))
    for part, name in (
        *((start, name) for name in ("share_heap", "one_line_warnings")),
        *((signal, "signal"), (sys, "setswitchinterval")),
    ):  # what a start changes in its process
        monkeypatch.setattr(part, name, lambda *_: None)
    assert start.main(options) == 2
    [line] = capsys.readouterr().err.splitlines()
    assert line.startswith("app.py: ") and words in line


def test_the_recorded_run_is_what_show_me_asks_for_with_its_day_and_machine():
    trace = read_trace(SHIPPED_RECORDED)
    assert [lane["id"] for lane in trace.header.lanes] == ["baseline", "lora_drop", "third"]
    assert re.fullmatch(r"20\d\d-\d\d-\d\d", trace.header.software["date"]) and trace.header.device["name"]
    assert trace.summary and trace.header.sampling["compare"] == "corrections-off"
    assert SHIPPED_RECORDED.stat().st_size < 300_000
