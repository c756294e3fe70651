"""Many visitors at once: `make soak`, or `python -m scripts.soak --minutes 10 --visitors 50 --seed 0`.

The app runs in a process of its own, on this machine's own address, with a tiny model. Visitors ask, wait, press Stop,
reload and vanish at random, all drawn from one seed, and whatever a visitor sees is held against the answer that a
single user gets, computed here by `session.run`: every record but its times, a lane at a time. An answer that was cut
short (stopped, or its visitor left) must be the start of that one. Beside it the server's memory, threads, file
descriptors and temporary files are counted. A table and one line of JSON; the exit code is 1 if anything failed.
"""

from __future__ import annotations

import argparse
import asyncio
import dataclasses
import json
import os
import random
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lora_drop import runtime

runtime.configure()

import httpx  # noqa: E402
from gradio_client.utils import apply_diff  # noqa: E402

from lora_drop.errors import LoraDropError  # noqa: E402
from lora_drop.method.config import default_range  # noqa: E402
from lora_drop.method.options import config_from  # noqa: E402
from lora_drop.method.settings import SCHEDULE, settings_of  # noqa: E402
from lora_drop.models.load import LoadedModel, load_model  # noqa: E402
from lora_drop.models.place import describe_device  # noqa: E402
from lora_drop.run.exports.chrome import chrome_trace  # noqa: E402
from lora_drop.run.exports.html import replay_html  # noqa: E402
from lora_drop.run.records import StepRecord, wire_line, write_line  # noqa: E402
from lora_drop.run.request import Request  # noqa: E402
from lora_drop.run.run import run  # noqa: E402
from lora_drop.run.trace import Trace, parse_trace  # noqa: E402
from scripts.space_check import free_port, server, tail  # noqa: E402

ROOT = Path(__file__).resolve().parent.parent
MODEL, OTHER_MODEL = "random:tiny-llama", "random:tiny-qwen2"  # one question asks for the second: the app swaps them
PATIENCE = 180  # seconds that a visitor waits for the next word of the server before it counts as lost
REST = 12  # seconds after which the server's idle worker threads end (anyio's 10, and some)
FIELDS = [f.name for f in dataclasses.fields(StepRecord) if f.name not in ("lane", "ms", "type")]
FLAT = 500  # kB a minute, beyond the slope's own error, that still count as no growth
JUDGED = 5  # minutes: over fewer the slope is that of a few strings of 10 MB, and is only shown
LINE = 400  # characters that a mistake's one line may have
PROMPTS = ("Hello", "Explain why the sky is blue.", "Déjà vu 日本語 🙂 <b>&amp;</b>", "one two three " * 12)
OPTIONS = ("preset", *(one.name for one in settings_of(SCHEDULE)))  # of the API, that make a config
RULES: dict[str, dict[str, Any]] = {
    "defaults": {},
    "state": {"reuse": "state", "period": 2},
    "attention": {"part": "attention", "kv": "write", "period": 3},
    "listed": {"drop_layers": "2,4", "period": 8, "reuse": "anchor"},
    "baseline": {"period": 1},
    "third lane": {"compare": "skip", "drop_ratio": 1.0},
    "adaptive": {"period": 8, "refresh_entropy": 4.6},
}
SAMPLED = {"temperature": 0.9, "top_p": 0.95}
# Asked for again and again: all that could make two runs differ, in both views.
REPEATED = {
    **{"prompt": PROMPTS[2], "period": 6, "drop_ratio": 1.0, "refresh_entropy": 4.6, "compare": "skip"},
    **{"max_new_tokens": 48, "seed": 7, **SAMPLED},
}
# What no visitor may ask for, and a word of the line that says so.
BAD_CALLS = [
    ({"prompt": " "}, "prompt is empty"),
    ({"period": 0}, "period"),
    ({"layers": "3-999"}, "layers"),
    ({"adapters": "/etc"}, "adapters must be auto or none"),
    ({"temperature": -1}, "temperature"),
    ({"preset": "nope"}, "no preset"),
    ({"max_new_tokens": 10**9}, "max_new_tokens"),
    ({"drop_layers": "1,1"}, "twice"),
]
BAD_PAGES = [
    ({"ld-prompt": ""}, "prompt is empty"),
    ({"ld-period": 0}, "period"),
    ({"ld-layers": [4, 99]}, "layers"),
    ({"ld-layers": "junk"}, "layers"),
    ({"ld-drop-layers": "x"}, "drop_layers"),
    ({"ld-max-new-tokens": None}, "max_new_tokens"),
    ({"ld-refresh-entropy": "hot"}, "refresh_entropy"),
]


class Wrong(Exception):
    """Something that a visitor saw and that may not be, in words."""


