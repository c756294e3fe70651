"""ZeroGPU, with a stand-in that keeps the rules of the `spaces` package: a forked worker that is used again, arguments
and yields pickled, no CUDA and no weights in the server's process, the time declared beforehand and counted."""

import copy
import dataclasses
import multiprocessing
import os
import pickle
import signal
import subprocess
import sys
import threading
from types import ModuleType

import gradio as gr
import pytest
import torch

from lora_drop.errors import LoraDropError
from lora_drop.method.config import LoraDropConfig
from lora_drop.run.request import Request, plan
from lora_drop.run.run import run
from lora_drop.run.trace.records import Header, StepRecord, Summary
from lora_drop.run.trace.trace import gather
from lora_drop.ui.serve import space as zero
from tests.support import ROOT

FORK = multiprocessing.get_context("fork")
CONFIG = LoraDropConfig(period=3, layers=(1, 4), drop_ratio=1.0)
ASKED = Request("Why is the sky blue?", CONFIG, 12, ignore_eos=True)
LONG = dataclasses.replace(ASKED, max_new_tokens=2000)


class Pool(ModuleType):
    """In the place of the module `spaces`, with one GPU."""

    def __init__(self, loaded):
        super().__init__("spaces")
        self.left, self.declared, self.pids, self.worker, self.forked = 120.0, [], [], None, []
        # The server's process keeps stand-ins: what reads a weight there finds nothing, and CUDA is not to be had.
        self.loaded, self.weights = loaded, {}
        for module in loaded.model.modules():
            for name, weight in module._parameters.items():
                if weight is not None:
                    self.weights[id(module), name] = weight
                    module._parameters[name] = torch.nn.Parameter(weight.to("meta"), requires_grad=False)

    def take(self) -> None:
        """In the worker: the weights come to the device that there really is."""
        for module in self.loaded.model.modules():
            for name in list(module._parameters):
                module._parameters[name] = self.weights.get((id(module), name))
        object.__setattr__(self.loaded, "device", torch.device("cpu"))

    def GPU(self, task, *, duration):
        def handler(*args):
            seconds = duration(*args)
            assert isinstance(seconds, int) and seconds > 0
            self.declared.append(seconds)
            if seconds > self.left:
                text = f"You have exceeded your ZeroGPU quota ({seconds}s requested vs. {self.left:g}s left)."
                raise gr.Error(text, title="ZeroGPU quota exceeded", print_exception=False)
            if self.worker is None or not self.worker[0].is_alive():
                self.worker = self._fork(task)
            process, asked, results, stopped = self.worker
            self.pids.append(process.pid)
            asked.send_bytes(pickle.dumps(args))
            while True:
                try:
                    kind, value = pickle.loads(results.recv_bytes())
                except EOFError:
                    raise gr.Error("GPU task aborted", title="ZeroGPU worker error", print_exception=False) from None
                if kind == "end":
                    return
                if kind == "error":
                    raise gr.Error(value, title="ZeroGPU worker error", print_exception=False)
                try:
                    yield value
                except GeneratorExit:
                    stopped.set()
                    while pickle.loads(results.recv_bytes())[0] != "end":
                        pass
                    raise

        return handler

    def _fork(self, task):
        asked_here, asked_there = FORK.Pipe(), FORK.Pipe()
        asked, results, stopped = asked_here, asked_there, FORK.Event()

        def work():
            results[0].close()
            self.take()
            while True:
                args = pickle.loads(asked[1].recv_bytes())
                stopped.clear()
                thread = threading.Thread(target=iterate, args=(args,))
                thread.start()
                thread.join()
                results[1].send_bytes(pickle.dumps(("end", None)))

        def iterate(args):
            generator = task(*args)
            try:
                for value in generator:
                    if stopped.is_set():
                        generator.close()
                        return
                    results[1].send_bytes(pickle.dumps(("value", value)))
            except Exception as error:  # its name is all that comes back
                results[1].send_bytes(pickle.dumps(("error", type(error).__name__)))

        process = FORK.Process(target=work, daemon=True)
        process.start()
        self.forked.append(process)
        results[1].close()
        return process, asked[0], results[0], stopped


def no_cuda(*args, **kwargs):
    raise RuntimeError("CUDA was touched in the server's process")


@pytest.fixture
def pool(tiny, monkeypatch):
    """ZeroGPU, with the tiny model on it."""
    loaded = dataclasses.replace(tiny, model=copy.deepcopy(tiny.model), device=torch.device("cuda", 0), weights=None)
    made = Pool(loaded)
    monkeypatch.setitem(sys.modules, "spaces", made)
    monkeypatch.setenv("SPACES_ZERO_GPU", "true")
    for name in ("LORA_DROP_ZERO_SECONDS", "LORA_DROP_ZERO_RATE", "LORA_DROP_REPLAY_URL"):
        monkeypatch.delenv(name, raising=False)
    for name in ("_lazy_init", "mem_get_info", "get_device_name"):
        monkeypatch.setattr(torch.cuda, name, no_cuda)
    yield made
    # All of them: one that is left over holds the browser's pipes of the other tests, whose end then never comes.
    for process in made.forked:
        process.kill()
        process.join()


