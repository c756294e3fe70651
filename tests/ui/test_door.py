"""The door, the turns and the visits: what one address sends costs the others little, and goes when its visit is over.

The figures of each attack before are in docs/reliability.md.
"""

import asyncio
import json
import logging
import os
import re
import socket
import threading
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import Mock

import pytest
import uvicorn
from hypothesis import given
from hypothesis import strategies as st
from starlette.routing import Mount, Route

from lora_drop.models.pool import ModelPool
from lora_drop.run.request import Request
from lora_drop.run.shares import Shares
from lora_drop.ui import callbacks
from lora_drop.ui.callbacks import Callbacks
from lora_drop.ui.page import Page, build_app, launch
from lora_drop.ui.serve import connections, gradio_queue, guard, visits
from lora_drop.ui.serve.guard import LIGHT_AT_ONCE, PAGES_AT_ONCE, LightPool, Refused
from lora_drop.ui.serve.owner import Counters
from lora_drop.ui.serve.policy import LOOPBACK, PUBLIC, Limits, Policy
from lora_drop.ui.serve.routes import Kind, Routes
from lora_drop.ui.serve.scan import DEPTH, NAME, VALUES, TooComplex, check_shape
from lora_drop.ui.serve.uploads import FILES, Shelf
from lora_drop.ui.serve.visits import Visits
from scripts.space_check import free_port
from tests.support.page import wait_until
from tests.support.server import ask, launched

ME, OTHER = "127.0.0.1", "127.0.0.2"
values = st.recursive(
    st.text(max_size=9) | st.integers(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(max_size=9), inner),
    max_leaves=9,
)
FORM = {"Content-Type": "multipart/form-data; boundary=x"}


@pytest.fixture(scope="module")
def page(tiny, tmp_path_factory) -> Iterator[tuple[Page, int]]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GRADIO_TEMP_DIR", str(tmp_path_factory.mktemp("uploads")))
        with launched(ModelPool(tiny), Policy(public=True, limits=PUBLIC, hosts=LOOPBACK)) as served:
            yield served


@pytest.fixture
def post(page):
    """Status and content of a POST to an address of the API."""

    def post(path: str, body: object, address: str = ME, **headers: str) -> tuple[int, bytes]:
        sent = body if isinstance(body, bytes) else json.dumps(body).encode()
        return ask(page[1], "POST", f"/gradio_api/{path}", sent, address, **headers)[:2]

    return post


def light_call(page: Page, session: str) -> dict:
    whatif = next(i for i, block in page.blocks.items() if block.elem_id == "ld-whatif")
    return {"data": ["Hi", None], "component_id": whatif, "fn_name": "count_tokens", "session_hash": session}


def test_names_and_hashes_are_short(page, post):
    """Before: a `session_hash` of 15 MiB was kept, in five copies."""
    long, most = "a" * (NAME + 1), "a" * NAME
    body = {"data": [], "fn_index": 0}
    assert post("queue/join", body | {"session_hash": long})[0] == 413
    assert post("queue/join", body | {long: 1, "session_hash": "x"})[0] == 413
    assert post("queue/join", body | {"session_hash": most})[0] == 200
    for path in (f"heartbeat/{long}", f"queue/data?session_hash={long}", f"call/generate/{long}"):
        assert ask(page[1], "GET", f"/gradio_api/{path}")[0] == 400
    assert page[0].calls.visits.address(most) == ME and page[0].calls.visits.address(long) is None


def test_a_body_of_many_values_is_refused_before_it_is_parsed(page, post):
    """Before: 14 MiB of `[],` took 18 s of the event loop and 740 MB."""
    join = b'{"data":[],"fn_index":0,"session_hash":"x","event_data":[%s[]]}'
    for many in (b"[]," * 6000, b"[" * 40, b" " * 70_000, b"[]," * 300_000):
        status, content = post("queue/join", join % many)
        assert status == 413 and json.loads(content)["detail"].startswith("This request is too complex")
    assert post("cancel", b'{"session_hash":[%s[]]}' % (b"[]," * 40_000))[0] == 413
    # A long text is a trace, which two functions take.
    generate = next(i for i, fn in page[0].fns.items() if fn.api_name == "generate")
    body = {"data": ["x" * 200_000], "fn_index": generate, "session_hash": "x"}
    assert post("queue/join", body)[0] == 413 and post("call/generate", body)[0] == 413


def scanned(body: bytes) -> tuple[str | None, int]:
    return asyncio.run(check_shape(body))