class TurnedAway(Exception):
    """The queue was full, and the server said so."""


def hold(true: Any, otherwise: str) -> None:
    """Raise Wrong with these words unless something is true."""
    if not true:
        raise Wrong(otherwise)


@dataclass(frozen=True)
class Case:
    """A question, and the answer that a single user gets."""

    name: str
    options: dict[str, Any]  # by the API's names
    page: dict[str, Any]  # the same by the page's controls
    answer: Answer
    page_answer: Answer  # its header says what the controls ask for
    wire: list[list[Any]]


class Answer:
    """A run's records without their times, a lane at a time: lanes take turns by the clock."""

    def __init__(self, trace: Trace):
        self.header = dataclasses.asdict(trace.header)
        self.steps = {
            lane: [tuple(getattr(step, name) for name in FIELDS) for step in steps]
            for lane, steps in trace.steps.items()
        }
        self.audits = {lane: list(audits.values()) for lane, audits in trace.audits.items()}
        self.summary = _timeless(dataclasses.asdict(trace.summary)) if trace.summary else None
        self.texts = {lane: trace.text(lane) for lane in trace.steps}

    def same_as(self, expected: Answer) -> None:
        """Raise Wrong unless this is that answer, all of it."""
        for name in ("header", "steps", "audits", "texts", "summary"):
            hold(getattr(self, name) == getattr(expected, name), f"another answer: the {name} differ")

    def begins(self, expected: Answer) -> None:
        """Raise Wrong unless this is the start of that answer, in each lane."""
        hold(self.header == expected.header, "another answer: the header differs")
        for name in ("steps", "audits"):
            for lane, found in getattr(self, name).items():
                whole = getattr(expected, name)[lane]
                hold(found == whole[: len(found)], f"another answer: lane {lane}'s {name} are not the start of it")


def _timeless(summary: dict[str, Any]) -> dict[str, Any]:
    """A summary without what follows from the clocks."""
    lanes = {
        name: {k: v for k, v in lane.items() if k not in ("tokens_per_second", "prefill_ms", "decode_ms", "speedup")}
        for name, lane in summary["lanes"].items()
    }
    return {k: v for k, v in summary.items() if k != "speedup"} | {"lanes": lanes}


def by_lane(lines: list[list[Any]]) -> dict[int, list[list[Any]]]:
    """The page's short lines of steps (`0, 1, ...`) and audits (`100, ...`) without their times, in order."""
    found: dict[int, list[list[Any]]] = {}
    for line in lines:
        found.setdefault(line[0], []).append(line[1:] if line[0] >= 100 else line[1:5] + line[6:])
    return found


def make_cases(loaded: LoadedModel, long: int, other: LoadedModel | None = None) -> list[Case]:
    """The questions and their answers. The first two are the repeated ones, the last two have `long` tokens.

    Args:
        other: a second model of the app's menu, for a question of its own.
    """
    asked = [(f"repeated, {view}", {**REPEATED, "view": view}) for view in ("race", "lock-step")]
    for i, (rule, options) in enumerate(RULES.items()):
        asked.append((rule, {"max_new_tokens": 16 + 8 * i, "seed": i, **options}))
        sampled = {"max_new_tokens": 40, "seed": 100 + i, "view": "lock-step", **SAMPLED}
        asked.append((f"{rule}, sampled", {**sampled, **options}))
    if other:
        asked.append(("another model", {"max_new_tokens": 32, "seed": 5, "model": other.id, **SAMPLED}))
    asked.append(("long", {"max_new_tokens": long}))
    asked.append(("long, sampled", {"max_new_tokens": long, "compare": "skip", **SAMPLED, "seed": 3}))
    return [
        _case(
            other if "model" in options else loaded,
            name,
            {"prompt": PROMPTS[i % len(PROMPTS)], "ignore_eos": True, **options},
        )
        for i, (name, options) in enumerate(asked)
    ]


