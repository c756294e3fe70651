"""The running app against requests for files, uploads and bodies that no page would send."""

import inspect
import json
import logging
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from urllib.parse import quote

import pytest

from lora_drop.models import bundled as bundled_model
from lora_drop.models.pool import ModelPool
from lora_drop.paths import ASSETS
from lora_drop.run.exports.scripts import PLOTLY
from lora_drop.ui import components
from lora_drop.ui.api import functions
from tests.support import server
from tests.support.fuzzing import TRIED, one_line, strict_json
from tests.support.server import launched

pytestmark = pytest.mark.full


@pytest.fixture(scope="module")
def address(tiny) -> Iterator[int]:
    """The page's port."""
    with launched(ModelPool(tiny)) as (_, port):
        yield port


def ask(address, target: str, body: bytes | None = None, kind: str = "application/json") -> tuple[int, bytes, dict]:
    TRIED["addresses"] += 1
    method = "GET" if body is None else "POST"
    return server.ask(address, method, target, body, **{"Content-Type": kind})


def forms(path: str) -> Iterator[str]:
    """A path in the ways that an address can write it."""
    yield path
    yield quote(path, safe="")
    yield quote(quote(path, safe=""), safe="")
    yield path.replace("/", "//")
    yield path.replace("/", "%2f").replace(".", "%2e")
    yield "/" + path
    yield f"{ASSETS}/../../../../../../../../../..{path}"
    yield f"{PLOTLY}/../../../../../../../../../../..{path}"
    yield "/".join([".."] * 12) + path
    yield "%2e%2e/" * 12 + path.lstrip("/")
    yield "..%2f" * 12 + path.lstrip("/")
    yield f"file://{path}"


ROOT = ASSETS.parent
OUTSIDE = {
    "a file of the system": Path("/etc/passwd"),
    "the environment": Path("/proc/self/environ"),
    "the code": ROOT / "app.py",
    "a file beside the code": ROOT / "pyproject.toml",
    "a template": ASSETS / "html" / "live.html",
    "a script, which has a route of its own": ASSETS / "js" / "main.js",
    "adapters": next((ASSETS / "adapters").glob("*/*.json")),
    "a file beside plotly.js": PLOTLY.parent / "LICENSE",
}


@pytest.mark.parametrize("outside", OUTSIDE)
def test_a_file_outside_of_the_assets_is_refused(address, outside):
    path = OUTSIDE[outside]
    for route in ("/gradio_api/file=", "/file=", "/gradio_api/file/"):
        for form in forms(str(path)):
            status, content, _ = ask(address, route + form)
            assert status in (403, 404), (route, form, status)
            assert path.read_bytes()[:40] not in content or not path.read_bytes()[:40]
    assert ask(address, f"/gradio_api/file={path}")[0] == 403


def test_the_model_s_cache_and_links_are_refused(address, tmp_path):
    weights = next(bundled_model.ensure().glob("*.safetensors"))
    link = tmp_path / "link.js"
    link.symlink_to("/etc/passwd")
    back = tmp_path / "assets"
    back.symlink_to(ASSETS)  # a way to an asset that is not its own
    for path in (weights, weights.parent, weights.parent / "tokenizer.json", link, back / ".." / "app.py", tmp_path):
        status, content, _ = ask(address, f"/gradio_api/file={path}")
        assert status == 403 and len(content) < 300


def test_the_assets_are_served_and_nothing_else_beside_them(address):
    modules = f"/{components.address()}/"
    for path, where in (
        (PLOTLY, f"/gradio_api/file={PLOTLY}"),
        (ASSETS / "js" / "main.js", f"{modules}main.js"),
        (ASSETS / "js" / "charts" / "drift.js", f"{modules}charts/drift.js"),
    ):
        status, content, headers = ask(address, where)
        assert status == 200 and path.read_bytes().startswith(content)
        assert headers["content-type"].startswith(("text/javascript", "application/javascript"))
    for name in ("", "charts", "../css/base.css", "..%2fcss/base.css", "%2e%2e/html/live.html", "gone.js"):
        assert ask(address, modules + name)[0] == 404
    for route in (modules, "/static/", "/assets/", "/svelte/", "/gradio_api/custom_component/1/client/component/"):
        for way in ("../" * 14, "..%2f" * 14, "%2e%2e/" * 14, "%2e%2e%2f" * 14, "..%5c" * 14, "....//" * 14):
            status, content, _ = ask(address, f"{route}{way}etc/passwd")
            assert status in (400, 403, 404) and b"root:" not in content
    for name in ("http://127.0.0.1:{}/", "http://localhost:{}/", "http://[::1]:{}/", "http://0.0.0.0:{}/"):
        status, content, _ = ask(address, "/gradio_api/file=" + name.format(address))
        assert status >= 400 and b"LoRA" not in content, "the server asks no server of its own network"


