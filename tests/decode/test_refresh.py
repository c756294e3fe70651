"""Adaptive refresh: off is as before, the extremes are known schedules, and in between every step follows the rule."""

import dataclasses
import functools
import itertools
import json

import pytest
import torch

from lora_drop.cli.main import main
from lora_drop.decode import refresh
from lora_drop.decode.lane import Lane
from lora_drop.decode.reference import ReferenceDecoder
from lora_drop.decode.sampling import Sampling
from lora_drop.errors import LoraDropError
from lora_drop.evaluation.measure import metrics
from lora_drop.evaluation.measure.texts import Texts
from lora_drop.method.config import LoraDropConfig
from lora_drop.method.cost import BytesRead, kv_bytes, speed_bound
from lora_drop.method.schedule import KV_RULES, PARTS, REUSE_RULES, Schedule
from lora_drop.models.tokens import encode_prompt
from lora_drop.run.inspect import recorded_lane
from lora_drop.run.request import Request
from lora_drop.run.run import run
from lora_drop.run.trace.records import BASELINE, LORA_DROP
from lora_drop.run.trace.trace import gather
from tests.support import decoding
from tests.support.decoding import PROMPT
from tests.support.naive import naive_logits

HUGE = 1e6
random_bank = functools.partial(decoding.random_bank, layers=[2, 3, 4])


def lane(loaded, schedule, bank=None, tokens=40):
    return Lane(ReferenceDecoder(loaded.model), torch.tensor([PROMPT]), schedule, bank, Sampling(), tokens)


def decoded(loaded, schedule, bank=None, tokens=40):
    """The steps of a lane, and its state after them."""
    one = lane(loaded, schedule, bank, tokens)
    return list(one), one.state


def ids(steps):
    return [step.token_id for step in steps]


def kinds(steps):
    return [step.kind for step in steps]


def adaptive(loaded, period=7, entropy=None, dropped=(2, 3, 4), **rules):
    return Schedule(period, loaded.num_layers, dropped, refresh_entropy=entropy, **rules)


