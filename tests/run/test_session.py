"""A run's records: true, complete, in order, and equal to what the engine and the formulas say."""

import hashlib
from itertools import zip_longest

import pytest
import torch

from lora_drop.decode.native.loader import library
from lora_drop.decode.reference import ReferenceDecoder
from lora_drop.errors import LoraDropError
from lora_drop.method.config import LoraDropConfig
from lora_drop.method.cost import kv_bytes, speed_bound
from lora_drop.method.schedule import Schedule
from lora_drop.models.tokens import encode_prompt
from lora_drop.run.request import Request
from lora_drop.run.run import run
from lora_drop.run.trace.records import BASELINE, LORA_DROP, THIRD
from lora_drop.run.trace.trace import gather
from tests.support.decoding import random_bank
from tests.support.parts import full_bank

PROMPT = "Tell me something."


def with_stop(loaded, token):
    """The same model with another stop token."""
    return type("Stopping", (type(loaded),), {"stop_ids": property(lambda self: frozenset([token]))})(**vars(loaded))


def trace_of(loaded, config=None, **settings):
    config = config or LoraDropConfig(period=3, drop_ratio=1.0)
    settings = {"max_new_tokens": 20, "ignore_eos": True, **settings}
    return gather(run(loaded, Request(PROMPT, config, **settings)))


@pytest.mark.parametrize("kv", ["skip", "write"])
def test_the_summary_adds_up(any_tiny, kv):
    config = LoraDropConfig(period=3, drop_ratio=1.0, kv=kv)
    trace = trace_of(any_tiny, config)
    summary, header = trace.summary, trace.header
    kernels = library()
    assert header.device.get("kernels") == (kernels and kernels.about)
    schedule = config.schedule_for(any_tiny.num_layers)
    for lane, sched in ((BASELINE, Schedule(1, any_tiny.num_layers, ())), (LORA_DROP, schedule)):
        figures, steps = summary.lanes[lane], trace.steps[lane]
        for step in steps:
            assert step.kv_bytes == kv_bytes(any_tiny.shape, sched, header.prompt_tokens, step.step, 4)
        assert figures["kv_bytes"] == steps[-1].kv_bytes <= figures["kv_allocated_bytes"]
        seconds = sum(step.ms for step in steps[1:]) / 1000
        assert figures["tokens_per_second"] == pytest.approx(19 / seconds, abs=1e-3)
        assert figures["prefill_ms"] == steps[0].ms
        assert figures["text_sha256"] == hashlib.sha256(trace.text(lane).encode()).hexdigest()
    assert summary.bound == pytest.approx(speed_bound(any_tiny.shape, schedule, 19, header.prompt_tokens), abs=1e-4)
    assert (summary.kv_saved > 0) == (kv == "skip")
    quality = trace.quality[LORA_DROP].values()
    assert [(audit.step, audit.kind) for audit in quality] == [(step, schedule.kind(step)) for step in range(20)]


def test_a_stop_token_ends_its_lane(tiny):
    stop = trace_of(tiny).token_ids(BASELINE)[5]
    trace = trace_of(with_stop(tiny, stop), ignore_eos=False)
    assert trace.summary.lanes[BASELINE]["ended"] == "stop" and trace.token_ids(BASELINE)[-1] == stop


def test_the_drift_is_the_full_models(tiny):
    """Against transformers' own hidden states and logits on the lane's tokens, at every step."""
    trace = trace_of(tiny, LoraDropConfig(period=4, drop_layers=(2, 4)))
    tokens = trace.token_ids(LORA_DROP)
    prompt = encode_prompt(tiny.tokenizer, PROMPT)
    with torch.inference_mode():
        full = tiny.model(torch.tensor([prompt + tokens]), output_hidden_states=True)
    decoder = ReferenceDecoder(tiny.model)
    state = decoder.new_state(LoraDropConfig(period=4, drop_layers=(2, 4)).schedule_for(6), watch=True)
    decoder.prefill(torch.tensor([prompt]), state)
    for step in range(1, 20):
        found = decoder.step(torch.tensor([[tokens[step - 1]]]), state)
        at = len(prompt) + step - 1
        audit = trace.audits[LORA_DROP][step]
        for k, layer in enumerate((2, 4)):
            x = full.hidden_states[layer + 1][0, at]
            assert audit.drift[k] == pytest.approx(float((found.watched[k][0] - x).norm() / x.norm()), abs=2e-5)
            cosine = torch.cosine_similarity(found.watched[k][0], x, dim=0)
            assert audit.cosine[k] == pytest.approx(float(cosine), abs=2e-5)
        p, q = full.logits[0, at].log_softmax(-1), found.logits[0].log_softmax(-1)
        assert audit.kl == pytest.approx(float((p.exp() * (p - q)).sum()), abs=2e-5)
        assert audit.agrees == bool(p.argmax() == q.argmax())


