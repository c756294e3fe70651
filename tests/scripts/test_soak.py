"""Many visitors at once, and what a run leaves behind: the short form of `make soak`, and each promise by itself."""

import asyncio
import dataclasses
import json
import os
import subprocess
import sys
import threading
from collections import Counter
from contextlib import aclosing
from types import SimpleNamespace

import pytest

from lora_drop.method.config import LoraDropConfig
from lora_drop.models.pool import ModelPool
from lora_drop.run.request import Request
from lora_drop.run.run import run
from lora_drop.run.trace.records import AuditRecord, StepRecord, Summary, write_line
from lora_drop.run.trace.trace import gather
from lora_drop.ui import callbacks
from lora_drop.ui import page as layout
from lora_drop.ui.serve import gradio_queue
from lora_drop.ui.serve import space as zero
from lora_drop.ui.serve.runs import RecentTraces, Stops
from lora_drop.ui.serve.visits import Visits
from scripts.soak import app as soak_app
from scripts.soak.app import Soak, Waited
from scripts.soak.cases import FIELDS, Answer, Wrong, make_cases
from scripts.soak.crowd import came, soak
from scripts.soak.hostile import ATTACKS, COUNTED
from scripts.soak.measure import PEAK, Held, hold_still, most_ahead, slope, within_peak
from scripts.soak.visitor import KINDS, Visitor
from scripts.space_check import free_port
from tests.support import ROOT

pytestmark = pytest.mark.full


@pytest.mark.skipif(not os.path.isdir("/proc/self/task"), reason="reads /proc")
def test_eight_visitors_get_what_a_single_user_gets():
    """Three visits each, the same ones every time; the repeated question is sampled, with a third lane."""
    figures = asyncio.run(soak(8, seed=0, visits=3, long=600))
    assert figures["failures"] == []
    assert set(figures["visits"]) == set(KINDS), "every kind of visit was made"
    assert figures["compared_answers"] > 40 and figures["repeated"] >= 10
    assert figures["compared_starts"] + figures["stopped_too_late"] + figures["no_longer_kept"] > 5
    assert {name for name in figures["compared"] if "repeated" in name} == {"repeated, race", "repeated, lock-step"}
    before, after = figures["before"], figures["after"]
    assert after["threads"] <= before["threads"] and after["files"] <= before["files"]
    assert after["temporary"] == [] and len(figures["memory_kb"]) == 2


@pytest.fixture(scope="module")
def cases(tiny):
    return make_cases(tiny, 60)


def test_the_early_refreshes_of_the_repeated_question_are_a_mix(cases):
    """Else it would not show whether they are the same each time."""
    triggers = [step[FIELDS.index("trigger")] for step in cases[0].answer.steps["lora_drop"][1:]]
    kinds = Counter(step[FIELDS.index("kind")] for step in cases[0].answer.steps["lora_drop"][1:])
    assert "entropy" in triggers and kinds["lora"] and kinds["refresh"] and len(cases[0].answer.steps) == 3
    assert cases[0].answer.steps == cases[1].answer.steps, "the view changes whose turn it is, not what a lane says"
    assert cases[0].answer.steps["lora_drop"] != cases[0].answer.steps["third"]


def test_the_soak_sees_another_answer(tiny):
    records = list(run(tiny, Request("Hello", LoraDropConfig(period=2), max_new_tokens=6, ignore_eos=True)))
    whole, cut = Answer(gather(records)), Answer(gather(records[:9]))
    whole.same_as(Answer(gather(slower(record) for record in records)))
    cut.begins(whole)
    with pytest.raises(Wrong, match="another answer"):
        cut.same_as(whole)
    for kind, change in ((StepRecord, {"token_id": 0}), (StepRecord, {"kv_bytes": 0}), (AuditRecord, {"kl": 9.0})):
        at = next(i for i, record in enumerate(records) if isinstance(record, kind))
        other = [*records[:at], dataclasses.replace(records[at], **change), *records[at + 1 :]]
        for compare in (Answer(gather(other)).same_as, Answer(gather(other)).begins):
            with pytest.raises(Wrong, match="another answer"):
                compare(whole)


def slower(record):
    """The same record of a slower machine."""
    if not isinstance(record, StepRecord):
        return record
    return dataclasses.replace(record, ms=2 * record.ms, outside=record.outside and 2 * record.outside)


def test_the_slope_of_the_memory():
    rise, error = slope([(0, 10), (1, 13), (2, 16), (3, 19)])
    assert rise == pytest.approx(3) and error == pytest.approx(0, abs=1e-9)
    rise, error = slope([(0, 0), (1, 2), (2, 1), (3, 3)])
    assert rise == pytest.approx(0.8) and error == pytest.approx((1.8 / 2 / 5) ** 0.5)


def test_the_soak_sees_what_is_left_over():
    before = Held(8, 10, 0, [])
    assert hold_still(before, Held(8, 9, 5, [])) == hold_still(before, Held(9, 9, 5, [])) == []
    assert len(hold_still(before, Held(10, 11, 0, ["lora-drop-stop-1"]))) == 3
    assert within_peak(9, [(0, 9), (1, 9 + PEAK)]) == [] and within_peak(9, []) == []
    assert within_peak(9, [(0, 10 + PEAK), (1, 9)]) == [f"the memory rose from 9 to {10 + PEAK} kB"]