@given(values, st.one_of(st.none(), st.text(max_size=10)), st.booleans())
def test_the_scan_sees_what_a_parser_sees(value, session, ascii):
    raw = json.dumps({"data": value, "session_hash": session, "more": [0]}, ensure_ascii=ascii, indent=ascii or None)
    body = raw.encode("utf-8", "surrogatepass")
    texts = re.compile(rb'"(?:[^"\\]|\\.)*"', re.S)
    seen, count = scanned(body)
    assert seen == session and count - 2 == len(texts.sub(b'""', body))


def test_the_bounds_of_the_scan():
    assert scanned(b'{"a":[%s0]}' % (b"0," * (VALUES - 3))) and scanned(b"[" * DEPTH + b"]" * DEPTH)
    assert scanned(b'["%s", "x]"]' % (b'\\\\\\"[,{' * 400_000)), "a trace may be long and full of marks"
    for body in (
        b"[" * (DEPTH + 1),
        b"[%s0]" % (b"0," * VALUES),
        b" " * 70_000,
        b'""' * 40_000,
        b'{"session\\u005fhash":1}',
        b'{"session_hash":"\\ud800"}',
        b'{"session_hash":"\\x"}',
    ):
        with pytest.raises(TooComplex):
            scanned(body)
    for odd in (b'"', b'"\\\\', b'{"session_hash":"', b"]]", b"\xff"):
        assert scanned(odd)[0] in (None, "")


def test_an_event_waits_without_its_body(page, post):
    """Before: the raw body and what was parsed of it stayed as long as the call waited."""
    queue, seen = page[0]._queue, []
    real = type(queue).send_message
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(type(queue), "send_message", lambda *args: (seen.append(args[1]), real(*args)))
        assert post("call/replay", {"data": ["x" * 100_000]})[0] == 200
    assert seen and seen[0].request._body == b"" and seen[0].request._json is None


UPLOAD = b'--x\r\nContent-Disposition: form-data; name="%s"; filename="%s"\r\n\r\nabc'
END = b"\r\n--x--\r\n"


def files(page: Page) -> list[Path]:
    walk = os.walk(page.app.uploaded_file_dir)  # passes over what is deleted meanwhile
    return [Path(at, name) for at, folders, names in walk for name in (*folders, *names)]


@pytest.mark.parametrize(
    "body",
    [
        UPLOAD % (b"files", b"a.jsonl"),
        UPLOAD % (b"files", b"..") + END,
        UPLOAD % (b"other", b"a.jsonl") + END,
        UPLOAD % (b"files", "é".encode() * 300) + END,
    ],
    ids=["no end", "..", "another field", "a long name"],
)
def test_an_upload_that_fails_leaves_nothing(page, post, body):
    """Before: each left its file, 160 MiB a second."""
    before = set(files(page[0]))
    status, content = post("upload", body, **FORM)
    if status == 200:
        path = json.loads(content)[0]
        wait_until(lambda: path in page[0].calls.uploads._files, "it is counted, after its answer")
        page[0].calls.uploads.done(path)
    wait_until(lambda: set(files(page[0])) == before, "nothing stays")


def test_files_are_counted_by_address_and_deleted_outside_of_the_loop(page, post, monkeypatch, tmp_path):
    """Before: the event loop stood still for 17 s while 2,000 files were deleted, each in a walk through all."""
    threads = set()
    unlink = Path.unlink
    monkeypatch.setattr(
        Path, "unlink", lambda path, **kw: (threads.add(threading.current_thread()), unlink(path, **kw))[1]
    )
    calls = page[0].calls
    monkeypatch.setattr(calls.uploads._files, "most", 3)
    assert post("upload", UPLOAD % (b"files", b"other.jsonl") + END, OTHER, **FORM)[0] == 200
    for number in range(6):
        assert post("upload", UPLOAD % (b"files", b"%d.jsonl" % number) + END, **FORM)[0] == 200
    names = ["4.jsonl", "5.jsonl", "other.jsonl"]
    wait_until(
        lambda: sorted(path.name for path in files(page[0]) if path.is_file()) == names, "one's own oldest went"
    )
    monkeypatch.setattr(visits, "SECONDS", 0)
    calls.visits.sweep()
    assert not [path for path in files(page[0]) if path.is_file()] and threads
    assert not [thread for thread in threads if thread.name.endswith("(run)")], "the server's loop"
    shelf, paths = Shelf(Visits(), 2**30), [tmp_path / str(n) for n in range(FILES + 10)]
    for path in paths:
        path.touch()
        shelf.add(path, ME)
    assert len(shelf) == FILES and [path.exists() for path in paths] == [False] * 10 + [True] * FILES


