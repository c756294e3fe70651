"""Stop and the limits are heard during a pass over many tokens, and the run keeps what it has."""

import copy
import dataclasses

import pytest

from lora_drop.decode.native.loader import library
from lora_drop.decode.native.weights import lay_out
from lora_drop.decode.reference import PART
from lora_drop.decode.static.decoder import StaticWeights
from lora_drop.method.config import LoraDropConfig
from lora_drop.run.request import Request
from lora_drop.run.run import run
from lora_drop.run.trace.records import BASELINE, LORA_DROP, JudgeRecord, StepRecord, Summary, write_line
from lora_drop.run.trace.trace import gather, parse_trace

REPAIR = {"refresh": "repair", "kv": "write", "drop_ratio": 1.0, "adapters": "none"}


@pytest.fixture(params=["reference", "native", "static"])
def loaded(request, tiny):
    """The tiny model with one decoder each."""
    if request.param == "native" and library() is None:
        pytest.skip("there is no C compiler here")
    model = copy.deepcopy(tiny.model)
    weights = {"native": lambda: lay_out(model, None), "static": lambda: StaticWeights.of(model)}
    return dataclasses.replace(tiny, model=model, weights=weights.get(request.param, lambda: None)())


class Passes:
    """The passes of a run over several tokens; Stop is pressed while the first that `chosen` says is under way."""

    def __init__(self, loaded, monkeypatch, chosen):
        self.stopped, self.rows, self.after, depth = False, [], 0, []
        decoder = type(loaded.new_decoder())

        def watched(call):
            def made(this, token, state):
                self.after += self.stopped and not depth
                depth.append(1)
                found = call(this, token, state)
                depth.pop()
                if not depth and (found.rows > 1 or token is None):  # a step may be a repair
                    self.rows.append(found.rows)
                    self.stopped = self.stopped or chosen(token)
                return found

            return made

        for name in ("step", "repair"):
            monkeypatch.setattr(decoder, name, watched(getattr(decoder, name)))


def records_of(loaded, passes, **settings):
    """What a run gives; Stop is asked for as the run does, after each step."""
    held = {"period": 64, "max_new_tokens": 200, "lanes": "lora-drop", "audit": False} | settings
    own = {name: held.pop(name) for name in ("period", "accept") if name in held}
    request = Request("Tell me.", LoraDropConfig(**REPAIR, **own), ignore_eos=True, **held)
    return list(run(loaded, request, lambda: passes.stopped))


def test_a_stop_within_a_pass_of_64_tokens_ends_the_run_with_it(loaded, monkeypatch):
    passes = Passes(loaded, monkeypatch, lambda token: True)
    records = records_of(loaded, passes)
    assert passes.rows == [64] and passes.after == 0, "no pass and no step came after it"
    step, summary = records[-2:]
    assert isinstance(step, StepRecord) and (step.step, step.kind, step.rows) == (64, "refresh", 64)
    assert isinstance(summary, Summary) and summary.lanes[LORA_DROP]["ended"] == "stopped"
    assert summary.lanes[LORA_DROP]["tokens"] == 65 and summary.lanes[LORA_DROP]["kv_bytes"] == step.kv_bytes
    assert max(passes.rows) * 8 <= PART[0], "a pass is shorter than the part of a prompt that a stop waits for"


def test_a_stop_within_a_pass_that_takes_back_leaves_a_trace_that_reads(loaded, monkeypatch):
    """Without layers and corrections most drafts are refused, so the stop falls on a rewind."""
    passes = Passes(loaded, monkeypatch, lambda token: token is not None)
    records = records_of(loaded, passes, period=16, accept=1.0)
    assert len(passes.rows) == 1 and passes.after == 0
    text = "".join(map(write_line, records))
    trace, figures = parse_trace(text.encode()), records[-1].lanes[LORA_DROP]
    assert figures["ended"] == "stopped" and figures["tokens"] == len(trace.steps[LORA_DROP])
    full = gather(records_of(loaded, Passes(loaded, monkeypatch, lambda token: False), lanes="baseline", accept=1.0))
    told = trace.token_ids(LORA_DROP)
    assert told == full.token_ids(BASELINE)[: len(told)], "what was judged is the full model's"


def test_a_stop_within_the_last_judging_ends_the_lane_with_its_word(loaded, monkeypatch):
    """Its tokens are all there: the pass over the last drafts says which stay."""
    passes = Passes(loaded, monkeypatch, lambda token: token is None)
    records = records_of(loaded, passes, period=16, accept=0.01, max_new_tokens=12)
    assert passes.stopped and passes.after == 0
    assert records[-1].lanes[LORA_DROP]["ended"] == ("length" if isinstance(records[-2], JudgeRecord) else "stopped")


def test_a_stop_before_the_last_judging_is_one(loaded, monkeypatch):
    """The drafts stand in the trace, and nobody calls them judged."""
    passes = Passes(loaded, monkeypatch, lambda token: False)
    config = LoraDropConfig(**REPAIR, period=16, accept=1.0)
    request = Request("Tell me.", config, 12, lanes="lora-drop", audit=False, ignore_eos=True)
    seen = []

    def should_stop():
        return len(seen) > 12

    for record in run(loaded, request, should_stop):
        seen.append(record)
    assert passes.rows == [] and seen[-1].lanes[LORA_DROP]["ended"] == "stopped"
    assert seen[-1].accepted is None and seen[-1].verdict["kind"] == "stopped"
