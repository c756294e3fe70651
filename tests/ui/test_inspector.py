"""The inspector on the server: after all runs, bounded, and one clear line where it cannot look."""

import json
import threading
from concurrent.futures import ThreadPoolExecutor
from unittest.mock import Mock

import gradio as gr
import orjson
import pytest

from lora_drop.errors import LoraDropError
from lora_drop.method.config import LoraDropConfig
from lora_drop.models.load import load_model
from lora_drop.models.pool import ModelPool
from lora_drop.run.exports import reading
from lora_drop.run.report.align import side_by_side
from lora_drop.run.request import Request
from lora_drop.run.run import run
from lora_drop.run.shares import Shares
from lora_drop.run.trace.records import BASELINE, LORA_DROP, write_line
from lora_drop.run.trace.trace import parse_trace
from lora_drop.ui import inspector as module
from lora_drop.ui.api import functions
from lora_drop.ui.callbacks import Callbacks
from lora_drop.ui.components import server_function
from lora_drop.ui.serve import reader
from tests.support import ROOT

CORPUS = ROOT / "tests" / "corpus" / "traces"
ASKED = Request("Why?", LoraDropConfig(period=3, drop_layers=(2, 4)), 12, ignore_eos=True)


@pytest.fixture
def pool(tiny) -> ModelPool:
    return ModelPool(tiny, ["random:tiny-qwen2"], lambda name: load_model(name, "cpu", "float32"))


@pytest.fixture
def calls(pool) -> Callbacks:
    return Callbacks(pool)


@pytest.fixture
def run_id(calls, tiny) -> str:
    run_id = calls.traces.begin()
    for record in run(tiny, ASKED):
        calls.traces.add(run_id, write_line(record))
    return run_id


@pytest.fixture
def readings(monkeypatch) -> list[int]:
    """The steps that were read again."""
    found, read_again = [], module.read_again

    def counted(loaded, trace, lane, step, should_stop):
        found.append(step)
        return read_again(loaded, trace, lane, step, should_stop)

    monkeypatch.setattr(module, "read_again", counted)
    return found


def test_a_kept_run_is_read_once_in_bounded_memory(calls, run_id, readings):
    steps = [calls.inspector.inspect(run_id, None, LORA_DROP, step) for step in (5, 4, 11, 5)]
    assert readings == [5] and steps[0] == steps[3] and [found["step"] for found in steps] == [5, 4, 11, 5]
    calls.inspector.inspect(run_id, None, BASELINE, 5)
    assert readings == [5, 5] and calls.inspector._windows.nbytes > 0
    calls.inspector._windows = Shares(most_bytes=1)
    for _ in range(2):
        calls.inspector.inspect(run_id, None, LORA_DROP, 5)
    assert readings[2:] == [5, 5] and calls.inspector._windows.nbytes == 0


def test_an_address_pushes_out_no_window_or_answer_of_another(calls, run_id, readings, monkeypatch):
    """Before: whose trace was read last stayed, and a visitor's own was parsed and read again."""
    text, address = calls.traces.text(run_id), []
    for part in (module, reader):
        monkeypatch.setattr(part, "address_of_call", lambda: address[-1])
    address.append("mine")
    calls.inspector.inspect(run_id, None, LORA_DROP, 5)
    calls.inspector._windows.most_bytes = 3 * calls.inspector._windows.nbytes
    calls.reader._answers.most = 3
    address.append("other")
    for seed in range(1, 6):
        calls.inspector.inspect(None, text.replace('"seed": 0', f'"seed": {seed}'), LORA_DROP, 5)
    assert len(readings) == 6 and len(calls.inspector._windows) == len(calls.reader._answers) == 3
    work = Mock()
    monkeypatch.setattr(reader, "work", work)
    calls.inspector.inspect(run_id, None, LORA_DROP, 5)
    assert len(readings) == 6 and not work.called


def test_a_trace_is_parsed_once_for_the_steps_that_lie_together(calls, run_id, monkeypatch):
    """Before: once for each step."""
    text, jobs, own = calls.traces.text(run_id), [], reader.Reader._elsewhere
    monkeypatch.setattr(reader.Reader, "_elsewhere", lambda *asked: (jobs.append(asked[3]), own(*asked))[1])
    monkeypatch.setattr(module, "TOGETHER", 8)
    monkeypatch.setattr(reading, "TOGETHER", 8)
    for step in (0, 7, 3, 8, 11, 2):
        assert calls.inspector.inspect(None, text, LORA_DROP, step)["step"] == step
    assert jobs == [(LORA_DROP, 0), (LORA_DROP, 8)]
    with pytest.raises(LoraDropError, match="has no step 12: its steps are 0 to 11"):
        calls.inspector.inspect(None, text, LORA_DROP, 12)
    assert len(jobs) == 2


def test_the_thread_that_owns_the_device_reads(calls, run_id, monkeypatch):
    threads: list[str] = []
    for name in ("read_again", "inspect"):
        own = getattr(module, name)
        watched = lambda *args, own=own: (threads.append(threading.current_thread().name), own(*args))[1]  # noqa: E731
        monkeypatch.setattr(module, name, watched)
    with ThreadPoolExecutor(1, "owner") as owner:
        monkeypatch.setattr(module, "by_owner", lambda device, work: owner.submit(work).result(), raising=False)
        calls.inspector.inspect(run_id, None, LORA_DROP, 5)
    assert threads == ["owner_0"] * 2