def test_the_soak_sees_who_is_overtaken():
    """One run of another that was on and one turn are fair; a third is not, but where one of one's own came before."""
    mine = [Waited("me", 1.0, 9.0), Waited("me", -1.0, 0.5)]
    others = [Waited("you", began / 100, began) for began in (0.5, 2.0, 4.0, 9.5)] + [Waited("she", 3.5, 5.0)]
    assert most_ahead([*mine, *others]) == 2 and most_ahead(mine) == most_ahead([]) == 0
    overtaken = [*mine, *others, Waited("you", 2.0, 6.0)]
    assert most_ahead(overtaken) == 3
    assert most_ahead([*overtaken, Waited("me", 0.8)]) == 2, "one that was left waiting may have had a turn"
    assert most_ahead([*overtaken, Waited("me", 0.8, 3.0)]) == 2
    assert most_ahead([*overtaken, Waited("me", -2.0)]) == 3, "it was gone: a later one of the same address had begun"


def test_the_soak_asks_the_server_whether_each_attack_came():
    made = Counter(ATTACKS.keys())
    counted = Counter(COUNTED.values())
    assert came(made, counted) == [] and COUNTED.keys() == ATTACKS.keys()
    assert came(made - Counter(["giant"]), counted) == ["attack giant never came"]
    assert came(made, counted - Counter(["uploads_broken"])) == ["the server counted no upload"]


def test_a_visit_that_hangs_is_a_failure_with_a_name(monkeypatch):
    monkeypatch.setattr(soak_app, "VISIT", 0.01)
    there = Soak("http://127.0.0.1:9", [], recorded="", seed=0)
    there.app = None

    class Patient(Visitor):
        async def visit(self, kind, *given):
            self.session().heard = "estimation"
            await asyncio.Event().wait()

    async def come():
        patient = Patient(there, 0)
        async with patient.come():
            await patient.bounded("run")

    asyncio.run(come())
    assert there.log.failures == ["run: hangs, no end after 0.01 s; last heard: estimation"]


def test_a_run_clears_its_own_stop_flag_only():
    """A connection that broke may end its run after the same page has started the next one."""
    stops = Stops()
    old, new = stops.start("a page"), stops.start("a page")
    stops.end("a page", old)
    stops.stop("a page")
    assert new.is_set() and not old.is_set()
    stops.end("a page", new)
    assert len(stops) == 0


def test_a_stop_flag_leaves_no_file(monkeypatch, tmp_path):
    monkeypatch.setenv("SPACES_ZERO_GPU", "1")
    monkeypatch.setattr(zero.tempfile, "gettempdir", lambda: str(tmp_path))
    stops = Stops()
    flag = stops.start("a page")
    stops.stop("a page")
    assert flag.is_set() and len(list(tmp_path.iterdir())) == 1
    stops.end("a page", flag)
    stops.stop("a page")
    flag.set()
    assert list(tmp_path.iterdir()) == []


def test_the_kept_traces_are_few_and_short():
    traces = RecentTraces(Visits(), most=3, most_bytes=1000)
    ids = [traces.begin() for _ in range(4)]
    assert traces.text(ids[0]) is None and traces.text(ids[3]) == "" and len(traces) == 3
    traces.add(ids[1], "x" * 400)
    traces.add(ids[3], "y" * 400)
    assert len(traces) == 3 and traces._runs.nbytes < 1000
    traces.add(ids[3], "z" * 400)
    assert traces.text(ids[1]) is None and traces.text(ids[2]) == "" and traces._runs.nbytes < 1000
    traces.add(ids[1], "late")
    assert traces.text(ids[1]) is None
    traces.add(ids[3], "w" * 2000)
    assert traces.text(ids[3]).endswith("w" * 2000) and len(traces) == 1, "the newest is always kept"


@pytest.fixture
def in_process(tiny):
    """Starts the app in this process, to look inside; gives it, and somebody who comes with some questions."""
    demos = []

    def start(cases):
        demos.append(layout.build_app(ModelPool(tiny)))
        url = layout.launch(demos[-1], "127.0.0.1", free_port(), block=False).rstrip("/")
        there = Soak(url, cases, recorded="", seed=0)
        asyncio.run(there.read_app())
        return demos[-1], Visitor(there, 0)

    yield start
    for demo in demos:
        demo.close(verbose=False)


async def until(true):
    """Wait for something that comes by itself."""
    for _ in range(600):
        if true():
            return
        await asyncio.sleep(0.05)
    pytest.fail("it never came")


def test_who_waits_sees_a_place_that_moves_up(in_process, cases, monkeypatch):
    """Four ask while the first run is held."""
    goes_on = threading.Event()

    def held(*args):
        assert goes_on.wait(60)
        yield from run(*args)

    monkeypatch.setattr(callbacks, "run", held)
    _, visitor = in_process(cases)
    log = visitor.log

    async def come():
        async with visitor.soak.client() as visitor.http, asyncio.TaskGroup() as group:
            for number in range(1, 5):
                group.create_task(visitor.answer(cases[2]))
                await until(lambda number=number: len(log.runs) == number)
            goes_on.set()

    asyncio.run(come())
    assert log.waited >= 2 and log.moved >= 1 and log.worst_place >= 2 and log.compared[cases[2].name] == 4


