"""A lane that runs ahead over the decoder of a GPU: shown on a CPU, through the stub of graphs."""

import dataclasses

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from lora_drop.decode import sampling as module
from lora_drop.decode.lane import Lane
from lora_drop.decode.sampling import Sampling
from lora_drop.method.schedule import Schedule, baseline_schedule
from tests.support import graphs
from tests.support.decoding import PROMPT

GREEDY = Sampling()
RULES = [
    None, {}, {"refresh": "repair"}, {"refresh": "repair", "kv": "write"},
    {"reuse": "state", "part": "attention", "kv": "write"},
]  # fmt: skip


class Hurried(Lane):
    """Its decode passes are launched without a wait for the device."""

    def _launch(self, token):
        with graphs.Hostless():
            return super()._launch(token)


def events(decoder, schedule, runs_ahead, stop=(), sampling=GREEDY):
    """The steps of a lane without their times, and its state at the end."""
    decoder.runs_ahead = runs_ahead
    lane = (Hurried if runs_ahead else Lane)(
        decoder, torch.tensor([PROMPT]), schedule, None, sampling, 12, frozenset(stop)
    )
    steps = [dataclasses.replace(step, ms=0.0, logits=step.logits.tolist(), watched=None) for step in lane]
    state = lane.state
    return steps, lane.ended, state.position, state.kv.lengths, len(state.pending), dataclasses.asdict(state.refresher)


def test_drawing_a_token_never_waits_for_a_gpu():
    """Nor copies a number to it; on a CPU few candidates do, and give the same."""
    with FakeTensorMode():
        probs = torch.empty(3, 50_000, device="cuda")
        assert module._nucleus(probs, 0.9).shape == module._waits(3, 5, probs).shape == probs.shape
    probs = torch.randn(3, 50_000, generator=torch.Generator().manual_seed(1)).mul(3).softmax(-1)
    with pytest.MonkeyPatch.context() as patch:
        few = [module._nucleus(probs, top_p) for top_p in (0.1, 0.9, 0.999)]
        patch.setattr(module, "CANDIDATES", 50_000)
        assert all(torch.equal(module._nucleus(probs, p), one) for p, one in zip((0.1, 0.9, 0.999), few, strict=True))


@pytest.mark.parametrize("sampling", [GREEDY, Sampling(0.9, 0.8, 5)], ids=["greedy", "sampled"])
@pytest.mark.parametrize("rules", RULES)
def test_it_writes_and_holds_what_a_lane_does_that_waits_for_each_token(tiny, recorded, monkeypatch, rules, sampling):
    """To its length, and to a stop token at a step of each kind, after which the extra pass is undone."""
    dropping = baseline_schedule(tiny.num_layers) if rules is None else Schedule(3, tiny.num_layers, (2, 4), **rules)
    whole = events(recorded, dropping, False, sampling=sampling)
    monkeypatch.setattr(module, "CANDIDATES", 2**20)  # as on a GPU, where a second look would wait
    assert events(recorded, dropping, True, sampling=sampling) == whole
    text = [step.token_id for step in whole[0]]
    for stop in dict.fromkeys(text[1:8]):
        ahead = events(recorded, dropping, True, [stop], sampling)
        assert ahead == events(recorded, dropping, False, [stop], sampling)
        assert len(ahead[0]) == text.index(stop) + 1 and ahead[1] == "stop"
