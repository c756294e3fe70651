"""The operator's limits: read from the environment, kept by the page and the API, and named where they are met."""

import asyncio
import dataclasses
import json
import os
import re
import threading
from types import SimpleNamespace
from unittest.mock import Mock

import gradio as gr
import pytest
import torch
from starlette.routing import Route

from lora_drop.errors import LoraDropError
from lora_drop.models.pool import ModelPool
from lora_drop.run.request import Request
from lora_drop.run.trace.trace import parse_trace
from lora_drop.ui import callbacks
from lora_drop.ui.api import functions
from lora_drop.ui.callbacks import Callbacks
from lora_drop.ui.safe_zone import callbacks as safe_zone
from lora_drop.ui.safe_zone.callbacks import SafeZone
from lora_drop.ui.serve import guard, policy
from lora_drop.ui.serve.guard import Guard
from lora_drop.ui.serve.owner import Counters
from lora_drop.ui.serve.policy import MIB, PUBLIC, SMALL, Clock, Limits, Policy
from lora_drop.ui.serve.visits import Visits
from tests.support import ROOT
from tests.support.calls import press_run

VISITOR = SimpleNamespace(session_hash="me")
NAMES = tuple(field.name.upper() for field in dataclasses.fields(Limits))


@pytest.fixture(autouse=True)
def plain_environment(monkeypatch):
    for name in NAMES:
        monkeypatch.delenv(f"LORA_DROP_MAX_{name}", raising=False)


def pressed(calls: Callbacks, prompt: str = "Why?", tokens: int = 8):
    held = {"period": 2, "drop_ratio": 1, "adapters": "none", "max_new_tokens": tokens, "audit": False}
    return list(press_run(calls, VISITOR, prompt, ignore_eos=True, **held))


def test_each_limit_is_an_environment_variable(monkeypatch):
    assert Limits.from_environment() == Limits()
    assert Limits.from_environment(public=True) == PUBLIC
    for number, name in enumerate(NAMES, start=7):
        monkeypatch.setenv(f"LORA_DROP_MAX_{name}", str(number))
    wanted = Limits(*range(7, 7 + len(NAMES)))
    assert Limits.from_environment() == Limits.from_environment(public=True) == wanted


def test_a_public_server_allows_less_of_everything():
    private, public = dataclasses.astuple(Limits()), dataclasses.astuple(PUBLIC)
    assert all(few < many for few, many in zip(public, private, strict=True))
    assert (PUBLIC.tokens, PUBLIC.prompt, PUBLIC.seconds, PUBLIC.queue, PUBLIC.share) == (512, 8000, 60, 16, 4)


def test_the_docs_have_the_table_of_both_modes():
    text = (ROOT / "docs" / "reliability.md").read_text(encoding="utf-8")
    for field in dataclasses.fields(Limits):
        private, public = (f"{getattr(limits, field.name):,g}" for limits in (Limits(), PUBLIC))
        row = rf"\| `LORA_DROP_MAX_{field.name.upper()}` \| {private}\b[^|]*\| {public}\b"
        assert re.search(row, text), f"{field.name}: {private}, {public}"


@pytest.mark.parametrize("value", ["0", "-3", "many", "nan", "inf", "1e999"])
@pytest.mark.parametrize("name", NAMES)
def test_a_limit_that_is_none_stops_the_start_with_one_line(monkeypatch, tiny, name, value):
    monkeypatch.setenv(f"LORA_DROP_MAX_{name}", value)
    with pytest.raises(LoraDropError, match=f"^the variable LORA_DROP_MAX_{name} must be a number above 0, not"):
        Callbacks(ModelPool(tiny))


def test_tokens_and_prompts_over_the_limit_are_refused_in_words(tiny):
    calls = Callbacks(ModelPool(tiny), Limits(tokens=10, prompt=20))
    for prompt, tokens, words in (("Why?", 11, "at most 10 new tokens"), ("x" * 21, 5, "at most 20 characters")):
        [(_, status, _)] = pressed(calls, prompt, tokens)
        assert status["kind"] == "error" and words in status["text"]
        with pytest.raises(gr.Error, match=words):
            list(functions(calls)["generate"](prompt, max_new_tokens=tokens))
    assert pressed(calls, "x" * 20, 10)[-1][1]["kind"] == "done"


