"""The static decoder's captures and buffers without a GPU: devices, faults, the store, padded rows, waits, kernels."""

import dataclasses
import gc
import inspect
import subprocess
import types
from concurrent.futures import ThreadPoolExecutor
from unittest.mock import DEFAULT, Mock

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn import functional as F
from transformers import AutoModelForCausalLM

from lora_drop.decode.clock import Clock
from lora_drop.decode.lane import Lane
from lora_drop.decode.reference import ReferenceDecoder
from lora_drop.decode.sampling import Sampling
from lora_drop.decode.static import buffers, decoder, layers
from lora_drop.decode.static.buffers import Pass, Results, capture
from lora_drop.decode.static.decoder import StaticDecoder, StaticWeights
from lora_drop.method.schedule import Schedule, baseline_schedule
from lora_drop.models import place
from lora_drop.models.random_weights import SHAPES
from tests.support import graphs
from tests.support.decoding import PROMPT, TARGET, decoder_of, logits_of
from tests.support.parts import full_bank

REPAIRING = {"kv": "write", "refresh": "repair"}
NOTHING = Results(torch.zeros(1, 4), torch.zeros(1, 1), torch.zeros(1), None, {})


def lane_of(decoder, schedule, bank=None, length=12):
    return Lane(decoder, torch.tensor([PROMPT]), schedule, bank, Sampling(), length)


def tokens(decoder, schedule, bank=None, length=12):
    one = lane_of(decoder, schedule, bank, length)
    list(one)
    return one.tokens


def dropping(tiny, **rules):
    return Schedule(3, tiny.num_layers, (2, 4), **rules)


def attend(heads, store, places, count):
    """As `split.attend`, by torch."""
    query, (keys, values) = heads[:, :count].transpose(0, 1)[None], store.unbind(0)
    mask = torch.arange(store.shape[3]) <= places[:, None]
    mixed = F.scaled_dot_product_attention(query, keys, values, mask, enable_gqa=True)
    return mixed[0].transpose(0, 1).flatten(1)


# ---- two GPUs ----


def test_a_capture_runs_on_its_device_between_clear_workspaces(machine):
    """What cuBLAS keeps of the run before is none of the graph's memory, nor the other way round."""
    second = torch.device("cuda", 1)
    capture(lambda: machine.calls.append("run") or NOTHING, second, None, graphs.Stream(second))
    assert machine.calls == ["run", "clear", "capture", "run", "clear"]
    assert [stream.device.index for stream in machine.captures] == [1]
    assert machine.device.index == 0 and not machine.streams


def test_all_captures_of_a_model_share_a_stream(tiny, recorded, machine):
    """A pool's memory is shared on one stream alone. After a failure there is another one."""
    tokens(recorded, dropping(tiny))
    tokens(recorded, baseline_schedule(tiny.num_layers))
    assert len(machine.captures) == 3 and len(set(machine.captures)) == 1
    recorded.weights.functions = layers.EAGER._replace(feed=Mock(side_effect=RuntimeError("no such kernel")))
    with pytest.warns(UserWarning, match="no such kernel"):
        tokens(recorded, dropping(tiny, reuse="state"))
    assert len(set(machine.captures)) == 2


def test_a_lane_s_clock_reads_its_own_device(machine, monkeypatch):
    recorded_on = []

    class Event(Mock):
        def record(self, stream):
            recorded_on.append(stream.device)

        def elapsed_time(self, other):
            return 2.0

    monkeypatch.setattr(torch.cuda, "Event", Event)
    clock = Clock(torch.device("cuda", 1))
    clock.start()
    assert clock.stop() == 2.0 and recorded_on == [torch.device("cuda", 1)] * 2


# ---- old cards ----


@pytest.mark.parametrize(("capability", "dtype"), [((7, 5), torch.float32), ((8, 0), torch.bfloat16)])
def test_an_old_card_gets_neither_bfloat16_nor_kernels(tiny, monkeypatch, capability, dtype):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    monkeypatch.delenv("SPACES_ZERO_GPU", raising=False)
    device = torch.device("cuda", 0)
    assert place.resolve_dtype("auto", device) == dtype
    assert layers.has_kernels(device) == (capability >= (8, 0))
    if capability < (8, 0):
        assert layers.best_for(device) is layers.EAGER and decoder.split_for(tiny.model) is None


# ---- captures that fail ----