def test_light_work_takes_turns_and_a_wait_has_an_end(monkeypatch):
    """Before: first come, first served: 24 comparisons kept another address from an answer for two minutes."""

    async def come() -> None:
        pool, served, most = LightPool(public=True), [], []
        end = asyncio.Event()

        async def call(address: str) -> None:
            async with pool.place(address):
                served.append(address)
                most.append(pool._running[address])
                await end.wait()

        mine = [asyncio.create_task(call("mine")) for _ in range(8)]
        await asyncio.sleep(0)
        others = [asyncio.create_task(call("other")), asyncio.create_task(call("third"))]
        await asyncio.sleep(0.01)
        assert served == ["mine", "mine", "other", "third"], "half of the places are one address's"
        monkeypatch.setattr(guard, "LIGHT_SECONDS", 0.01)
        with pytest.raises(Refused, match="within 0.01 s: try again"):
            await call("late")
        end.set()
        await asyncio.gather(*mine, *others)
        assert max(most) == LIGHT_AT_ONCE // 2 and len(served) == 10 and not pool._running and not pool._waiting

    asyncio.run(come())


def test_light_calls_in_the_queue_take_turns_and_their_wait_has_an_end(page, monkeypatch):
    queue = page[0]._queue
    fn = next(fn for fn in page[0].fns.values() if fn.api_name == "replay")
    queue.create_event_queue_for_fn(fn)
    waiting = queue.event_queue_per_concurrency_id[fn.concurrency_id]

    def event(address: str) -> gradio_queue.Event:
        return gradio_queue.Event(address, fn, SimpleNamespace(scope={"lora_drop.address": address}), None)

    monkeypatch.setattr(waiting, "queue", [event("a"), event("a"), event("a"), event("b")])
    monkeypatch.setattr(queue, "start_processing", None)
    queue._sort(fn.concurrency_id)
    assert [one.session_hash for one in waiting.queue] == ["a", "b", "a", "a"]
    monkeypatch.setattr(gradio_queue, "LIGHT_SECONDS", -1)
    ended = []
    monkeypatch.setattr(queue, "send_message", lambda event, message: ended.append(message.output["error"]))
    assert queue.get_events() is None and not waiting.queue
    assert len(ended) == 4 and "your turn did not come" in ended[0]


def test_others_large_traces_keep_no_small_call_out(page, monkeypatch):
    """Before: while two attackers' large traces waited, every light call of every visitor was refused."""
    queue, most = page[0]._queue, page[0]._queue.policy.limits.trace_bytes
    fn = next(fn for fn in page[0].fns.values() if fn.api_name == "replay")

    def event(address: str) -> gradio_queue.Event:
        scope = {"lora_drop.address": address, "lora_drop.bytes": most}
        return gradio_queue.Event(address, fn, SimpleNamespace(scope=scope), None)

    def refusal(address: str, size: int) -> str:
        refused = queue._refusal(fn, SimpleNamespace(session_hash="", data=[]), address, size)
        return refused[1] if refused else ""

    waiting = [event("a"), event("a"), event("b")]
    monkeypatch.setattr(queue, "waiting", lambda runs: waiting)
    assert "from your address" in refusal("a", most) and not refusal("c", most)
    waiting.append(event("b"))
    assert refusal("c", most).startswith("Large traces are waiting")
    assert not refusal("a", 1000) and not refusal("c", 1000)


def test_connections_are_counted_by_network_and_a_newcomer_has_one(monkeypatch):
    """Before: two addresses of one IPv6 /64, or two IPv4 ones, took all connections."""
    monkeypatch.setattr(connections.uvicorn_config, "HTTP_PROTOCOLS", dict(connections.uvicorn_config.HTTP_PROTOCOLS))
    monkeypatch.setenv("FORWARDED_ALLOW_IPS", "")
    connections.guard_connections(Policy(limits=Limits(connections=20)), Counters())

    async def come() -> None:
        config = uvicorn.Config(lambda: None, log_config=None, factory=True)
        config.load()

        def connect(peer: str) -> Mock:
            wire = Mock(get_extra_info={"peername": (peer, 5)}.get)
            config.http_protocol_class(config, uvicorn.server.ServerState(), {}).connection_made(wire)
            return wire

        mine = [connect(f"2001:db8::{n:x}") for n in range(15)]
        assert [wire.close.called for wire in mine] == [False] * 10 + [True] * 5, "they are one address"
        two = [connect("10.0.0.1") for _ in range(10)]
        third = connect("10.0.0.2")
        assert not third.close.called and sum(wire.abort.called for wire in (*mine, *two)) == 1

    asyncio.run(come())


