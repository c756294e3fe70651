"""More connections than descriptors: refused with a sentence, and the server recovers. A process of its own."""

import asyncio
import contextlib
import os
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path
from unittest.mock import Mock

import pytest
import uvicorn

from lora_drop.models.pool import ModelPool
from lora_drop.ui.serve import connections
from lora_drop.ui.serve.connections import connections_that_fit
from lora_drop.ui.serve.owner import Counters
from lora_drop.ui.serve.policy import Limits, Policy
from scripts.space_check import free_port
from tests.support import ROOT
from tests.support.page import wait_until
from tests.support.server import launched

DESCRIPTORS = 160


def test_connections_leave_descriptors_for_the_rest(monkeypatch):
    resource = pytest.importorskip("resource")
    found = []
    monkeypatch.setattr(resource, "setrlimit", lambda which, both: found.append(both))
    for soft, hard, most in ((20_000, 20_000, 1000), (160, 160, 76), (20, 20, 8), (256, 4096, 923)):
        monkeypatch.setattr(resource, "getrlimit", lambda which, both=(soft, hard): both)
        assert connections_that_fit(Limits(connections=1000)) == most
    assert (1128, 4096) in found, "the process takes what the system lets it have"
    assert connections.RESERVED == 64


@pytest.mark.parametrize(("hops", "fit"), [(0, 10), (1, 20)])
def test_half_of_the_connections_are_one_addresss_or_all_of_them_a_trusted_proxys(monkeypatch, hops, fit):
    monkeypatch.setattr(connections.uvicorn_config, "HTTP_PROTOCOLS", dict(connections.uvicorn_config.HTTP_PROTOCOLS))
    monkeypatch.setenv("FORWARDED_ALLOW_IPS", "")
    connections.guard_connections(Policy(limits=Limits(connections=20), hops=hops), counters := Counters())
    wires = [Mock(get_extra_info={"peername": ("10.0.0.1", 5)}.get) for _ in range(25)]

    async def come() -> None:
        config = uvicorn.Config(lambda: None, log_config=None, factory=True)
        config.load()
        for wire in wires:
            config.http_protocol_class(config, uvicorn.server.ServerState(), {}).connection_made(wire)

    asyncio.run(come())
    assert [wire.close.called for wire in wires] == [False] * fit + [True] * (25 - fit)
    assert counters.refused("connections") == 25 - fit


def answer(url: str) -> int:
    try:
        with urllib.request.urlopen(f"{url}/config", timeout=30) as found:
            return found.status
    except OSError:
        return 0


def test_half_a_request_holds_no_connection_for_ever(tiny, monkeypatch):
    """Before: the head of a second request could stay half sent, and uvicorn waited for the rest of it."""
    monkeypatch.setattr(connections, "HEAD_SECONDS", 0.5)
    head = b"GET /gradio_api/app_id HTTP/1.1\r\nHost: localhost\r\n"
    with launched(ModelPool(tiny)) as (_, port):
        for whole in (0, 2):
            with socket.create_connection(("127.0.0.1", port), 30) as silent:
                for _ in range(whole):
                    silent.sendall(head + b"\r\n")
                    said = b""
                    while not said.endswith(b"}"):
                        said += (part := silent.recv(65536))
                        assert part, "it was closed amid an answer"
                    assert said.startswith(b"HTTP/1.1 200")
                silent.sendall(head)
                assert silent.recv(65536) == b"", "it was closed, and nothing was answered"
        assert answer(f"http://127.0.0.1:{port}") == 200
        with socket.create_connection(("127.0.0.1", port), 30) as page:  # a stream that is open is not silent
            page.sendall(b"GET /gradio_api/heartbeat/x HTTP/1.1\r\nHost: localhost\r\n\r\n")
            page.settimeout(1)
            said = b""
            with contextlib.suppress(TimeoutError):
                while part := page.recv(65536):
                    said += part
                pytest.fail("a stream was cut")
            assert said.startswith(b"HTTP/1.1 200")


@pytest.mark.full
@pytest.mark.skipif(sys.platform != "linux", reason="counts descriptors in /proc")
def test_silent_connections_are_refused_in_words_and_the_server_recovers(tmp_path):
    """Before: 220 of them to a server of 160 descriptors; nobody was answered, and 45,005 tracebacks were written."""
    url = f"http://127.0.0.1:{(port := free_port())}"
    start = (
        f"ulimit -n {DESCRIPTORS}; exec {sys.executable} app.py --model random:tiny-llama --device cpu --port {port}"
    )
    log = tmp_path / "log"
    with log.open("wb") as output:
        process = subprocess.Popen(["bash", "-c", start], cwd=ROOT, stdout=output, stderr=output, env={**os.environ})
    try:
        wait_until(lambda: process.poll() is None and answer(url) == 200, "the page is there", 120)
        with contextlib.ExitStack() as stack:
            silent = []
            for _ in range(220):
                silent.append(stack.enter_context(socket.create_connection(("127.0.0.1", port), 10)))
                time.sleep(0.005)
            assert b"too many connections" in silent[-1].recv(1000)
            assert len(list(Path(f"/proc/{process.pid}/fd").iterdir())) < DESCRIPTORS
            # From another address there is room.
            other = stack.enter_context(socket.create_connection(("127.0.0.1", port), 10, ("127.0.0.2", 0)))
            other.sendall(b"GET /config HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
            assert other.recv(100).startswith(b"HTTP/1.1 200")
        wait_until(lambda: answer(url) == 200, "it has recovered")
        assert "Traceback" not in log.read_text()
    finally:
        process.terminate()
        process.wait(20)
