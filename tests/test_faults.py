"""Faults put in by hand: each is one clear line, nothing of it stays, and the next request is a fresh engine's.

What is killed, and downloads that break, are in test_kill.py; hostile settings and files in the modules' own tests.
"""

from __future__ import annotations

import contextlib
import dataclasses
import gc
import json
import math
import re
import resource
import shutil
import socket
import threading
import weakref
from collections.abc import Callable, Iterator
from contextlib import closing
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from gradio_client import Client
from safetensors.torch import load_file, save_file
from test_decoder import random_bank

import lora_drop
from lora_drop.adapters import find
from lora_drop.adapters.bank import WEIGHTS_NAME, AdapterBank
from lora_drop.cli.main import main
from lora_drop.decode import NativeDecoder, ReferenceDecoder, Refresher, StaticDecoder, StaticWeights, lay_out, library
from lora_drop.errors import LoraDropError, is_out_of_memory
from lora_drop.method.config import LoraDropConfig
from lora_drop.models.load import LoadedModel, load_model
from lora_drop.models.pool import ModelPool
from lora_drop.run import audit, lanes
from lora_drop.run import run as session
from lora_drop.run.request import BASELINE, LORA_DROP, THIRD, Request
from lora_drop.run.run import run
from lora_drop.run.trace import Trace, gather, parse_trace, read_trace
from lora_drop.training import trainer as module
from lora_drop.training.checkpoint import CHECKPOINT
from lora_drop.training.settings import TrainSettings
from lora_drop.training.trainer import LOG, Trainer
from lora_drop.ui.callbacks import Callbacks
from lora_drop.ui.page import build_app, launch
from scripts import screenshots

PERIOD, TOKENS = 3, 9
SHIPPED_SWEEP = Path(__file__).resolve().parent.parent / "assets" / "sweeps" / "sweep.json"
needs_compiler = pytest.mark.skipif(library() is None, reason="there is no C compiler here")
KINDS = ["reference", "static", pytest.param("native", marks=needs_compiler)]


def fresh(kind: str) -> LoadedModel:
    """A tiny model that nobody has used, with a decoder of the kind."""
    loaded = load_model("random:tiny-llama", "cpu", "float32")
    if kind == "reference":
        return dataclasses.replace(loaded, weights=None)
    if kind == "native":
        return dataclasses.replace(loaded, weights=lay_out(loaded.model, None))
    return dataclasses.replace(loaded, weights=StaticWeights.of(loaded.model))


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
def shelf(tmp_path_factory) -> Path:
    """A folder of shipped adapters with one bank, for the residual rule."""
    tiny = fresh("reference")
    bank = random_bank(tiny, "residual", "block", layers=[1, 2, 3, 4])
    bank.revision = tiny.revision
    bank.save(tmp_path_factory.mktemp("adapters") / "bank")
    return tmp_path_factory.getbasetemp() / "adapters0"


@pytest.fixture(autouse=True)
def shipped(shelf, monkeypatch):
    monkeypatch.setattr(find, "SHIPPED_ADAPTERS", shelf)


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