def tokens(records) -> dict[str, list[int]]:
    trace = gather(records)
    return {lane: trace.token_ids(lane) for lane in trace.steps}


def plain(value) -> bool:
    """True for what JSON has, and nothing of torch or numpy, all the way down."""
    if isinstance(value, dict):
        return all(map(plain, value)) and all(map(plain, value.values()))
    if isinstance(value, (list, tuple)):
        return all(map(plain, value))
    return value is None or type(value) in (str, int, float, bool)


def test_elsewhere_nothing_changes(tiny, monkeypatch):
    monkeypatch.delenv("SPACES_ZERO_GPU", raising=False)
    monkeypatch.setitem(sys.modules, "spaces", None)  # not even imported

    assert zero.planning(tiny) is tiny
    zero.refuse_sweeps()
    flag = zero.stop_flag()
    assert isinstance(flag, threading.Event)
    start = zero.runner(tiny, run)
    assert tokens(start(ASKED)) == tokens(start(ASKED, flag)) == tokens(run(tiny, ASKED))
    flag.set()
    assert {lane["ended"] for lane in list(start(ASKED, flag))[-1].lanes.values()} == {"stopped"}


def test_a_run_is_the_same_on_a_borrowed_gpu(pool, tiny):
    start = zero.runner(pool.loaded, run)
    request = dataclasses.replace(ASKED, compare="skip")
    records = list(start(request, zero.stop_flag()))
    assert tokens(records) == tokens(run(dataclasses.replace(tiny, weights=None), request))
    assert isinstance(records[0], Header) and isinstance(records[-1], Summary)
    assert records[0].device["decoder"] == "static (float32), eager"
    assert all(plain(dataclasses.asdict(record)) for record in records)
    assert pool.loaded.device.type == "cuda"  # as before, in this process
    assert all(weight.is_meta for weight in pool.loaded.model.parameters())
    assert pool.declared == [zero.affordable(pool.loaded, request)]


def test_two_runs_in_one_worker_do_not_mix(pool):
    start = zero.runner(pool.loaded, run)
    first, other = tokens(start(ASKED)), tokens(start(dataclasses.replace(ASKED, prompt="And the sea?")))
    assert tokens(start(ASKED)) == first != other
    assert len(set(pool.pids)) == 1


def test_the_stop_button_is_seen_in_the_worker(pool):
    flag = zero.stop_flag()
    records = zero.runner(pool.loaded, run)(LONG, flag)
    got = [next(records) for _ in range(5)]
    flag.set()
    got += records
    assert {lane["ended"] for lane in got[-1].lanes.values()} == {"stopped"}  # and it delivers what it has
    assert sum(isinstance(record, StepRecord) for record in got) < 1000
    assert not flag.is_set() and not flag._path.exists()
    flag.set()
    assert not flag._path.exists()  # too late: it leaves nothing behind


def test_a_visitor_who_leaves_frees_the_worker(pool):
    start = zero.runner(pool.loaded, run)
    records = start(LONG)
    next(records)
    records.close()
    assert len(tokens(start(ASKED))["baseline"]) == 12


def test_a_mistake_costs_no_gpu_time(pool):
    wrong = dataclasses.replace(ASKED, config=LoraDropConfig(layers=(3, 99)))
    with pytest.raises(LoraDropError, match="layers 3-99 is outside"):
        next(zero.runner(pool.loaded, run)(wrong))
    assert pool.declared == []


def test_what_only_the_gpu_finds_is_reported(pool):
    def failing(loaded, request, *stop):
        yield from []
        raise LoraDropError("cuda:0 ran out of memory: ask for fewer tokens.")

    def broken(loaded, request, *stop):
        yield from []
        raise ZeroDivisionError

    with pytest.raises(LoraDropError, match="^cuda:0 ran out of memory: ask for fewer tokens.$"):
        next(zero.runner(pool.loaded, failing)(ASKED))
    pool.worker = None
    with pytest.raises(LoraDropError, match="^ZeroGPU worker error: ZeroDivisionError.$"):
        next(zero.runner(pool.loaded, broken)(ASKED))


def test_when_the_time_is_up(pool):
    records = zero.runner(pool.loaded, run)(LONG)
    next(records)
    os.kill(pool.pids[0], signal.SIGKILL)
    with pytest.raises(LoraDropError, match="the GPU was taken back"):
        list(records)


def test_a_quota_used_up_names_the_recorded_runs(pool, monkeypatch):
    pool.left = 1
    start = zero.runner(pool.loaded, run)
    with pytest.raises(LoraDropError, match=r"^ZeroGPU quota exceeded: You have .* vs\. 1s left\)\.$"):
        next(start(ASKED))
    monkeypatch.setenv("LORA_DROP_REPLAY_URL", "https://example.org/runs")
    with pytest.raises(LoraDropError, match=r"left\)\. Recorded runs need no GPU: https://example.org/runs$"):
        next(start(ASKED))