def test_a_run_whose_time_is_up_keeps_what_it_has_and_says_why(tiny):
    calls = Callbacks(ModelPool(tiny), Limits(seconds=1e-6))
    *_, (_, status, _) = pressed(calls, tokens=50)
    assert status["text"].startswith("Stopped after 1e-06 s") and "Baseline 1, LoRA-Drop 0 tokens" in status["text"]
    *_, text = functions(calls)["generate"]("Why?", max_new_tokens=50, ignore_eos=True)
    trace = parse_trace(text.encode())
    assert {lane["ended"] for lane in trace.summary.lanes.values()} == {"stopped"}


def test_a_visitors_own_stop_is_not_called_a_limit(tiny, monkeypatch):
    calls = Callbacks(ModelPool(tiny))
    real = callbacks.run

    def stopping(loaded, request, should_stop, prompts):
        calls.stops.stop("me")
        return real(loaded, request, should_stop)

    monkeypatch.setattr(callbacks, "run", stopping)
    *_, (_, status, _) = pressed(calls, tokens=50)
    assert status["text"].startswith("Stopped: ")


def test_a_sweep_whose_time_is_up_keeps_its_points(tiny):
    zone = SafeZone(ModelPool(tiny), None, callbacks.Stops(), limits=Limits(seconds=1e-6))
    *_, last = zone.run_sweep("0.5,1", "2", "residual", "block", "auto", "agreement", None, None, VISITOR)
    assert last[0]["text"].startswith("Stopped after 1e-06 s") and "0 of 2 points" in last[0]["text"]


def test_a_sweep_ends_within_a_text(tiny, monkeypatch):
    """Of the full model's own answers, of the forced texts, of free ones, and of the timed runs."""
    decoder, steps = type(tiny.new_decoder()), []
    step = decoder.step

    def counted(*args):
        steps.append(1)
        return step(*args)

    monkeypatch.setattr(decoder, "step", counted)
    ends = Clock(None, float("inf"))
    monkeypatch.setattr(Clock, "is_set", lambda clock: len(steps) >= ends.end)
    monkeypatch.setattr(Limits, "clock", lambda limits, stop: ends)
    zone = SafeZone(ModelPool(tiny), None, callbacks.Stops())
    monkeypatch.setattr(safe_zone, "PROMPTS", ["Why?"])
    ends.end = 10**9
    *_, last = zone.run_sweep("1", "2", "residual", "block", "auto", "agreement", None, None, VISITOR)
    assert last[0]["text"] == "Finished: 1 point measured."
    whole = len(steps)
    for end in (3, *range(whole // 8, whole, whole // 8)):
        steps.clear()
        ends.end = end
        *_, last = zone.run_sweep("1", "2", "residual", "block", "auto", "agreement", None, None, VISITOR)
        assert last[0]["text"].endswith("0 of 1 points were measured.")
        assert len(steps) <= end + 1, "no step came after the one that was on"


def test_setting_up_a_gpu_does_not_count_in_a_run_s_time(tiny, monkeypatch):
    """It has a limit of its own."""
    real, now, stops = callbacks.run, [0.0], []
    monkeypatch.setattr(policy.time, "monotonic", lambda: now[0])

    def slow(loaded, request, should_stop, prompts):
        for record in real(tiny, request):
            now[0] += {"header": 500, "step": 25}.get(record.type, 0)
            stops.append(should_stop())
            yield record

    monkeypatch.setattr(callbacks, "run", slow)
    on_a_card = dataclasses.replace(tiny, device=torch.device("cuda"))
    calls = Callbacks(ModelPool(on_a_card), Limits(seconds=60))
    request = Request("Why?", max_new_tokens=2, ignore_eos=True, audit=False)
    list(calls.run(request))
    assert stops == [False, False, False, False, True, True]


def test_a_card_that_answers_no_more_ends_the_process(tiny, monkeypatch, capsys):
    """With one line, so that it is started anew; any other error is the run's alone."""
    on_a_card = dataclasses.replace(tiny, device=torch.device("cuda"))
    calls = Callbacks(ModelPool(on_a_card), Limits())
    broken = Mock(side_effect=RuntimeError("CUDA error: an illegal memory access\nand more"))
    ended = Mock(side_effect=SystemExit)
    monkeypatch.setattr(callbacks, "run", broken)
    monkeypatch.setattr(os, "_exit", ended)
    monkeypatch.setattr(torch.cuda, "synchronize", Mock())
    with pytest.raises(RuntimeError, match="illegal"):
        list(calls.run(Request("Why?")))
    assert not ended.called
    monkeypatch.setattr(torch.cuda, "synchronize", broken)
    with pytest.raises(SystemExit):
        list(calls.run(Request("Why?")))
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1 and "illegal memory access" in lines[0] and ended.call_args.args[0] != 0


def test_the_clock_is_one_more_reason_to_stop():
    flag = threading.Event()
    clock = Limits(seconds=1000).clock(flag)
    assert not clock.is_set()
    flag.set()
    assert clock.is_set() and not clock.is_up
    assert Limits(seconds=1e-9).clock(None).is_set()


class Door:
    """A guard, over an app that reads each body whole and answers once it may."""

    def __init__(self, **limits: int):
        self.may_answer = asyncio.Event()
        self.may_answer.set()
        self.read = 0  # bodies
        self.guard = Guard(self._app, Policy(limits=Limits(**limits)), Counters(), Visits())

    async def _app(self, scope, receive, send):
        while (await receive()).get("more_body"):
            pass
        self.read += 1
        await self.may_answer.wait()
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"{}"})

    async def ask(self, size: int | None, client: str = "127.0.0.1") -> tuple[int, str]:
        """Status and line of a POST with a body of so many bytes; of None, one that never comes."""
        sent = []

        async def receive():
            if size is None:
                await asyncio.Event().wait()
            return {"type": "http.request", "body": b'"' + b"a" * (size - 2) + b'"'}

        async def send(message):
            sent.append(message)

        app = SimpleNamespace(routes=[Route("/gradio_api/queue/join", self._app)])
        scope = {
            "type": "http",
            "method": "POST",
            "path": "/gradio_api/queue/join",
            "headers": [],
            "query_string": b"",
        }
        scope |= {"root_path": "", "app": app}
        await self.guard(scope | {"client": (client, 9)}, receive, send)
        return sent[0]["status"], json.loads(sent[1]["body"]).get("detail", "")