def test_drift_is_zero_at_period_1(tiny):
    trace = trace_of(tiny, LoraDropConfig(period=1, drop_layers=(2, 4)))
    assert max(max(a.drift) for a in trace.audits[LORA_DROP].values()) < 1e-5
    assert trace.token_ids(BASELINE) == trace.token_ids(LORA_DROP)
    assert trace.summary.first_divergence is None and trace.summary.top1_agreement is None


def test_without_the_audit_the_run_is_the_same(tiny):
    with_audit, without = trace_of(tiny), trace_of(tiny, audit=False)
    assert with_audit.token_ids(LORA_DROP) == without.token_ids(LORA_DROP)
    assert not without.audits[LORA_DROP] and without.summary.top1_agreement is None


@pytest.mark.parametrize("lanes", ["baseline", "lora-drop"])
def test_a_single_lane(tiny, lanes):
    trace = trace_of(tiny, lanes=lanes)
    assert [lane["id"] for lane in trace.header.lanes] == [lanes.replace("-", "_")]
    assert trace.summary.speedup is None and trace.summary.kv_saved is None
    both = trace_of(tiny)
    assert trace.token_ids(lanes.replace("-", "_")) == both.token_ids(lanes.replace("-", "_"))


def test_a_stopped_run_keeps_what_it_has(tiny):
    asked = iter(range(1000))
    records = run(tiny, Request(PROMPT, LoraDropConfig(period=4), 200, ignore_eos=True), lambda: next(asked) >= 20)
    trace = gather(records)
    assert sum(map(len, trace.steps.values())) == 21
    assert sorted(trace.audits[LORA_DROP]) == list(range(1, len(trace.steps[LORA_DROP])))
    assert {figures["ended"] for figures in trace.summary.lanes.values()} == {"stopped"}
    assert trace.summary.verdict["kind"] == trace.summary.verdict["facts"]["stopped"] == "stopped"


def test_two_runs_at_once_do_not_mix(tiny):
    requests = [Request(p, LoraDropConfig(period=3, reuse="state"), 12, ignore_eos=True) for p in ("One.", "Two!!")]
    alone = [gather(run(tiny, request)) for request in requests]
    both = zip(*zip_longest(*(run(tiny, request) for request in requests)), strict=True)
    for records, own in zip(both, alone, strict=True):
        mixed = gather(filter(None, records))
        for lane in (BASELINE, LORA_DROP):
            assert mixed.token_ids(lane) == own.token_ids(lane)


def test_a_bank_is_used_and_named(tiny, tmp_path):
    bank = random_bank(tiny, "residual", layers=[1, 2, 3, 4])
    bank.revision = tiny.revision
    bank.save(tmp_path / "mine")
    config = LoraDropConfig(period=3, drop_ratio=1.0, adapters=str(tmp_path / "mine"))
    with_bank, without = trace_of(tiny, config), trace_of(tiny, config.replace(adapters="none"))
    assert with_bank.token_ids(LORA_DROP) != without.token_ids(LORA_DROP)
    assert with_bank.header.lanes[1]["config"]["rank"] == bank.rank and without.header.lanes[1]["config"]["rank"] == 0
    assert with_bank.summary.bound < without.summary.bound
    auto = trace_of(tiny, config.replace(adapters="auto"))
    assert "untrained" in auto.header.sampling["notes"][0]


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"prompt": "  \n"}, "prompt is empty"),
        ({"temperature": float("nan")}, "temperature"),
        ({"lanes": "three"}, "there is no method 'three'; the methods are full, lora-drop"),
    ],
)
def test_bad_requests_are_one_clear_line(settings, says):
    with pytest.raises(LoraDropError, match=says) as error:
        Request(**{"prompt": PROMPT, **settings})
    assert "\n" not in str(error.value)


def test_what_does_not_fit_the_model_is_reported_before_the_first_record(tiny):
    with pytest.raises(LoraDropError, match=f"context of {tiny.context}.*shorten the prompt"):
        next(run(tiny, Request("x" * (tiny.context + 1))))
    with pytest.raises(LoraDropError, match="ask for at most"):
        next(run(tiny, Request("x" * 100, max_new_tokens=tiny.context - 50)))
    with pytest.raises(LoraDropError, match="0-5 and 1-5 can be skipped"):
        next(run(tiny, Request(PROMPT, LoraDropConfig(layers=(3, 28)))))


