"""A Hub on this machine, as far as huggingface_hub asks it: repositories, commits, LFS, files with their ETags."""

import base64
import hashlib
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import yaml

TOKEN = "hf_of_the_tests"
BASE_MODEL = re.compile(r"[\w.-]+(/[\w.-]+)?")  # what the Hub takes as an id: bundled:... is none


class Hub(ThreadingHTTPServer):
    """Repositories by name, each a list of commits, the newest last: {file: content}.

    Args:
        cut: names of repositories whose large files are sent by half.
        asked: the requests so far, `GET /path`.
    """

    daemon_threads = True

    def __init__(self) -> None:
        self.commits: dict[str, list[dict[str, bytes]]] = {}
        self.objects: dict[str, bytes] = {}
        self.cut: set[str] = set()
        self.asked: list[str] = []
        super().__init__(("127.0.0.1", 0), Answer)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def commit(self, name: str, files: dict[str, bytes]) -> str:
        """Add a commit with changed files; returns its hash."""
        log = self.commits.setdefault(name, [])
        log.append({**(log[-1] if log else {}), **files})
        self.objects |= {sha256(content): content for content in files.values()}
        return commit_of(name, len(log) - 1)

    def files(self, name: str, revision: str) -> tuple[str, dict[str, bytes]] | None:
        """(hash, files) of a branch, of which there is one, or of a commit."""
        log = self.commits[name]
        hashes = {commit_of(name, at): at for at in range(len(log))} | {"main": len(log) - 1}
        at = hashes.get(revision)
        return None if at is None else (commit_of(name, at), log[at])


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def commit_of(name: str, at: int) -> str:
    return hashlib.sha1(f"{name} {at}".encode()).hexdigest()


def is_large(path: str) -> bool:
    return path.endswith((".safetensors", ".bin"))


class Answer(BaseHTTPRequestHandler):
    server: Hub
    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        self.server.asked.append(f"POST {self.path}")
        if self.path == "/api/validate-yaml":
            return self._validate(json.loads(body)["content"])
        if self.headers.get("Authorization") != f"Bearer {TOKEN}":
            return self._send(401, {"error": "Invalid username or password."})
        if self.path == "/api/repos/create":
            asked = json.loads(body)
            name = f"{asked['organization']}/{asked['name']}"
            is_new = name not in self.server.commits
            self.server.commits.setdefault(name, [{}])
            return self._send(200 if is_new else 409, {"url": f"{self.server.url}/{name}", "id": name})
        if match := re.fullmatch(r"/api/models/([^/]+/[^/]+)/preupload/main", self.path):
            files = json.loads(body)["files"]
            modes = [(one["path"], "lfs" if is_large(one["path"]) else "regular") for one in files]
            return self._send(
                200, {"files": [{"path": path, "uploadMode": mode, "shouldIgnore": False} for path, mode in modes]}
            )
        if self.path.endswith(".git/info/lfs/objects/batch"):
            objects = [
                one | {"actions": {"upload": {"href": f"{self.server.url}/lfs/{one['oid']}"}}}
                for one in json.loads(body)["objects"]
            ]
            return self._send(200, {"transfer": "basic", "objects": objects})
        if match := re.fullmatch(r"/api/models/([^/]+/[^/]+)/commit/main", self.path):
            added = {}
            for line in map(json.loads, body.splitlines()):
                value = line["value"]
                if line["key"] == "file":
                    added[value["path"]] = base64.b64decode(value["content"])
                elif line["key"] == "lfsFile":
                    added[value["path"]] = self.server.objects[value["oid"]]
            sha = self.server.commit(match[1], added)
            url = f"{self.server.url}/{match[1]}/commit/{sha}"
            return self._send(200, {"success": True, "commitOid": sha, "commitUrl": url})
        return self._send(404, {"error": "no such route"}, {"X-Error-Code": "RevisionNotFound"})

    def do_PUT(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        assert self.path == f"/lfs/{sha256(body)}"
        self.server.objects[sha256(body)] = body
        self._send(200, {})

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        self.server.asked.append(f"{self.command} {self.path}")
        path = self.path.partition("?")[0]
        if match := re.fullmatch(r"/cdn/([^/]+/[^/]+)/(\w+)", path):
            content = self.server.objects[match[2]]
            return self._send(200, content[: len(content) // 2] if match[1] in self.server.cut else content)
        match = re.fullmatch(r"/(?:api/models/)?([^/]+/[^/]+?)(?:/(revision|tree|resolve)/([^/]+)(?:/(.+))?)?", path)
        if match is None or match[1] not in self.server.commits:
            return self._send(404, {}, {"X-Error-Code": "RepoNotFound"})
        if match[1].startswith("private/") and self.headers.get("Authorization") != f"Bearer {TOKEN}":
            return self._send(401, {}, {"X-Error-Code": "RepoNotFound"})
        if (at := self.server.files(match[1], match[3] or "main")) is None:
            return self._send(404, {}, {"X-Error-Code": "RevisionNotFound"})
        sha, files = at
        if match[2] == "tree":
            return self._send(200, [_entry(path, content) for path, content in files.items()])
        if match[2] != "resolve":
            return self._send(200, {"id": match[1], "sha": sha, "siblings": [{"rfilename": path} for path in files]})
        if match[4] not in files:
            return self._send(404, {}, {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": sha})
        content = files[match[4]]
        headers = {"X-Repo-Commit": sha, "ETag": f'"{sha256(content)}"'}
        if not is_large(match[4]):
            return self._send(200, content, headers)
        headers |= {"X-Linked-ETag": headers["ETag"], "X-Linked-Size": str(len(content))}
        # By another name: the client follows no further than to a host that is not the Hub's.
        store = f"http://localhost:{self.server.server_port}/cdn/{match[1]}/{sha256(content)}"
        return self._send(302, b"", headers | {"Location": store})

    def _validate(self, text: str) -> None:
        """Two of the Hub's own rules on a card."""
        data = yaml.safe_load(text.split("---")[1])
        errors = []
        if not BASE_MODEL.fullmatch(str(data.get("base_model"))):
            errors.append({"message": '"base_model" with value "..." is not valid'})
        if data.get("license") == "mine":
            errors.append({"message": '"license" must be one of [apache-2.0, mit, ...]'})
        self._send(400 if errors else 200, {"errors": errors, "warnings": []})

    def _send(self, status: int, content: Any, headers: dict[str, str] | None = None) -> None:
        body = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def log_message(self, *_: Any) -> None:
        """Nothing: stderr is looked at."""


def _entry(path: str, content: bytes) -> dict[str, Any]:
    oid = hashlib.sha1(content).hexdigest()
    lfs = {"oid": sha256(content), "size": len(content), "pointerSize": 130}
    return {"type": "file", "path": path, "size": len(content), "oid": oid, **({"lfs": lfs} if is_large(path) else {})}


@contextmanager
def running() -> Iterator[Hub]:
    """A Hub that answers for as long as the block lasts."""
    hub = Hub()
    thread = threading.Thread(target=hub.serve_forever)
    thread.start()
    try:
        yield hub
    finally:
        hub.shutdown()
        hub.server_close()
        thread.join()
