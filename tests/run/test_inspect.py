"""The token inspector's second reading: against transformers' own hidden states, the audits, and the records."""

import dataclasses
import json

import pytest
import torch

from lora_drop.decode.static.decoder import StaticWeights
from lora_drop.errors import LoraDropError
from lora_drop.method.config import LoraDropConfig
from lora_drop.models.tokens import encode_prompt, piece
from lora_drop.run.inspect import AROUND, inspect, read_again, recorded_lane
from lora_drop.run.request import Request
from lora_drop.run.run import run
from lora_drop.run.trace.records import BASELINE, LORA_DROP, write_line
from lora_drop.run.trace.trace import Trace, gather, parse_trace
from lora_drop.run.wire import page_values
from tests.support.parts import full_bank
from tests.support.runs import JUDGED, about_step, taken_back

PROMPT = "Tell me something."
SINGLE = LoraDropConfig(period=4, drop_layers=(2, 4))
REPAIR = LoraDropConfig(period=4, drop_layers=(2, 4), refresh="repair", kv="write")


def decoders(loaded):
    """The model with each decoder: as it comes (native where there is a compiler), static, reference."""
    return {
        "own": loaded,
        "static": dataclasses.replace(loaded, weights=StaticWeights.of(loaded.model)),
        "reference": dataclasses.replace(loaded, weights=None),
    }


@pytest.fixture(scope="module", params=["own", "static", "reference"])
def model(request, tiny):
    return decoders(tiny)[request.param]


def trace_of(loaded, config, tokens=14, **settings) -> Trace:
    return gather(run(loaded, Request(PROMPT, config, tokens, ignore_eos=True, **settings)))


def looker(loaded, trace, lane=LORA_DROP):
    """What `inspect` says of a step; all steps are read at once."""
    window = read_again(loaded, trace, lane, 0)
    return lambda step: inspect(loaded, trace.header, about_step(trace, lane, step), window)


def same(ours, theirs, tolerance=2e-4):
    """Two fives: the same probabilities, and the same tokens where these are not too near to tell."""
    assert len(ours) == len(theirs)
    for k, ((text, chance), (other, expected)) in enumerate(zip(ours, theirs, strict=True)):
        assert chance == pytest.approx(expected, abs=tolerance)
        near = [abs(chance - theirs[n][1]) for n in (k - 1, k + 1) if 0 <= n < len(theirs)]
        assert text == other or min(near) < 2 * tolerance


def same_drift(found, audit, layers, tolerance=2e-5):
    """The drift of skipped layers is that of the run's audit."""
    for k, layer in enumerate(layers):
        assert found["layers"][layer]["drift"] == pytest.approx(audit.drift[k], abs=tolerance)


def five(loaded, logits):
    chances, ids = logits.softmax(-1).topk(5)
    return [[piece(loaded.tokenizer, i), float(p)] for p, i in zip(chances, ids.tolist(), strict=True)]


def test_the_full_models_figures_are_transformers_own(model):
    """Its five and its lens at each layer, on the lane's own text; the last layer's lens are its five."""
    trace = trace_of(model, SINGLE)
    prompt, tokens = encode_prompt(model.tokenizer, PROMPT), trace.token_ids(LORA_DROP)
    look = looker(model, trace)
    with torch.inference_mode():
        full = model.model(torch.tensor([prompt + tokens]), output_hidden_states=True)
        for step in (0, 1, 3, 4, 13):
            found, at = look(step), len(prompt) + step - 1
            same(found["full"], five(model, full.logits[0, at]))
            assert found["layers"][-1]["full_lens"] == found["full"]
            for i, layer in enumerate(found["layers"][:-1]):
                h = full.hidden_states[i + 1][0, at]
                same(layer["full_lens"], five(model, model.model.lm_head(model.model.model.norm(h))))