def _case(loaded: LoadedModel, name: str, options: dict[str, Any]) -> Case:
    config = config_from({key: options.get(key) for key in OPTIONS}, loaded.id)
    rest = {key: value for key, value in options.items() if key not in (*OPTIONS, "model")}
    request = Request(config=config, **rest)
    layers = list(config.layers or default_range(loaded.num_layers))
    page = {
        "ld-compare": request.compare or "",
        "ld-prompt": request.prompt,
        "ld-period": config.period,
        "ld-layers": layers,
        "ld-drop-ratio": config.drop_ratio,
        "ld-drop-layers": options.get("drop_layers", ""),
        "ld-reuse": config.reuse,
        "ld-part": config.part,
        "ld-kv": config.kv,
        "ld-refresh-entropy": "" if config.refresh_entropy is None else str(config.refresh_entropy),
        "ld-refresh-norm": "",
        "ld-adapters": config.adapters,
        "ld-max-new-tokens": request.max_new_tokens,
        "ld-temperature": request.temperature,
        "ld-top-p": request.top_p,
        "ld-seed": request.seed,
        "ld-view": request.view,
        "ld-audit": request.audit,
        "ld-ignore-eos": request.ignore_eos,
        "ld-model": loaded.id,
    }
    records = list(run(loaded, request))
    seen = run(loaded, dataclasses.replace(request, config=config.replace(layers=tuple(layers))))
    page_records = [next(seen), *records[1:]]
    seen.close()
    answer, page_answer = (_trace("".join(map(write_line, found))) for found in (records, page_records))
    ids = [lane["id"] for lane in answer.header.lanes]
    wire = [json.loads(wire_line(record, ids)) for record in records[1:-1]]
    return Case(name, options, page, Answer(answer), Answer(page_answer), wire)


def _trace(text: str) -> Trace:
    try:
        return parse_trace(text.encode())
    except LoraDropError as error:
        raise Wrong(f"not a trace: {error}") from None


@dataclass
class Log:
    """What was seen, by all visitors."""

    visits: Counter = field(default_factory=Counter)
    compared: Counter = field(default_factory=Counter)  # whole answers by case
    starts: int = 0  # answers cut short that were compared
    turned_away: int = 0
    requests: int = 0
    waited: int = 0  # runs that saw others before them
    moved: int = 0  # of those, runs that saw a better place later
    worst_place: int = 0
    late: int = 0  # Stop pressed, but the run had ended
    unkept: int = 0  # a trace that made room for newer ones
    failures: list[str] = field(default_factory=list)


class Session:
    """One page load, or one client of the API: a session hash, and the calls made with it."""

    def __init__(self, http: httpx.AsyncClient, app: App, log: Log, name: str):
        self.http, self.app, self.log, self.name = http, app, log, name

    async def post(self, path: str, body: Any) -> httpx.Response:
        """A request to Gradio's own addresses."""
        self.log.requests += 1
        return await self.http.post(path, json=body)

    async def join(self, function: int, data: list[Any]) -> str:
        """Queue a call; returns its event id."""
        asked = {"data": data, "fn_index": function, "session_hash": self.name, "event_data": None, "trigger_id": None}
        answer = await self.post("/queue/join", asked)
        if answer.status_code == 503:
            one_line(answer.json().get("detail"), "ueue")
            raise TurnedAway
        hold(answer.status_code == 200, f"queue/join answers {answer.status_code}: {answer.text[:200]}")
        return answer.json()["event_id"]

    async def call(self, function: int, data: list[Any]) -> AsyncIterator[tuple[bool, Any]]:
        """Queue a call and yield what it sends: `(False, outputs)` while it runs, and at last `(True, message)`.

        Closed before its end, the connection is dropped, as that of a visitor who leaves.
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
                hold(kind != "unexpected_error", f"the stream broke: {message.get('message')}")
                hold(message.get("event_id") == event, f"a message of another visitor's event: {kind}")
                if kind == "estimation":
                    hold(not started, "a place in the queue after the start")
                    hold(not places or message["rank"] <= places[-1], f"moved back in the queue: {places}")
                    places.append(message["rank"])
                elif kind == "process_starts":
                    started = True
                    hold(places, "started without ever seeing a place in the queue")
                    self.log.waited += places[0] > 0
                    self.log.moved += places[0] > places[-1]
                    self.log.worst_place = max(self.log.worst_place, places[0])
                elif kind == "process_generating":
                    hold(started and message["success"], f"an update that failed: {str(message)[:200]}")
                    new = message["output"]["data"]
                    outputs = new if outputs is None else [apply_diff(*pair) for pair in zip(outputs, new)]  # noqa: B905
                    yield False, outputs
                elif kind == "process_completed":
                    yield True, message
                    return
        raise Wrong("the stream ended before the answer did")

    async def ask(self, function: int, data: list[Any]) -> tuple[list[Any] | None, dict[str, Any]]:
        """Queue a call and wait for its end: the last update's outputs, and the last message."""
        outputs = None
        async with aclosing(self.call(function, data)) as updates:
            async for done, found in updates:
                if done:
                    return outputs, found
                outputs = found
        raise Wrong("no answer")

    async def export(self, run_id: Any, kind: Any) -> dict[str, str]:
        """A run's file, by the live view's own call."""
        body = {"data": [run_id, kind], "component_id": self.app.live, "fn_name": "export_run"}
        answer = await self.post("/component_server", {**body, "session_hash": self.name})
        hold(answer.status_code == 200, f"export answers {answer.status_code}: {answer.text[:200]}")
        return answer.json()

    async def press_stop(self) -> None:
        """The Stop button."""
        answer = await self.post("/run/stop", {"data": [], "fn_index": self.app.stop, "session_hash": self.name})
        hold(answer.status_code == 200, f"Stop answers {answer.status_code}: {answer.text[:200]}")


