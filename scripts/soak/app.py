"""Start the app, and call it as a client."""

from __future__ import annotations

import asyncio
import json
import math
import os
import random
import re
import subprocess
import sys
import time
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import AbstractContextManager, aclosing, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import torch
from gradio_client.utils import apply_diff

from scripts.soak.cases import Case, Wrong, hold
from scripts.space_check import free_port, server

ROOT = Path(__file__).resolve().parents[2]
MODEL, OTHER_MODEL = "random:tiny-llama", "random:tiny-qwen2"  # one question asks for the second: the app swaps them
PATIENCE = 180  # seconds that a visitor waits for the server's next message before it counts as lost
VISIT = 420  # seconds of a whole visit, at most three runs and their waiting, before it counts as hanging
TOKEN = "soak"  # the owner's
AWAY = ("queue is full", "already have a run", "calls from your address")  # words of a temporary refusal
LINE = 500  # most characters of an error


class TurnedAway(Exception):
    """The queue or the address's share of it was full, or the server busy, with a clear refusal."""


def started(temporary: Path, log: Path) -> AbstractContextManager[tuple[subprocess.Popen[bytes], str]]:
    """Start the app with both models on its menu; the context gives its process and address.

    The app is public, behind one proxy. The visitors play the proxy: each sends another client address. Runs may be
    long: there is time to stop them, and even on a slow machine the clock stops none.
    """
    settings = {
        "LORA_DROP_PUBLIC": "1",
        "LORA_DROP_TRUSTED_HOPS": "1",
        "LORA_DROP_CALIBRATE": "0",  # the speeds of a model with random weights would be in the answers' headers
        "LORA_DROP_OWNER_TOKEN": TOKEN,
        "LORA_DROP_MAX_TOKENS": "4000",
        "LORA_DROP_MAX_SECONDS": str(VISIT),
        "LORA_DROP_MODEL": MODEL,
        "LORA_DROP_MODELS": OTHER_MODEL,
        "TMPDIR": str(temporary),
        "GRADIO_SERVER_NAME": "127.0.0.1",
        "OMP_NUM_THREADS": str(torch.get_num_threads()),  # as where the expected answers are made: headers name it
    }
    env = {**os.environ, **settings, "GRADIO_SERVER_PORT": str(free_port())}
    return server(Path(sys.executable), ROOT, log, env)


@dataclass
class Waited:
    """A run as its visitor saw it: the times when it was queued, and when it began, if that was seen."""

    address: str
    joined: float
    began: float = math.inf


@dataclass
class Log:
    """Observations of all visitors."""

    visits: Counter[str] = field(default_factory=Counter)
    compared: Counter[str] = field(default_factory=Counter)  # whole answers by case
    starts: int = 0  # answers cut short that were compared
    turned_away: int = 0
    requests: int = 0
    waited: int = 0  # runs that saw others before them
    moved: int = 0  # runs that saw a better place later
    worst_place: int = 0
    runs: dict[str, Waited] = field(default_factory=dict)  # by event
    late: int = 0  # Stop was pressed after the run had ended
    unkept: int = 0  # traces that newer ones had replaced
    attacks: Counter[str] = field(default_factory=Counter)  # by kind
    repelled: Counter[str] = field(default_factory=Counter)  # attacks that were turned away or cut off
    failures: list[str] = field(default_factory=list)


