"""A public page against a visitor who wants more than a share: each attack over HTTP, in small.

What each did before there was anything against it stands in its docstring.
"""

import contextlib
import inspect
import json
import os
import socket
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from lora_drop.models.pool import ModelPool
from lora_drop.run.run import run
from lora_drop.ui import api, callbacks
from lora_drop.ui.page import Page
from lora_drop.ui.serve import visits
from lora_drop.ui.serve.guard import CONTENT_SECURITY_POLICY, LIGHT_AT_ONCE, LIGHT_WAITING
from lora_drop.ui.serve.policy import LOOPBACK, MIB, PUBLIC, Policy
from tests.support import ROOT
from tests.support.page import wait_until
from tests.support.server import ask, launched

ME, OTHER = "127.0.0.1", "127.0.0.2"  # both are this machine, and two addresses to the server
TOKEN = "the owner's"
LIMITS = replace(PUBLIC, calls=500, trace=1, unread=1)


@dataclass
class Server:
    """A public page, its functions, and the runs that it began: each waits for `go` after its first record."""

    demo: Page
    port: int
    begun: list[str]
    go: threading.Event

    def ask(
        self, method: str, path: str, body: Any = None, address: str = ME, **headers: str
    ) -> tuple[int, bytes, dict[str, str]]:
        """Status, content and headers of the answer."""
        sent = body if body is None or isinstance(body, (bytes, Iterator)) else json.dumps(body).encode()
        return ask(self.port, method, path, sent, address, **headers)

    def call(self, prompt: str, tokens: int = 4, address: str = ME, **headers: str) -> str:
        """Begin a call of `/generate`; returns its id."""
        status, content, _ = self.ask("POST", "/gradio_api/call/generate", asked(prompt, tokens), address, **headers)
        assert status == 200, content
        return json.loads(content)["event_id"]

    def result(self, event: str, address: str = ME) -> bytes:
        """How a call came out: the last event of its stream."""
        return self.ask("GET", f"/gradio_api/call/generate/{event}", address=address)[1].strip().rpartition(b"\n\n")[2]

    def refused(self, reason: str) -> int:
        return self.demo.calls.counters.refused(reason)

    def figures(self, token: str = TOKEN) -> dict[str, float]:
        """The owner's metrics."""
        status, content, _ = self.ask("GET", "/metrics", Authorization=f"Bearer {token}")
        assert status == 200, content
        return {line.rpartition(" ")[0]: float(line.rpartition(" ")[2]) for line in content.decode().splitlines()}


def asked(prompt: str, tokens: int, **settings: Any) -> dict[str, list[Any]]:
    """The body of a call; what is not named has its default."""
    values = {one.name: one.default for one in callbacks.settings_of(callbacks.RUN)}
    values |= {"max_new_tokens": tokens, "layers": "1-4", "ignore_eos": True, "audit": False, "lanes": "both"}
    return {"data": [prompt, *((values | settings).get(name) for name in callbacks.SENT["generate"][1:])]}


@pytest.fixture(scope="module")
def page(tiny, tmp_path_factory) -> Iterator[Server]:
    begun: list[str] = []
    go = threading.Event()

    def waiting(loaded, request, *stop):
        begun.append(request.prompt)
        records = run(loaded, request, *stop)
        yield next(records)
        if "wait" in request.prompt:
            assert go.wait(60)
        yield from records

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(callbacks, "run", waiting)
        patch.setenv("GRADIO_TEMP_DIR", str(tmp_path_factory.mktemp("uploads")))
        policy = Policy(public=True, limits=LIMITS, hosts=LOOPBACK, token=TOKEN)
        with launched(ModelPool(tiny), policy) as (demo, port):
            yield Server(demo, port, begun, go)


@pytest.fixture
def server(page) -> Iterator[Server]:
    page.begun.clear()
    page.go.clear()
    yield page
    page.go.set()
    page.demo.calls.counters.paused = False
    wait_until(lambda: page.figures()["lora_drop_queue"] == 0, "nothing waits")


def in_threads(count: int, work: Callable[[int], Any]) -> list[Any]:
    """What `work` gives in so many threads at once."""
    with ThreadPoolExecutor(count) as pool:
        return list(pool.map(work, range(count)))


