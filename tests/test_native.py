"""The C steps: built once and safely, the same from several threads, after a fork, and not needed."""

import copy
import os
import threading

import pytest
import torch

from lora_drop.decode import native
from lora_drop.decode.logits import entropy
from lora_drop.decode.native import build, library
from lora_drop.decode.native.decoder import NativeDecoder, lay_out
from lora_drop.method.config import LoraDropConfig
from lora_drop.models.load import load_model

pytestmark = pytest.mark.skipif(library() is None, reason="there is no C compiler here")
PROMPT = [5, 99, 17, 42, 200]


@pytest.fixture(scope="module")
def decoder(tiny):
    model = copy.deepcopy(tiny.model)
    return NativeDecoder(model, lay_out(model, None))


def greedy(decoder, period=3, steps=60):
    """The text and the last logits of a run of its own."""
    schedule = LoraDropConfig(period=period, drop_ratio=1.0).schedule_for(len(decoder.layers))
    state, tokens = decoder.new_state(schedule), []
    logits = decoder.prefill(torch.tensor([PROMPT]), state)
    for _ in range(steps):
        tokens.append(int(logits.argmax()))
        logits = decoder.step(torch.tensor([tokens[-1:]]), state)
    return tokens, logits


def test_it_is_built_once_and_again_where_it_was_damaged(tmp_path):
    compiler = native._compiler()
    assert build(compiler, tmp_path) is not None
    (built,) = tmp_path.iterdir()
    before = built.stat()
    assert build(compiler, tmp_path) is not None and built.stat().st_mtime_ns == before.st_mtime_ns
    damaged = tmp_path / "damaged"
    damaged.mkdir()
    (damaged / built.name).write_bytes(b"not a library")  # under the name that it will look for
    assert build(compiler, damaged) is not None
    assert (damaged / built.name).stat().st_size == before.st_size


@pytest.mark.parametrize("compiler", [None, "/bin/false", "/no/such/compiler"])
def test_without_a_compiler_there_is_none(compiler, tmp_path):
    assert build(compiler, tmp_path) is None


def test_where_the_cache_cannot_be_written_there_is_none(tmp_path):
    (tmp_path / "file").write_text("")
    assert build(native._compiler(), tmp_path / "file" / "native") is None


def test_models_load_without_it(monkeypatch):
    monkeypatch.setattr("lora_drop.models.load.library", lambda: None)
    assert load_model("random:tiny-llama", device="cpu", dtype="float32").decoder.name == "fast (float32)"
    monkeypatch.undo()
    assert load_model("random:tiny-llama", device="cpu", dtype="float32").decoder.name == "native (float32)"


def test_runs_in_several_threads_do_not_mix(decoder):
    """Calls take turns at the pool; each must find its own numbers, to the bit, over thousands of phases."""
    alone = {period: greedy(decoder, period) for period in (1, 2, 3, 5)}
    found = {}

    def go(period):
        found[period] = [greedy(decoder, period) for _ in range(3)]

    threads = [threading.Thread(target=go, args=(period,)) for period in alone]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for period, (tokens, logits) in alone.items():
        assert len(found[period]) == 3
        for again in found[period]:
            assert again[0] == tokens and torch.equal(again[1], logits)


@pytest.mark.parametrize("threads", [1, 2, 5])
def test_the_number_of_threads_changes_no_bit(decoder, threads):
    before = greedy(decoder)
    library().ld_threads(threads)  # a pool only grows
    after = greedy(decoder)
    assert after[0] == before[0] and torch.equal(after[1], before[1])


def test_a_forked_process_has_threads_of_its_own(decoder):
    """A worker that a Space forks would wait for ever for threads that only its parent has."""
    tokens, _ = greedy(decoder)
    read, write = os.pipe()
    if (child := os.fork()) == 0:
        try:
            forked = NativeDecoder.__new__(NativeDecoder)
            forked.__dict__.update(decoder.__dict__)
            library().ld_threads(2)
            os.write(write, repr(_step_only(forked)).encode())
        finally:
            os._exit(0)
    os.close(write)
    with os.fdopen(read) as pipe:
        answer = pipe.read()
    os.waitpid(child, 0)
    assert answer == repr(_step_only(decoder))


def _step_only(decoder):
    """Steps from made-up caches: torch's own OpenMP, which prefill needs, does not survive a fork."""
    schedule = LoraDropConfig(period=3, drop_ratio=1.0).schedule_for(len(decoder.layers))
    state = decoder.new_state(schedule)
    config = decoder.layers[0].self_attn.config
    shape = (1, config.num_key_value_heads, 4, decoder.layers[0].self_attn.head_dim)
    for i in range(len(decoder.layers)):
        state.kv.update(torch.full(shape, 0.1), torch.full(shape, 0.2), i)
        state.hidden[i] = torch.full((1, config.hidden_size), 0.1)
    state.position = 4
    return [round(float(decoder.step(torch.tensor([[7]]), state).sum()), 3) for _ in range(20)]


@pytest.mark.parametrize("scale", [0.0, 1.0, 30.0])
def test_the_entropy_is_the_softmaxs(scale):
    logits = scale * torch.randn(1, 1003, generator=torch.Generator().manual_seed(0))
    assert library().ld_entropy(logits.data_ptr(), 1003) == pytest.approx(entropy(logits), rel=1e-5, abs=1e-6)
    logits[0, 7] = float("nan")
    assert library().ld_entropy(logits.data_ptr(), 1003) != library().ld_entropy(logits.data_ptr(), 1003)