class Session:
    """One page load, or one client of the API: a session hash, and the calls made with it."""

    def __init__(self, http: httpx.AsyncClient, app: App, log: Log, name: str):
        self.http, self.app, self.log, self.name = http, app, log, name
        self.heard = "nothing"  # the server's last message

    async def post(self, path: str, body: Any) -> httpx.Response:
        """Send a request to Gradio; lone surrogates in it are escaped. Raises TurnedAway."""
        self.log.requests += 1
        answer = await self.http.post(path, content=json.dumps(body), headers={"Content-Type": "application/json"})
        return let_in(answer)

    async def join(self, function: int, data: list[Any]) -> str:
        """Queue a call; returns its event id."""
        asked = {"data": data, "fn_index": function, "session_hash": self.name, "event_data": None, "trigger_id": None}
        answer = await self.post("/queue/join", asked)
        hold(answer.status_code == 200, f"queue/join answers {answer.status_code}: {answer.text[:200]}")
        event = answer.json()["event_id"]
        if function in (self.app.page, self.app.generate):
            self.log.runs[event] = Waited(self.http.headers["X-Forwarded-For"], time.monotonic())
        return str(event)

    async def call(self, function: int, data: list[Any]) -> AsyncGenerator[tuple[bool, Any]]:
        """Queue a call and yield what it sends: `(False, outputs)` while it runs, and at last `(True, message)`.

        Closed before its end, it drops the connection, as a visitor who leaves.
        """
        event = await self.join(function, data)
        outputs: list[Any] | None = None
        places: list[int] = []
        started = False
        async with self.http.stream("GET", "/queue/data", params={"session_hash": self.name}) as answer:
            hold(answer.status_code == 200, f"queue/data answers {answer.status_code}")
            async for line in answer.aiter_lines():
                if not line.startswith("data:"):
                    continue
                message = json.loads(line[5:])
                kind = message["msg"]
                if kind == "heartbeat":
                    continue
                self.heard = kind
                hold(kind != "unexpected_error", f"the stream broke: {message.get('message')}")
                hold(message.get("event_id") == event, f"a message of another visitor's event: {kind}")
                if kind == "estimation":
                    hold(not started, "a place in the queue after the start")
                    places.append(message["rank"])
                elif kind == "process_starts":
                    started = True
                    hold(places, "started without ever seeing a place in the queue")
                    self.log.waited += places[0] > 0
                    self.log.moved += places[0] > places[-1]
                    self.log.worst_place = max(self.log.worst_place, *places)
                    if event in self.log.runs:
                        self.log.runs[event].began = time.monotonic()
                elif kind == "process_generating":
                    hold(started and message["success"], f"an update that failed: {str(message)[:200]}")
                    new = message["output"]["data"]
                    outputs = new if outputs is None else [apply_diff(*pair) for pair in zip(outputs, new)]  # noqa: B905
                    yield False, outputs
                elif kind == "process_completed":
                    error = message["output"].get("error") or ""
                    if not started and any(words in error for words in AWAY):
                        one_line(error, "")
                        self.log.runs.pop(event, None)
                        raise TurnedAway
                    yield True, message
                    return
        raise Wrong("the stream ended before the answer did")

    async def ask(self, function: int, data: list[Any]) -> tuple[list[Any] | None, dict[str, Any]]:
        """Queue a call and wait for its end: the last update's outputs, and the last message."""
        outputs = None
        async with aclosing(self.call(function, data)) as updates:
            async for done, message in updates:
                if done:
                    return outputs, message
                outputs = message
        raise Wrong("no answer")

    async def export(self, run_id: Any, kind: Any) -> dict[str, str]:
        """Ask for a run's file as the live view does."""
        body = {"data": [run_id, kind], "component_id": self.app.live, "fn_name": "export_run"}
        answer = await self.post("/component_server", {**body, "session_hash": self.name})
        hold(answer.status_code == 200, f"export answers {answer.status_code}: {answer.text[:200]}")
        files: dict[str, str] = answer.json()
        return files

    async def press_stop(self) -> None:
        """Press the Stop button."""
        answer = await self.post("/run/stop", {"data": [], "fn_index": self.app.stop, "session_hash": self.name})
        hold(answer.status_code == 200, f"Stop answers {answer.status_code}: {answer.text[:200]}")


def let_in(answer: httpx.Response) -> httpx.Response:
    """Check an answer. Raises TurnedAway: the server had no room, and refused in one line."""
    if answer.status_code == 503:
        one_line(answer.json().get("detail"), "try again in a moment")
        raise TurnedAway
    return answer


def one_line(line: Any, word: str) -> None:
    """Raise Wrong unless this is one clear line with that word."""
    clear = isinstance(line, str) and 0 < len(line) <= LINE and "\n" not in line and "Traceback" not in line
    hold(clear and word in line, f"not one clear line about {word!r}: {str(line)[:300]!r}")