def test_a_hundred_sessions_of_one_address_delay_another_by_one_run(server):
    """Before: 100 calls with forged headers were taken, and 98 of their runs came before the other address's."""
    first = server.call("wait: mine")
    wait_until(lambda: server.begun == ["wait: mine"], "the first one runs")
    forged = [
        {"X-Forwarded-For": f"10.0.{i}.1", "Forwarded": f"for=10.0.{i}.1", "X-Real-IP": f"10.0.{i}.1"}
        for i in range(99)
    ]
    mine = in_threads(99, lambda i: server.call(f"mine {i}", **forged[i]))
    other = server.call("the other's", address=OTHER)
    server.go.set()
    assert server.result(other, OTHER).startswith(b"event: complete")
    assert server.begun.index("the other's") == 1, "only the run that was on came first"
    ends = in_threads(99, lambda i: server.result(mine[i]))
    assert server.result(first).startswith(b"event: complete")
    assert sum(end.startswith(b"event: complete") for end in ends) == LIMITS.share
    refusals = {json.loads(end.partition(b"data: ")[2])["error"] for end in ends if end.startswith(b"event: error")}
    assert len(refusals) == 1 and refusals.pop().startswith("4 calls from your address")
    assert server.refused("share") >= 95


def test_a_session_has_one_run_that_waits_and_a_place_is_told(server):
    number = next(i for i, fn in server.demo.fns.items() if fn.api_name == "generate")

    def join(prompt: str, session: str) -> str:
        body = asked(prompt, 4) | {"fn_index": number, "session_hash": session}
        return json.loads(server.ask("POST", "/gradio_api/queue/join", body)[1])["event_id"]

    join("wait: first", "one")
    wait_until(lambda: bool(server.begun), "the first one runs")
    events = [join("second", "one"), join("third", "one")]
    join("somebody else", "two")
    server.go.set()
    content = server.ask("GET", "/gradio_api/queue/data?session_hash=one")[1].decode()
    messages = [json.loads(line[6:]) for line in content.splitlines() if line.startswith("data: ")]
    ends = {m["event_id"]: m for m in messages if m["msg"] == "process_completed"}
    assert ends[events[0]]["success"] and not ends[events[1]]["success"]
    assert "already have a run" in ends[events[1]]["output"]["error"]
    places = [(m["rank"], m["queue_size"]) for m in messages if m["msg"] == "estimation"]
    assert (0, 1) in places and (0, 2) in places
    wait_until(lambda: "somebody else" in server.begun, "all that were taken have run")


def test_limits_are_checked_before_anything_waits(server):
    """Before: a run over the limits waited for its turn, to be refused then."""
    server.call("wait")
    wait_until(lambda: bool(server.begun), "one runs")
    for prompt, tokens, words in (("x" * 8001, 4, "at most 8,000 characters"), ("x", 513, "at most 512 new tokens")):
        assert words in server.result(server.call(prompt, tokens)).decode()
    body = asked("x", 4, model="Qwen/Qwen2.5-14B-Instruct")
    event = json.loads(server.ask("POST", "/gradio_api/call/generate", body)[1])["event_id"]
    assert b"model must be one of random:tiny-llama; got" in server.result(event)
    assert server.begun == ["wait"]


def test_what_is_checked_early_is_the_run_and_nothing_else(server):
    """Gradio names a function after its method: a sweep of the same name was once refused as a run."""
    named = {fn.api_name: fn.fn for fn in server.demo.fns.values()}
    assert named["run_page"].__qualname__ == "Callbacks.run_page" and "run_page_1" not in named
    assert named["run_sweep"].__qualname__ == "SafeZone.run_sweep"


@pytest.mark.parametrize("route", ["run", "api"])
def test_no_route_runs_the_model_beside_the_queue(server, route):
    """Before: four calls of /run/generate ran at once beside the one of the queue."""
    for name in ("generate", "run_page", "use_model", "replay"):
        assert server.ask("POST", f"/gradio_api/{route}/{name}", asked("beside", 4))[0] == 404
    for number, fn in server.demo.fns.items():  # nor by the number of a function, under a name that is open
        if fn.queue:
            body = asked("beside", 4) | {"fn_index": number}
            assert server.ask("POST", f"/gradio_api/{route}/estimate", body)[0] == 404
    assert server.begun == []
    assert server.ask("POST", f"/gradio_api/{route}/estimate", {"data": asked("x", 4)["data"][:1]})[0] == 400


def test_what_is_not_read_is_bounded_and_its_run_stops(server):
    """Before: 20 unread runs took 273 MB of the server, for good; of the bundled model's, one took 6.7 GB."""
    number, before = len(server.begun), server.refused("unread")
    sent = asked("unread", 512, audit=True)  # the longest text there is
    event = json.loads(server.ask("POST", "/gradio_api/call/generate", sent)[1])["event_id"]
    wait_until(lambda: server.refused("unread") > before or _idle(server, number), "the run stopped")
    assert server.refused("unread") == before + 1
    queue = server.demo._queue
    wait_until(lambda: event not in queue.event_ids_to_events, "the run has ended")
    assert queue.pending_messages_per_session.nbytes < 2**16
    assert b"Stopped: more than 1 MiB" in server.result(event)
    assert server.result(server.call("next")).startswith(b"event: complete")