def one_line(line: Any, word: str) -> None:
    """Raise Wrong unless this is one clear line with that word."""
    clear = isinstance(line, str) and 0 < len(line) <= LINE and "\n" not in line and "Traceback" not in line
    hold(clear and word in line, f"not one clear line about {word!r}: {str(line)[:300]!r}")


class App:
    """What a client reads of the running app: the numbers of its functions, and their inputs."""

    def __init__(self, config: dict[str, Any], info: dict[str, Any]):
        functions = {f["api_name"]: f for f in config["dependencies"] if f["backend_fn"]}
        by_id = {c["id"]: c["props"] for c in config["components"]}
        named = {props.get("elem_id"): i for i, props in by_id.items()}
        self.live = named["ld-live"]
        # The Safe zone tab has a run_page too: ours is the one that fills the live view.
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


class Visitor:
    """Somebody who comes again and again; what they do is drawn from their own seed."""

    def __init__(self, soak: Soak, number: int):
        self.soak, self.log, self.app = soak, soak.log, soak.app
        self.number, self.draw = number, random.Random(f"{soak.seed}/{number}")
        self.http: httpx.AsyncClient

    async def stay(self, visits: int | None, until: float | None) -> None:
        """Visit so many times, or until a time."""
        deck: list[str] = []
        done = 0
        async with self.soak.client() as self.http:
            while (visits is None or done < visits) and (until is None or time.monotonic() < until):
                if not deck:
                    deck = [kind for kind, (often, _) in KINDS.items() for _ in range(often)]
                    self.draw.shuffle(deck)
                await self.visit(deck.pop())
                done += 1
                await asyncio.sleep(self.draw.random() / 2)

    async def visit(self, kind: str, *given: Case) -> None:
        """One visit; whatever is wrong with it is written down, and the others go on."""
        self.log.visits[kind] += 1
        try:
            await KINDS[kind][1](self, *given)
        except TurnedAway:
            self.log.turned_away += 1
            await asyncio.sleep(6 * self.draw.random())
        except Wrong as wrong:
            self.log.failures.append(f"{kind}: {wrong}")
        except (httpx.HTTPError, OSError, KeyError, ValueError, TypeError) as error:
            self.log.failures.append(f"{kind}: {type(error).__name__}: {error}")

    def session(self) -> Session:
        """A new page load, or a new client."""
        return Session(self.http, self.app, self.log, f"{self.draw.getrandbits(64):016x}")

    @asynccontextmanager
    async def page(self) -> AsyncIterator[Session]:
        """A page load: like the browser's, it keeps a connection open by which the server knows it is there."""
        session = self.session()
        async with self.http.stream("GET", f"/heartbeat/{session.name}"):
            yield session

    def case(self, long: bool = False) -> Case:
        """A question; the repeated ones come up a third of the time."""
        cases = self.soak.cases
        if long:
            return self.draw.choice(cases[-2:])
        return self.draw.choice(cases[:2] if self.draw.random() < 1 / 3 else cases[2:-2])

    def whole(self, found: Answer, case: Case, expected: Answer) -> None:
        """Compare a whole answer."""
        found.same_as(expected)
        self.log.compared[case.name] += 1

    def seen(self, wire: str, case: Case) -> tuple[str, dict[str, Any] | None]:
        """Compare what the page was sent with the answer's start; returns the run's id, and the summary if there."""
        lines = [json.loads(line) for line in wire.splitlines()]
        hold(lines and lines[0].get("type") == "run", "the page's text does not start with the run's id")
        summary = lines.pop() if isinstance(lines[-1], dict) and lines[-1]["type"] == "summary" else None
        if len(lines) > 1:
            hold(lines[1] == case.page_answer.header, "the page was sent another header")
        whole = by_lane(case.wire)
        for lane, found in by_lane(lines[2:]).items():
            hold(found == whole[lane][: len(found)], f"the page was sent other records, lane {lane}")
        return lines[0]["id"], summary

    # What they do.

    async def answer(self, case: Case | None = None) -> None:
        """Ask /generate, and read to the end."""
        case = case or self.case()
        session = self.session()
        outputs, last = await session.ask(self.app.generate, self.app.call_data("/generate", case.options))
        hold(last["success"], f"/generate failed: {last['output']}")
        self.whole(Answer(_trace(outputs[0])), case, case.answer)

    async def vanish(self) -> None:
        """Ask /generate, and drop the connection in the middle."""
        case = self.case(long=True)
        updates, text = self.draw.randint(0, 3), ""
        call = self.session().call(self.app.generate, self.app.call_data("/generate", case.options))
        async with aclosing(call):
            async for done, found in call:
                if done or updates == 0:
                    break
                text, updates = found[0], updates - 1
        if text:
            Answer(_trace(text)).begins(case.answer)
            self.log.starts += 1

    async def run_page(self, session: Session, case: Case, stop_after: int | None = None) -> tuple[str, dict]:
        """Press Run, and Stop after so many updates (0: while it still waits); the run's id and its summary."""
        wire, status = "", {}
        if stop_after == 0:
            await session.press_stop()
        async with aclosing(session.call(self.app.page, self.app.page_data(case.page))) as updates:
            async for done, found in updates:
                if done:
                    hold(found["success"], f"the page's run failed: {found['output']}")
                    break
                shown = dict(zip(self.app.outputs, found, strict=True))
                wire = shown["ld-live"] if isinstance(shown["ld-live"], str) else wire  # the last one leaves it alone
                status = shown["ld-status"]
                if stop_after is not None:
                    stop_after -= 1
                    if stop_after == 0:
                        await session.press_stop()
        hold(status.get("kind") == "done", f"the page's run ended with {status}")
        run_id, summary = self.seen(wire, case)
        hold(summary, "the page's run ended without a summary")
        stopped = any(lane["ended"] == "stopped" for lane in summary["lanes"].values())
        hold(status["text"].startswith("Stopped" if stopped else "Finished"), f"the status says {status['text']!r}")
        if not stopped:
            hold(_timeless(summary) == case.page_answer.summary, "another answer: the summary differs")
            self.log.compared[case.name] += 1
        return run_id, summary

    async def run(self) -> None:
        """Press Run and wait for the end; Stop, pressed before the run has started, does nothing."""
        async with self.page() as session:
            _, summary = await self.run_page(session, self.case(), self.draw.choice((None, None, 0)))
            hold(all(lane["ended"] == "length" for lane in summary["lanes"].values()), "stopped by somebody else")

    async def stop(self) -> None:
        """Press Run, and Stop while it runs."""
        case = self.case(long=True)
        async with self.page() as session:
            run_id, summary = await self.run_page(session, case, self.draw.randint(1, 3))
            if all(lane["ended"] == "length" for lane in summary["lanes"].values()):
                self.log.late += 1
                return
            for name, lane in summary["lanes"].items():
                ran = case.answer.steps[name][: lane["tokens"]]
                held = ran[-1][FIELDS.index("kv_bytes")] if ran else 0
                hold(lane["kv_bytes"] == held, f"the stopped lane {name} holds other K/V than its last step")
            if trace := await self.kept(session, run_id):
                found = Answer(trace)
                found.begins(case.page_answer)
                hold(found.summary == _timeless(summary), "the file has another summary than the page")
                hold(found.steps != case.answer.steps, "stopped, but it went on to the end")
                self.log.starts += 1

    async def kept(self, session: Session, run_id: str) -> Trace | None:
        """The trace of a run, unless it has made room for newer ones."""
        file = await session.export(run_id, "trace")
        if "error" in file:
            one_line(file["error"], "no longer kept")
            self.log.unkept += 1
            return None
        return _trace(file["text"])

    async def leave(self) -> None:
        """Press Run, and close the page: waiting, or in the middle. What ran on the server must have ended with it."""
        case, updates, wire = self.case(long=True), self.draw.randint(0, 2), ""
        async with self.page() as session:
            async with aclosing(session.call(self.app.page, self.app.page_data(case.page))) as call:
                async for done, found in call:
                    if done or updates == 0:
                        break
                    wire, updates = found[self.app.outputs.index("ld-live")], updates - 1
        if not isinstance(wire, str) or not wire:
            return
        run_id, summary = self.seen(wire, case)
        self.log.starts += 1
        # Runs are one at a time, so once another has been answered this one is over.
        await self.answer()
        if summary is None and (trace := await self.kept(session, run_id)):
            found = Answer(trace)
            found.begins(case.page_answer)
            hold(found.summary is None, "the run went on to its end after its visitor had left")

    async def reload(self) -> None:
        """Press Run, reload the page, and press Run once more."""
        await self.leave()
        await self.run()

    async def deaf(self) -> None:
        """Queue a run, and be gone before the stream is opened."""
        await self.session().join(self.app.page, self.app.page_data(self.case().page))

    async def estimate(self) -> None:
        """Ask /estimate, which needs no queue."""
        case = self.case()
        body = {"data": self.app.call_data("/estimate", case.options), "fn_index": self.app.estimate}
        session = self.session()
        answer = await session.post("/run/estimate", {**body, "session_hash": session.name})
        hold(answer.status_code == 200, f"/estimate answers {answer.status_code}: {answer.text[:200]}")
        found = answer.json()["data"][0]
        dropped = case.answer.header["lanes"][1]["config"]["dropped"]
        hold(found["dropped"] == dropped and found["bound"] >= 1, f"/estimate says {found}")
        hold(found["prompt_tokens"] == case.answer.header["prompt_tokens"], "/estimate counts other tokens")

    async def replay(self) -> None:
        """Hand /replay a trace."""
        text = self.soak.recorded
        _, last = await self.session().ask(self.app.replay, [text])
        hold(last["success"], f"/replay failed: {last['output']}")
        hold(last["output"]["data"][0] == replay_html(_trace(text)), "/replay gives another page")

    async def export(self) -> None:
        """Press Run, and take everything away."""
        case = self.case()
        async with self.page() as session:
            run_id, _ = await self.run_page(session, case)
            if trace := await self.kept(session, run_id):
                self.whole(Answer(trace), case, case.page_answer)
                for kind, made in (("chrome", json.dumps(chrome_trace(trace))), ("html", replay_html(trace))):
                    file = await session.export(run_id, kind)
                    hold(file.get("text") == made, f"another {kind} file: {file.get('error')}")

    async def open(self) -> None:
        """Open a recorded run."""
        async with self.page() as session:
            name = f"run-{self.number}.jsonl"
            self.log.requests += 1
            sent = await self.http.post("/upload", files={"files": (name, self.soak.recorded.encode())})
            hold(sent.status_code == 200, f"upload answers {sent.status_code}: {sent.text[:200]}")
            file = {"path": sent.json()[0], "orig_name": name, "meta": {"_type": "gradio.FileData"}}
            _, last = await session.ask(self.app.open, [file])
            hold(last["success"], f"opening a trace failed: {last['output']}")
            wire, status = last["output"]["data"]
            hold(status["text"].startswith(f"Opened {name}"), f"opening a trace says {status}")
            run_id = json.loads(wire.splitlines()[0])["id"]
            if trace := await self.kept(session, run_id):
                Answer(trace).same_as(Answer(_trace(self.soak.recorded)))

    async def mistake(self) -> None:
        """Ask for what cannot be: each gets its one line."""
        options, word = self.draw.choice(BAD_CALLS)
        session = self.session()
        data = self.app.call_data("/generate", {"prompt": "Hello", **options})
        _, last = await session.ask(self.app.generate, data)
        hold(not last["success"], f"/generate took {options}")
        one_line(last["output"].get("error"), word)
        controls, word = self.draw.choice(BAD_PAGES)
        outputs, last = await session.ask(self.app.page, self.app.page_data(controls))
        if last["success"]:
            status = last["output"]["data"][self.app.outputs.index("ld-status")]
            hold(status["kind"] == "error", f"the page took {controls}: {status}")
            one_line(status["text"], word)
        else:  # what Gradio's own reading of a control refuses
            one_line(last["output"].get("error"), word)
        for wanted in (["0" * 32, "trace"], [None, "html"], "junk"):
            body = {"data": wanted, "component_id": self.app.live, "fn_name": "export_run"}
            answer = await session.post("/component_server", {**body, "session_hash": session.name})
            one_line(answer.json().get("error"), "no longer kept")
        _, last = await session.ask(self.app.replay, ["{}"])
        hold(not last["success"], "/replay took a broken trace")
        one_line(last["output"].get("error"), "line 1")


