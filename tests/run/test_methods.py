"""Methods beside LoRA-Drop: each equals its source, on every decoder, and lossless ones the full model."""

import copy
import dataclasses

import pytest
import torch
from transformers.generation.candidate_generator import PromptLookupCandidateGenerator

from lora_drop.decode.lane import Lane
from lora_drop.decode.lookup import PromptLookup
from lora_drop.decode.sampling import Sampling
from lora_drop.decode.step import Rewind, StepResult, Verified
from lora_drop.errors import LoraDropError
from lora_drop.method.config import LoraDropConfig
from lora_drop.method.methods import METHODS, lanes_of, method_lane
from lora_drop.method.presets import PRESETS
from lora_drop.method.schedule import baseline_schedule
from lora_drop.run.report.report import Report
from lora_drop.run.request import Request, plan
from lora_drop.run.run import run
from lora_drop.run.trace.trace import gather
from tests.support.decoding import DECODERS, PROMPT, decoder_of

REPEATING = [5, 99, 17, 42, 5, 99, 17, 42, 5, 99]
LOSSLESS = [
    "layerskip:2:3",
    "layerskip:5:1",
    "draft-verify:2:2",
    "prompt-lookup:4:2",
    "prompt-lookup:1:1",
    "hybrid-lossless:4:2",
]
SAMPLED = Sampling(0.9, 0.95, 3)
TOKENS = 32


@pytest.fixture(scope="module", params=DECODERS)
def decoder(request, tiny):
    return decoder_of(tiny.model, request.param)


def schedule_of(name, num_layers):
    lane = method_lane(name, num_layers, PRESETS)
    return dataclasses.replace(lane.config.schedule_for(num_layers), **lane.more)


def lane_of(decoder, schedule, prompt=PROMPT, tokens=TOKENS, sampling=None, stops=frozenset()):
    return Lane(decoder, torch.tensor([prompt]), schedule, None, sampling or Sampling(), tokens, stops)


def events_of(*args, **kwargs):
    lane = lane_of(*args, **kwargs)
    return list(lane), lane


def cut_model(model, kept):
    """The transformers model with these layers alone."""
    model = copy.deepcopy(model)
    model.model.layers = torch.nn.ModuleList([model.model.layers[i] for i in kept])
    for place, layer in enumerate(model.model.layers):
        layer.self_attn.layer_idx = place
    model.config.num_hidden_layers = len(kept)
    if getattr(model.config, "layer_types", None):
        model.config.layer_types = [model.config.layer_types[i] for i in kept]
    return model


@pytest.mark.parametrize("name", ["exit:1", "exit:4", "prune:1", "prune:3"])
def test_a_pruned_lane_is_the_transformers_model_without_these_layers(tiny, decoder, name):
    schedule = schedule_of(name, tiny.num_layers)
    kept = [i for i in range(tiny.num_layers) if i not in schedule.dropped]
    assert kept == list(range(len(kept))) or name.startswith("prune")
    events, lane = events_of(decoder, schedule)
    tokens = torch.tensor([PROMPT + lane.tokens[:-1]])
    with torch.inference_mode():
        logits = cut_model(tiny.model, kept)(tokens).logits[0, len(PROMPT) - 1 :]
    torch.testing.assert_close(torch.cat([one.logits for one in events]).float(), logits, rtol=1e-3, atol=1e-3)
    assert lane.tokens == logits.argmax(-1).tolist()  # prefill's too
    held = len(PROMPT) + TOKENS - 1
    assert lane.state.kv.lengths == [held if i in kept else 0 for i in range(tiny.num_layers)]


