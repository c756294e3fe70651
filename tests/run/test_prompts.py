"""The prompt is read once in a run, and the last prompts are kept for the next ones."""

import copy
import dataclasses
import gc

import pytest

from lora_drop.decode import reference
from lora_drop.decode.reference import ReferenceDecoder
from lora_drop.method.config import LoraDropConfig
from lora_drop.run.prompts import PromptCache
from lora_drop.run.request import Request
from lora_drop.run.run import run
from lora_drop.run.trace.records import BASELINE, LORA_DROP, THIRD
from lora_drop.run.trace.trace import gather

PROMPT = "Tell me something."


@pytest.fixture
def reads(monkeypatch):
    """The prompts that decoders read."""
    found, real = [], ReferenceDecoder.read_prompt

    def read(self, tokens, *more):
        found.append(tokens.tolist())
        return real(self, tokens, *more)

    monkeypatch.setattr(ReferenceDecoder, "read_prompt", read)
    return found


def trace_of(loaded, prompts=None, prompt=PROMPT, period=3, **settings):
    config = LoraDropConfig(period=period, drop_ratio=1.0)
    request = Request(prompt, config, max_new_tokens=9, ignore_eos=True, **settings)
    return gather(run(loaded, request, prompts=prompts))


def facts(trace):
    steps = {name: [(s.token_id, s.kind, s.entropy, s.kv_bytes) for s in steps] for name, steps in trace.steps.items()}
    return steps, {name: [dataclasses.asdict(a) for a in found.values()] for name, found in trace.quality.items()}


def test_all_lanes_and_audits_share_one_reading(tiny, reads):
    trace = trace_of(tiny, compare="skip")
    assert len(reads) == 1 and set(trace.steps) == {BASELINE, LORA_DROP, THIRD}
    assert len(trace.quality[THIRD]) == 9 and not trace.summary.prefill_cached
    first = {name: steps[0] for name, steps in trace.steps.items()}
    assert len({step.token_id for step in first.values()}) == 1


def test_another_setting_does_not_read_the_prompt_again(tiny, reads):
    prompts = PromptCache()
    trace_of(tiny, prompts)
    moved = trace_of(tiny, prompts, period=4)
    assert len(reads) == 1 and moved.summary.prefill_cached
    assert facts(moved) == facts(trace_of(tiny, period=4))
    assert moved.summary.lanes[BASELINE]["prefill_ms"] == moved.steps[BASELINE][0].ms
    assert not trace_of(tiny, prompts, prompt="Another one.").summary.prefill_cached


def test_other_weights_and_other_decoders_read_it_themselves(tiny, reads):
    prompts = PromptCache()
    trace_of(tiny, prompts)
    other = dataclasses.replace(tiny, model=copy.deepcopy(tiny.model), weights=None)
    trace_of(other, prompts)
    trace_of(dataclasses.replace(tiny, weights=None), prompts)
    assert len(reads) == 3


def test_it_is_bounded_in_bytes_and_lets_the_oldest_go(tiny, reads):
    trace_of(tiny, one := PromptCache(), prompt="one")
    size = one._prompts.nbytes
    prompts = PromptCache(2 * size)
    for text in ("one", "two", "one", "six", "one", "two"):
        trace_of(tiny, prompts, prompt=text)
        assert prompts._prompts.nbytes <= 2 * size
    assert len(reads) == 1 + 4  # one, two and six, and two again, which went for six
    trace_of(tiny, small := PromptCache(size - 1), prompt="one")
    assert small._prompts.nbytes == 0


def test_a_models_prompts_go_with_the_model(tiny):
    prompts = PromptCache()
    loaded = dataclasses.replace(tiny, model=copy.deepcopy(tiny.model), weights=None)
    trace_of(loaded, prompts)
    assert prompts._prompts.nbytes > 0
    del loaded
    gc.collect()
    assert prompts._prompts.nbytes == 0


def test_a_run_that_is_stopped_while_it_reads_has_a_summary(tiny, monkeypatch):
    monkeypatch.setattr(reference, "PART", (4, 4))
    prompts = PromptCache()
    trace = gather(run(tiny, Request(PROMPT, LoraDropConfig()), lambda: True, prompts))
    assert {lane["ended"] for lane in trace.summary.lanes.values()} == {"stopped"}
    assert not any(trace.steps.values()) and prompts._prompts.nbytes == 0
    assert trace.summary.speedup is None and trace.summary.kv_saved is None