def test_without_a_c_compiler_attention_is_torch_s(tiny, recorded, monkeypatch):
    """Triton's import works without one, and its kernels do not; all else stays as fast as it is."""
    split = pytest.importorskip("lora_drop.decode.static.split", reason="Triton is not installed")
    expected = tokens(ReferenceDecoder(tiny.model), dropping(tiny))
    monkeypatch.setattr(decoder, "has_kernels", lambda device: True)
    assert decoder.split_for(tiny.model) is split
    monkeypatch.setattr(split, "attend", Mock(side_effect=subprocess.CalledProcessError(1, ["gcc"])))
    with pytest.warns(UserWarning, match="split over the keys"):
        recorded.weights.split = decoder.split_for(tiny.model)
    assert tokens(recorded, dropping(tiny)) == expected
    assert recorded.weights.captures and recorded.weights.split is None
    recorded.weights.split = split  # a shape that fails alone
    with pytest.warns(UserWarning, match="split over the keys failed"):
        assert tokens(recorded, baseline_schedule(tiny.num_layers))
    assert recorded.weights.captures and recorded.weights.split is None


def test_a_capture_that_raises_leaves_a_lane_that_decodes(tiny, recorded, machine, monkeypatch):
    """Without graphs, and not tried again; the stream is the caller's again."""
    expected = tokens(ReferenceDecoder(tiny.model), dropping(tiny))
    error = "CUDA error: operation not permitted when stream is capturing\nand more"
    broken = Mock(side_effect=RuntimeError(error))
    monkeypatch.setattr(torch.cuda, "graph", broken)
    with pytest.warns(UserWarning, match="could not be captured .*when stream is capturing\\)"):
        assert tokens(recorded, dropping(tiny)) == expected
    assert tokens(recorded, dropping(tiny)) == expected
    assert broken.call_count == 1 and not machine.streams and not recorded.weights.captures


def test_compiled_layers_that_fail_are_left(tiny, recorded):
    broken = Mock(side_effect=RuntimeError("no such kernel"))
    recorded.weights.functions = layers.EAGER._replace(feed=broken)
    expected = tokens(ReferenceDecoder(tiny.model), dropping(tiny))
    with pytest.warns(UserWarning, match="compiled layers failed \\(no such kernel\\)"):
        assert tokens(recorded, dropping(tiny)) == expected
    assert recorded.weights.functions is layers.EAGER and recorded.weights.captures


@pytest.mark.parametrize("times", [1, 2])
def test_where_memory_runs_out_idle_buffers_make_room(tiny, recorded, monkeypatch, times):
    tokens(recorded, baseline_schedule(tiny.num_layers))
    gc.collect()
    idle, full = recorded.weights.store, [torch.OutOfMemoryError("CUDA out of memory")] * times
    assert len(idle) == 1
    monkeypatch.setattr(torch.cuda, "graph", Mock(wraps=torch.cuda.graph, side_effect=[*full, DEFAULT, DEFAULT]))
    if times == 1:
        assert tokens(recorded, dropping(tiny)) == tokens(ReferenceDecoder(tiny.model), dropping(tiny))
    else:
        with pytest.raises(torch.OutOfMemoryError):
            tokens(recorded, dropping(tiny))
        assert not idle
    assert recorded.weights.captures


# ---- the store ----


def test_lanes_at_once_have_buffers_of_their_own(tiny, recorded):
    one, two = (lane_of(recorded, dropping(tiny)) for _ in range(2))
    assert one.state.buffers is not two.state.buffers
    for _ in zip(one, two, strict=True):
        pass
    assert one.tokens == two.tokens == tokens(ReferenceDecoder(tiny.model), dropping(tiny))
    made = {id(one.state.buffers), id(two.state.buffers)}
    del one, two
    gc.collect()
    one, two = (lane_of(recorded, dropping(tiny)) for _ in range(2))
    assert {id(one.state.buffers), id(two.state.buffers)} == made


def test_another_bank_of_the_same_form_takes_the_graphs_over(tiny, recorded):
    schedule = dropping(tiny, head="screened", **REPAIRING)
    bank = full_bank(tiny, "residual", "block", layers=[2])
    other = dataclasses.replace(bank, **bank.mapped(lambda tensor: tensor.flip(0).contiguous()))
    tokens(recorded, schedule, bank)
    gc.collect()
    made = len(graphs.Graph.all)
    assert tokens(recorded, schedule, other) == tokens(ReferenceDecoder(tiny.model), schedule, other)
    assert len(graphs.Graph.all) == made
    gc.collect()
    louder = dataclasses.replace(bank, alpha=2 * bank.alpha)  # a number in the graph
    assert tokens(recorded, schedule, louder) == tokens(ReferenceDecoder(tiny.model), schedule, louder)
    assert len(graphs.Graph.all) == 2 * made