def median(values):
    values = sorted(values)
    return values[len(values) // 2]


def test_the_counts_of_a_fixed_schedule():
    refresher = refresh.Refresher(Schedule(3, 4, (2,)))
    assert (refresher.step, refresher.kind, refresher.trigger) == (0, "prefill", None)
    seen = []
    for _ in range(7):
        full = refresher.begin()
        assert full == (refresher.kind == "refresh")
        seen.append((refresher.step, full, refresher.last_refresh, refresher.refreshes))
    assert seen == [
        (1, False, 0, 0), (2, False, 0, 0), (3, True, 3, 1), (4, False, 3, 1), (5, False, 3, 1), (6, True, 6, 2),
        (7, False, 6, 2),
    ]  # fmt: skip
    assert all(refresh.Refresher(Schedule(9, 4, ())).begin() for _ in range(3)), "nothing to skip"


@pytest.mark.parametrize(("steps", "back", "refreshes"), [(5, 4, 2), (5, 5, 2), (6, 4, 2), (6, 6, 2)])
def test_a_step_that_a_pass_goes_back_to_is_the_last_refresh(steps, back, refreshes):
    """Period 3: after step 5, a LoRA step, the pass has begun no step of its own; after step 6 it is that step."""
    refresher = refresh.Refresher(Schedule(3, 4, (2,)))
    for _ in range(steps):
        refresher.begin()
    refresher.trigger = "entropy"
    refresher.back_to(back)
    assert (refresher.step, refresher.last_refresh, refresher.kind, refresher.trigger) == (back, back, "refresh", None)
    assert refresher.refreshes == refreshes
    assert [refresher.begin() for _ in range(3)] == [False, False, True]


def test_the_entropy_is_the_decoders_or_computed():
    refresher = refresh.Refresher(Schedule(9, 4, (2,), refresh_entropy=2.0))
    refresher.end(torch.zeros(1, 8))
    assert refresher.entropy == pytest.approx(2.0794, abs=1e-4)
    assert refresher.begin() and refresher.trigger == "entropy"
    refresher.end(torch.zeros(1, 8), 0.0)
    assert refresher.entropy == 0.0 and not refresher.begin() and refresher.trigger is None


@pytest.mark.parametrize(("entropy", "fires"), [(0.5, True), (9.0, True), (0.49, False), (None, False)])
def test_a_threshold_that_is_reached_fires(entropy, fires):
    refresher = refresh.Refresher(Schedule(9, 4, (2,), refresh_entropy=0.5), entropy=entropy)
    assert refresher.begin() == fires and refresher.trigger == ("entropy" if fires else None)
    assert not refresh.Refresher(Schedule(9, 4, (2,)), entropy=entropy).begin()


def test_a_step_that_is_due_has_no_trigger():
    refresher = refresh.Refresher(Schedule(2, 4, (2,), refresh_entropy=1.0))
    assert not refresher.begin()
    refresher.end(torch.zeros(1, 8), 5.0)
    assert refresher.begin() and refresher.trigger is None


def test_off_is_the_fixed_schedule_and_looks_at_nothing(any_tiny, monkeypatch):
    # Nothing may wait for the device.
    monkeypatch.setattr(refresh, "entropy", None)
    bank = random_bank(any_tiny)
    schedule = adaptive(any_tiny, period=3)
    steps, state = decoded(any_tiny, schedule, bank)
    assert kinds(steps) == ["prefill", *("lora" if s % 3 else "refresh" for s in range(1, 40))]
    assert state.refresher.entropy is None and not any(step.trigger for step in steps)
    expected = naive_logits(any_tiny.model, PROMPT + ids(steps)[:-1], len(PROMPT), schedule, bank)
    assert ids(steps) == expected.argmax(-1).tolist()


@pytest.mark.parametrize("reuse", REUSE_RULES)
def test_an_entropy_threshold_of_0_is_the_baseline_exactly(any_tiny, reuse):
    steps, state = decoded(any_tiny, adaptive(any_tiny, entropy=0.0, reuse=reuse), random_bank(any_tiny, reuse))
    plain, _ = decoded(any_tiny, Schedule(1, any_tiny.num_layers, ()))
    assert kinds(steps) == ["prefill"] + ["refresh"] * 39
    assert [step.trigger for step in steps] == [None] + ["entropy"] * 39
    assert all(torch.equal(one.logits, other.logits) for one, other in zip(steps, plain, strict=True))
    assert ids(steps) == ids(plain) and state.refresher.refreshes == 39
    assert len(set(state.kv.lengths)) == 1


def test_a_trigger_fires_at_the_step_after_the_one_that_reached_it(any_tiny):
    bank = random_bank(any_tiny)
    steps, _ = decoded(any_tiny, adaptive(any_tiny, entropy=HUGE), bank, 60)
    assert kinds(steps)[1:] == ["lora" if s % 7 else "refresh" for s in range(1, 60)], "no threshold was reached"
    entropy = sorted(step.entropy for step in steps)[48]
    steps, state = decoded(any_tiny, adaptive(any_tiny, entropy=entropy), bank, 60)
    gap = 0
    for before, step in itertools.pairwise(steps):
        gap += 1
        early = "entropy" if before.entropy >= entropy else None
        full = gap == 7 or early is not None
        assert (step.kind, step.trigger) == ("refresh" if full else "lora", None if gap == 7 else early)
        assert step.active == [full or i not in (2, 3, 4) for i in range(6)]
        assert step.entropy == refresh.entropy(step.logits)
        gap = 0 if full else gap
    assert {step.trigger for step in steps} == {None, "entropy"} and "lora" in kinds(steps)
    assert state.refresher.refreshes == kinds(steps).count("refresh")


@pytest.mark.parametrize(("reuse", "part", "kv"), itertools.product(REUSE_RULES, PARTS, KV_RULES))
def test_the_logits_are_the_formulas(tiny, reuse, part, kv):
    """Against the naive decoder, given which steps were full: what is reused, and the K/V."""
    bank = random_bank(tiny, reuse, part)
    rules = {"reuse": reuse, "part": part, "kv": kv}
    steps, _ = decoded(tiny, adaptive(tiny, **rules), bank)
    schedule = adaptive(tiny, entropy=median(step.entropy for step in steps), **rules)
    steps, state = decoded(tiny, schedule, bank)
    full = [step.step for step in steps if step.kind == "refresh"]
    assert any(step.trigger == "entropy" for step in steps) and full != list(range(7, 40, 7))
    expected = naive_logits(tiny.model, PROMPT + ids(steps)[:-1], len(PROMPT), schedule, bank, set(full))
    torch.testing.assert_close(torch.cat([step.logits for step in steps]), expected, rtol=1e-4, atol=2e-4)
    written = [len(PROMPT) + (len(full) if kv == "skip" and i in (2, 3, 4) else 39) for i in range(6)]
    assert state.kv.lengths == written
    assert state.kv.nbytes == kv_bytes(tiny.shape, schedule, len(PROMPT), 39, 4, refreshes=len(full))


@pytest.mark.parametrize("extra", range(4))
def test_a_run_by_position_is_told_as_it_happened(tiny, extra):
    """Steps, audits, K/V, bound and the reading again of a run, on prompts of each length modulo 4."""
    config = LoraDropConfig(period=8, drop_layers=(1, 2, 3), reuse="anchor", refresh_position=4)
    trace = gather(run(tiny, Request("Hello" + "!" * extra, config, 34, ignore_eos=True)))
    prompt, schedule = trace.header.prompt_tokens, config.schedule_for(tiny.num_layers)
    full = [gen for gen in range(1, 34) if gen % 8 == 0 or (prompt - 1 + gen) % 4 == 0]
    steps = trace.steps[LORA_DROP]
    assert [step.step for step in steps if step.kind == "refresh"] == full
    assert {step.trigger for step in steps} == {None}
    assert [audit.kind for audit in trace.quality[LORA_DROP].values()] == kinds(steps)
    for step in steps:
        assert step.kv_bytes == kv_bytes(tiny.shape, schedule, prompt, step.step, 4)
    assert trace.summary.bound == pytest.approx(speed_bound(tiny.shape, schedule, 33, prompt), abs=1e-4)
    assert trace.summary.lanes[LORA_DROP]["refreshes"] == len(full)
    assert recorded_lane(tiny, trace, LORA_DROP).schedule == schedule
    wrong = dataclasses.replace(steps[full[0]], kind="lora")
    trace.steps[LORA_DROP][full[0]] = wrong
    with pytest.raises(LoraDropError, match=f"step {full[0]} is not what this lane's schedule says"):
        recorded_lane(tiny, trace, LORA_DROP)


@pytest.fixture(scope="module")
def early(tiny):
    """A request whose entropies reach the threshold at half of the steps, and the trace of its run."""
    request = Request("Tell me something.", LoraDropConfig(period=6, drop_ratio=1.0), 50, ignore_eos=True)
    threshold = median(step.entropy for step in gather(run(tiny, request)).steps[LORA_DROP])
    config = dataclasses.replace(request.config, refresh_entropy=threshold)
    request = dataclasses.replace(request, config=config)
    return request, gather(run(tiny, request))


def test_evaluate_refreshes_where_the_free_run_does(tiny, early):
    request, trace = early
    steps, taken = trace.steps[LORA_DROP], []
    assert {"entropy", None} == {step.trigger for step in steps}
    texts = Texts([(encode_prompt(tiny.tokenizer, request.prompt), ids(steps))])
    result = metrics.evaluate(
        tiny, request.config, texts, after_step=lambda now: taken.append((now.kind, now.trigger))
    )
    assert taken == [(step.kind, step.trigger) for step in steps[1:]]
    count = kinds(steps).count("refresh")
    assert result["config"]["refreshes"] == count and result["config"]["decode_steps"] == 49
    assert result["config"]["average_period"] == 49 / count
    assert result["lora_steps"]["count"] == kinds(steps).count("lora")


def test_a_run_counts_with_the_refreshes_that_happened(tiny, early):
    request, trace = early
    schedule, steps = request.config.schedule_for(tiny.num_layers), trace.steps[LORA_DROP]
    full = [step.step for step in steps if step.kind == "refresh"]
    assert full != list(range(6, 50, 6))
    for step in steps:
        held = sum(s <= step.step for s in full)
        assert step.kv_bytes == kv_bytes(tiny.shape, schedule, trace.header.prompt_tokens, step.step, 4, held)
    read = BytesRead(tiny.shape, schedule, trace.header.prompt_tokens)
    for step in range(1, 50):
        read.step(step, "refresh" if step in full else "lora")
    longest = speed_bound(tiny.shape, schedule, 49, trace.header.prompt_tokens)
    assert trace.summary.bound == pytest.approx(read.bound, abs=1e-4) and read.bound < longest
    figures = trace.summary.lanes
    assert figures[LORA_DROP]["refreshes"] == len(full)
    assert figures[LORA_DROP]["average_period"] == pytest.approx(49 / len(full), abs=1e-4)
    assert (figures[BASELINE]["refreshes"], figures[BASELINE]["average_period"]) == (49, 1.0)
    assert sorted(trace.audits[LORA_DROP]) == list(range(1, 50))
    alone = gather(run(tiny, dataclasses.replace(request, audit=False)))
    assert alone.token_ids(LORA_DROP) == trace.token_ids(LORA_DROP)


RUN = ["run", "--prompt", "Hello", "--model", "random:tiny-llama", "--dtype", "float32", "--max-new-tokens", "20"]


def test_on_the_command_line(tiny, capsys, tmp_path):
    path = tmp_path / "run.jsonl"
    argv = [*RUN, "--ignore-eos", "--drop-ratio", "1", "--period", "6", "--refresh-entropy"]
    assert main([*argv, "0", "--trace", str(path), "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["baseline"]["token_ids"] == result["lora_drop"]["token_ids"]
    assert result["config"]["refresh_entropy"] == 0
    assert (result["config"]["refreshes"], result["config"]["average_period"]) == (19, 1.0)
    assert result["bound"] == 1.0 and result["top1_agreement"] is None
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    early = [line for line in lines if "trigger" in line]
    assert len(early) == 19 and {line["trigger"] for line in early} == {"entropy"}
    assert main(["replay", str(path), "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == result
    assert main(["replay", str(path)]) == 0
    assert "19 of 19 full steps came early" in capsys.readouterr().out
    for value in ("-1", "nan", "inf"):
        assert main([*RUN, "--refresh-entropy", value]) == 2
        assert "must be a finite number from 0" in capsys.readouterr().err


def test_old_traces_still_read(tiny, capsys, tmp_path):
    """A trace from before early refreshes: no thresholds in its config, no pace in its summary."""
    path = tmp_path / "old.jsonl"
    assert main([*RUN, "--ignore-eos", "--drop-ratio", "1", "--trace", str(path), "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    for config in (*(one["config"] for one in lines[0]["lanes"]), result["config"]):
        del config["refresh_entropy"]
    for name in ("refreshes", "average_period"):
        for figures in lines[-1]["lanes"].values():
            del figures[name]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert main(["replay", str(path), "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == result
