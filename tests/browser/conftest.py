"""A real server in this process, a real Chromium beside it, which reaches no host but this machine.

All of it ends with this package: the driver keeps an event loop running, and `callbacks.run` is replaced here.
"""

import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from playwright.sync_api import Browser, BrowserContext, Page, sync_playwright

from lora_drop.models.load import load_model
from lora_drop.models.pool import ModelPool
from lora_drop.run.exports.html import replay_html
from lora_drop.run.trace.trace import Trace
from lora_drop.ui import callbacks
from tests.browser import install
from tests.support.server import Server, deep_model, serve

FLAGS = (
    "--no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking "
    "--disable-component-update --disable-sync "
    "--disable-backgrounding-occluded-windows --disable-renderer-backgrounding"  # two visitors draw at once
).split() + ["--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1, EXCLUDE localhost"]
LOCAL = {"127.0.0.1", "localhost"}


def chromium() -> str:
    """The browser's path; a machine without one is an error, not passed over in silence."""
    path = install.find()
    if path is None:
        pytest.fail("no Chromium found: install one (apt-get install chromium) or name it in CHROMIUM", pytrace=False)
    return path


@pytest.fixture(scope="package")
def tiny_server() -> Iterator[Server]:
    yield from serve(ModelPool(load_model("random:tiny-llama")))


@pytest.fixture(scope="package")
def deep() -> Iterator[Server]:
    yield from serve(ModelPool(deep_model()))


def release(server: Server) -> None:
    """Runs go on at their speed."""
    if server.goes_on:
        server.goes_on.set()
    server.goes_on = None


@pytest.fixture
def slow_server(server: Server) -> Server:
    """A run on it lasts until the test sets `goes_on`, or longer than any look at it takes."""
    server.goes_on = threading.Event()
    return server


@pytest.fixture(autouse=True)
def nothing_recorded(monkeypatch: pytest.MonkeyPatch) -> None:
    """A test that waits on a busy machine waits for its own run: no recorded one is played before it."""
    monkeypatch.setattr(callbacks, "SHIPPED_RECORDED", Path("nothing.jsonl"))


@pytest.fixture
def server(tiny_server: Server) -> Iterator[Server]:
    """The tiny model's server with no run left over."""
    tiny_server.runs.clear()
    tiny_server.closed = 0
    yield tiny_server
    tiny_server.script = None
    release(tiny_server)


@pytest.fixture(scope="package")
def browser() -> Iterator[Browser]:
    with sync_playwright() as driver:
        launched = driver.chromium.launch(executable_path=chromium(), headless=True, args=FLAGS)
        yield launched
        launched.close()


@pytest.fixture(scope="module")
def shared_context(browser: Browser) -> Iterator[BrowserContext]:
    """A file's context: the page's scripts are fetched and compiled once."""
    context = browser.new_context()
    yield context
    context.close()


@pytest.fixture
def new_page(browser: Browser, shared_context: BrowserContext) -> Iterator[Callable[..., Page]]:
    """Makes empty pages; at the end, none may have logged an error or shown a dialog."""
    pages, errors = [], []

    def new(allowed: tuple[str, ...] = (), permissions: tuple[str, ...] = (), viewport=None, **media) -> Page:
        """`allowed`: words of errors that the log may hold; `media`: what the visitor prefers.

        The first page of a test is one of the file's context, each further one a visitor with a context of its own.
        """
        context = browser.new_context() if pages else shared_context
        context.grant_permissions(permissions)
        page = context.new_page()
        pages.append(page)
        page.set_viewport_size(viewport or {"width": 1600, "height": 900})
        page.emulate_media(**media)

        def log(message):
            if message.type == "error" and not any(words in message.text for words in allowed):
                errors.append(message.text)

        page.on("console", log)
        page.on("pageerror", lambda error: errors.append(str(error)))
        page.on("dialog", lambda dialog: (errors.append(f"dialog: {dialog.message}"), dialog.dismiss()))
        return page

    yield new
    shared_context.set_offline(False)
    shared_context.clear_permissions()
    for page in pages:
        if page.context is not shared_context:
            page.context.close()
        elif not page.is_closed():
            page.evaluate("if (location.protocol === 'http:') localStorage.clear()")
            page.close()
    assert errors == [], "the page logged errors"


@pytest.fixture
def open_page(new_page: Callable[..., Page]) -> Iterator[Callable[..., Page]]:
    """Opens pages of a server; at the end, none may have asked another host."""
    foreign = []

    def open_(url: str, leaves: bool = False, busy: bool = False, **options) -> Page:
        """`leaves`: the test leaves the page while it streams; `busy`: its queue is full. The log may say so."""
        allowed = ("AbortError", "Connection errored out") * leaves + ("503 (Service Unavailable)",) * busy
        page = new_page(allowed, **options)

        def check(request):
            parts = urlsplit(request.url)
            if parts.scheme in ("http", "https", "ws", "wss") and parts.hostname not in LOCAL:
                foreign.append(request.url)

        page.on("request", check)  # a route would turn the browser's cache off
        page.goto(url)
        for is_ready in (".ld-status", ".ld-range-value"):
            page.wait_for_selector(f"{is_ready}:not(:empty)", timeout=60_000)
        for is_ready in (".ld-whatif[data-state]", ".ld-pane[data-lane='1']"):
            page.wait_for_selector(is_ready, timeout=60_000)
        return page

    yield open_
    assert foreign == [], "the page asked another host"


@pytest.fixture
def open_replay(new_page: Callable[..., Page], tmp_path: Path) -> Iterator[Callable[..., Page]]:
    """Opens a trace's replay, or the file of one, from the disk and offline; at the end, nothing else was fetched."""
    files, fetched = [], []

    def open_(replay: Trace | Path, **options) -> Page:
        path = replay
        if isinstance(replay, Trace):
            path = tmp_path / "replay.html"
            path.write_text(replay_html(replay), encoding="utf-8")
        page = new_page(**options)
        page.context.set_offline(True)
        page.on("request", lambda request: fetched.append(request.url))
        files.append(path.as_uri())
        page.goto(files[-1])
        page.wait_for_selector(".ld-live[data-run]", timeout=10_000)
        return page

    yield open_
    assert [url for url in fetched if not url.startswith(("data:", "blob:"))] == files