# What a visitor does, and how often of 100 times.
KINDS = {
    "answer": (24, Visitor.answer),
    "vanish": (10, Visitor.vanish),
    "run": (18, Visitor.run),
    "stop": (12, Visitor.stop),
    "leave": (8, Visitor.leave),
    "reload": (6, Visitor.reload),
    "deaf": (2, Visitor.deaf),
    "estimate": (6, Visitor.estimate),
    "replay": (2, Visitor.replay),
    "export": (4, Visitor.export),
    "open": (3, Visitor.open),
    "mistake": (5, Visitor.mistake),
}


@dataclass(frozen=True)
class Held:
    """What the server's process holds."""

    threads: int
    files: int  # descriptors
    uploads: int  # in Gradio's own temporary folder
    temporary: list[str]  # any other temporary file


class Soak:
    """The running app, its visitors, and what they found."""

    def __init__(self, process: subprocess.Popen, url: str, cases: list[Case], recorded: str, seed: int, folder: Path):
        self.process, self.url, self.cases, self.recorded, self.seed = process, url, cases, recorded, seed
        self.temporary = folder
        self.log = Log()
        self.app: App
        self.memory: list[tuple[float, int]] = []  # minutes, kB

    def client(self) -> httpx.AsyncClient:
        """Connections of one visitor's own."""
        # The server closes an idle connection after 5 s: none is used again that late.
        limits = httpx.Limits(keepalive_expiry=2)
        return httpx.AsyncClient(base_url=f"{self.url}/gradio_api", timeout=PATIENCE, limits=limits)

    async def read_app(self) -> None:
        """Ask the app for its functions."""
        async with self.client() as http:
            config = (await http.get(f"{self.url}/config")).json()
            self.app = App(config, (await http.get("/info")).json())

    def resident(self) -> int:
        """The server's resident memory in kB."""
        return int(re.search(r"VmRSS:\s+(\d+)", self._proc("status").read_text())[1])

    def _proc(self, name: str) -> Path:
        return Path("/proc") / str(self.process.pid) / name

    async def watch(self) -> None:
        """Note the memory once a second, until cancelled."""
        started = time.monotonic()
        while True:
            self.memory.append(((time.monotonic() - started) / 60, self.resident()))
            await asyncio.sleep(1)

    async def held(self, rest: float) -> Held:
        """What the server holds once it is idle, and answered a few calls by which its idle threads end."""
        await asyncio.sleep(rest)
        visitor = Visitor(self, -1)
        async with self.client() as visitor.http:
            for _ in range(3):
                await visitor.visit("answer")
        counts, seen = self.counts(), []
        while counts not in seen[-2:] and len(seen) < REST:  # the last connections close a little later
            seen.append(counts)
            await asyncio.sleep(1)
            counts = self.counts()
        files = [path for path in self.temporary.rglob("*") if path.is_file()]
        uploads = [path for path in files if path.relative_to(self.temporary).parts[0] == "gradio"]
        others = sorted(path.name for path in files if path not in uploads)
        return Held(*counts, len(uploads), others)

    def counts(self) -> tuple[int, int]:
        """The server's threads and file descriptors."""
        return len(os.listdir(self._proc("task"))), len(os.listdir(self._proc("fd")))

    async def alone(self) -> None:
        """A single user: every question once, and every kind of visit, before the others come."""
        visitor = Visitor(self, -2)
        async with self.client() as visitor.http:
            for case in self.cases:
                await visitor.visit("answer", case)
            for kind in KINDS:
                await visitor.visit(kind)

    async def crowd(self, visitors: int, visits: int | None, seconds: float | None, first: int = 0) -> None:
        """So many visitors at once, each for so many visits or all until the time is up."""
        until = None if seconds is None else time.monotonic() + seconds
        await asyncio.gather(*(Visitor(self, first + i).stay(visits, until) for i in range(visitors)))


