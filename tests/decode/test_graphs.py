"""The decoder over static buffers: growth, storage, replays; and on a GPU its graphs (marked `gpu`)."""

import copy
import itertools
from functools import partial

import pytest
import torch

from lora_drop.decode.cache import BLOCK
from lora_drop.decode.lane import Lane
from lora_drop.decode.outputs import StaticOutputs
from lora_drop.decode.reference import ReferenceDecoder
from lora_drop.decode.sampling import Sampling
from lora_drop.decode.static.decoder import StaticDecoder, StaticWeights
from lora_drop.decode.step import Rewind
from lora_drop.method.config import LoraDropConfig
from lora_drop.method.schedule import KV_RULES, PARTS, REFRESHES, REUSE_RULES, Schedule, baseline_schedule
from lora_drop.models.load import load_model
from lora_drop.run.inspect import inspect, read_again
from lora_drop.run.race import by_owner, take_turns
from lora_drop.run.request import Request
from lora_drop.run.run import run
from lora_drop.run.trace.records import LORA_DROP
from lora_drop.run.trace.trace import gather
from tests.support import graphs
from tests.support.decoding import PROMPT, decoder_of, logits_of, random_bank
from tests.support.parts import full_bank

LONG_PROMPT = [n * 7 % 256 for n in range(4 * BLOCK - 6)]
FED = [n * 31 % 256 for n in range(40)]


@pytest.mark.parametrize("max_new_tokens", [1, 2, 65, 130])
def test_a_lane_reserves_what_it_needs_and_no_more(tiny, max_new_tokens):
    """A skipped layer gets room for its refreshes only; nowhere is more than one block left over."""
    decoder, schedule = decoder_of(tiny.model, "static"), Schedule(4, tiny.num_layers, (2, 3))
    lane = Lane(decoder, torch.tensor([PROMPT]), schedule, None, Sampling(), max_new_tokens)
    list(lane)
    kv = lane.state.kv
    for store, filled in zip(kv.stores, kv.lengths, strict=True):
        assert filled <= store.shape[3] <= filled + BLOCK
    assert kv.lengths[2] == len(PROMPT) + (max_new_tokens - 1) // 4


# ---- replayed through a stub: see tests/support/graphs.py ----


@pytest.mark.parametrize(("reuse", "part"), [("residual", "block"), ("state", "attention"), ("skip", "block")])
@pytest.mark.parametrize(("refresh", "kv"), itertools.product(REFRESHES, KV_RULES))
def test_replays_read_and_write_the_lane_s_buffers_alone(tiny, recorded, reuse, part, refresh, kv):
    schedule = Schedule(3, tiny.num_layers, (2, 4), reuse, part, kv, refresh=refresh, head="screened")
    bank = full_bank(tiny, reuse, part, layers=[2])
    expected, _ = logits_of(ReferenceDecoder(tiny.model), schedule, bank, target=FED[:12])
    logits, state = logits_of(recorded, schedule, bank, target=FED[:12], tokens=len(PROMPT) + 12)
    torch.testing.assert_close(logits, expected, rtol=1e-4, atol=2e-4)
    assert set(state.buffers.graphs) == {(True, 1), (False, 4 if refresh == "repair" else 1)}
    assert sorted(graph.replays for graph in graphs.Graph.all) == [4, 8]
    assert state.kv.lengths[2] == schedule.kv_length(2, len(PROMPT), 12)


def test_the_decoder_that_keeps_outputs_runs_without_graphs(tiny, machine):
    """A replay would pass on none of them."""
    model = copy.deepcopy(tiny.model)
    weights = StaticWeights.of(model)
    weights.captures = True
    decoder = StaticOutputs(model, weights)
    logits_of(decoder, Schedule(3, tiny.num_layers, (2, 4)), target=FED[:1], tokens=40, prompt=PROMPT)
    assert [len(rows) for rows in decoder.take()] == [1] * tiny.num_layers and not graphs.Graph.all


def test_storage_grows_under_replays(tiny, recorded):
    """Past what was reserved, in the middle of a window."""
    schedule = Schedule(4, tiny.num_layers, (2, 3), kv="write", refresh="repair")
    expected, _ = logits_of(ReferenceDecoder(tiny.model), schedule, None, LONG_PROMPT, FED[:12])
    for tokens in (0, 4 * BLOCK - 4, len(LONG_PROMPT) + 12):
        logits, _ = logits_of(recorded, schedule, None, LONG_PROMPT, FED[:12], tokens=tokens)
        torch.testing.assert_close(logits, expected, rtol=1e-4, atol=2e-4)


@pytest.mark.parametrize("reuse", ["residual", "state"])
def test_drafts_are_taken_back_under_replays(tiny, recorded, reuse):
    """Two lanes in turn, with triggers: the baseline's text, and the reference's rewinds, so its anchors."""
    rules = {"kv": "write", "refresh": "repair", "accept": 1.0, "refresh_entropy": 5.2}
    schedule = Schedule(5, tiny.num_layers, (1, 2, 3), reuse, **rules)
    bank = random_bank(tiny, reuse)

    def lanes(decoder, its):
        prompt = torch.tensor([PROMPT])
        return [Lane(decoder, prompt, its, bank, Sampling(0.5, 1.0, seed), 40) for seed in (1, 2)]

    def brief(event):
        return event and ((event.to,) if isinstance(event, Rewind) else event.rows)

    ours = lanes(recorded, schedule)
    seen = [[brief(event) for event in events] for events in itertools.zip_longest(*ours)]
    assert {each.rows for one in ours for each in one.state.buffers.graphs} == {1, 2, 4, 8}
    assert sum(isinstance(event, tuple) for event, _ in seen) > 4
    theirs = itertools.zip_longest(*lanes(ReferenceDecoder(tiny.model), schedule))
    assert seen == [[brief(event) for event in events] for events in theirs]
    for one, plain in zip(ours, lanes(recorded, baseline_schedule(tiny.num_layers)), strict=True):
        list(plain)
        assert one.tokens == plain.tokens