@pytest.mark.parametrize(
    ("prompt", "sampling"),
    [
        (REPEATING, Sampling()),
        (PROMPT, SAMPLED),
        pytest.param(PROMPT, Sampling(), marks=pytest.mark.full),
        pytest.param(REPEATING, SAMPLED, marks=pytest.mark.full),
    ],
    ids=["repeating-greedy", "plain-sampled", "plain-greedy", "repeating-sampled"],
)
@pytest.mark.parametrize("name", LOSSLESS)
def test_a_verified_lane_writes_the_full_models_text(tiny, decoder, name, prompt, sampling):
    full = lane_of(decoder, baseline_schedule(tiny.num_layers), prompt, sampling=sampling)
    expected = [step.token_id for step in full]
    _, lane = events_of(decoder, schedule_of(name, tiny.num_layers), prompt, sampling=sampling)
    assert lane.tokens == expected
    assert lane.state.kv.nbytes == full.state.kv.nbytes
    stop = expected[TOKENS // 2]
    _, ended = events_of(
        decoder, schedule_of(name, tiny.num_layers), prompt, sampling=sampling, stops=frozenset({stop})
    )
    assert ended.tokens == expected[: expected.index(stop) + 1] and ended.ended == "stop"


@pytest.mark.parametrize(("at", "drafts"), [(2, 3), (5, 1)])
def test_layerskip_drafts_with_the_model_cut_at_the_exit(tiny, decoder, at, drafts):
    early, text, gap = cut_model(tiny.model, range(at)), list(PROMPT), 0
    for event in lane_of(decoder, schedule_of(f"layerskip:{at}:{drafts}", tiny.num_layers)):
        if isinstance(event, Rewind):
            del text[len(PROMPT) + event.to + 1 :]
        if not isinstance(event, StepResult):
            continue
        gap = gap + 1 if event.kind == "lora" else 0
        assert gap <= drafts
        if event.kind == "lora":
            assert event.active == [i < at for i in range(tiny.num_layers)]
            with torch.inference_mode():
                assert event.token_id == int(early(torch.tensor([text])).logits[0, -1].argmax())
        text.append(event.token_id)


@pytest.mark.parametrize(("drafts", "n"), [(4, 2), (10, 3), (1, 1)])
@pytest.mark.parametrize("stops", [frozenset(), frozenset({17})], ids=["no stop", "stop"])
def test_prompt_lookup_drafts_as_transformers_does(tiny, decoder, drafts, n, stops):
    schedule = schedule_of(f"prompt-lookup:{drafts}:{n}", tiny.num_layers)
    eos = torch.tensor(sorted(stops)) if stops else None
    theirs = PromptLookupCandidateGenerator(eos, drafts, n, max_length=len(REPEATING) + TOKENS)
    lane, text, passes, asked = lane_of(decoder, schedule, REPEATING, stops=stops), list(REPEATING), 0, None
    for event in lane:
        if isinstance(event, Rewind):
            del text[len(REPEATING) + event.to + 1 :]
            continue
        assert not isinstance(event, Verified)  # the drafts leave room for the pass
        if asked is None and event.step:  # a cycle begins: the text so far is verified
            asked = theirs.get_candidates(torch.tensor([text]))[0][0, len(text) :].tolist()
            del asked[TOKENS - 1 - (len(text) - len(REPEATING)) :]
            drafted = list(asked)
        text.append(event.token_id)
        if event.kind == "draft":
            assert event.token_id == asked.pop(0) and not any(event.active) and event.logits is None
        elif event.step:
            assert not asked and all(event.active) and event.rows == len(drafted) + 1
            passes, asked = passes + 1, None
    assert passes == lane.state.refresher.refreshes


def test_the_first_place_of_the_longest_n_gram_is_looked_up():
    lookup = PromptLookup([1, 2, 3, 1, 2, 4, 9], (1, 2), 3, {4})
    assert lookup.drafts([1, 2], 9) == [3, 1, 2]
    assert lookup.drafts([1, 2, 3], 2) == [1, 2]
    assert lookup.drafts([1, 2, 3, 2], 9) == [3, 1, 2]  # 3 2 is new, 2 is not
    assert lookup.drafts([1, 2, 3, 2, 8], 9) == []
    assert PromptLookup([7, 4, 7], (1, 1), 3, {4}).drafts([], 9) == []  # a draft that stops the text


@pytest.fixture(scope="module")
def traced(tiny):
    def make(*lanes, **settings):
        request = Request(
            "a b c a b c a b c", LoraDropConfig(), 32, lanes=",".join(lanes), ignore_eos=True, **settings
        )
        return gather(run(tiny, request))

    return make


def test_the_order_of_lanes_changes_no_token(traced):
    names = ("full", "prune:2", "layerskip:3:2", "prompt-lookup:4:2")
    one, other = traced(*names), traced(*names[::-1], view="lock-step")
    assert {name: one.token_ids(name) for name in one.steps} == {name: other.token_ids(name) for name in other.steps}


def test_bytes_and_layer_runs_are_those_of_the_passes(tiny, traced):
    shape, size = tiny.shape, tiny.dtype.itemsize
    layer = sum(shape.layer_costs()[0][1:])
    ends = (shape.vocab_size + 2) * shape.hidden_size
    trace = traced("full", "exit:4", "draft-verify:2:3", "prompt-lookup:4:2")
    report, seen = Report.of(trace), set()
    for name, passes in trace.passes.items():
        schedule, numbers, runs = report.lanes[name].schedule, 0.0, 0
        for one in passes:
            if one.type == "rewind" or (one.type == "step" and not one.step):
                continue
            at = one.step if one.type == "step" else len(trace.steps[name]) - 1
            keys = trace.header.prompt_tokens + at
            seen.add(one.type == "step" and one.kind)
            if one.type == "step" and one.kind == "draft":
                numbers += shape.hidden_size
                continue
            ran = sum(one.active) if one.type == "step" else shape.num_layers - schedule.first_skipped
            read = shape.num_layers if one.type == "judge" else ran
            numbers += ends + read * (layer + shape.kv_per_token * keys)
            runs += ran
        own = report.lanes[name]
        assert own.bytes_per_token == pytest.approx(size * numbers / own.standing)
        assert own.layer_runs == pytest.approx(runs / own.standing)
        assert (own.layer_rows > own.layer_runs) == schedule.repairs
    assert {"lora", "refresh", "draft"} <= seen


def test_a_run_of_methods_has_figures_of_each_lane(traced):
    trace = traced("full", "exit:4", "layerskip:4:2", "prompt-lookup")
    lanes = trace.summary.lanes
    assert list(lanes) == ["baseline", "exit_4", "layerskip_4_2", "prompt_lookup_2_2"]
    report = Report.of(trace)
    assert all(report.lanes[name].loss == 0 for name in ("layerskip_4_2", "prompt_lookup_2_2"))
    audits = trace.audits["exit_4"]
    assert audits[0].regret >= 0 and report.lanes["exit_4"].loss > 0  # its prefill is its own
    assert trace.header.lanes[1]["method"] == "exit:4"


@pytest.mark.parametrize("name", [name for name in METHODS if name != "screened-head"])
def test_every_method_runs_on_every_architecture(any_tiny, name):
    request = Request("a b a b", LoraDropConfig(), 6, lanes=f"full,{name}" if name != "full" else "full")
    records = list(run(any_tiny, request))
    assert records[-1].type == "summary" and records[-1].verdict["text"]


@pytest.mark.parametrize(
    ("lanes", "words"),
    [
        ("full,magic", "no method 'magic'"),
        ("full,exit:9", "exit layer must be a whole number from 1 to 5"),
        ("full,exit:x", "exit layer"),
        ("full,layerskip:2:64", "draft length"),
        ("full,exit:2:2", "2 values"),
        ("full,balanced:2", "1 values"),
        ("full,exit:1,exit:2,exit:3,exit:4", "at most 4"),
        ("full,exit:1,exit:1", "twice"),
        ("full,exit,exit:5", "twice"),
        ("", "lanes"),
        ("full,screened-head", "screened head"),
    ],
)
def test_bad_lanes_are_one_line(tiny, lanes, words):
    with pytest.raises(LoraDropError, match=words) as caught:
        plan(tiny, Request("a", LoraDropConfig(), 4, lanes=lanes))
    assert "\n" not in str(caught.value)


def test_a_comparison_counts_as_a_lane():
    assert lanes_of("both") == ("full", "lora-drop")
    with pytest.raises(LoraDropError, match="at most 4"):
        lanes_of("full,lora-drop,exit:1,exit:2", "skip")
    with pytest.raises(LoraDropError, match="full and lora-drop"):
        lanes_of("baseline", "skip")