def slope(points: list[tuple[float, float]]) -> tuple[float, float]:
    """The least-squares slope of points, and its standard error; NaN of fewer than three."""
    n = len(points)
    if n < 3:
        return float("nan"), float("nan")
    mean_x, mean_y = (sum(values) / n for values in zip(*points, strict=True))
    spread = sum((x - mean_x) ** 2 for x, _ in points)
    rise = sum((x - mean_x) * (y - mean_y) for x, y in points) / spread
    rest = sum((y - mean_y - rise * (x - mean_x)) ** 2 for x, y in points)
    return rise, (rest / (n - 2) / spread) ** 0.5


async def soak(
    visitors: int,
    seed: int = 0,
    seconds: float | None = None,
    visits: int | None = None,
    warm_up: float = 0,
    long: int = 1500,
    say: Callable[[str], None] = lambda line: None,
) -> dict[str, Any]:
    """Start the app, let the visitors come, and stop it; returns the figures, `failures` among them.

    Args:
        seconds, visits: how long they keep coming, or how often each of them comes.
        warm_up: seconds of the same crowd before anything is counted; without, a single user's visits have to do.
        long: tokens of the questions whose visitors stop or leave.
        say: takes a line now and then.
    """
    loaded = load_model(MODEL)
    cases = make_cases(loaded, long, load_model(OTHER_MODEL))
    recorded = "".join(map(write_line, run(loaded, Request("A recorded run.", max_new_tokens=24))))
    with tempfile.TemporaryDirectory(prefix="lora-drop-soak-") as work:
        temporary, log = Path(work) / "tmp", Path(work) / "log.txt"
        temporary.mkdir()
        own = {
            "LORA_DROP_MODEL": MODEL,
            "LORA_DROP_MODELS": OTHER_MODEL,
            "TMPDIR": str(temporary),
            "GRADIO_SERVER_NAME": "127.0.0.1",
        }
        env = {**os.environ, **own, "GRADIO_SERVER_PORT": str(free_port())}
        with server(Path(sys.executable), ROOT, log, env) as (process, url):
            this = Soak(process, url, cases, recorded, seed, temporary)
            await this.read_app()
            say(f"the app answers on {url}, pid {process.pid}; {len(cases)} questions")
            await this.alone()
            if warm_up:
                await this.crowd(visitors, None, warm_up, first=10_000)
            before = await this.held(REST if warm_up else 0)
            say(f"warm: {before}, {this.resident()} kB")
            watching = asyncio.create_task(this.watch())
            started = time.monotonic()
            await this.crowd(visitors, visits, seconds)
            took = time.monotonic() - started
            watching.cancel()
            after = await this.held(REST)
            say(f"afterwards: {after}, {this.resident()} kB")
            hold_still(this.log, before, after)
            if process.poll() is not None:
                this.log.failures.append(f"the app ended with {process.poll()}")
        if said := [
            line for line in log.read_text(encoding="utf-8", errors="replace").splitlines() if "Traceback" in line
        ]:
            this.log.failures.append(f"{len(said)} tracebacks in the app's log: {tail(log)}")
    found, (rise, error) = this.log, slope(this.memory)
    return {
        "visitors": visitors,
        "seed": seed,
        "seconds": round(took, 1),
        "visits": dict(found.visits),
        "requests": found.requests,
        "turned_away": found.turned_away,
        "compared": dict(found.compared),
        "compared_answers": sum(found.compared.values()),
        "compared_starts": found.starts,
        "repeated": sum(found.compared[case.name] for case in cases[:2]) - 2,  # one of each was the single user's
        "waited": found.waited,
        "moved_up": found.moved,
        "worst_place": found.worst_place,
        "stopped_too_late": found.late,
        "no_longer_kept": found.unkept,
        "memory_kb": [kb for _, kb in this.memory[:1] + this.memory[-1:]],
        "memory_kb_a_minute": [round(rise, 1), round(error, 1)],
        "before": dataclasses.asdict(before),
        "after": dataclasses.asdict(after),
        "device": describe_device(loaded.device),
        "failures": found.failures,
    }


