"""Downloads that break, and a preparation of the bundled model killed by SIGKILL: the next start makes it whole."""

import json
import multiprocessing
import os
import re
import signal
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from multiprocessing.synchronize import Event
from pathlib import Path

import pytest

from lora_drop.errors import LoraDropError
from lora_drop.models import bundled as door
from lora_drop.models import download
from tests.support.workshop import Workshop, die, in_process

pytestmark = pytest.mark.full


class Index(ThreadingHTTPServer):
    """A package index on this machine that sends what `percent` of the wheel holds, and says that it is all of it."""

    daemon_threads = True

    def __init__(self, shop: Workshop):
        self.content, self.percent, self.flipped = shop.wheel.read_bytes(), 100, None
        super().__init__(("127.0.0.1", 0), Answer)


class Answer(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        name, index = download.WHEEL.name, self.server
        if not self.path.endswith(name):
            page = f'<!DOCTYPE html><html><body><a href="/files/{name}">{name}</a></body></html>'.encode()
            self._send(page, "text/html", page)
            return
        content = bytearray(index.content)
        if index.flipped is not None:
            content[index.flipped] ^= 1
        self._send(content, "application/octet-stream", content[: len(content) * index.percent // 100])

    def _send(self, whole: bytes, kind: str, sent: bytes) -> None:
        self.send_response(200)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(whole)))
        self.end_headers()
        self.wfile.write(sent)

    def log_message(self, *_) -> None:
        """Nothing: stderr is looked at."""


@pytest.fixture
def index(shop, monkeypatch) -> Iterator[Index]:
    """The real download, by the real pip, from a server that can be made to break."""
    monkeypatch.setattr(download, "fetch_package", Workshop.real_download)
    server = Index(shop)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    for name in ("PIP_NO_INDEX", "PIP_FIND_LINKS", "PIP_EXTRA_INDEX_URL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    monkeypatch.setenv("PIP_INDEX_URL", f"http://127.0.0.1:{server.server_port}/simple")
    monkeypatch.setenv("PIP_RETRIES", "0")
    monkeypatch.setenv("PIP_NO_CACHE_DIR", "1")
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    yield server
    server.shutdown()
    server.server_close()
    thread.join()


def test_a_broken_download_is_reported_and_the_next_one_is_whole(index, shop):
    """One after the other into the same folder, so that what each leaves behind is there for the next."""
    for percent in (0, 25, 50, 75):
        index.percent = percent
        with pytest.raises(LoraDropError, match="could not be fetched; .*[Tt]ry again.*LORA_DROP_WHEEL") as caught:
            door.ensure()
        assert re.search("cut off|not enough bytes|IncompleteRead", str(caught.value)), "the cause, by us or by pip"
        assert "\n" not in str(caught.value) and str(shop.cache) not in str(caught.value)
        assert not shop.folder.exists() and shop.did() == []
    index.percent, index.flipped = 100, len(index.content) // 2
    with pytest.raises(LoraDropError, match="pip says: .*Bad CRC-32.* Try again"):
        door.ensure()
    assert not shop.folder.exists() and shop.did() == []
    index.flipped = None
    door.ensure()
    shop.assert_clean()


@pytest.mark.parametrize("name", ["wheel", "gguf"])
@pytest.mark.parametrize("percent", [0, 25, 50, 75, "a wrong byte"])
def test_what_a_killed_download_left_is_never_used(shop, name, percent):
    source = getattr(shop, name)
    content = bytearray(source.read_bytes())
    if percent == "a wrong byte":
        content[len(content) // 2] ^= 1
    else:
        content = content[: len(content) * percent // 100]
    left = shop.cache / f"{door.NAME}.partial"
    (left / "pip" / "pip-unpack-x").mkdir(parents=True)
    for path in (left / source.name, left / "pip" / "pip-unpack-x" / source.name):
        path.write_bytes(content)
    door.ensure()
    shop.assert_clean()
    assert shop.did() == ["download", "convert"]


def converts_forever(shop: Workshop, begun: Event) -> None:
    """Runs in its own process: holds the lock, with half a conversion written."""
    shop.set_up()

    def convert(gguf: Path, out: Path) -> None:
        (out / "model.safetensors").write_bytes(b"half")
        begun.set()
        signal.pause()

    door.convert = convert
    door.ensure()


def waits_and_builds(shop: Workshop, waiting: Event) -> None:
    """Runs in its own process: says when it has met the lock."""
    shop.set_up()
    door.print = lambda text, **_: waiting.set() if "waiting for it" in text else None
    door.ensure()


def test_a_process_that_waits_takes_over_from_one_that_is_killed(shop):
    context = multiprocessing.get_context("spawn")
    begun, waiting = context.Event(), context.Event()
    first = in_process(converts_forever, shop, begun)
    assert begun.wait(200)
    second = in_process(waits_and_builds, shop, waiting)
    assert waiting.wait(200)
    first.kill()
    first.join(200)
    second.join(200)
    assert (first.exitcode, second.exitcode) == (-signal.SIGKILL, 0)
    assert shop.did() == ["download", "convert"], "the GGUF was whole"
    shop.assert_clean()


def prepares(cache: Path, gguf: Path) -> None:
    """Runs in its own process: the real conversion, killed with two files half written."""
    os.environ |= {"LORA_DROP_CACHE": str(cache), "LORA_DROP_WHEEL": str(gguf)}

    def dies(*_) -> None:
        for name in ("model.safetensors", "tokenizer.json"):
            path = cache / f"{door.NAME}.partial" / name
            os.truncate(path, path.stat().st_size // 2)
        die()

    door.find_tensors = dies
    door.ensure()


@pytest.mark.timeout(900)
def test_the_real_first_start_killed_as_it_writes(tmp_path, monkeypatch):
    """Killed at other places, with a stub in place of the conversion: `test_bundled.py`."""
    good, folder = door.ensure(verify=True), tmp_path / door.NAME
    process = in_process(prepares, tmp_path, good / download.GGUF.name)
    process.join()
    assert process.exitcode == -signal.SIGKILL and not folder.exists()
    monkeypatch.setenv("LORA_DROP_CACHE", str(tmp_path))
    monkeypatch.setenv("LORA_DROP_WHEEL", str(good / download.GGUF.name))
    assert door.ensure() == folder and door.is_ready(folder, verify=True)
    one, other = (json.loads((place / door.MANIFEST).read_text()) for place in (good, folder))
    assert one["files"] == other["files"]