@pytest.mark.parametrize("config", [SINGLE, REPAIR], ids=["single", "repair"])
def test_the_lanes_figures_are_those_of_the_run(model, config):
    trace = trace_of(model, config)
    look = looker(model, trace)
    for step in range(14):
        found = look(step)
        same(found["layers"][-1]["lens"], found["top"][LORA_DROP]["tokens"])
        if step:
            same_drift(found, trace.audits[LORA_DROP][step], (2, 4))


@pytest.mark.parametrize("period", [3, 4])
def test_at_a_repaired_position_the_lens_is_the_full_models(model, period):
    """With rows that the static decoder pads, and without."""
    look = looker(model, trace_of(model, REPAIR.replace(period=period)))
    drifts = []
    for step in range(14):
        found = look(step)
        if found["kind"] != "lora":
            for layer in found["layers"]:
                assert layer["drift"] < 1e-5
                same(layer["lens"], layer["full_lens"])
        else:
            drifts.append(max(layer["drift"] for layer in found["layers"]))
            if found["refresh"]:  # the last ones were never repaired
                assert (
                    found["refresh"]["step"] == step // period * period + period
                    and step in found["refresh"]["repaired"]
                )
                assert found["refresh"]["drift"] < 1e-5
    assert min(drifts) > 1e-3


def test_with_corrections_and_a_screened_head_the_reading_is_the_runs(tiny, monkeypatch):
    bank = full_bank(tiny, "residual", layers=[2, 4])
    config = dataclasses.replace(REPAIR, head="screened")
    monkeypatch.setattr("lora_drop.run.request.find_bank", lambda *_: (bank, []))
    monkeypatch.setattr("lora_drop.run.inspect.find_bank", lambda *_: (bank, []))
    for where in ("run", "inspect"):
        monkeypatch.setattr(f"lora_drop.run.{where}.config_fingerprint", lambda *_: "f" * 16)
    trace = trace_of(tiny, config)
    one, two = (lane["config"] for lane in trace.header.lanes)
    assert "bank" not in one and two["bank"] == "f" * 16
    look = looker(tiny, trace)
    for step in range(1, 14):
        found = look(step)
        same_drift(found, trace.audits[LORA_DROP][step], (2, 4))
    monkeypatch.setattr("lora_drop.run.inspect.config_fingerprint", lambda *_: "0" * 16)
    with pytest.raises(LoraDropError, match="adapters have changed"):
        read_again(tiny, trace, LORA_DROP, 3)


def test_a_text_that_was_taken_back_in_part_reads_as_it_stands(model):
    trace = taken_back(model)
    rewinds = [one for one in trace.passes[LORA_DROP] if one.type == "rewind"]
    assert rewinds
    told = {about_step(trace, LORA_DROP, one.to + 1)["refresh"]["taken_back"] for one in rewinds}
    assert None not in told and any(told)
    look = looker(model, trace)
    for step in range(1, len(trace.steps[LORA_DROP])):
        same_drift(look(step), trace.audits[LORA_DROP][step], range(1, 5), 5e-5)
    last = about_step(trace, LORA_DROP, len(trace.steps[LORA_DROP]) - 1)["refresh"]
    assert last and (last["step"] is not None or "At the end" in last["text"])


def test_the_baselines_figures_are_the_full_models(tiny):
    trace = trace_of(tiny, SINGLE)
    apart = trace.summary.first_divergence
    at = about_step(trace, LORA_DROP, apart)
    assert at["top"][BASELINE]["tokens"] != at["top"][LORA_DROP]["tokens"]
    found = looker(tiny, trace, BASELINE)(apart)  # the full model itself
    assert found["top"][BASELINE]["tokens"] == found["full"] and max(x["drift"] for x in found["layers"]) == 0