def test_a_trace_gives_what_its_run_gave(calls, run_id, readings):
    text = calls.traces.text(run_id)
    inspect = functions(calls)["inspect"]
    assert inspect(trace=text, step=7) == inspect(run_id, step=7) and len(readings) == 1
    with pytest.raises(gr.Error, match="no longer keeps"):
        inspect("elsewhere")
    with pytest.raises(gr.Error, match="line 1"):
        inspect(trace="{}")
    with pytest.raises(gr.Error, match="does not have .* random:huge"):
        inspect(trace=text.replace('"id": "random:tiny-llama"', '"id": "random:huge"'), step=7)


def test_it_keeps_no_model(calls, run_id, pool):
    calls.inspector.inspect(run_id, None, LORA_DROP, 5)
    with pool.lend("random:tiny-qwen2"):
        pass
    with pytest.raises(LoraDropError, match="not in memory now: choose it in the models menu"):
        calls.inspector.inspect(run_id, None, LORA_DROP, 5)


def test_other_weights_under_the_same_name_are_refused_though_it_was_read_before(calls, run_id, pool, tiny):
    calls.inspector.inspect(run_id, None, LORA_DROP, 5)
    pool._loaded = type("Retrained", (type(tiny),), {})(**{**vars(tiny), "revision": "0" * 16})
    with pytest.raises(LoraDropError, match="weights .* are not those"):
        calls.inspector.inspect(run_id, None, LORA_DROP, 5)


def test_runs_come_first(calls, run_id, pool, monkeypatch):
    """A reading makes way at its next step once a run wants the model, and goes on after it."""
    began, events, read_again = threading.Event(), [], module.read_again

    def watched(loaded, trace, lane, step, should_stop):
        if began.is_set():
            events.append("again")
            return read_again(loaded, trace, lane, step, should_stop)
        began.set()
        while not should_stop():  # as a long reading asks between its steps
            pass
        events.append("made way")
        return None

    monkeypatch.setattr(module, "read_again", watched)
    found: list = []
    reader = threading.Thread(target=lambda: found.append(calls.inspector.inspect(run_id, None, LORA_DROP, 5)))
    reader.start()
    assert began.wait(30)
    with pool.lend():
        events.append("run")
        assert not found
    reader.join(30)
    assert events == ["made way", "run", "again"] and found[0]["step"] == 5


def test_where_runs_never_end_it_says_so(calls, run_id, pool, monkeypatch):
    monkeypatch.setattr(module, "PATIENCE", 0.05)
    with pool.lend(), pytest.raises(LoraDropError, match="runs come first"):
        calls.inspector.inspect(run_id, None, LORA_DROP, 5)
    with pool.lend():
        answer = calls.inspector.for_page(run_id, LORA_DROP, 5)
    assert "runs come first" in answer["error"]
    assert answer["step"]["layers"][2] == {"did": "skipped"} and len(answer["step"]["top"]) == 2


@pytest.mark.usefixtures("read_here")
@pytest.mark.parametrize("path", sorted(CORPUS.glob("good_*.jsonl")), ids=lambda path: path.stem)
def test_a_trace_that_claims_this_models_weights_is_read_or_refused_in_one_line(calls, tiny, path):
    lines = [line for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    header = json.loads(lines[0])
    header["model"] |= {"id": tiny.id, "revision": tiny.revision}
    text = "\n".join([json.dumps(header), *lines[1:]])
    trace = parse_trace(text.encode())
    for lane, steps in trace.steps.items():
        for step in range(len(steps) + 1):
            try:
                found = calls.inspector.inspect(None, text, lane, step)
            except LoraDropError as error:
                assert "\n" not in str(error)
            else:
                assert len(found["layers"]) == tiny.num_layers
                json.dumps(found, allow_nan=False)


def test_on_a_borrowed_gpu_it_is_refused(calls, run_id, monkeypatch):
    monkeypatch.setattr(module, "on_zero_gpu", lambda: True)
    answer = calls.inspector.for_page(run_id, LORA_DROP, 5)
    assert "borrows its GPU" in answer["error"] and answer["step"]["step"] == 5


@pytest.mark.parametrize("asked", [("", "", 0), (None, None, None), ([], {}, "5"), ("x", LORA_DROP, 10**30)])
def test_the_page_s_function_answers_whatever_it_gets(calls, asked):
    answer = calls.inspector.for_page(*asked)
    assert answer["step"] is None and "\n" not in answer["error"]


def test_two_answers_stand_word_by_word(calls, run_id):
    trace = parse_trace(calls.traces.text(run_id).encode())
    align = server_function("align_answers", calls.inspector.align, 4)
    assert align([run_id, BASELINE, run_id, LORA_DROP]) == side_by_side(trace.text(BASELINE), trace.text(LORA_DROP))
    assert "no longer keeps" in align(["gone", BASELINE, run_id, LORA_DROP])["error"]
    assert "no such lane" in align([run_id, BASELINE, run_id, {"x": 1}])["error"]
    for argument in (None, [run_id], {"a": 1}, [run_id, BASELINE, run_id, [LORA_DROP]], [7, [], {}, None]):
        assert "error" in align(argument)


def test_an_answer_with_half_a_surrogate_can_be_sent():
    answer = server_function("echo", lambda text: {"error": text, "at": [1.5, None]})("no run \ud800 here")
    assert orjson.loads(orjson.dumps(answer)) == {"error": "no run ? here", "at": [1.5, None]}