def test_too_long_a_run_says_what_fits(pool, monkeypatch):
    monkeypatch.setenv("LORA_DROP_ZERO_SECONDS", "30")
    start = zero.runner(pool.loaded, run)
    with pytest.raises(LoraDropError, match="needs .* a visitor has 30 s a day: .* or no audit") as refused:
        next(start(dataclasses.replace(ASKED, max_new_tokens=3000)))
    assert pool.declared == []
    room = int(str(refused.value).split("at most ")[1].split()[0])
    fits, over = (dataclasses.replace(ASKED, max_new_tokens=count) for count in (room, room + 1))
    assert zero.affordable(pool.loaded, fits) * zero.QUOTA_FACTOR <= 30
    with pytest.raises(LoraDropError):
        zero.affordable(pool.loaded, over)
    monkeypatch.setenv("LORA_DROP_ZERO_SECONDS", "1")
    with pytest.raises(LoraDropError, match="ask for a shorter prompt or no audit or no third lane"):
        next(start(dataclasses.replace(ASKED, compare="skip")))


def test_the_seconds_follow_from_the_tokens(pool, monkeypatch):
    monkeypatch.setenv("LORA_DROP_ZERO_RATE", "10")
    monkeypatch.setenv("LORA_DROP_ZERO_SECONDS", "10000")

    def declared(**changes) -> int:
        request = dataclasses.replace(ASKED, **{"max_new_tokens": 100, "audit": False} | changes)
        return zero.affordable(pool.loaded, request)

    assert declared(lanes="baseline") == zero.START_SECONDS + 1 + 10  # the prompt and the weights: a fraction of one
    assert declared() == zero.START_SECONDS + 1 + 20
    assert declared(audit=True) == zero.START_SECONDS + 1 + 30
    assert declared(compare="skip") == zero.START_SECONDS + 1 + 30
    assert declared(compare="skip", audit=True) == zero.START_SECONDS + 1 + 50
    assert declared(lanes="baseline", audit=True) == declared(lanes="baseline")
    assert declared(prompt="x" * 1999) == declared() + 1  # 2,000 tokens at PREFILL_RATE, once for all lanes
    monkeypatch.delenv("LORA_DROP_ZERO_RATE")
    assert declared(max_new_tokens=1000) > declared()


def test_what_is_refused_there(pool, monkeypatch):
    with pytest.raises(RuntimeError, match="CUDA was touched"):
        plan(pool.loaded, ASKED)
    with pytest.raises(LoraDropError, match="sweeps do not run on ZeroGPU"):
        zero.refuse_sweeps()
    monkeypatch.setenv("LORA_DROP_ZERO_SECONDS", "many")
    with pytest.raises(LoraDropError, match="LORA_DROP_ZERO_SECONDS must be a number above 0"):
        zero.affordable(pool.loaded, ASKED)
    monkeypatch.setitem(sys.modules, "spaces", None)
    with pytest.raises(LoraDropError, match="the package `spaces`"):
        zero.runner(pool.loaded, run)


@pytest.mark.parametrize(
    "address", ["", "javascript:alert(1)", "//host", "https://", 'https://a/"><b>', "https://[", "ftp://host/x"]
)
def test_what_is_no_web_address_is_no_link(monkeypatch, address):
    monkeypatch.delenv("SPACES_ZERO_GPU", raising=False)
    monkeypatch.setenv("LORA_DROP_REPLAY_URL", address)
    assert zero.replay_url() is None and zero.notice() == ""


def test_the_notice_links_to_the_recorded_runs(pool, monkeypatch):
    assert zero.notice() == (
        "<p class='ld-zero'>Each run borrows a GPU and counts against your daily ZeroGPU time.</p>"
    )
    monkeypatch.setenv("LORA_DROP_REPLAY_URL", "https://example.org/a?b=1&c='d'")
    assert 'href="https://example.org/a?b=1&amp;c=&#x27;d&#x27;"' in zero.notice()


def test_an_html_message_of_the_pool_becomes_text():
    class Html(str):
        def __str__(self):
            return "No GPU was available after 60s\nRetry later"

    error = gr.Error(Html("<a href=x>"), title="ZeroGPU queue timeout", print_exception=False)
    assert zero.line_of(error) == "ZeroGPU queue timeout: No GPU was available after 60s\nRetry later."


def test_app_imports_spaces_before_torch_and_after_openmp(tmp_path):
    (tmp_path / "spaces.py").write_text(
        "import os, sys\n"
        "assert not {'torch', 'gradio'} & set(sys.modules)\n"
        "assert os.environ['OMP_WAIT_POLICY'] == 'passive' and os.environ['GRADIO_ANALYTICS_ENABLED'] == 'False'\n"
        "print('imported')\n"
    )
    env = {k: v for k, v in os.environ.items() if k not in ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT")}
    env |= {"PYTHONPATH": str(tmp_path)}
    env.pop("GRADIO_ANALYTICS_ENABLED", None)
    done = subprocess.run(
        [sys.executable, "app.py", "--help"], cwd=ROOT, env=env, capture_output=True, text=True, check=True
    )
    assert done.stdout.startswith("imported")