def test_the_whole_context_can_be_used(tiny):
    room = 8
    prompt = "y" * (tiny.context - room - (len(encode_prompt(tiny.tokenizer, "yy")) - 2))
    trace = gather(run(tiny, Request(prompt, LoraDropConfig(), room, ignore_eos=True, audit=False, lanes="lora-drop")))
    assert trace.header.prompt_tokens + len(trace.steps[LORA_DROP]) == tiny.context


def test_caches_that_do_not_fit_are_refused_before_the_run(tiny, monkeypatch):
    monkeypatch.setattr("lora_drop.run.request.free_memory", lambda device: 100_000)
    with pytest.raises(LoraDropError, match=r"need 0\.0 GB for the KV caches.*fewer tokens"):
        next(run(tiny, Request("Hello", max_new_tokens=200)))
    next(run(tiny, Request("Hello", max_new_tokens=20, lanes="lora-drop", audit=False)))


def test_a_third_lane_changes_one_setting_and_leaves_the_others_alone(tiny):
    config = LoraDropConfig(period=3, layers=(1, 4), drop_ratio=1.0)
    two = gather(run(tiny, Request("Hello", config, 24, ignore_eos=True)))
    three = gather(run(tiny, Request("Hello", config, 24, ignore_eos=True, compare="skip")))
    for name in (BASELINE, LORA_DROP):
        assert three.token_ids(name) == two.token_ids(name)
    alone = gather(run(tiny, Request("Hello", config.replace(reuse="skip"), 24, ignore_eos=True)))
    assert three.token_ids(THIRD) == alone.token_ids(LORA_DROP) != three.token_ids(LORA_DROP)
    assert [a.kl for a in three.audits[THIRD].values()] == [a.kl for a in alone.audits[LORA_DROP].values()]
    lane = three.summary.lanes[THIRD]
    for name in ("bound", "kv_saved", "first_divergence", "top1_agreement"):
        assert lane[name] == getattr(alone.summary, name)
        assert getattr(three.summary, name) == getattr(two.summary, name)
    assert lane["speedup"] > 0 and three.header.lanes[2]["config"]["reuse"] == "skip"


def test_third_lanes_turn_off_the_corrections_alone_or_skip_nothing_but_the_head(tiny, tmp_path):
    bank = full_bank(tiny, "residual", layers=[1, 2, 3, 4])
    bank.revision, bank.num_layers, bank.kv, bank.refresh = tiny.revision, tiny.num_layers, "write", "repair"
    bank.save(tmp_path / "bank")
    exact = {"refresh": "repair", "kv": "write", "accept": 0.5, "head": "screened"}
    config = LoraDropConfig(3, (1, 4), 1.0, adapters=str(tmp_path / "bank"), **exact)

    def lanes(compare):
        trace = gather(run(tiny, Request("Hello", config, 24, ignore_eos=True, compare=compare)))
        own, third = (trace.header.config_of(lane) for lane in (LORA_DROP, THIRD))
        return trace, own, third

    trace, own, third = lanes("corrections-off")
    assert {name for name in own if own[name] != third[name]} == {"corrections", "rank", "corrected"}
    assert third["rank"] == 0 and third["extras"]["head_rank"] == own["extras"]["head_rank"] > 0
    assert trace.summary.lanes[THIRD]["accepted"] < 1
    trace, own, third = lanes("screened-head")
    assert (third["dropped"], third["head"], third["accept"]) == ([], "screened", 1.0)
    assert trace.token_ids(THIRD) == trace.token_ids(BASELINE) != trace.token_ids(LORA_DROP)


def test_a_third_lane_that_would_be_the_second_again_is_left_out_and_reported(tiny):
    for config, compare in (
        (LoraDropConfig(period=3, layers=(1, 4), drop_ratio=1.0), "adapters-off"),  # there are none
        (LoraDropConfig(period=3, layers=(1, 4), drop_ratio=1.0), "bare"),
        (LoraDropConfig(period=3, layers=(1, 4), drop_ratio=1.0), "residual"),
        (LoraDropConfig(period=1), "skip"),
    ):
        trace = gather(run(tiny, Request("Hello", config, 4, compare=compare)))
        assert list(trace.steps) == [BASELINE, LORA_DROP]
        assert "no third lane" in trace.header.sampling["notes"][-1]


def test_a_third_lane_that_cannot_be_is_refused(tiny):
    with pytest.raises(LoraDropError, match="compare must be one of corrections-off, bare, "):
        Request("Hello", compare="magic")
    with pytest.raises(LoraDropError, match="lanes must name both"):
        Request("Hello", compare="skip", lanes="lora-drop")