def test_the_server_asks_no_other_host_for_a_visitor(address, monkeypatch):
    """Neither through the file route nor as a file that a call names."""
    asked, real = [], socket.getaddrinfo
    monkeypatch.setattr(socket, "getaddrinfo", lambda host, *args, **kw: asked.append(host) or real(host, *args, **kw))
    for name in ("http://visitor.example/x", "https://visitor.example:8000/x.js"):
        status, content, _ = ask(address, f"/gradio_api/file={name}")
        assert status == 403 and len(content) < 300
        file = {"path": name, "meta": {"_type": "gradio.FileData"}}
        assert b"event: error" in answers(address, "estimate", json.dumps({"data": [file] + [None] * 13}).encode())
    assert not [host for host in asked if "visitor" in str(host) or "dns" in str(host)]


def test_an_upload_stays_in_its_folder_and_is_no_page(address, tmp_path):
    for name in (
        "../../../evil.html",
        "/etc/evil.html",
        "..\\evil.html",
        "<img src=x>.svg",
        "a" * 300 + ".html",
        "\x1b.js",
    ):
        body = (
            f'--x\r\nContent-Disposition: form-data; name="files"; filename="{name}"\r\n'
            "Content-Type: text/html\r\n\r\n<script>alert(1)</script>\r\n--x--\r\n"
        ).encode()
        status, content, _ = ask(address, "/gradio_api/upload", body, "multipart/form-data; boundary=x")
        assert status < 500
        if status != 200:
            continue
        kept = Path(json.loads(content)[0])
        assert ".." not in kept.parts and "etc" not in kept.parts[:2] and kept.exists()
        _, _, headers = ask(address, f"/gradio_api/file={quote(str(kept))}")
        assert headers["content-disposition"].startswith("attachment") or "html" not in headers["content-type"]


BODIES = (
    b"",
    b"{",
    b"null",
    b"[]",
    b'{"data": 5}',
    b'{"data": []}',
    b'{"data": ["Hi"], "session_hash": "../../x", "fn_index": -1}',
    b'{"data": ' + b"[" * 5000 + b"]" * 5000 + b"}",
    b"\xff\xfe\x00",
)
# What a parameter may be given, as it stands in a request.
WRITTEN = (
    b'"\\ud800"',
    b'"\\ud83d\\ude00<img src=x onerror=alert(1)>\\u2028"',
    b"NaN",
    b"-Infinity",
    b"1" + b"0" * 400,
    b"9" * 5000,
    b"1e999",
    b'["x"]',
    b'"' + b"a" * 2**20 + b'"',
    b"[" * 300 + b"]" * 300,
)


PASSWD, NULL = b'{"path": "/etc/passwd", "meta": {"_type": "gradio.FileData"}}', [b"null"]


def data(*values: bytes) -> bytes:
    """The body of a call with these values."""
    return b'{"data": [' + b", ".join(values) + b"]}"


def answers(address, name: str, body: bytes) -> bytes:
    """What a call over the network comes to: its last event, or the server's refusal."""
    status, content, _ = ask(address, f"/gradio_api/call/{name}", body)
    if status != 200:
        assert 400 <= status < 500, (status, body[:80])
        return content
    return ask(address, f"/gradio_api/call/{name}/{json.loads(content)['event_id']}")[1]


def defaults_of(tiny, name: str) -> list:
    """What Gradio fills in for each value of a call."""
    calls = SimpleNamespace(settings=(), pool=SimpleNamespace(info=lambda label: tiny))
    parameters = inspect.signature(functions(calls)[name]).parameters
    return [one.default for one in parameters.values() if one.name != "visitor"]


@pytest.mark.parametrize("name", ["generate", "estimate", "replay"])
def test_any_body_of_a_call_is_answered(address, tiny, name, capfd):
    """The server goes on, a mistake is a line, and no answer shows the server's insides."""
    defaults = defaults_of(tiny, name)
    usual = [json.dumps(None if one is inspect.Parameter.empty else one).encode() for one in defaults]
    usual = [b'"Hi"', *(b"4" if text == b"128" else text for text in usual[1:])]
    for body in BODIES:
        content = answers(address, name, body)
        assert b"event: complete" not in content and b"Traceback" not in content and b"site-packages" not in content
    content = answers(address, name, data(*usual[:-1], PASSWD))
    assert b"event: error" in content and b"root:" not in content
    for place in range(len(usual)):
        for value in WRITTEN:
            content = answers(address, name, data(*usual[:place], value, *usual[place + 1 :]))
            assert b"Traceback" not in content and b"site-packages" not in content
            if b"event: error" in content:
                error = strict_json(content.split(b"event: error\ndata: ")[1].decode())["error"]
                assert isinstance(error, str) and one_line(error)
            elif b"event: complete" in content:
                strict_json(content.rpartition(b"data: ")[2].decode())
            else:
                assert b"error parsing the body" in content or b"too complex" in content
    without = NULL * (len(defaults_of(tiny, "estimate")) - 2)
    assert b"event: complete" in answers(address, "estimate", data(b'"Hi"', *without, b"8"))
    assert "Traceback" not in "".join(capfd.readouterr())