def test_an_answer_that_nobody_reads_is_cut(page, monkeypatch):
    """Before: 500 unread files kept every other visitor out for as long as they stayed."""
    monkeypatch.setattr(connections, "WRITE_SECONDS", 0.2)
    before = page[0].calls.counters.refused("unread")
    head = b"GET /config HTTP/1.1\r\nHost: localhost\r\n\r\n"
    with socket.socket() as silent:
        silent.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        silent.connect((ME, page[1]))
        silent.sendall(head * 30)
        wait_until(lambda: page[0].calls.counters.refused("unread") > before, "it was cut")


def test_pages_are_few_and_a_lecture_hall_has_them(page, monkeypatch):
    """Before: 33 pages a second took the cores from a run: 3.7 s became 31."""
    assert [ask(page[1], "GET", "/", None, "127.0.0.3")[0] for _ in range(3)] == [200] * 3
    now = [100.0]
    monkeypatch.setattr(guard, "time", SimpleNamespace(monotonic=lambda: now[0]))
    door = guard.Guard(Mock(), Policy(limits=PUBLIC), Counters(), Visits())
    assert [door.take("hall", "page") for _ in range(PAGES_AT_ONCE + 1)] == [True] * PAGES_AT_ONCE + [False]
    assert door.take("other", "page") and door.take("hall", "calls") and door.take("hall", "file")
    now[0] += 1
    assert [door.take("hall", "page") for _ in range(5)] == [True] * 3 + [False] * 2


def test_cached_prompts_are_the_session_s_own(tiny):
    """Before: a prompt that another had asked was told, in a field and by its time."""
    calls = Callbacks(ModelPool(tiny), PUBLIC, public=True)
    for session, address in (("a", "1"), ("b", "2")):
        calls.visits.seen(session, address)

    def cached(session: str | None) -> bool:
        *_, summary = calls.run(Request("A secret", max_new_tokens=2), session=session)
        return summary.prefill_cached

    assert [cached(session) for session in ("a", "a", "b", "b")] == [False, True] * 2
    assert not cached(None) and not cached(None)
    calls.prompts.end({"a"})
    assert [cached("a"), cached("b")] == [False, True]


def test_a_visit_takes_what_it_made_with_it(page, post, monkeypatch):
    calls, holder = page[0].calls, page[0].app.state_holder
    with socket.create_connection((ME, page[1])) as visit:
        visit.sendall(b"GET /gradio_api/heartbeat/mine HTTP/1.1\r\nHost: localhost\r\n\r\n")
        while b"ALIVE" not in visit.recv(4096):
            pass
        assert post("component_server", light_call(page[0], "mine"))[0] == 200
        run_id = calls.traces.begin("mine")
        calls.traces.add(run_id, "a line")
        monkeypatch.setattr(visits, "SECONDS", 0)
        calls.visits.sweep()
        assert calls.traces.text(run_id) and "mine" in holder.session_data, "the page is open"
    wait_until(lambda: calls.visits.sweep() or calls.traces.text(run_id) is None, "the visit is over")
    assert "mine" not in holder.session_data and calls.visits.address("mine") is None


def test_no_address_pushes_out_the_sessions_of_another(page, post, monkeypatch):
    """Before: 205 calls with new names, and the state of everybody else's session was gone."""
    holder = page[0].app.state_holder
    monkeypatch.setattr(holder, "capacity", 4)
    assert post("component_server", light_call(page[0], "victim"), OTHER)[0] == 200
    for number in range(10):
        assert post("component_server", light_call(page[0], f"new {number}"))[0] == 200
    assert "victim" in holder.session_data and len(holder.session_data) == 4


def test_who_holds_most_makes_room():
    shares: Shares = Shares(most=4, most_bytes=100)
    shares.put("small", "a value", "b", 10)
    assert [gone for number in range(6) for gone in shares.put(number, None, "a", 1)] == [0, 1, 2]
    assert set(shares) == {"small", 3, 4, 5} and shares.get("small") == "a value" and shares.get(0) is None
    assert shares.put("too large", None, "c", 101) == [] and "too large" not in shares
    assert shares.grow(3, 90) == [3] and shares.nbytes == 12 and shares.count("a") == 2


