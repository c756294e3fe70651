"""Strangers' traces are read in a process of their own: its limits, its answers, and one line where it ends early."""

import json
import os
import subprocess
import sys
import threading

import pytest

from lora_drop.errors import LoraDropError
from lora_drop.run.exports import reading
from lora_drop.run.exports.html import replay_html
from lora_drop.run.trace.trace import parse_trace
from lora_drop.ui.serve import reader as module
from lora_drop.ui.serve.reader import Reader
from scripts.attack.traces import header, step, text
from tests.support import ROOT
from tests.support.page import wait_until

RAW = text(header(), *map(step, range(6))).encode()


@pytest.fixture
def reader() -> Reader:
    return Reader(2**20)


@pytest.fixture
def stub(monkeypatch, tmp_path):
    """Has other code run in place of the process's own; gives a function that takes the code."""

    def replace(code: str) -> None:
        program = tmp_path / "python"
        program.write_text(f"#!/bin/sh\nexec {sys.executable} -c '{code}'\n")
        program.chmod(0o755)
        monkeypatch.setattr(module.sys, "executable", str(program))

    return replace


def test_each_job_gives_what_it_gives_here(reader):
    jobs = [(job, [RAW], {"steps": ("lora_drop", 3), "text": ("lora_drop",)}.get(job, ())) for job in reading.OF_TRACE]
    for job, texts, arguments in [*jobs, ("align", [b"a b c", b"a x c"], ())]:
        here = json.loads(json.dumps(reading.work(job, texts, *arguments)))
        assert reader.ask(job, *texts, arguments=arguments) == here
    with pytest.raises(LoraDropError, match="line 1: this is not a line"):
        reader.ask("html", b"junk")
    with pytest.raises(LoraDropError, match="at most 1 MiB"):
        reader.ask("html", b"x" * (2**20 + 1))


def test_it_has_no_torch_and_no_secret(reader, monkeypatch):
    imports = (
        "import sys, lora_drop.run.exports.reading; print({'torch', 'gradio', 'transformers'} & sys.modules.keys())"
    )
    assert subprocess.check_output([sys.executable, "-c", imports], cwd=ROOT, text=True) == "set()\n"
    seen = {}
    run = subprocess.run
    monkeypatch.setattr(module.subprocess, "run", lambda *args, **more: (seen.update(more), run(*args, **more))[1])
    monkeypatch.setenv("LORA_DROP_OWNER_TOKEN", "secret")
    monkeypatch.setenv("HF_TOKEN", "secret")
    reader.ask("html", RAW)
    assert "secret" not in seen["env"].values() and seen["env"]["PATH"] == os.environ["PATH"]


@pytest.mark.skipif(sys.platform != "linux", reason="the limit does not bind elsewhere")
def test_its_memory_is_limited(reader):
    code = (
        "from lora_drop.run.exports import reading; reading.parse_trace = lambda raw: bytearray(2**30); "
        "reading.OF_TRACE['html'] = len; reading.main()"
    )
    request = json.dumps({"job": "html", "arguments": [], "sizes": [1], "most": 2**20}).encode() + b"\nx"
    answer = subprocess.run([sys.executable, "-c", code], input=request, cwd=ROOT, capture_output=True)
    assert "512 MiB" in json.loads(answer.stdout)["error"] and not answer.stderr


def test_one_that_dies_or_takes_too_long_is_one_sentence(reader, stub, monkeypatch):
    stub("import os; os.kill(os.getpid(), 9)")
    with pytest.raises(LoraDropError, match="more memory"):
        reader.ask("html", RAW)
    stub("import time; time.sleep(60)")
    monkeypatch.setattr(module, "SECONDS", 0.5)
    with pytest.raises(LoraDropError, match="took longer"):
        reader.ask("html", RAW)
    assert not reader._busy


def test_a_trace_is_read_once_and_answers_are_bounded(reader, monkeypatch):
    read: list[str] = []
    elsewhere = Reader._elsewhere
    monkeypatch.setattr(Reader, "_elsewhere", lambda self, *asked: (read.append(asked[0]), elsewhere(self, *asked))[1])
    page = replay_html(parse_trace(RAW))
    for _ in range(3):
        assert reader.ask("html", RAW) == page and reader.ask("text", RAW, arguments=("baseline",)) == ""
    assert read == ["html", "text"]
    assert reader.ask("html", RAW + b" ", trusted=True) and len(read) == 2, "this server's own traces need no process"
    reader._answers.most_bytes = reader._answers.nbytes + 10
    for i in range(3):
        reader.ask("compare", text(header(label=str(i)), step(0)).encode(), trusted=True)
        assert 0 < reader._answers.nbytes <= reader._answers.most_bytes


def test_an_address_has_one_process_and_all_have_few(reader, monkeypatch):
    at_once: list[int] = []
    goes_on = threading.Event()

    def process(*_) -> bytes:
        at_once.append(len(reader._busy))
        assert goes_on.wait(60)
        return b"1"

    monkeypatch.setattr(reader, "_process", process)
    monkeypatch.setattr(module, "address_of_call", lambda: threading.current_thread().name.partition(" ")[0])

    def ask(number: int) -> None:
        reader.ask("html", str(number).encode())

    names = ["one 1", "one 2", "two 1", "three 1"]
    threads = [threading.Thread(target=ask, args=(i,), name=name) for i, name in enumerate(names)]
    for thread in threads:
        thread.start()
    wait_until(lambda: len(at_once) == module.AT_ONCE, "two addresses have a process")
    goes_on.set()
    for thread in threads:
        thread.join()
    assert max(at_once) == module.AT_ONCE and len(reader._answers) == 4
    monkeypatch.setattr(module, "PATIENCE", 0.05)
    reader._busy |= {"one", "two"}
    with pytest.raises(LoraDropError, match="other traces are being read"):
        reader.ask("html", b"x")