def test_an_address_that_calls_too_often_is_refused_until_time_has_passed(monkeypatch):
    now = [100.0]
    monkeypatch.setattr(guard, "time", SimpleNamespace(monotonic=lambda: now[0]))

    async def come():
        door = Door(calls=1)
        assert [(await door.ask(2))[0] for _ in range(guard.BURST + 1)] == [200] * guard.BURST + [429]
        assert door.guard.counters.refused("calls") == 1 and door.read == guard.BURST
        assert (await door.ask(2, "127.0.0.2"))[0] == 200, "another address has calls of its own"
        now[0] += 1
        assert [(await door.ask(2))[0] for _ in range(2)] == [200, 429]

    asyncio.run(come())


def test_a_body_that_does_not_come_ends(monkeypatch):
    monkeypatch.setattr(guard, "BODY_SECONDS", 0)
    monkeypatch.setattr(guard, "DRAIN_SECONDS", 0)

    async def come():
        door = Door()
        assert (await door.ask(None))[0] == 408
        assert door.read == 0 and door.guard.counters.refused("body") >= 1

    asyncio.run(come())


def test_all_bodies_together_are_bounded_and_small_ones_always_taken():
    """The bytes are free again when their requests are answered."""

    async def come():
        door = Door(trace=1)
        door.may_answer.clear()
        held = [asyncio.create_task(door.ask(2 * MIB)) for _ in range(2)]
        while door.read < 2:
            await asyncio.sleep(0)
        more, small = asyncio.create_task(door.ask(SMALL + 1)), asyncio.create_task(door.ask(SMALL))
        while door.read + more.done() + small.done() < 4:  # three are read and one refused, or it goes wrong
            await asyncio.sleep(0)
        assert more.done() and more.result()[0] == 503
        assert door.read == 3, "the small one"
        door.may_answer.set()
        assert [(await task)[0] for task in (*held, small)] == [200] * 3
        assert (await door.ask(2 * MIB))[0] == 200

    asyncio.run(come())