@pytest.mark.parametrize(
    ("headers", "passes"),
    [
        ({}, True),
        ({"Sec-Fetch-Site": "same-origin", "Origin": "http://localhost:{port}"}, True),
        ({"Origin": "http://localhost:{port}"}, True),
        ({"Sec-Fetch-Site": "none"}, True),
        ({"Sec-Fetch-Site": "cross-site"}, False),
        ({"Sec-Fetch-Site": "same-site"}, False),
        ({"Origin": "http://evil.example"}, False),
        ({"Origin": "http://localhost:1"}, False),
        ({"Origin": "null"}, False),
        ({"Sec-Fetch-Site": "same-origin", "Origin": "http://evil.example"}, False),
    ],
)
def test_other_sites_do_not_call(page, post, headers, passes):
    """Before: a page elsewhere could start runs and upload files on this machine."""
    sent = {name: value.format(port=page[1]) for name, value in headers.items()} | {"Host": f"localhost:{page[1]}"}
    assert (post("reset", {"event_id": "x"}, **sent)[0] == 200) is passes
    assert (post("upload", UPLOAD % (b"files", b"a.jsonl") + END, **sent, **FORM)[0] == 200) is passes
    assert ask(page[1], "GET", "/config", None, **sent)[0] == 200, "what is only read has a policy of its own"


def test_a_port_that_the_scheme_implies_is_the_same():
    door = guard.Guard(Mock(), Policy(hops=1), Counters(), Visits())
    for origin, host, foreign in (
        ("https://name", "name:443", False),
        ("https://name:443", "Name", False),
        ("http://name", "name:443", True),
        ("https://outside", "inside:7860", True),
    ):
        assert door._is_foreign(guard.Headers({"origin": origin, "host": host})) is foreign
    headers = guard.Headers({"origin": "https://outside", "host": "inside:7860", "x-forwarded-host": "outside"})
    assert not door._is_foreign(headers), "a trusted proxy says which name was asked for"
    door.policy = Policy()
    assert door._is_foreign(headers), "anybody may send this header"


def test_addresses_that_cannot_be_read_leave_no_traceback(page, post, capfd, caplog):
    """Before: a stream of no session, a heartbeat with a null byte and a host that is none each filled the log."""
    log = logging.getLogger("uvicorn.error")
    log.addHandler(caplog.handler)
    try:
        for path in ("queue/data?session_hash=none", "call/generate/none"):
            status, content, _ = ask(page[1], "GET", f"/gradio_api/{path}")
            assert status == 200 and b"404: Not Found" in content
        assert ask(page[1], "GET", "/gradio_api/heartbeat/%ff%00")[0] == 400
        for host in ("[::", "a:b"):
            for path in ("/", "/config", "/gradio_api/info"):
                assert ask(page[1], "GET", path, **{"X-Forwarded-Host": host})[0] == 400
        field = (UPLOAD % (b"files", b"x") + END).replace(b'; filename="x"', b"")
        assert post("upload?upload_id=x", field, **FORM)[0] == 400
    finally:
        log.removeHandler(caplog.handler)
    assert not caplog.records and "Traceback" not in "".join(capfd.readouterr())


def test_routes_without_a_class_are_closed(page, capfd):
    """Before: Gradio printed what was in this path, with its control characters."""
    asked = "/gradio_api/custom_component/x%1b%5b31m%0aFAKE/client/component/y.js"
    for path in (asked, "/gradio_api/deep_link?session_hash=x", "/gradio_api/proxy=http://x", "/docs", "/no"):
        assert ask(page[1], "GET", path)[0] == 404
    assert "FAKE" not in "".join(capfd.readouterr())
    assert Routes(page[0].app.routes).unknown == []
    routes = Routes([Route("/config", Mock()), Route("/new/{name}", Mock()), Mount("/gradio_api/mcp", Mock())])
    assert routes.unknown == ["/new/{name}"]
    for path, kind in (("/config", Kind.PAGE), ("/new/x", Kind.CLOSED), ("/gradio_api/mcp", Kind.RUN)):
        for root in ("", "/some/root"):
            scope = {"type": "http", "path": root + path, "root_path": root, "query_string": b""}
            assert routes.match(scope)[0] is kind