ROUTES = (
    "reset cancel run/estimate run/generate run/gone call/estimate call/gone call/v2/estimate call/v2/gone queue/join "
    "component_server stream/gone"
).split()
# Beside BODIES: what the fields of a call may not be.
CALLS = (
    b"NaN",
    b'"\\ud800"',
    b"9" * 5000,
    b'{"a":' * 5000 + b"}" * 5000,
    '{"data": []}'.encode("utf-16"),
    b'{"data": [], "data": 5, "session_hash": "a", "session_hash": null}',
    b'{"data": [], "session_hash": null, "event_id": null, "fn_index": null}',
    b'{"data": [], "session_hash": ["a"], "event_id": {}, "fn_index": "x"}',
    b'{"data": [], "session_hash": "a", "event_id": "b", "fn_index": NaN}',
    b'{"data": [], "session_hash": "a", "event_id": "b", "fn_index": 1e999}',
    b'{"data": [], "session_hash": "a", "event_id": "b", "fn_index": 1' + b"0" * 400 + b"}",
    b'{"data": [[1], 2], "batched": true, "event_data": 5, "trigger_id": 99999}',
    b'{"prompt": "Hi", "gone": 1}',
    b'{"data": 1, "session_hash": "a", "component_id": -1, "fn_name": "__init__"}',
    b'{"data": ["\\ud800"], "session_hash": "\\ud800", "event_id": "\\ud800", "fn_index": -1}',
)
KINDS = (
    "application/json",
    "text/plain",
    "application/x-www-form-urlencoded",
    "application/json; charset=utf-16",
    "/",
)


@pytest.mark.parametrize("route", ROUTES)
def test_a_call_that_cannot_be_read_is_one_line(address, route, capfd, caplog):
    """Before: status 500 and a traceback in the log for most of them, on each route for bytes that are no UTF-8."""
    log = logging.getLogger("uvicorn.error")
    log.addHandler(caplog.handler)
    try:
        for body in (*BODIES, *CALLS):
            for kind in KINDS:
                status, content, _ = ask(address, f"/gradio_api/{route}", body, kind)
                assert status == 200 or 400 <= status < 500, (status, body[:80], kind)
                if status != 200 and content:
                    told = strict_json(content.decode())
                    line = told["detail"] if "detail" in told else told["error"]
                    assert isinstance(line, str) and one_line(line), (body[:80], content)
    finally:
        log.removeHandler(caplog.handler)
    assert not caplog.records and "Traceback" not in "".join(capfd.readouterr())


def test_what_the_line_of_a_wrong_call_says(address, tiny):
    count = len(defaults_of(tiny, "estimate"))
    for route, body, status, words in (
        ("reset", b"[1]", 422, "This request cannot be read: body: Input should be"),
        ("cancel", b"{}", 422, "This request cannot be read: body.session_hash: Field required."),
        ("call/gone", b'{"data": []}', 404, "This app has no such function"),
        ("call/v2/gone", b"{}", 404, "This app has no such function"),
        ("call/v2/estimate", b'{"gone": 1}', 422, "A parameter is missing, or the function has none of this name"),
        ("run/estimate", b'{"data": []}', 400, f"this function takes {count} values, 0 were sent."),
        ("run/estimate", data(*NULL * count), 400, "max_new_tokens must be a whole number"),
        ("queue/join", b'{"data": [], "session_hash": "a", "fn_index": 99999}', 404, "This app has no such function"),
    ):
        found = 429
        while found == 429:  # what the tests before have called counts too
            found, content, _ = ask(address, f"/gradio_api/{route}", body)
            time.sleep(0.2 if found == 429 else 0)
        told = json.loads(content)
        assert found == status and words in told.get("detail", told.get("error")), (route, content)


def test_values_that_no_component_takes_are_one_line(address, capfd):
    """Each of the page's functions, and those that the server has none of, with one value for all parameters."""
    for one in json.loads(ask(address, "/config")[1])["dependencies"]:
        for value in (b'"\\ud800"', PASSWD, b"[[]]", b"NaN"):
            visit = b', "session_hash": "v%d", "fn_index": %d}' % (one["id"], one["id"])
            body = data(*[value] * len(one["inputs"]))[:-1] + visit
            assert ask(address, "/gradio_api/queue/join", body)[0] == 200
            seen = ask(address, f"/gradio_api/queue/data?session_hash=v{one['id']}")[1]
            assert b"process_completed" in seen and b"unexpected_error" not in seen and b"root:" not in seen
    assert "Traceback" not in "".join(capfd.readouterr())


def test_a_trace_that_is_a_file_of_the_server_is_not_opened(address):
    """The Open trace button's own call, by number, with a path that nobody uploaded."""
    config = json.loads(ask(address, "/config")[1])
    number = next(one["id"] for one in config["dependencies"] if one["api_name"] == "open_trace")
    for path in ("/etc/passwd", str(ROOT / "app.py"), f"{ASSETS}/../app.py"):
        data = [{"path": path, "meta": {"_type": "gradio.FileData"}}]
        body = json.dumps({"data": data, "fn_index": number, "session_hash": "visitor"}).encode()
        status, _, _ = ask(address, "/gradio_api/queue/join", body)
        assert status == 200
        seen = ask(address, "/gradio_api/queue/data?session_hash=visitor")[1]
        assert b'"success":false' in seen.replace(b" ", b"") and b"root:" not in seen and b"import" not in seen