def test_the_likeliest_tokens_are_in_the_file_and_not_on_the_live_wire(tiny):
    trace = trace_of(tiny, SINGLE, 4)
    step = trace.steps[LORA_DROP][2]
    line = json.loads(write_line(step))
    assert len(line["top"]) == 5 and line["top"] == sorted(line["top"], key=lambda one: -one[1])
    assert line["top"][0][0] == piece(tiny.tokenizer, step.token_id)  # greedy
    assert step.top not in page_values(step, [BASELINE, LORA_DROP])
    assert parse_trace(b"".join(write_line(one).encode() for one in trace.records())).steps == trace.steps


def test_a_long_run_keeps_the_steps_around_the_one_asked_for(tiny):
    trace = trace_of(tiny, REPAIR, 200, audit=False)
    window = read_again(tiny, trace, LORA_DROP, 130)
    assert window.start == 130 - AROUND and len(window.lane) == len(window.full) == 2 * AROUND + 1
    tokens = trace.token_ids(LORA_DROP)
    assert window.holds(130, tokens) and window.holds(66, tokens) and not window.holds(65, tokens)
    assert not window.holds(130, [1, *tokens[1:]])
    near = read_again(tiny, trace, LORA_DROP, 150)
    looks = [inspect(tiny, trace.header, about_step(trace, LORA_DROP, 140), one) for one in (near, window)]
    assert looks[0] == looks[1]
    asked = iter(range(1000))
    assert read_again(tiny, trace, LORA_DROP, 130, lambda: next(asked) > 40) is None


def changed(trace: Trace, lane=None, steps=None, **header) -> Trace:
    """A copy of a trace with another header, or other settings of its lane, or other steps."""
    lanes = [
        {**one, "config": {**one["config"], **(lane or {})} if one["id"] == LORA_DROP else one["config"]}
        for one in trace.header.lanes
    ]
    copy = Trace(dataclasses.replace(trace.header, **{"lanes": lanes, **header}))
    for own in trace.steps.values():
        for step in own:
            other = (steps or {}).get(step.step, {}) if step.lane == LORA_DROP else {}
            copy.add(dataclasses.replace(step, **other))
    return copy


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda t: {"model": {**t.header.model, "revision": "0" * 16}}, "weights .* are not those of the model here"),
        (lambda t: {"model": {"id": "x", "layers": 6, "dtype": "float32"}}, "unknown"),
        (lambda t: {"prompt": "Another one."}, "the prompt has"),
        (lambda t: {"lane": {"rank": 4, "adapters": "elsewhere"}}, "adapters elsewhere are not here"),
        (lambda t: {"lane": {"rank": 4, "adapters": "..", "bank": "0" * 16}}, "are not here"),
        (lambda t: {"lane": {"rank": 4, "bank": "0" * 16}}, "have changed since, or are gone"),
        (lambda t: {"lane": {"drop_layers": [1]}}, "skips other layers"),
        (lambda t: {"lane": {"reuse": "novel"}}, "reuse must be one of"),
        (lambda t: {"steps": {4: {"kind": "lora"}}}, "step 4 is not what"),
        (lambda t: {"steps": {3: {"kind": "refresh"}}}, "step 3 is not what"),
        (lambda t: {"steps": {5: {"token_id": 10**6}}}, "does not know"),
    ],
)
def test_what_has_changed_is_refused_in_one_line(tiny, change, says):
    trace = trace_of(tiny, REPAIR, 9)
    with pytest.raises(LoraDropError, match=says) as error:
        read_again(tiny, changed(trace, **change(trace)), LORA_DROP, 6)
    assert "\n" not in str(error.value)
    assert recorded_lane(tiny, changed(trace), LORA_DROP).schedule.period == 4


def test_a_gap_longer_than_the_period_is_refused_where_full_steps_are_free(tiny):
    trace = gather(run(tiny, Request("Why?", JUDGED, 12, ignore_eos=True)))
    steps = {step: {"kind": "lora", "rows": 1} for step in range(1, 12)}
    with pytest.raises(LoraDropError, match="step 4 is not what"):
        read_again(tiny, changed(trace, steps=steps), LORA_DROP, 6)
