"""Faults put in by hand: each is one clear line, nothing of it stays, and the next request is a fresh engine's.

What is killed, and downloads that break, are in test_kill.py; hostile settings and files in the modules' own tests.
"""

from __future__ import annotations

import contextlib
import dataclasses
import gc
import math
import threading
import weakref
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import pytest
import torch
from test_decoder import random_bank

import lora_drop
from lora_drop import audit, session
from lora_drop.config import LoraDropConfig
from lora_drop.errors import LoraDropError, is_out_of_memory
from lora_drop.fast import FastDecoder
from lora_drop.graphs import GraphDecoder
from lora_drop.models import LoadedModel, load_model
from lora_drop.native import library
from lora_drop.native.decoder import NativeDecoder, lay_out
from lora_drop.refresh import Pacer
from lora_drop.session import BASELINE, LORA_DROP, THIRD, Request, run
from lora_drop.trace import Trace, gather
from lora_drop.weights import fuse

PERIOD, TOKENS = 3, 9
needs_compiler = pytest.mark.skipif(library() is None, reason="there is no C compiler here")
KINDS = ["reference", "torch", "static", pytest.param("native", marks=needs_compiler)]


def fresh(kind: str) -> LoadedModel:
    """A tiny model that nobody has used, with a decoder of the kind."""
    loaded = load_model("random:tiny-llama", "cpu", "float32")
    if kind == "reference":
        return dataclasses.replace(loaded, weights=None)
    if kind == "native":
        return dataclasses.replace(loaded, weights=lay_out(loaded.model, None))
    loaded = dataclasses.replace(loaded, weights=fuse(loaded.model))
    if kind == "torch":
        return loaded
    static = property(lambda self: GraphDecoder(self.model, self.weights))
    return type("Static", (LoadedModel,), {"decoder": static})(**vars(loaded))


@pytest.fixture(scope="module", params=KINDS)
def kind(request) -> str:
    return request.param


@pytest.fixture(scope="module")
def loaded(kind) -> LoadedModel:
    """The model that every test of this module uses, one after the other: whatever a fault left would show."""
    loaded = fresh(kind)
    expected = {"torch": FastDecoder, "static": GraphDecoder, "native": NativeDecoder}
    assert type(loaded.decoder) is expected.get(kind, type(loaded.decoder))
    return loaded


@pytest.fixture(scope="module")
def shelf(tmp_path_factory) -> Path:
    """A folder of shipped adapters with one bank, for the residual rule."""
    tiny = fresh("reference")
    bank = random_bank(tiny, "residual", "block", layers=[1, 2, 3, 4])
    bank.revision = tiny.revision
    bank.save(tmp_path_factory.mktemp("adapters") / "bank")
    return tmp_path_factory.getbasetemp() / "adapters0"


@pytest.fixture(autouse=True)
def shipped(shelf, monkeypatch):
    monkeypatch.setattr(session, "SHIPPED_ADAPTERS", shelf)


def asked(**changes) -> Request:
    """Three lanes: the full model, LoRA-Drop with its adapters, and the skip rule without any."""
    config = LoraDropConfig(period=PERIOD, drop_ratio=1.0)
    return Request(
        **{"prompt": "Tell me something.", "config": config, "max_new_tokens": TOKENS, "ignore_eos": True}
        | {"compare": "skip", "view": "lock-step"}
        | changes
    )


def facts(trace: Trace) -> dict:
    """All of a run but its times."""
    return {
        name: (
            [(step.token_id, step.kind, step.entropy, step.kv_bytes, step.text) for step in steps],
            [(found.drift, found.kl, found.argmax_text) for found in trace.audits[name].values()],
        )
        for name, steps in trace.steps.items()
    }


