"""What the server sends compressed, and that a stream's records still come one by one."""

import gzip
import json
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field

import pytest

from lora_drop.models.pool import ModelPool
from lora_drop.run.run import run
from lora_drop.run.trace.records import Record, StepRecord
from lora_drop.ui import callbacks, components, stream
from tests.support.server import launched
from tests.support.server import request as ask

READS = {"Accept-Encoding": "gzip, deflate, br"}  # as a browser says
GATE = 6  # steps of a lane between two looks


@dataclass
class Gated:
    """A run that goes on only while somebody has read what it gave.

    Args:
        read: is set by the reader for each part that it got.
        starved: a look at which nothing had been read since the last one.
    """

    read: threading.Event = field(default_factory=threading.Event)
    looks: int = 0
    starved: bool = False

    def __call__(self, loaded, request, *rest) -> Iterator[Record]:
        for record in run(loaded, request, *rest):
            if isinstance(record, StepRecord) and record.lane == "lora_drop" and record.step:
                time.sleep(0.02)  # longer than the time between two updates
                if record.step % GATE == 0:
                    self.looks += 1
                    self.starved |= not self.read.wait(30)
                    self.read.clear()
            yield record


@pytest.fixture(scope="module")
def address(tiny) -> Iterator[int]:
    with launched(ModelPool(tiny)) as (_, port):
        yield port


def test_the_document_and_the_scripts_come_compressed_where_the_browser_reads_that(address):
    packed, plain = ask(address, "GET", "/?a=1", **READS), ask(address, "GET", "/?a=1")
    assert packed.headers["content-encoding"] == "gzip" and plain.headers["content-encoding"] is None
    assert "Accept-Encoding" in packed.headers["vary"] and "content-security-policy" in packed.headers
    content, whole = packed.read(), plain.read()
    assert int(packed.headers["content-length"]) == len(content) < len(whole) / 4
    assert gzip.decompress(content) == whole
    modules = f"/{components.address()}"
    for path in (f"{modules}/{components.ENTRY}", f"{modules}/method/method.js", "/theme.css"):
        assert ask(address, "GET", path, **READS).headers["content-encoding"] in ("br", "gzip"), path
    assert ask(address, "HEAD", "/", **READS).status == ask(address, "HEAD", "/").status == 200


@pytest.mark.parametrize("door", ["page", "api"])
def test_the_records_of_a_run_come_one_by_one_and_as_they_are(address, monkeypatch, door):
    gated = Gated()
    monkeypatch.setattr(callbacks, "run", gated)
    for name in ("MIN_INTERVAL", "MAX_INTERVAL"):
        monkeypatch.setattr(stream, name, 0.01)
    info = json.loads(ask(address, "GET", "/gradio_api/info").read())["named_endpoints"]["/generate"]["parameters"]
    settings = {"prompt": "Why?", "max_new_tokens": 3 * GATE + 1, "ignore_eos": True, "audit": False}
    values = [settings.get(one["parameter_name"], one.get("parameter_default")) for one in info]
    if door == "page":  # the stream that the page reads
        calls = json.loads(ask(address, "GET", "/config").read())["dependencies"]
        index = next(one["id"] for one in calls if one["api_name"] == "generate")
        body = {"data": values, "fn_index": index, "session_hash": "reader"}
        assert ask(address, "POST", "/gradio_api/queue/join", json.dumps(body), **READS).status == 200
        path = "/gradio_api/queue/data?session_hash=reader"
    else:
        event = ask(address, "POST", "/gradio_api/call/generate", json.dumps({"data": values}), **READS).read()
        path = f"/gradio_api/call/generate/{json.loads(event)['event_id']}"
    events = ask(address, "GET", path, **READS)
    assert events.status == 200 and events.headers["content-encoding"] is None
    assert events.headers["content-type"].startswith("text/event-stream")
    parts = 0
    for line in events:
        if b"step" in line:  # words of the trace
            parts += 1
            gated.read.set()
        if b"process_completed" in line or line.startswith(b"event: complete"):
            break
    assert gated.looks == 3 and not gated.starved, "what was written had not come"
    assert parts > 3
