"""LoRA-Drop with prompt lookup: each decoder equals a twin that is written without the engine, on random settings."""

import dataclasses
import itertools
import random

import pytest
import torch

from lora_drop.decode.lane import Lane
from lora_drop.decode.lookup import PromptLookup
from lora_drop.decode.sampling import Sampling
from lora_drop.decode.step import Rewind, StepResult
from lora_drop.errors import LoraDropError
from lora_drop.method.config import LoraDropConfig
from lora_drop.method.schedule import baseline_schedule
from lora_drop.run.exports.figures import run as figures
from lora_drop.run.report.report import Report
from lora_drop.run.report.why import why
from lora_drop.run.request import Request
from lora_drop.run.run import run
from lora_drop.run.trace.trace import gather
from tests.support.decoding import DECODERS, decoder_of
from tests.support.hybrid import hybrid
from tests.support.parts import full_bank

EXACT = {"refresh": "repair", "kv": "write"}
TOKENS = 14


@pytest.fixture(scope="module", params=DECODERS)
def decoder(request, tiny):
    return decoder_of(tiny.model, request.param)


def drawn(number):
    """Settings, prompt, sampling and stop tokens of a number; few kinds of token, so that n-grams come again."""
    rng = random.Random(number)
    layers = tuple(sorted(rng.sample(range(1, 6), rng.choice((0, 1, 2, 4)))))
    least = rng.choice((1, 1, 2))
    accept = rng.choice((1.0, 0.9, 0.5))
    config = LoraDropConfig(
        period=rng.choice((2, 3, 5)),
        drop_layers=layers,
        reuse=rng.choice(("residual", "anchor", "state", "skip")),
        accept=accept,
        own_repeats=rng.random() < 0.5,
        head=rng.choice(("full", "screened")),
        lookup=rng.choice((1, 2, 4, 7)),
        lookup_least=least,
        lookup_longest=rng.choice((least, 3)),
        **EXACT,
    )
    prompt = [rng.choice((5, 99, 17)) for _ in range(rng.choice((4, 9, 16)))]
    sampling = rng.choice((Sampling(), Sampling(0.8, 0.9, number), Sampling(1.3, 1.0, number)))
    return config, prompt, sampling, frozenset({17}) if number % 3 == 0 else frozenset()


def lane_of(decoder, schedule, prompt, sampling, bank=None, stops=frozenset()):
    lane = Lane(decoder, torch.tensor([prompt]), schedule, bank, sampling, TOKENS, stops)
    return lane, list(lane)


def drafted(events):
    """By kind of step, how many drafts were made and how many stand."""
    made, standing = {"lora": 0, "draft": 0}, []
    for event in events:
        if isinstance(event, Rewind):
            del standing[event.to + 1 :]
        elif isinstance(event, StepResult):
            standing.append(event.kind)
            made[event.kind] = made.get(event.kind, 0) + 1
    return {kind: [made[kind], standing.count(kind)] for kind in ("lora", "draft")}


@pytest.fixture(scope="module")
def twins(tiny):
    """By number, the twin's reply and its drafts; made once for all decoders."""
    replies = {}

    def reply_of(number):
        if number not in replies:
            config, prompt, sampling, stops = drawn(number)
            bank = full_bank(tiny, config.reuse, rank=8, best=16)
            schedule, settings = config.schedule_for(tiny.num_layers), dataclasses.astuple(sampling)
            replies[number] = hybrid(tiny.model, prompt, schedule, bank, TOKENS, stops, *settings)
        return replies[number]

    return reply_of


@pytest.mark.parametrize("numbers", [range(12), pytest.param(range(12, 100), marks=pytest.mark.full)], ids=str)
def test_it_equals_the_twin_on_random_settings(decoder, tiny, twins, numbers):
    seen, pairs = {"lora": [0, 0], "draft": [0, 0]}, set()
    for number in numbers:
        config, prompt, sampling, stops = drawn(number)
        bank = full_bank(tiny, config.reuse, rank=8, best=16)
        expected, counts = twins(number)
        lane, events = lane_of(decoder, config.schedule_for(tiny.num_layers), prompt, sampling, bank, stops)
        assert lane.tokens == expected, (number, config)
        assert drafted(events) == counts, (number, config)
        for kind, (made, accepted) in counts.items():
            seen[kind] = [seen[kind][0] + made, seen[kind][1] + accepted]
        kinds = [event.kind for event in events if isinstance(event, StepResult)]
        pairs |= set(itertools.pairwise(kinds))
        if config.accept == 1:
            full, _ = lane_of(decoder, baseline_schedule(tiny.num_layers), prompt, sampling, stops=stops)
            assert lane.tokens == full.tokens
    assert all(0 < accepted < made for made, accepted in seen.values()), seen
    # Some pass verifies drafts of both parts, and none is followed by a LoRA step, which would lack K/V.
    assert ("lora", "draft") in pairs and ("draft", "lora") not in pairs


def test_pending_drafts_are_not_looked_up():
    lookup = PromptLookup([1, 2, 3, 4], (1, 2), 3, ())
    assert lookup.drafts([9, 1], 9, pending=1) == [2, 3, 4]  # of the draft 1
    assert lookup.drafts([9, 8, 9], 9) == [8, 9]  # 1 was rejected


def test_the_shares_of_the_parts_are_in_the_summary(tiny):
    config = LoraDropConfig(3, drop_layers=(2, 3), accept=0.3, lookup=4, adapters="none", **EXACT)
    trace = gather(run(tiny, Request("a b c a b c a b c", config, 32, ignore_eos=True)))
    report = Report.of(trace)
    parts, lane = trace.summary.lanes["lora_drop"]["drafts"], report.lanes["lora_drop"]
    assert sum(part["made"] for part in parts.values()) == lane.drafts
    assert sum(part["accepted"] for part in parts.values()) == lane.accepted
    assert parts["lookup"]["made"] and parts["lora_drop"]["made"]
    assert "drafts" not in trace.summary.lanes["baseline"]
    assert "no layer runs at" in why(report, None)["activity"]
    formula = figures._formula(lane.schedule, trace.header.prompt_tokens, trace.steps["lora_drop"])
    held = [tokens * trace.header.model["kv_bytes_per_token"] for _, tokens in formula]
    assert held == [step.kv_bytes for step in trace.steps["lora_drop"]]


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"lookup": 4}, "raise accept"),
        ({"lookup": 60, "accept": 1, **EXACT}, "together are at most 64"),
        ({"lookup_least": 3}, "above lookup_longest"),
        ({"lookup": 64}, "from 0 to 63"),
    ],
)
def test_bad_settings_are_one_line(settings, words):
    with pytest.raises(LoraDropError, match=words) as caught:
        LoraDropConfig(**({"period": 8} | settings))
    assert "\n" not in str(caught.value)