def test_a_visitor_of_mcp_has_an_address_and_no_session(tiny, monkeypatch):
    """Before: Gradio made all their calls from 127.0.0.1, and in one session: one run waited for all of them."""
    demo = build_app(ModelPool(tiny), Policy(public=True, limits=PUBLIC, hosts=LOOPBACK))
    launch(demo, ME, port := free_port(), block=False, mcp=True)
    addresses, sessions, serve = [], [], demo._queue.turns["gpu"].serve
    monkeypatch.setattr(demo._queue.turns["gpu"], "serve", lambda address: (addresses.append(address), serve(address)))
    run = demo.calls.run
    monkeypatch.setattr(demo.calls, "run", lambda *a, **more: (sessions.append(more["session"]), run(*a, **more))[1])
    try:
        assert Routes(demo.app.routes).unknown == []

        def call(name: str, address: str = ME, **headers: str) -> bytes:
            params = {"name": name, "arguments": {"prompt": "Hi", "max_new_tokens": 8}}
            body = json.dumps({"jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": params}).encode()
            headers["Accept"] = "application/json, text/event-stream"
            status, content, _ = ask(port, "POST", "/gradio_api/mcp/", body, address, **headers)
            assert status == 200
            return content

        assert b"kv_bytes_baseline" in call("estimate")
        for address in (OTHER, ME):
            assert b"lora-drop-trace" in call("generate", address, **{"X-Lora-Drop-Visitor": "x 10.0.0.1"})
        assert addresses == [OTHER, ME] and sessions == [None, None]
    finally:
        demo.close(verbose=False)


def test_an_upload_is_its_address_s_own(page, post, monkeypatch):
    """Before: whoever named its path had it. Equal files were one, at a path that its sender could work out."""
    body = UPLOAD % (b"files", b"mine.jsonl") + END
    path, again = (json.loads(post("upload", body, **FORM)[1])[0] for _ in range(2))
    assert path != again
    wait_until(lambda: {path, again} <= set(page[0].calls.uploads._files), "they are counted")
    for name in (path, path.replace("/mine", "//./mine")):
        assert ask(page[1], "GET", f"/gradio_api/file={name}", None, OTHER)[0] == 404
    assert ask(page[1], "GET", f"/gradio_api/file={path}")[0] == 200
    address = [OTHER]
    monkeypatch.setattr(callbacks, "address_of_call", lambda: address[0])
    assert "Another address" in page[0].calls.open_trace(path)[1]["text"] and Path(path).exists()
    address[0] = ME
    assert "line 1" in page[0].calls.open_trace(path)[1]["text"] and not Path(path).exists()
    page[0].calls.uploads.done(again)


def test_in_a_space_without_hops_an_address_is_no_visitor(monkeypatch):
    assert Policy().tells_apart
    monkeypatch.setenv("SPACE_ID", "somebody/space")
    assert not Policy().tells_apart and Policy(hops=1).tells_apart
    shelf = Shelf(Visits(), 2**30)
    shelf._files.put("/a", None, OTHER)
    assert not shelf.is_open_to(ME, "/a")
    shelf.by_address = False
    assert shelf.is_open_to(ME, "/a")


def test_open_requests_through_a_proxy_are_shared():
    async def come() -> None:
        end = asyncio.Event()

        async def app(scope, receive, send):
            await end.wait()

        door = guard.Guard(app, Policy(hops=1, limits=Limits(connections=8)), Counters(), Visits())
        answers: list[int] = []

        async def get(client: str) -> None:
            async def send(message):
                answers.append(message.get("status", 0))

            scope = {"type": "http", "method": "GET", "path": "/config", "query_string": b"", "root_path": ""}
            scope |= {"headers": [(b"x-forwarded-for", client.encode())], "client": (ME, 1)}
            await door(scope | {"app": SimpleNamespace(routes=[Route("/config", app)])}, Mock(), send)

        async with asyncio.TaskGroup() as group:
            for _ in range(4):
                group.create_task(get("10.0.0.1"))
            await asyncio.sleep(0)
            with ExitStack() as stack:
                stack.callback(end.set)
                door.counters = Counters()
                with pytest.raises(Refused, match="too many open requests"):
                    door._check({"method": "GET"}, guard.Headers({}), "10.0.0.1", Kind.PAGE, {})
                door._check({"method": "GET"}, guard.Headers({}), "10.0.0.2", Kind.PAGE, {})

    asyncio.run(come())