def hold_still(log: Log, before: Held, after: Held) -> None:
    """Write down what the server holds afterwards and did not hold before."""
    for name in ("threads", "files"):
        if getattr(after, name) > getattr(before, name):
            log.failures.append(f"left over: {getattr(after, name)} {name}, {getattr(before, name)} before")
    if after.temporary:
        log.failures.append(f"left over: temporary files {after.temporary[:5]}")


def table(figures: dict[str, Any]) -> str:
    """The figures for people."""
    rows = [
        ("visitors, seconds", f"{figures['visitors']}, {figures['seconds']}"),
        ("visits", ", ".join(f"{kind} {count}" for kind, count in sorted(figures["visits"].items()))),
        ("requests, turned away", f"{figures['requests']}, {figures['turned_away']}"),
        ("whole answers compared", f"{figures['compared_answers']}, of them the repeated one {figures['repeated']}"),
        ("answers cut short, compared", figures["compared_starts"]),
        ("waited, moved up, worst place", f"{figures['waited']}, {figures['moved_up']}, {figures['worst_place']}"),
        ("memory, kB", " -> ".join(map(str, figures["memory_kb"]))),
        ("memory, kB a minute", "{} +- {}".format(*figures["memory_kb_a_minute"])),
        *(
            (name, f"{figures['before'][name]} -> {figures['after'][name]}")
            for name in ("threads", "files", "uploads", "temporary")
        ),
        ("failures", len(figures["failures"])),
    ]
    return "\n".join(f"{name:32}{value}" for name, value in rows)


def main(argv: list[str] | None = None) -> int:
    """The command; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m scripts.soak", description=__doc__.split(":")[0])
    parser.add_argument("--minutes", type=float, default=10, help="how long they keep coming, after the warm-up (10)")
    parser.add_argument("--visitors", type=int, default=50, help="how many at once (50)")
    parser.add_argument("--seed", type=int, default=0, help="all that they do is drawn from it (0)")
    parser.add_argument("--warm-up", type=float, default=90, metavar="SECONDS", help="before anything is counted (90)")
    args = parser.parse_args(argv)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # the app is stopped then, too
    figures = asyncio.run(
        soak(
            args.visitors,
            args.seed,
            seconds=60 * args.minutes,
            warm_up=args.warm_up,
            say=lambda line: print(line, flush=True),
        )
    )
    rise, error = figures["memory_kb_a_minute"]
    if args.minutes >= JUDGED and rise - 2 * error > FLAT:
        figures["failures"].append(f"the memory grows by {rise} +- {error} kB a minute")
    print(table(figures))
    for line, times in Counter(figures["failures"]).most_common(20):
        print(f"FAILED {times} times: {line}")
    print(json.dumps(figures))
    return 1 if figures["failures"] else 0


if __name__ == "__main__":
    sys.exit(main())