def _idle(server: Server, number: int) -> bool:
    return len(server.begun) > number and not any(server.demo._queue.active_jobs)


def test_a_body_is_refused_before_it_is_read(server):
    """Before: 150 MB in one request took a gigabyte of memory."""

    def without_length(path: str, parts: Iterator[bytes]) -> int:
        with contextlib.suppress(OSError):  # the connection is cut while the body is sent
            return server.ask("POST", f"/gradio_api/{path}", parts)[0]
        return 413

    for path, most in (("run/estimate", 0.154), ("component_server", 0.154), ("queue/join", 2), ("call/replay", 2)):
        size = int(most * MIB) + 70_000
        status, content, headers = server.ask("POST", f"/gradio_api/{path}", b'{"data": ["' + b"a" * size + b'"]}')
        assert status == 413 and headers["connection"] == "close"
        assert json.loads(content)["detail"].startswith("This request is too large: at most")
        status = without_length(path, iter([b'{"data": ["', *[b"a" * 65536] * (1 + size // 65536), b'"]}']))
        assert status in (400, 413), "one of Gradio's routes takes whatever goes wrong with a body for bad JSON"
    assert server.refused("body") == 8


UPLOAD = b'--x\r\nContent-Disposition: form-data; name="files"; filename="%s.jsonl"\r\n\r\n'


def kept(server: Server) -> list[Path]:
    """The files that lie in the folder of uploads, whose folders may go meanwhile."""
    walk = os.walk(server.demo.app.uploaded_file_dir)
    return [Path(folder, name) for folder, _, names in walk for name in names]


def upload(server: Server, name: str, size: int, address: str = ME) -> int:
    body = UPLOAD % name.encode() + name.encode() * (size // len(name)) + b"\r\n--x--\r\n"
    form = {"Content-Type": "multipart/form-data; boundary=x"}
    return server.ask("POST", "/gradio_api/upload", body, address, **form)[0]


def test_of_an_upload_that_breaks_off_nothing_stays(server):
    """Before: what had come of it lay in Gradio's folder for ever."""
    before = set(kept(server))
    with socket.create_connection((ME, server.port)) as connection:
        head = (
            "POST /gradio_api/upload HTTP/1.1\r\nHost: localhost\r\nContent-Type: multipart/form-data; boundary=x\r\n"
        )
        connection.sendall(f"{head}Content-Length: 900000\r\n\r\n".encode() + UPLOAD % b"half" + b"a" * 400_000)
        wait_until(lambda: len(kept(server)) > len(before), "half of it is there")
    counted = "lora_drop_uploads_broken_total"
    wait_until(lambda: set(kept(server)) == before and counted in server.figures(), "it is gone, and counted")


def test_files_have_one_way_in(server):
    body, form = UPLOAD % b"aside" + b"x\r\n--x--\r\n", {"Content-Type": "multipart/form-data; boundary=x"}
    for path in ("component_server", "call/replay", "queue/join"):
        status, content, _ = server.ask("POST", f"/gradio_api/{path}", body, **form)
        assert status == 415 and b"upload address" in content
    many = body[: -len(b"--x--\r\n")] + body
    assert server.ask("POST", "/gradio_api/upload", many, **form)[0] == 400
    assert not kept(server)


def test_uploads_are_few_and_go_with_their_visit(server, monkeypatch):
    """Before: twelve uploads of 30 MB lay there for an hour, and so would any number."""
    assert upload(server, "large", MIB + 100_000) == 413
    with socket.create_connection((ME, server.port)) as visit:
        visit.sendall(b"GET /gradio_api/heartbeat/visitor HTTP/1.1\r\nHost: localhost\r\n\r\n")
        said = b""
        while b"ALIVE" not in said:
            said += visit.recv(4096)
        assert [upload(server, f"trace{i}", 900_000) for i in range(12)] == [200] * 12
        # The last answer is sent before its file is counted.
        wait_until(lambda: len(kept(server)) == len(server.demo.calls.uploads) == 9, "9 of 0.9 MB are what 8 MiB hold")
        assert upload(server, "the other's", 1000, OTHER) == 200
        wait_until(lambda: len(server.demo.calls.uploads) == 10, "there is room for a small one")
    assert len(kept(server)) == 10, "a visitor who loses the connection may come back"
    path = str(kept(server)[0])
    monkeypatch.setattr(callbacks, "address_of_call", lambda: server.demo.calls.uploads._files.owner(path))
    server.demo.calls.open_trace(path)
    assert len(kept(server)) == 9, "what was read is not kept"
    monkeypatch.setattr(visits, "SECONDS", 0)
    server.demo.calls.visits.sweep()
    assert not kept(server) and not server.demo.upload_file_set, "ten minutes later all of them are gone"


def test_light_work_has_few_places_and_a_line(server, monkeypatch):
    """Before: 80 calls at once took every thread that the server may have, the runs' too."""
    go, running, most, real = threading.Event(), [], [], api.plan

    def slow(*args):
        running.append(1)
        most.append(len(running))
        assert go.wait(60)
        running.pop()
        return real(*args)

    monkeypatch.setattr(api, "plan", slow)
    places = LIGHT_AT_ONCE // 2  # the rest is for other addresses
    calls = LIGHT_WAITING // 2 + places + 6
    names = list(inspect.signature(api.functions(server.demo.calls)["estimate"]).parameters)[1:]
    body = {"data": ["Why?", *(4 if name == "max_new_tokens" else None for name in names)]}

    def estimate(number: int) -> tuple[int, bytes, dict[str, str]]:
        return server.ask("POST", "/gradio_api/run/estimate", body)

    before = server.refused("light")

    def full() -> bool:
        return server.refused("light") == before + 6 and len(running) == places

    release = threading.Thread(target=lambda: (wait_until(full, "all places are taken, and six refused"), go.set()))
    release.start()
    found = in_threads(calls, estimate)
    release.join()
    assert [status for status, _, _ in found].count(503) == 6 and max(most) == places
    assert all("busy" in json.loads(content)["detail"] for status, content, _ in found if status == 503)


def test_another_name_is_refused_and_the_page_forbids_itself_the_web(server):
    """Before: a page elsewhere could lead its own name here and read the answers."""
    status, content, headers = server.ask("GET", "/config", Host="evil.example")
    assert status == 421 and b"LORA_DROP_ALLOWED_HOSTS" in content
    status, content, headers = server.ask("GET", "/", Host=f"localhost:{server.port}")
    policy = dict(rule.strip().split(" ", 1) for rule in headers["content-security-policy"].split(";"))
    assert status == 200 and policy == CONTENT_SECURITY_POLICY
    assert {policy[name] for name in ("frame-src", "form-action", "object-src")} == {"'none'"}
    assert policy["base-uri"] == "'self'"  # Gradio's page has a <base>
    assert policy["connect-src"] == "'self'" and headers["x-content-type-options"] == "nosniff"
    stated = (ROOT / "SECURITY.md").read_text(encoding="utf-8")
    assert all(f"`{name} {value}`" in stated for name, value in CONTENT_SECURITY_POLICY.items())


def test_the_public_sees_no_monitoring_and_no_traceback(server, capfd):
    for path in ("/monitoring", "/monitoring/summary", "/monitoring/x"):
        assert server.ask("GET", path)[0] == 403
    for body in (b"{", b'{"data": 5}', b'{"data": []}', b'{"data": [{"path": "/etc/passwd"}]}'):
        for path in ("run/estimate", "call/estimate", "component_server", "queue/join"):
            status, content, _ = server.ask("POST", f"/gradio_api/{path}", body)
            assert status < 500 and b"Traceback" not in content and b"site-packages" not in content
    assert "Traceback" not in "".join(capfd.readouterr())


def test_the_owner_alone_reads_figures_and_pauses(server):
    for headers in ({}, {"Authorization": "Bearer x"}, {"Authorization": f"Bearer {TOKEN}x"}):
        for method, path in (("GET", "/metrics"), ("POST", "/pause"), ("POST", "/resume")):
            assert server.ask(method, path, **headers)[0] == 401
    assert server.result(server.call("before")).startswith(b"event: complete")
    assert server.ask("POST", "/pause", Authorization=f"Bearer {TOKEN}")[0] == 200
    assert b"paused by its owner" in server.result(server.call("while"))
    figures = server.figures()
    assert figures["lora_drop_paused"] == 1 and figures['lora_drop_refused_total{reason="paused"}'] == 1
    assert figures["lora_drop_memory_bytes"] > 1e7 and figures["lora_drop_tokens_per_second"] > 0
    assert figures["lora_drop_runs_total"] >= 1 and figures["lora_drop_tokens_total"] >= 2
    assert server.ask("POST", "/resume", Authorization=f"Bearer {TOKEN}")[0] == 200
    assert server.result(server.call("after")).startswith(b"event: complete")
    assert server.begun == ["before", "after"]


def test_without_a_token_there_is_nothing_of_the_owner_s(tiny):
    with launched(ModelPool(tiny)) as (demo, port):
        assert ask(port, "GET", "/metrics")[0] == 404
        assert ask(port, "POST", "/pause")[0] in (404, 405)
        assert not demo.policy.public
