"""A step that fails in the middle of a run: one line, nothing left, and the next run is right."""

import math
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

import lora_drop
from lora_drop.adapters import find
from lora_drop.adapters.bank import AdapterBank
from lora_drop.decode.native.decoder import NativeDecoder
from lora_drop.decode.reference import ReferenceDecoder
from lora_drop.decode.static.decoder import StaticDecoder
from lora_drop.errors import LoraDropError, is_out_of_memory
from lora_drop.method.config import LoraDropConfig
from lora_drop.models.load import LoadedModel
from lora_drop.run.run import run
from lora_drop.run.trace.records import BASELINE, LORA_DROP, THIRD
from lora_drop.run.trace.trace import gather
from tests.support.decoding import random_bank
from tests.support.faults import (
    KINDS,
    PERIOD,
    PLACES,
    TOKENS,
    asked,
    at,
    damaged,
    facts,
    fresh,
    nothing_left,
    raising,
    the_line,
    writing,
)

pytestmark = pytest.mark.usefixtures("shipped")


@pytest.fixture(scope="module", params=KINDS)
def kind(request) -> str:
    return request.param


@pytest.fixture(scope="module")
def loaded(kind) -> LoadedModel:
    """The model that every test of this module uses, one after the other: whatever a fault left would show."""
    loaded = fresh(kind)
    expected = {"reference": ReferenceDecoder, "static": StaticDecoder, "native": NativeDecoder}
    assert type(loaded.new_decoder()) is expected[kind]
    return loaded


@pytest.fixture(scope="module")
def right(kind, bank_shelf) -> dict:
    """What a fresh engine answers."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(find, "SHIPPED_ADAPTERS", bank_shelf)
        found = facts(gather(run(fresh(kind), asked())))
    assert list(found) == [BASELINE, LORA_DROP, THIRD] and all(len(steps) == TOKENS for steps, _ in found.values())
    return found


@pytest.mark.parametrize("place", [*PLACES, "audit"])
def test_a_bug_in_a_step_is_reported_as_it_is_and_leaves_nothing(loaded, right, caches, place):
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
            patch.setattr(AdapterBank, "to", lambda *_: raising(torch.OutOfMemoryError, "CUDA")(None))
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
def test_infinite_logits_are_reported_as_nan_is(loaded, value, temperature, monkeypatch):
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


def test_a_damaged_model_is_reported_at_its_first_step(kind):
    assert "the model's weights are damaged" in the_line(damaged(kind), asked())


@pytest.mark.parametrize("do_sample", [False, True])
def test_transformers_hook_reports_nan_before_it_streams_it(do_sample):
    streamed = []
    streamer = SimpleNamespace(put=streamed.append, end=lambda: streamed.append(None))
    model = damaged("reference").model
    ids = torch.tensor([[1, 2, 3]])
    hook = partial(lora_drop.generate, streamer=streamer)
    with pytest.raises(LoraDropError, match="the logits of step 0 are NaN"):
        model.generate(ids, custom_generate=hook, lora_drop=LoraDropConfig(), max_new_tokens=4, do_sample=do_sample)
    assert len(streamed) == 1, "the prompt alone"
