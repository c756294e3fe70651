"""Faults put into a run at a chosen place, and what must be left after one: nothing."""

import contextlib
import dataclasses
import gc
import math
import resource
import threading
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from lora_drop.adapters import find
from lora_drop.decode import lane
from lora_drop.decode.native.weights import lay_out
from lora_drop.decode.refresh import Refresher
from lora_drop.decode.static.decoder import StaticWeights
from lora_drop.errors import LoraDropError
from lora_drop.method.config import LoraDropConfig
from lora_drop.models.load import LoadedModel, load_model
from lora_drop.run import audit
from lora_drop.run import run as session
from lora_drop.run.request import Request
from lora_drop.run.run import run
from lora_drop.run.trace.trace import Trace, gather
from tests.support.decoding import needs_compiler, random_bank

PERIOD, TOKENS = 3, 9
KINDS = [  # one of them every day
    "reference",
    pytest.param("static", marks=pytest.mark.full),
    pytest.param("native", marks=[needs_compiler, pytest.mark.full]),
]


def fresh(kind: str) -> LoadedModel:
    """A tiny model that nobody has used, with a decoder of the kind."""
    loaded = load_model("random:tiny-llama", "cpu", "float32")
    if kind == "reference":
        return dataclasses.replace(loaded, weights=None)
    if kind == "native":
        return dataclasses.replace(loaded, weights=lay_out(loaded.model, None))
    return dataclasses.replace(loaded, weights=StaticWeights.of(loaded.model))


@pytest.fixture(scope="module")
def bank_shelf(tmp_path_factory) -> Path:
    """A folder of shipped adapters with one bank, for the residual rule."""
    tiny = fresh("reference")
    bank = random_bank(tiny, "residual", "block", layers=[1, 2, 3, 4])
    bank.revision = tiny.revision
    folder = tmp_path_factory.mktemp("adapters")
    bank.save(folder / "bank")
    return folder


@pytest.fixture
def shipped(bank_shelf, monkeypatch):
    monkeypatch.setattr(find, "SHIPPED_ADAPTERS", bank_shelf)


def asked(**changes) -> Request:
    """Three lanes: the full model, LoRA-Drop with its adapters, and the skip rule without any."""
    config = LoraDropConfig(period=PERIOD, layers=(1, 4), drop_ratio=1.0)
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


def _rule(refresher: Refresher) -> str | None:
    return None if refresher.schedule.is_baseline else refresher.schedule.reuse


# Where in a run: each decoder ends prefill and every step by handing its logits to the lane's refresher, when the
# step's K/V are written and its states have moved. The audit's own passes have a schedule that drops nothing.
PLACES: dict[str, Callable[[Refresher], bool]] = {
    "prefill": lambda refresher: refresher.kind == "prefill",
    "LoRA step": lambda refresher: _rule(refresher) == "residual" and refresher.kind == "lora",
    "refresh": lambda refresher: _rule(refresher) == "residual" and refresher.kind == "refresh",
    "third lane": lambda refresher: _rule(refresher) == "skip" and refresher.step == 4,
}


def at(place: str, monkeypatch, fault: Callable[[torch.Tensor], None]) -> None:
    """Have `fault` called with the logits of the first step at the place; "audit" is in the middle of its figures."""
    if place == "audit":
        monkeypatch.setattr(audit, "drift_of", lambda watched, full: fault(full))
        return
    end, done = Refresher.end, []

    def faulty(self: Refresher, logits: torch.Tensor, known: float | None = None) -> None:
        if not done and PLACES[place](self):
            done.append(self)
            fault(logits)
        end(self, logits, known)

    monkeypatch.setattr(Refresher, "end", faulty)


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

    class Lane(lane.Lane):
        def __init__(self, *args, **kwargs):
            super().__init__(*args, **kwargs)
            found.extend((weakref.ref(self), weakref.ref(self.state), weakref.ref(self.state.kv)))

    class DriftAudit(audit.DriftAudit):
        def __init__(self, *args, **kwargs):
            super().__init__(*args, **kwargs)
            found.append(weakref.ref(self._kv))

    class QualityAudit(audit.QualityAudit):
        def __init__(self, *args, **kwargs):
            super().__init__(*args, **kwargs)
            found.append(weakref.ref(self._state.kv))

    monkeypatch.setattr(session, "Lane", Lane)
    monkeypatch.setattr(session, "DriftAudit", DriftAudit)
    monkeypatch.setattr(session, "QualityAudit", QualityAudit)
    return found


@contextlib.contextmanager
def nothing_left(caches: list[weakref.ref]) -> Iterator[None]:
    """No thread more than before, and all caches of the body's runs gone as soon as it ends: no collector needed."""
    threads = _threads()
    gc.disable()
    try:
        yield
        assert caches and not [ref() for ref in caches if ref() is not None]
    finally:
        gc.enable()
    assert _threads() <= threads


def _threads() -> set[threading.Thread]:
    """Those of this process but for the workers of servers that other tests have left running."""
    return {thread for thread in threading.enumerate() if "AnyIO" not in thread.name}


def the_line(loaded: LoadedModel, request: Request) -> str:
    """What the user of a run that must fail reads."""
    with pytest.raises(LoraDropError) as caught:
        gather(run(loaded, request))
    line = str(caught.value)
    del caught  # else this frame would hold the error, and the error this frame
    assert "\n" not in line and line.endswith(".")
    return line


def damaged(kind: str) -> LoadedModel:
    """A model with one weight that is no number."""
    loaded = fresh(kind)
    loaded.model.model.norm.weight[3] = math.nan
    return dataclasses.replace(loaded, weights=lay_out(loaded.model, None)) if kind == "native" else loaded


def on_a_full_disk(path: Path) -> None:
    """Writing to this file meets a full disk."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.symlink_to("/dev/full")


@contextlib.contextmanager
def files_of_at_most(size: int) -> Iterator[None]:
    """Every write of this process beyond so many bytes of a file fails, as it does on a disk that fills up."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
