"""A GPU is warmed up before anyone waits for it; afterwards a public server compiles nothing more."""

import copy
import dataclasses

import pytest

from lora_drop.decode.static.decoder import StaticWeights
from lora_drop.evaluation.measure.metrics import evaluate_free
from lora_drop.evaluation.measure.texts import Answers
from lora_drop.method.config import LoraDropConfig
from lora_drop.method.presets import Preset
from lora_drop.run import warm
from lora_drop.run.request import Request
from lora_drop.run.run import NOT_PREPARED, run
from lora_drop.run.trace.trace import gather
from tests.support import graphs

KNOWN = LoraDropConfig(period=3, drop_layers=(2, 4), refresh="repair", kv="write", accept=0.3)
OTHER = KNOWN.replace(drop_layers=(1, 4))


@pytest.fixture
def captured(tiny, monkeypatch):
    """The model on a CPU that captures, through the stub of graphs; its one preset is `KNOWN`."""
    graphs.install(monkeypatch)
    model = copy.deepcopy(tiny.model)
    loaded = dataclasses.replace(tiny, model=model, weights=StaticWeights.of(model))
    loaded.weights.captures = True
    monkeypatch.setattr(warm, "presets_of", lambda loaded: {"known": Preset("known", "Known", "", KNOWN)})
    return loaded


def texts(loaded, config):
    trace = gather(run(loaded, Request("Why?", config, 12, ignore_eos=True)))
    decoder, notes = trace.header.device["decoder"], trace.header.sampling["notes"]
    return {lane: trace.text(lane) for lane in trace.steps}, decoder, notes


@pytest.mark.parametrize("closed", [True, pytest.param(False, marks=pytest.mark.full)])
def test_what_was_not_warmed_up_is_eager_in_all_lanes_of_a_public_server(tiny, captured, capsys, closed):
    warm.warm_up(captured, closed)
    assert "10 minutes at most" in capsys.readouterr().err
    variants, made = set(captured.weights.variants), len(graphs.Graph.all)
    assert made
    expected = {config: texts(tiny, config)[0] for config in (KNOWN, OTHER)}
    for config in (KNOWN, KNOWN.replace(period=4, accept=0.5)):
        found, decoder, notes = texts(captured, config)
        assert "eager" not in decoder and NOT_PREPARED not in notes
    assert variants == captured.weights.variants
    made = len(graphs.Graph.all)
    evaluate_free(captured, OTHER, Answers([[1, 2, 3]], [[4, 5]]))  # as a sweep does
    assert (len(graphs.Graph.all) == made) == closed
    made = len(graphs.Graph.all)
    found, decoder, notes = texts(captured, OTHER)
    assert found == expected[OTHER]
    assert ("eager" in decoder, NOT_PREPARED in notes, len(graphs.Graph.all) == made) == (closed,) * 3
    assert texts(captured, KNOWN)[0] == expected[KNOWN]


def test_a_cpu_needs_no_warm_up(tiny, capsys):
    warm.warm_up(tiny)
    assert not capsys.readouterr().err