class App:
    """The numbers of the running app's functions, and their inputs, as a client reads them."""

    def __init__(self, config: dict[str, Any], info: dict[str, Any]):
        functions = {f["api_name"]: f for f in config["dependencies"] if f["backend_fn"]}
        by_id = {c["id"]: c["props"] for c in config["components"]}
        named = {props.get("elem_id"): i for i, props in by_id.items()}
        self.live = named["ld-live"]
        # The Safe zone tab has a run_page too: this is the one that fills the live view.
        page = next(f for f in functions.values() if f["types"]["generator"] and self.live in f["outputs"])
        self.page, self.outputs = page["id"], [by_id[i]["elem_id"] for i in page["outputs"]]
        self.controls = [(by_id[i]["elem_id"], by_id[i].get("value")) for i in page["inputs"]]
        self.stop, self.open = functions["stop_page"]["id"], functions["open_trace"]["id"]
        self.generate, self.replay = functions["generate"]["id"], functions["replay"]["id"]
        self.estimate = functions["estimate"]["id"]
        self.parameters = {
            name: [
                (p["parameter_name"], p.get("parameter_default")) for p in info["named_endpoints"][name]["parameters"]
            ]
            for name in ("/generate", "/estimate")
        }

    def page_data(self, controls: dict[str, Any]) -> list[Any]:
        """The page's controls with some of them moved."""
        return [controls.get(name, value) for name, value in self.controls]

    def call_data(self, endpoint: str, options: dict[str, Any]) -> list[Any]:
        """An API call's arguments, the others at their defaults."""
        return [options.get(name, default) for name, default in self.parameters[endpoint]]


class Soak:
    """The running app's address, its visitors' questions, and their observations.

    Args:
        cases: the questions, with the answers of a single user.
        recorded: the text of a trace, which visitors replay and open.
        rows: every second attacker makes the attacks of `scripts.attack`.
    """

    def __init__(self, url: str, cases: list[Case], recorded: str, seed: int, rows: bool = False):
        self.url, self.cases, self.recorded, self.seed, self.rows = url, cases, recorded, seed, rows
        self.log = Log()
        self.app: App

    def client(self, address: str = "10.0.0.1") -> httpx.AsyncClient:
        """Connections of one visitor, from its address."""
        # The server closes an idle connection after 5 s: none is used again that late.
        limits = httpx.Limits(keepalive_expiry=2)
        return httpx.AsyncClient(
            base_url=f"{self.url}/gradio_api", timeout=PATIENCE, limits=limits, headers={"X-Forwarded-For": address}
        )

    async def read_app(self) -> None:
        """Ask the app for its functions."""
        async with self.client() as http:
            config = (await http.get(f"{self.url}/config")).json()
            self.app = App(config, (await http.get("/info")).json())

    async def counters(self) -> Counter[str]:
        """The owner's counters, by the distinct part of their names."""
        async with self.client() as http:
            text = (await http.get(f"{self.url}/metrics", headers={"Authorization": f"Bearer {TOKEN}"})).text
        lines = re.findall(r"^lora_drop_(?:refused_total\{reason=\"(\w+)\"\}|(\w+)_total) (\S+)$", text, re.M)
        return Counter({refused or name: round(float(value)) for refused, name, value in lines})


class Guest(ABC):
    """A guest who comes again and again; all that it does is drawn from a seed."""

    pause: float  # seconds between two visits, at most
    attacks = False

    def __init__(self, soak: Soak, number: int):
        self.soak, self.log, self.app = soak, soak.log, soak.app
        self.number, self.draw = number, random.Random(f"{soak.seed}/{type(self).__name__}/{number}")
        self.address = ".".join(map(str, (10, 1 + self.attacks, number >> 8 & 255, number & 255)))
        self.http: httpx.AsyncClient
        self.last: Session | None = None

    async def stay(self, visits: int | None, until: float | None) -> None:
        """Visit a number of times, or until a time."""
        deck: list[str] = []
        done = 0
        async with self.come():
            while (visits is None or done < visits) and (until is None or time.monotonic() < until):
                deck = deck or self.deck()
                await self.bounded(deck.pop(0))
                done += 1
                await asyncio.sleep(self.draw.random() * self.pause)

    @abstractmethod
    def deck(self) -> list[str]:
        """The next kinds of visits, in their order, before all come again."""

    @asynccontextmanager
    async def come(self) -> AsyncIterator[None]:
        """Open the guest's connections."""
        async with self.soak.client(self.address) as self.http:
            yield

    async def bounded(self, kind: str, *args: Any) -> None:
        """Make a visit, for a limited time; one that hangs is logged with the server's last message."""
        try:
            async with asyncio.timeout(VISIT):
                await self.visit(kind, *args)
        except TimeoutError:
            heard = self.last.heard if self.last else "nothing"
            self.log.failures.append(f"{kind}: hangs, no end after {VISIT} s; last heard: {heard}")

    @abstractmethod
    async def visit(self, kind: str, *args: Any) -> None:
        """Make a visit; its faults are logged, and the others go on."""

    def session(self) -> Session:
        """Begin a new page load, or a new client."""
        self.last = Session(self.http, self.app, self.log, f"{self.draw.getrandbits(64):016x}")
        return self.last