def test_the_next_lane_takes_the_graphs_over_and_nothing_else(tiny, recorded):
    """They are captured before a lane's clock starts. Wrong numbers leave NaN, which a mask does not hide."""
    schedule = dropping(tiny, accept=0.3, **REPAIRING)
    one = lane_of(recorded, schedule)
    memory = one.state.buffers
    assert len(graphs.Graph.all) == 4  # a LoRA step; repairs of 4, 2 and 1 rows
    list(one)
    with torch.inference_mode():
        for tensor in (*memory.stores, *memory.anchors, memory.pending):
            if tensor is not None:
                tensor.fill_(torch.nan)
    del one
    gc.collect()
    one = lane_of(recorded, schedule)
    assert one.state.buffers is memory and not any(store.any() for store in memory.stores)
    list(one)
    assert one.tokens == tokens(ReferenceDecoder(tiny.model), schedule) and len(graphs.Graph.all) == 4


def test_the_next_lane_takes_the_graphs_over_whenever_it_may(tiny, recorded):
    """A graph holds neither a period nor a threshold, and 256 tokens of room where attention is split."""
    recorded.weights.split = types.SimpleNamespace(attend=attend)
    made = []
    for period, accept, length in ((3, 0.3, 12), (4, 0.9, 90)):
        schedule = dropping(tiny, accept=accept, **REPAIRING)
        schedule = dataclasses.replace(schedule, period=period)
        one = lane_of(recorded, schedule, None, length)
        list(one)
        assert one.tokens == tokens(ReferenceDecoder(tiny.model), schedule, length=length)
        assert one.state.kv.stores[0].shape[3] == 256
        del one
        gc.collect()
        made.append(len(graphs.Graph.all))
    assert made[0] == made[1]


def test_idle_buffers_count_their_graphs_and_their_bank(tiny, recorded):
    lane = lane_of(recorded, dropping(tiny), full_bank(tiny, "residual", "block", layers=[2]))
    memory = lane.state.buffers
    bank = sum(tensor.nbytes for tensor in buffers.bank_tensors(memory.bank))
    graph = sum(tensor.nbytes for graph in graphs.Graph.all for tensor in graph.own.values())
    assert bank and graph and memory.nbytes == sum(store.nbytes for store in memory.stores) + bank + graph


def test_the_store_is_bounded(tiny, recorded):
    """By number and by bytes, the least recently used first."""
    store, made = buffers.Store(), []
    for number in range(buffers.IDLE + 2):
        made.append(lane_of(recorded, dropping(tiny)).state.buffers)
        store.append((number, made[-1]))
    store.trim(2**60)
    assert store.take(0) is None and store.take(1) is None and store.take(2) is made[2]
    store.append((2, made[2]))
    store.trim(made[2].nbytes)
    assert store.take(3) is None and store.take(2) is made[2]


# ---- padded rows ----


@pytest.mark.parametrize("kv", ["skip", "write"])
def test_padded_rows_are_stored_nowhere(tiny, recorded, kv):
    """Repairs of 3 and 5 rows in passes of 4 and 8: beyond what a layer holds there is nothing, whatever they read."""
    for period in (3, 5):
        schedule = Schedule(period, tiny.num_layers, (2, 4), kv=kv, refresh="repair")
        state = recorded.new_state(schedule, None, len(PROMPT) + 40, prompt=len(PROMPT))
        expected = ReferenceDecoder(tiny.model)
        other = expected.new_state(schedule)
        for one, its in ((recorded, state), (expected, other)):
            one.prefill(torch.tensor([PROMPT]), its)
            for number in range(2 * period):
                one.step(torch.tensor([[number * 31 % 256]]), its)
        assert state.kv.lengths == other.kv.lengths
        for i in range(tiny.num_layers):
            filled = state.kv.lengths[i]
            torch.testing.assert_close(
                state.kv.store(i)[:, :, :, :filled], other.kv.store(i)[:, :, :, :filled], rtol=1e-4, atol=2e-4
            )
            beside = period - 1 if kv == "skip" and i in schedule.dropped_set else 0  # rows that it does not keep
            assert not state.kv.store(i)[:, :, :, filled + beside :].any()


# ---- nothing waits for the device ----