@pytest.fixture(scope="module")
def right(kind, shelf) -> dict:
    """What a fresh engine answers."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(session, "SHIPPED_ADAPTERS", shelf)
        found = facts(gather(run(fresh(kind), asked())))
    assert list(found) == [BASELINE, LORA_DROP, THIRD] and all(len(steps) == TOKENS for steps, _ in found.values())
    return found


# ---- putting a fault in ---------------------------------------------------------------------------------------------


def _rule(pacer: Pacer) -> str | None:
    return None if pacer.schedule.is_baseline else pacer.schedule.reuse


# Where in a run: each decoder ends prefill and every step by handing its logits to the lane's pacer, when the step's K/V
# are written and its states have moved. The audit's own passes have a schedule that drops nothing.
PLACES: dict[str, Callable[[Pacer], bool]] = {
    "prefill": lambda pacer: pacer.kind == "prefill",
    "LoRA step": lambda pacer: _rule(pacer) == "residual" and pacer.kind == "lora",
    "refresh": lambda pacer: _rule(pacer) == "residual" and pacer.kind == "refresh",
    "third lane": lambda pacer: _rule(pacer) == "skip" and pacer.step == 4,
}


def at(place: str, monkeypatch, fault: Callable[[torch.Tensor], None]) -> None:
    """Have `fault` called with the logits of the first step at the place; "audit" is in the middle of its figures."""
    if place == "audit":
        monkeypatch.setattr(audit, "_drift", lambda watched, full: fault(full))
        return
    end, done = Pacer.end, []

    def faulty(self: Pacer, logits: torch.Tensor, known: float | None = None) -> None:
        if not done and PLACES[place](self):
            done.append(self)
            fault(logits)
        end(self, logits, known)

    monkeypatch.setattr(Pacer, "end", faulty)


def raising(kind: type[Exception], text: str) -> Callable[[torch.Tensor], None]:
    def fault(logits: torch.Tensor) -> None:
        raise kind(text)

    return fault


def writing(value: float) -> Callable[[torch.Tensor], None]:
    def fault(logits: torch.Tensor) -> None:
        logits[0, 7] = value

    return fault


@pytest.fixture
def caches(monkeypatch) -> list[weakref.ref]:
    """Weak references to what the runs of this test hold: each lane's state, K/V and each audit's own K/V."""
    found: list[weakref.ref] = []

    class Lane(session.Lane):
        def __init__(self, *args, **kwargs):
            super().__init__(*args, **kwargs)
            found.extend((weakref.ref(self), weakref.ref(self.state), weakref.ref(self.state.kv)))

    class Audit(session.Audit):
        def __init__(self, *args, **kwargs):
            super().__init__(*args, **kwargs)
            found.append(weakref.ref(self._kv))

    monkeypatch.setattr(session, "Lane", Lane)
    monkeypatch.setattr(session, "Audit", Audit)
    return found


@contextlib.contextmanager
def nothing_left(caches: list[weakref.ref]) -> Iterator[None]:
    """No thread more than before, and all caches of the body's runs gone as soon as it ends: no collector needed."""
    threads = set(threading.enumerate())
    gc.disable()
    try:
        yield
        assert caches and not [ref() for ref in caches if ref() is not None]
    finally:
        gc.enable()
    assert set(threading.enumerate()) <= threads


def the_line(loaded: LoadedModel, request: Request) -> str:
    """What the user of a run that must fail reads."""
    with pytest.raises(LoraDropError) as caught:
        gather(run(loaded, request))
    line = str(caught.value)
    del caught  # else this frame would hold the error, and the error this frame
    assert "\n" not in line and line.endswith(".")
    return line


# ---- a step that fails ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("place", [*PLACES, "audit"])
def test_a_bug_in_a_step_is_told_as_it_is_and_leaves_nothing(loaded, right, caches, place):
    with nothing_left(caches):
        with pytest.MonkeyPatch.context() as patch:
            at(place, patch, raising(RuntimeError, "a bug"))
            with pytest.raises(RuntimeError, match="^a bug$"):
                gather(run(loaded, asked()))
        assert facts(gather(run(loaded, asked()))) == right


@pytest.mark.parametrize("place", [*PLACES, "audit"])
def test_memory_that_runs_out_is_one_line_and_leaves_nothing(loaded, right, caches, place):
    with nothing_left(caches):
        with pytest.MonkeyPatch.context() as patch:
            at(place, patch, raising(torch.OutOfMemoryError, "CUDA out of memory.\nTried to allocate 2 GiB."))
            line = the_line(loaded, asked())
        assert line.startswith("cpu ran out of memory with 0.0 GB in the KV caches: ask for fewer tokens")
        assert "fewer lanes, no audit" in line
        assert facts(gather(run(loaded, asked()))) == right


def test_memory_that_runs_out_before_the_first_step_is_one_line_too(loaded, right, caches, monkeypatch):
    """The adapters move to the device before a lane is made."""
    with nothing_left(caches):
        with monkeypatch.context() as patch:
            patch.setattr(session.AdapterBank, "to", lambda *_: raising(torch.OutOfMemoryError, "CUDA")(None))
            assert the_line(loaded, asked()).startswith("cpu ran out of memory")
        assert facts(gather(run(loaded, asked()))) == right