@pytest.mark.parametrize("function", ["generate", "page"])
def test_a_run_ends_when_its_visitor_vanishes(in_process, tiny, cases, monkeypatch, function):
    """The connection is dropped in the middle: the run is closed after its step, and the next visitor is served."""
    steps, ended = [], []

    def watched(*args):
        try:
            for record in run(*args):
                steps.append(record)
                yield record
        finally:
            ended.append(isinstance(steps[-1], Summary))

    monkeypatch.setattr(callbacks, "run", watched)
    demo, visitor = in_process(cases)
    asked = {"prompt": "Hello", "max_new_tokens": 3000, "ignore_eos": True}
    controls = {"ld-prompt": "Hello", "ld-max-new-tokens": 3000, "ld-ignore-eos": True}

    async def vanish():
        async with visitor.soak.client() as visitor.http:
            data = visitor.app.call_data("/generate", asked), visitor.app.page_data(controls)
            data = data[function == "page"]
            async with aclosing(visitor.session().call(getattr(visitor.app, function), data)) as updates:
                async for _ in updates:
                    break
            await until(lambda: ended)
            await visitor.answer(cases[2])
            await until(lambda: not demo.app.iterators and not demo._queue.event_ids_to_events)

    asyncio.run(vanish())
    assert ended == [False, True], "the first without a summary"


def test_gradio_keeps_little_of_a_session(in_process, cases, monkeypatch, tiny):
    """No values, and no more sessions than a few."""
    monkeypatch.setattr(gradio_queue, "KEPT_SESSIONS", 3)
    demo, visitor = in_process(cases)
    visitor.soak.recorded = "".join(map(write_line, run(tiny, Request("Hello", max_new_tokens=4))))

    async def come():
        async with visitor.soak.client() as visitor.http:
            for _ in range(4):
                await visitor.estimate()
            # More of them wait than are kept, and the queue goes on.
            await asyncio.gather(*(visitor.deaf() for _ in range(8)))
            await visitor.run()
            await visitor.replay()

    asyncio.run(come())
    assert len(demo._queue.pending_messages_per_session) == 3, "also of those who never fetched their messages"
    kept = demo.app.state_holder.session_data
    assert len(kept) == 3
    for session in kept.values():
        for component in session.components:
            value = component["props"].get("value")
            assert not (isinstance(value, str) and '"lora_drop"' in value), "a run's text is kept"


def test_the_session_that_was_silent_for_longest_makes_room():
    kept = gradio_queue.Unread(2, Visits())
    kept["first"], kept["second"] = asyncio.Queue(), asyncio.Queue()
    assert kept["first"] is kept["first"]
    kept["third"] = asyncio.Queue()
    assert list(kept) == ["first", "third"]
    kept["second"].put_nowait("lost")  # a KeyError here would end Gradio's queue for everybody
    del kept["second"]
    assert list(kept) == ["first", "third"]


def test_a_session_with_a_run_makes_room_for_none():
    kept = gradio_queue.Unread(2, Visits(), lambda session: session == "first")
    for name in ("first", "second", "third", "fourth"):
        kept[name] = asyncio.Queue()
    assert list(kept) == ["first", "fourth"]
    kept["first"].put_nowait(SimpleNamespace(output={"data": ["x" * 1000]}))
    assert 1000 < kept.nbytes < 2000 and kept.fullest() == "first"
    assert kept["first"].get_nowait().output["data"] == ["x" * 1000] and kept.nbytes == 0


def test_an_opened_trace_leaves_the_disk(in_process, cases, tiny):
    """Before: Gradio's button left an empty file each time. An hour of `scripts.attack` ended with 293."""
    demo, visitor = in_process(cases)
    visitor.soak.recorded = "".join(map(write_line, run(tiny, Request("An opened run", max_new_tokens=4))))
    before = set(os.listdir(demo.GRADIO_CACHE))

    async def come():
        async with visitor.soak.client() as visitor.http:
            await visitor.open()
            await until(lambda: set(os.listdir(demo.GRADIO_CACHE)) == before and not any(demo.temp_file_sets))

    asyncio.run(come())


@pytest.mark.timeout(1500)  # it ends by itself, in some 3 minutes; where others have the cores, in more
def test_a_minute_of_many_visitors():
    """`make soak`, shorter, one in five hostile: too short for the memory's slope, long enough for all the rest."""
    command = [sys.executable, "-m", "scripts.soak", "--minutes", "1", "--visitors", "20", "--warm-up", "5"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]
    figures = json.loads(done.stdout.splitlines()[-1])
    assert figures["attacks"].keys() == ATTACKS.keys() and figures["compared_answers"] > 20
    assert figures["runs_ahead"] <= 2 and figures["addresses"] > 10 and figures["memory_over_base_mb"] < 500