@pytest.mark.parametrize("rules", [{}, REPAIRING | {"accept": 1.0}, {"reuse": "state", "part": "attention"}])
@pytest.mark.parametrize("captures", [True, False])
def test_no_step_waits_for_the_device(tiny, recorded, rules, captures):
    """Neither what a graph holds nor what is done around it; a trigger alone has to read a number."""
    bank = full_bank(tiny, rules.get("reuse", "residual"), layers=[2])
    recorded.weights.captures = captures
    state = recorded.new_state(dropping(tiny, head="screened", **rules), bank, 40, False, 9)
    recorded.prefill(torch.tensor([PROMPT[:9]]), state)
    token = torch.tensor([[7]])
    with graphs.Hostless():
        for _ in range(6):
            recorded.step(token, state)


# ---- kernels a step ----

# Of the functions as they are, for Llama-3-8B: operations that are kernels. Compiled ones are fewer.
BUDGETS = {"layer": 15, "skipped": 2, "around": 24, "rows": 4}


def kernels(schedule, bank=None):
    """What is launched at a LoRA step, at a full one, and at one that repairs: operations without tensors' numbers."""
    with FakeTensorMode(allow_non_fake_inputs=True):
        config = type(SHAPES["llama3-8b"]).from_dict(SHAPES["llama3-8b"].to_dict())
        model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16, attn_implementation="sdpa").eval()
        decoder = StaticDecoder(model.requires_grad_(False), StaticWeights.of(model))
        decoder.weights.captures = False
        state = decoder.new_state(schedule, bank, 512, prompt=256)
        counts = {}
        for each in buffers.passes_of(schedule):
            with torch.inference_mode(), graphs.Counting() as counting:
                decoder.run(state, each)
            counts[each] = counting.names.total()
    return counts


def test_the_kernels_of_a_step_keep_their_budget():
    dropped = tuple(range(3, 31, 2))
    plain = kernels(baseline_schedule(32))[Pass(False, 1)]
    assert plain <= 32 * BUDGETS["layer"] + BUDGETS["around"]
    paper = kernels(Schedule(4, 32, dropped))
    most = (32 - len(dropped)) * BUDGETS["layer"] + len(dropped) * BUDGETS["skipped"] + BUDGETS["around"]
    assert paper[Pass(True, 1)] <= most
    assert paper[Pass(False, 1)] <= plain + 2 * len(dropped) + 8  # the anchors
    repairing = kernels(Schedule(4, 32, dropped, kv="write", refresh="repair"))
    assert repairing[Pass(False, 4)] <= paper[Pass(False, 1)] + 32 * BUDGETS["rows"]


# ---- compiled ----


@pytest.mark.parametrize("has_parameter", [True, False])
def test_more_shapes_compile_than_torch_s_own_limit_in_whichever_thread(monkeypatch, has_parameter):
    """Of `torch.compile` where it takes a limit, else around each call: its configuration may be a thread's own."""
    real = torch.compile

    def with_limit(function, *, fullgraph, dynamic, options, recompile_limit):
        own = {"fullgraph": fullgraph, "dynamic": dynamic, "recompile_limit": recompile_limit}
        return real(function, backend="eager", **own)

    def without(function, *, fullgraph, dynamic, options):
        return real(function, fullgraph=fullgraph, dynamic=dynamic, backend="eager")

    if has_parameter and "recompile_limit" not in inspect.signature(real).parameters:
        pytest.skip("this torch.compile takes no limit")
    torch._dynamo.reset()
    monkeypatch.setattr(torch, "compile", with_limit if has_parameter else without)
    functions = layers.compiled.__wrapped__()
    with ThreadPoolExecutor(1) as thread:
        shapes = thread.submit(lambda: [functions.choose(torch.zeros(1, n))[0].shape for n in range(2, 22)]).result()
    assert len(shapes) == 20


@pytest.mark.full
def test_compiled_layers_are_the_reference(tiny, monkeypatch):
    """Through Inductor on a CPU, whole functions without a break, padded rows and a screened head included."""
    decoder, slow = decoder_of(tiny.model, "static"), ReferenceDecoder(tiny.model)
    decoder.weights.functions = layers.compiled()
    schedule, bank = dropping(tiny, head="screened", **REPAIRING), full_bank(tiny, "residual", layers=[2])
    one, two = (logits_of(each, schedule, bank, target=TARGET[:7], tokens=40) for each in (decoder, slow))
    torch.testing.assert_close(one[0], two[0], rtol=1e-4, atol=2e-4)
