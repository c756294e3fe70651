"""A lane on a GPU asks for its next pass before it reads a token: shown on a CPU, through the stub of graphs."""

import contextlib
import dataclasses
import itertools

import pytest
import torch

from lora_drop.decode.clock import Fetched
from lora_drop.decode.lane import Lane
from lora_drop.decode.sampling import Sampling
from lora_drop.method.schedule import Schedule, baseline_schedule
from tests.support import graphs
from tests.support.decoding import PROMPT, decoder_of

REPAIRING = {"kv": "write", "refresh": "repair"}


@pytest.fixture
def recorded(tiny, monkeypatch):
    """A decoder on the CPU that captures, and is taken for one on a GPU."""
    graphs.install(monkeypatch)
    decoder = decoder_of(tiny.model, "static")
    decoder.weights.captures = decoder.runs_ahead = True
    return decoder


def lane_of(decoder, schedule, count=12, stop=frozenset()):
    return Lane(decoder, torch.tensor([PROMPT]), schedule, None, Sampling(), count, stop)


def dropping(tiny, rules):
    return baseline_schedule(tiny.num_layers) if rules is None else Schedule(3, tiny.num_layers, (2, 4), **rules)


@pytest.fixture
def order(monkeypatch):
    """What a lane does, in order: that it asks for the pass of a step, and that it reads the numbers of one."""
    seen, launch, read = [], Lane._launch, Fetched.read

    def launched(self, token):
        with graphs.Hostless() if self._looks_ahead and token is not None else contextlib.nullcontext():
            found = launch(self, token)
        found.numbers.step = found.about["step"]
        seen.append(("ask", found.about["step"]))
        return found

    def told(self):
        seen.append(("read", self.step))
        return read(self)

    monkeypatch.setattr(Lane, "_launch", launched)
    monkeypatch.setattr(Fetched, "read", told)
    return seen


LOOKING = [{}, REPAIRING, {"refresh": "repair"}, {"reuse": "state", "part": "attention", "kv": "write"}]


def told(lane):
    """Its records without their times, and what its state is at the end."""
    steps = [dataclasses.replace(step, ms=0.0, logits=step.logits.tolist(), watched=None) for step in lane]
    state = lane.state
    return steps, lane.ended, state.position, state.kv.lengths, len(state.pending), dataclasses.asdict(state.refresher)


@pytest.mark.parametrize("rules", [None, *LOOKING])
def test_the_next_pass_is_asked_for_before_a_token_is_read(tiny, recorded, order, rules):
    """Nothing waits in between; and the records are those of a lane that waits for each token."""
    schedule = dropping(tiny, rules)
    ahead = told(lane_of(recorded, schedule))
    first = [("ask", 0), *(each for n in range(11) for each in (("ask", n + 1), ("read", n))), ("read", 11)]
    assert order == first
    recorded.runs_ahead = False
    assert told(lane_of(recorded, schedule)) == ahead
    assert order[len(first) :] == [each for n in range(12) for each in (("ask", n), ("read", n))]


@pytest.mark.parametrize("rules", [None, *LOOKING])
@pytest.mark.parametrize("ends_after", range(1, 8))
def test_a_pass_after_the_end_of_the_text_is_taken_back(tiny, recorded, rules, ends_after):
    """A step of each kind: the token that ends it, the records and the caches are those of a lane that waits."""
    schedule = dropping(tiny, rules)
    text = [step.token_id for step in lane_of(recorded, schedule)]
    stop = frozenset({text[ends_after]})
    ahead = told(lane_of(recorded, schedule, stop=stop))
    assert len(ahead[0]) == text.index(text[ends_after]) + 1 and ahead[1] == "stop"
    recorded.runs_ahead = False
    assert told(lane_of(recorded, schedule, stop=stop)) == ahead


def test_a_lane_that_is_left_holds_what_it_gave(tiny, recorded):
    one = lane_of(recorded, baseline_schedule(tiny.num_layers))
    for step in itertools.islice(one, 5):
        assert one.kv_bytes == step.kv_bytes
    assert one.state.kv.nbytes > one.kv_bytes


@pytest.mark.parametrize(
    ("rules", "sampling"),
    [({**REPAIRING, "accept": 1.0}, {}), ({"refresh_entropy": 5.0}, {}), ({}, {"temperature": 1.0})],
)
def test_where_the_host_decides_what_comes_next_a_lane_waits(tiny, recorded, order, rules, sampling):
    list(Lane(recorded, torch.tensor([PROMPT]), dropping(tiny, rules), None, Sampling(**sampling), 8))
    assert all(what[0] == ("ask", "read")[n % 2] for n, what in enumerate(order))