@pytest.fixture(scope="module")
def right(kind, shelf) -> dict:
    """What a fresh engine answers."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(find, "SHIPPED_ADAPTERS", shelf)
        found = facts(gather(run(fresh(kind), asked())))
    assert list(found) == [BASELINE, LORA_DROP, THIRD] and all(len(steps) == TOKENS for steps, _ in found.values())
    return found


# ---- putting a fault in ---------------------------------------------------------------------------------------------


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
        monkeypatch.setattr(audit, "_drift", lambda watched, full: fault(full))
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

    class Lane(lanes.Lane):
        def __init__(self, *args, **kwargs):
            super().__init__(*args, **kwargs)
            found.extend((weakref.ref(self), weakref.ref(self.state), weakref.ref(self.state.kv)))

    class Audit(session.Audit):
        def __init__(self, *args, **kwargs):
            super().__init__(*args, **kwargs)
            found.append(weakref.ref(self._kv))

    monkeypatch.setattr(lanes, "Lane", Lane)
    monkeypatch.setattr(session, "Audit", Audit)
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


# ---- broken adapters ------------------------------------------------------------------------------------------------


def _tensors(change: Callable[[dict[str, torch.Tensor]], object]) -> Callable[[Path], None]:
    def damage(folder: Path) -> None:
        tensors = load_file(folder / WEIGHTS_NAME)
        change(tensors)
        save_file(tensors, folder / WEIGHTS_NAME)

    return damage


def _put(name: str, tensor: torch.Tensor) -> Callable[[Path], None]:
    return _tensors(lambda tensors: tensors.update({name: tensor}))


def _header(length: int) -> Callable[[Path], None]:
    """The file says that its header has so many bytes."""

    def damage(folder: Path) -> None:
        data = (folder / WEIGHTS_NAME).read_bytes()
        (folder / WEIGHTS_NAME).write_bytes(length.to_bytes(8, "little") + data[8:])

    return damage


def _deep_header(folder: Path) -> None:
    text = b'{"a":' + b"[" * 100_000 + b"]" * 100_000 + b"}"
    (folder / WEIGHTS_NAME).write_bytes(len(text).to_bytes(8, "little") + text)


def _cut(percent: int) -> Callable[[Path], None]:
    def damage(folder: Path) -> None:
        data = (folder / WEIGHTS_NAME).read_bytes()
        (folder / WEIGHTS_NAME).write_bytes(data[: len(data) * percent // 100])

    return damage


A, B, GATE = (f"layers.2.{name}" for name in ("lora_A.weight", "lora_B.weight", "gate"))


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        *((_cut(percent), "are broken: SafetensorError") for percent in (0, 25, 50, 75)),
        (_header(2**63), "header too large"),
        (_header(100_000_001), "header too large"),
        (_header(0), "invalid JSON in header"),
        (_deep_header, "recursion limit exceeded"),
        (_tensors(lambda tensors: tensors.pop(GATE)), f"'{GATE}'"),
        (_put(A, torch.ones(64)), "layer 2 has A .64,., not of rank"),
        (_put(B, torch.ones(5)), "belong to another model: layer 2 has shapes"),
        (_put(GATE, torch.ones(2, 2)), "belong to another model: layer 2 has shapes"),
        (_put(A, torch.ones(4, 64, dtype=torch.int8)), "layer 2 holds int8 numbers, not float32"),
        (_put(GATE, torch.ones(64, dtype=torch.bool)), "layer 2 holds bool numbers, not float32"),
        (_put(B, torch.ones(64, 4, dtype=torch.complex64)), "layer 2 holds complex64 numbers, not float32"),
        (_put(A, torch.full((4, 64), 1e300, dtype=torch.float64)), "layer 2 holds NaN or infinity"),
        (_put(GATE, torch.full((64,), math.nan)), "layer 2 holds NaN or infinity"),
        (_put(B, torch.full((64, 4), math.nan).to(torch.float8_e4m3fn)), "layer 2 holds float8_e4m3fn numbers"),
    ],
)
def test_broken_adapters_end_no_later_run(shelf, tmp_path, monkeypatch, damage, says):
    """As the page has it: shipped adapters that `auto` takes. Once they are whole again, so is the next run."""
    loaded = fresh("reference")
    before = facts(gather(run(loaded, asked())))
    shutil.copytree(shelf, tmp_path / "shelf")
    monkeypatch.setattr(find, "SHIPPED_ADAPTERS", tmp_path / "shelf")
    damage(tmp_path / "shelf" / "bank")
    line = the_line(loaded, asked())
    assert re.search(says, line) and " bank " in line and str(tmp_path) not in line
    shutil.rmtree(tmp_path / "shelf")
    shutil.copytree(shelf, tmp_path / "shelf")
    assert facts(gather(run(loaded, asked()))) == before


# ---- every command --------------------------------------------------------------------------------------------------

SMALL = ["--length", "32", "--batch-size", "2", "--max-tokens", "384", "--rank", "4", "--fit-batches", "0"]
COMMANDS = {
    "run": ["run", "--prompt", "Hello", "--max-new-tokens", "4", "--temperature", "1"],
    "evaluate": ["evaluate", "PAIRS"],
    "adaptive": ["adaptive", "PAIRS"],
    "sweep": ["sweep", "PAIRS", "--out", "OUT", "--periods", "2", "--drop-ratios", "0.5"],
    "presets": ["presets", "PAIRS", "--out", "OUT"],
    "bench": ["bench", "--prompt-tokens", "8", "--new-tokens", "4", "--rounds", "1", "--no-hf"],
    "drop-order": ["drop-order", "--data", "TEXT", "--windows", "1", "--count", "2"],
    "train": ["train", "--data", "TEXT", "--out", "OUT", *SMALL],
    "self-generate": ["train", "--self-generate", "2", "--out", "OUT", *SMALL],
}


@pytest.fixture
def command(tmp_path) -> Callable[[str], list[str]]:
    """The arguments of one of `COMMANDS`, with its files in place."""
    (tmp_path / "pairs.jsonl").write_text('{"q": "Hello", "a": "there, and more"}\n' * 3)
    (tmp_path / "text.txt").write_text("The quick brown fox jumps over the lazy dogs.\n\n" * 40)
    pairs = ["--data", str(tmp_path / "pairs.jsonl"), "--prompt-field", "q", "--target-field", "a"]
    words = {"PAIRS": pairs, "TEXT": [str(tmp_path / "text.txt")], "OUT": [str(tmp_path / "out")]}

    def arguments(name: str) -> list[str]:
        line = [part for word in COMMANDS[name] for part in words.get(word, [word])]
        return [*line, "--model", "random:tiny-llama", "--dtype", "float32"]

    return arguments


def last_line(capsys) -> str:
    """What the command said at last: stdout is empty, and stderr has nothing but its progress before that line."""
    captured = capsys.readouterr()
    assert captured.out == "" and "Traceback" not in captured.err
    return captured.err.splitlines()[-1]


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_tells_of_a_damaged_model(command, capsys, monkeypatch, name):
    monkeypatch.setattr("lora_drop.models.load.load_model", lambda *_: damaged("reference"))
    assert main(command(name)) == 2
    assert re.match("lora_drop: .*(are|is) NaN or infinite.*(damaged|overflow)", last_line(capsys))


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_tells_of_memory_that_runs_out(command, capsys, monkeypatch, name):
    model = fresh("reference")
    monkeypatch.setattr("lora_drop.models.load.load_model", lambda *_: model)
    with monkeypatch.context() as patch:
        patch.setattr(torch.nn.Linear, "forward", lambda *_: raising(torch.OutOfMemoryError, "CUDA\nmemory")(None))
        assert main(command(name)) == 2
    assert re.match("lora_drop: .*memory.*(take|lower)", last_line(capsys))


# ---- the disk -------------------------------------------------------------------------------------------------------


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


@pytest.fixture
def training(tmp_path) -> Callable[[str], Trainer]:
    """A trainer into a folder; all of them train the same."""
    loaded = fresh("reference")
    settings = TrainSettings(rank=8, alpha=8.0, length=48, batch_size=4, max_tokens=48 * 4 * 6, fit_batches=0)
    words = torch.randint(0, 256, (40, 48), generator=torch.Generator().manual_seed(0))

    def trainer(name: str) -> Trainer:
        (tmp_path / name).mkdir(exist_ok=True)
        return Trainer(loaded, settings, words, tmp_path / name, ["text.txt"])

    return trainer


def weights(trainer: Trainer) -> bytes:
    return (trainer.out / CHECKPOINT / "adapter" / WEIGHTS_NAME).read_bytes()


@pytest.mark.parametrize(("size", "told_by"), [(2_000, "safetensors"), (20_000, "torch")])
def test_a_checkpoint_that_meets_a_full_disk(training, size, told_by):
    """Each of the two libraries that write it has an exception of its own. The last good one is gone on from."""
    whole = training("whole")
    whole.run(100, 100, quiet=True)
    trainer = training("cut")
    trainer.train_step()
    trainer.save(None)
    adapter = weights(trainer)
    assert 2_000 < len(adapter) < 20_000 < (trainer.out / CHECKPOINT / "state.pt").stat().st_size
    trainer.train_step()
    with files_of_at_most(size), pytest.raises(LoraDropError, match="checkpoint could not be written.*--resume"):
        trainer.save(None)
    assert sorted(path.name for path in trainer.out.iterdir()) == [CHECKPOINT], "the draft would keep the disk full"
    assert weights(trainer) == adapter
    again = training("cut")
    again.resume()
    assert again.step == 1
    again.run(100, 100, quiet=True)
    assert weights(again) == weights(whole)


def test_a_training_log_that_meets_a_full_disk(training):
    trainer = training("out")
    trainer.train_step()
    trainer.save(None)
    on_a_full_disk(trainer.out / LOG)
    with pytest.raises(LoraDropError, match=f"cannot write {LOG} .No space left on device.: make room, then --resume"):
        trainer.run(100, 100, quiet=True)
    (trainer.out / LOG).unlink()
    again, whole = training("out"), training("whole")
    again.resume()
    for one in (again, whole):
        one.run(100, 100, quiet=True)
    assert weights(again) == weights(whole)


def test_nan_in_training_stops_before_it_reaches_parameters_or_a_checkpoint(training, monkeypatch):
    trainer = training("out")
    trainer.train_step()
    trainer.save(None)
    adapter, before = weights(trainer), [tensor.detach().clone() for tensor in trainer.parameters]
    real = module.distillation
    for broken in (
        lambda loss: loss * math.nan,
        lambda loss: (loss - loss.detach()).sqrt(),  # zero, whose gradient is none
    ):
        with monkeypatch.context() as patch:
            patch.setattr(module, "distillation", lambda *args, broken=broken: (broken((f := real(*args))[0]), f[1]))
            with pytest.raises(LoraDropError, match="loss of batch 2 is .*nan.*--learning-rate, or --dtype float32"):
                trainer.run(100, 1, quiet=True)
        assert all(map(torch.equal, before, trainer.parameters)) and weights(trainer) == adapter
    again, whole = training("out"), training("whole")
    again.resume()
    for one in (again, whole):
        one.run(100, 100, quiet=True)
    assert weights(again) == weights(whole)


@pytest.mark.parametrize("name", ["sweep.json", "sweep.csv"])
def test_a_sweep_that_meets_a_full_disk(command, capsys, tmp_path, name):
    out = tmp_path / "out"
    on_a_full_disk(out / f"{name}.part")
    assert main(command("sweep")) == 2
    assert last_line(capsys) == "lora_drop: cannot write the sweep to out: No space left on device."
    assert {path.name for path in out.iterdir()} <= {"sweep.csv"}, "no draft stays"
    assert main(command("sweep")) == 0
    rows = json.loads((out / "sweep.json").read_text())["rows"]
    assert len(rows) == 1 and len((out / "sweep.csv").read_text().splitlines()) == 2


def test_figures_and_replays_that_meet_a_full_disk(command, capsys, tmp_path, monkeypatch):
    """`--trace` on a full disk from the start is in test_cli.py."""
    monkeypatch.setattr("lora_drop.run.exports.figures.pages._page", lambda figures, theme: "a page")
    out = tmp_path / "out"
    out.mkdir()
    (out / "sweep.json").write_text(SHIPPED_SWEEP.read_text())
    on_a_full_disk(tmp_path / "figures" / "pareto.html")
    capsys.readouterr()
    assert main(["sweep-figures", str(out), "--out", str(tmp_path / "figures")]) == 2
    assert last_line(capsys) == "lora_drop: cannot write the figures to figures: No space left on device."
    trace = str(tmp_path / "run.jsonl")
    assert main([*command("run"), "--trace", trace]) == 0
    for option in ("--html", "--chrome"):
        capsys.readouterr()
        assert main(["replay", trace, option, "/dev/full"]) == 2
        assert last_line(capsys) == "lora_drop: cannot write /dev/full: No space left on device."


def test_a_trace_that_fills_the_disk_in_the_middle_still_reads(command, capsys, tmp_path):
    path = tmp_path / "run.jsonl"
    with files_of_at_most(6_000):
        code = main([*command("run"), "--max-new-tokens", "200", "--ignore-eos", "--trace", str(path)])
    assert code == 2
    assert last_line(capsys) == "lora_drop: the trace could not be written to the end: File too large."
    assert path.stat().st_size <= 6_000 and read_trace(path).steps["baseline"]


def test_screenshots_without_a_folder(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setattr("sys.argv", ["screenshots", "--out", str(tmp_path / "file" / "out")])
    with pytest.raises(SystemExit, match="screenshots: cannot make the folder .*: Not a directory."):
        screenshots.main()


# ---- the page -------------------------------------------------------------------------------------------------------

VISITOR = SimpleNamespace(session_hash="a visitor")
BUG = (RuntimeError, "secret detail")
MEMORY = (torch.OutOfMemoryError, "CUDA out of memory")


def pressed(callbacks: Callbacks) -> tuple[Trace | None, dict[str, str]]:
    """A press of Run: the trace that the page can take away, None if there is none, and the last status line."""
    wanted, text, status = asked(), "", {}
    updates = callbacks.run_page(
        **{name: getattr(wanted.config, name) for name in ("period", "drop_ratio", "reuse", "part", "kv", "adapters")},
        **{name: getattr(wanted, name) for name in ("prompt", "max_new_tokens", "temperature", "top_p", "seed")},
        **{name: getattr(wanted, name) for name in ("view", "audit", "ignore_eos", "compare")},
        **{
            "layers": wanted.config.layers,
            "drop_layers": "",
            "refresh_entropy": "",
            "refresh_norm": "",
            "model": None,
            "request": VISITOR,
        },
    )
    for update in updates:
        text = update[0] if isinstance(update[0], str) else text
        status = update[1]
    if not text:
        return None, status
    run_id = json.loads(text.splitlines()[0])["id"]
    return parse_trace(callbacks.export_run(run_id, "trace")["text"].encode()), status


FAULTS = {
    "bug": (raising(*BUG), "The run failed inside the app. The server's log has the details."),
    "memory": (raising(*MEMORY), "cpu ran out of memory with"),
    "nan": (writing(math.nan), "the logits of step "),
}
CASES = [(name, place) for name in FAULTS for place in ("prefill", "LoRA step", "third lane")]


@pytest.mark.parametrize(("name", "place"), [*CASES, ("bug", "audit"), ("memory", "audit")])
def test_the_page_tells_of_a_fault_and_the_next_run_is_right(caches, capsys, name, place):
    fault, says = FAULTS[name]
    model = fresh("reference")
    callbacks, expected = Callbacks(ModelPool(model)), facts(gather(run(fresh("reference"), asked())))
    caches.clear()
    with nothing_left(caches):
        with pytest.MonkeyPatch.context() as patch:
            at(place, patch, fault)
            trace, status = pressed(callbacks)
        assert status["kind"] == "error" and status["text"].startswith(says) and "\n" not in status["text"]
        assert len(callbacks.stops) == 0
        assert trace is None or trace.summary is None, "what ran before it is kept, as a trace cut short"
        assert ("secret detail" in capsys.readouterr().err) == (name == "bug")
        trace, status = pressed(callbacks)
        assert status["kind"] == "done" and facts(trace) == expected
        assert len(callbacks.stops) == 0


@pytest.fixture(scope="module")
def app(shelf) -> Iterator[tuple[Client, LoadedModel]]:
    """A launched app, and a client of it."""
    loaded = load_model("random:tiny-llama", "cpu", "float32")
    with closing(socket.socket()) as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(find, "SHIPPED_ADAPTERS", shelf)
        demo = build_app(ModelPool(loaded))
        yield Client(launch(demo, "127.0.0.1", port, block=False), verbose=False), loaded
        demo.close(verbose=False)


@pytest.mark.parametrize("name", FAULTS)
def test_a_client_of_the_app_reads_the_line_and_gets_the_next_run(app, caches, name):
    fault, says = FAULTS[name]
    client, loaded = app
    wanted = asked()
    options = {"prompt": wanted.prompt, "period": PERIOD, "layers": "1-4", "drop_ratio": 1, "max_new_tokens": TOKENS}
    options |= {"view": wanted.view, "ignore_eos": True, "compare": wanted.compare, "api_name": "/generate"}
    with pytest.MonkeyPatch.context() as patch:
        at("LoRA step", patch, fault)
        with pytest.raises(Exception, match=re.escape(says)) as caught:
            client.predict(**options)
    assert "\n" not in str(caught.value) and "secret" not in str(caught.value)
    trace = parse_trace(client.predict(**options).encode())
    fresh_one = load_model("random:tiny-llama", "cpu", "float32")
    assert facts(trace) == facts(gather(run(fresh_one, wanted)))
    gc.collect()  # Gradio's own frames, which held the generator
    assert caches and not [ref() for ref in caches if ref() is not None]