# ---- on a GPU ----


@pytest.fixture(scope="module", params=["float32", "bfloat16"])
def on_gpu(request):
    return load_model("random:tiny-llama", "cuda", request.param)


@pytest.mark.gpu
@pytest.mark.parametrize("refresh", REFRESHES)
@pytest.mark.parametrize(("reuse", "part", "kv"), itertools.product(REUSE_RULES, PARTS, KV_RULES))
def test_graphs_are_the_reference(on_gpu, reuse, part, kv, refresh):
    """In bfloat16 both round at different places: 6% of the logits' own spread is the tolerance."""
    schedule = Schedule(3, on_gpu.num_layers, (2, 3, 4), reuse, part, kv, refresh=refresh)
    bank = random_bank(on_gpu, reuse, part, layers=[2, 4]).to(on_gpu.device, on_gpu.dtype)
    reference, decoder = ReferenceDecoder(on_gpu.model), on_gpu.new_decoder()
    assert isinstance(decoder, StaticDecoder)
    one, two = (logits_of(each, schedule, bank, target=FED[:12])[0].float() for each in (reference, decoder))
    tolerance = 1e-3 if on_gpu.dtype == torch.float32 else 0.06 * float(one.std())
    assert (one - two).abs().max() <= tolerance


@pytest.mark.gpu
def test_the_next_lane_takes_the_graphs_over(on_gpu, recwarn):
    """Nothing failed on the way: graphs, compiled layers and split attention are all in use."""
    schedule, prompt = Schedule(3, on_gpu.num_layers, (2, 3)), torch.tensor([PROMPT], device=on_gpu.device)
    texts, used = [], []
    for _ in range(2):
        lane = Lane(on_gpu.new_decoder(), prompt, schedule, None, Sampling(), 20)
        used.append(id(lane.state.buffers))
        texts.append([step.token_id for step in lane])
        del lane
    assert used[0] == used[1] and texts[0] == texts[1]
    assert on_gpu.weights.captures and not [str(one.message) for one in recwarn if "without it" in str(one.message)]


@pytest.mark.gpu
def test_lanes_and_graphs_in_any_order(on_gpu):
    """Two lanes in turn, full and LoRA steps mixed, equal each lane alone."""
    schedule = Schedule(3, on_gpu.num_layers, (2, 3))

    def lanes():
        prompt = torch.tensor([LONG_PROMPT], device=on_gpu.device)
        schedules = {"one": baseline_schedule(on_gpu.num_layers), "two": schedule}
        return {name: Lane(on_gpu.new_decoder(), prompt, its, None, Sampling(), 40) for name, its in schedules.items()}

    alone = {name: [step.token_id for step in lane] for name, lane in lanes().items()}
    together = {"one": [], "two": []}
    for name, step in take_turns(lanes(), "lock-step"):
        together[name].append(step.token_id)
    assert together == alone


@pytest.mark.gpu
def test_sampled_lanes_run_ahead_and_write_what_those_write_that_wait(on_gpu):
    schedule, prompt = Schedule(3, on_gpu.num_layers, (2, 3)), torch.tensor([PROMPT], device=on_gpu.device)
    texts = []
    for runs_ahead in (True, False):
        decoder = on_gpu.new_decoder()
        decoder.runs_ahead = runs_ahead
        lane = Lane(decoder, prompt, schedule, None, Sampling(0.8, 0.9, 3), 40, top=5)
        steps = list(lane)
        texts.append([step.token_id for step in steps])
        assert all((step.top is not None) == runs_ahead for step in steps)
    assert texts[0] == texts[1]


@pytest.mark.gpu
def test_a_look_inside_a_token_works_beside_graphs(on_gpu):
    config = LoraDropConfig(period=3, drop_layers=(2, 4), refresh="repair", kv="write")
    trace = gather(run(on_gpu, Request("Hello", config, max_new_tokens=20, ignore_eos=True)))
    window = by_owner(on_gpu.device, partial(read_again, on_gpu, trace, LORA_DROP, 4))
    for step in (3, 4, 5, 6):
        found = by_owner(on_gpu.device, partial(inspect, on_gpu, trace, LORA_DROP, step, window))
        assert found["layers"][-1]["lens"] and (found["kind"] == "refresh") == (step % 3 == 0)
    assert on_gpu.weights.captures


@pytest.mark.gpu
def test_a_run_leaves_nothing_on_the_gpu(on_gpu):
    request = Request("Hello", LoraDropConfig(period=3), max_new_tokens=20)
    list(run(on_gpu, request))
    before = torch.cuda.memory_allocated()
    for _ in range(3):
        list(run(on_gpu, request))
    assert torch.cuda.memory_allocated() == before


@pytest.mark.gpu
def test_the_bundled_model_on_a_gpu_is_the_baseline_at_period_1():
    loaded = load_model("bundled", "cuda", "float32")
    request = Request("Explain why the sky is blue.", LoraDropConfig(period=1), max_new_tokens=40)
    records = list(run(loaded, request))
    assert records[-1].first_divergence is None