@pytest.mark.parametrize(
    ("error", "is_one"),
    [
        (MemoryError(), True),
        (torch.OutOfMemoryError("CUDA out of memory"), True),
        (RuntimeError("CUDA error: out of memory"), True),  # from a graph or a kernel, not from torch's allocator
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"), True),
        (RuntimeError("CUDA error: an illegal memory access was encountered"), False),
        (ValueError("out of memory"), False),
    ],
)
def test_what_memory_running_out_is(error, is_one):
    assert is_out_of_memory(error) == is_one


def test_the_memory_of_a_cpu_that_really_runs_out(monkeypatch):
    """torch has no exception of its own for it."""
    loaded = fresh("reference")
    at("LoRA step", monkeypatch, lambda logits: torch.empty(1 << 50))
    assert the_line(loaded, asked()).startswith("cpu ran out of memory")


# ---- logits that are no numbers -------------------------------------------------------------------------------------


@pytest.mark.parametrize("sampling", [{}, {"temperature": 0.7, "top_p": 0.9}], ids=["greedy", "sampled"])
@pytest.mark.parametrize(
    ("place", "says"),
    [
        ("prefill", "the logits of step 0 are NaN or infinite, .*the model's weights are damaged.*--verify"),
        ("LoRA step", "the logits of step 1 .*the adapters do not fit or overflow. Take adapters none, or try dtype"),
        ("refresh", "the logits of step 3 .*the adapters do not fit"),
        ("third lane", "the logits of step 4 .*rule skip, or the model itself, overflows. Take another rule"),
    ],
)
def test_nan_logits_end_the_run_in_one_line(loaded, right, caches, place, says, sampling):
    with nothing_left(caches):
        with pytest.MonkeyPatch.context() as patch:
            at(place, patch, writing(math.nan))
            line = the_line(loaded, asked(**sampling))
        assert facts(gather(run(loaded, asked()))) == right
    with pytest.raises(LoraDropError, match=says):
        raise LoraDropError(line)


@pytest.mark.parametrize("value", [math.inf, -math.inf])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_infinite_logits_are_told_as_nan_is(loaded, value, temperature, monkeypatch):
    at("LoRA step", monkeypatch, writing(value))
    assert the_line(loaded, asked(temperature=temperature)).startswith("the logits of step 1 are NaN or infinite")


def huge_adapters(loaded: LoadedModel, folder: Path) -> LoraDropConfig:
    """A config with adapters of finite numbers, whose product is none."""
    bank = random_bank(loaded, "residual", "block", layers=[1, 2, 3, 4])
    for i in bank.layers:
        bank.a[i], bank.b[i] = torch.full_like(bank.a[i], 1e30), torch.full_like(bank.b[i], 1e30)
    bank.save(folder)
    return LoraDropConfig(period=PERIOD, drop_ratio=1.0, adapters=str(folder))


@pytest.mark.parametrize("trigger", [None, 1e9], ids=["fixed", "adaptive"])
def test_adapters_that_overflow_are_named(loaded, right, trigger, tmp_path):
    """Without a hand in the decoder: the numbers themselves. An adaptive schedule has the entropy from the decoder."""
    config = huge_adapters(loaded, tmp_path / "huge").replace(refresh_entropy=trigger)
    assert "Take adapters none" in the_line(loaded, asked(config=config, compare=None))
    assert facts(gather(run(loaded, asked()))) == right


def damaged(kind: str) -> LoadedModel:
    """A model with one weight that is no number."""
    loaded = fresh(kind)
    loaded.model.model.norm.weight[3] = math.nan
    return dataclasses.replace(loaded, weights=lay_out(loaded.model, None)) if kind == "native" else loaded


def test_a_damaged_model_is_told_at_its_first_step(kind):
    assert "the model's weights are damaged" in the_line(damaged(kind), asked())


@pytest.mark.parametrize("do_sample", [False, True])
def test_transformers_hook_tells_of_nan_before_it_streams_it(do_sample):
    streamed = []

    class Streamer:
        def put(self, ids):
            streamed.append(ids)

        def end(self):
            streamed.append(None)

    model = damaged("reference").model
    ids = torch.tensor([[1, 2, 3]])
    hook = partial(lora_drop.generate, streamer=Streamer())
    with pytest.raises(LoraDropError, match="the logits of step 0 are NaN"):
        model.generate(ids, custom_generate=hook, lora_drop=LoraDropConfig(), max_new_tokens=4, do_sample=do_sample)
    assert len(streamed) == 1, "the prompt alone"
