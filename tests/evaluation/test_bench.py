"""The bench: the contract's keys, bytes counted from the tensors, one line for a mistake. Times are not judged."""

import dataclasses
import json
import os

import pytest
import torch

from lora_drop.adapters.bank import AdapterBank
from lora_drop.cli.main import main
from lora_drop.decode.head import screen
from lora_drop.decode.native.loader import library
from lora_drop.errors import LoraDropError
from lora_drop.evaluation.measure import bench_reference
from lora_drop.evaluation.measure.bench import bench, beside, median_ms, rate_of, time_lanes
from lora_drop.evaluation.measure.bench_reference import gguf_of, hf_generate, isolated
from lora_drop.evaluation.measure.pairs import read_prompt_set
from lora_drop.method.config import LoraDropConfig
from lora_drop.method.cost import kv_bytes, speed_bound, step_bytes
from lora_drop.method.presets import PRESETS, Presets
from lora_drop.method.schedule import baseline_schedule
from lora_drop.models.load import load_model
from lora_drop.run.request import LanePlan, baseline_lane
from lora_drop.run.trace.records import BASELINE, LORA_DROP, JudgeRecord, RewindRecord, StepRecord
from tests.support import ROOT

TINY = ["bench", "--model", "random:tiny-llama", "--dtype", "float32", "--rounds", "2"]
SMALL = ["--prompt-tokens", "9", "--new-tokens", "12"]
CONTRACT = {
    *("device", "model", "dtype", "baseline_tokens_per_second", "lora_drop_tokens_per_second"),
    *("hf_generate_tokens_per_second", "speedup", "bound", "speedup_over_bound", "baseline_gb_per_second"),
    *("kv_bytes_baseline", "kv_bytes_lora_drop", "config", "runs"),
}


@pytest.fixture(autouse=True)
def small_bandwidth(monkeypatch):
    monkeypatch.setattr("lora_drop.evaluation.measure.bench.BANDWIDTH_BYTES", 2**20)


@pytest.fixture
def in_process(monkeypatch):
    """Transformers' `generate` in this process: its own one would import torch again."""
    monkeypatch.setattr(bench_reference, "isolated", lambda function, *args: hf_generate(*args))


def test_the_contracts_keys_with_transformers_beside(in_process, capsys):
    assert main([*TINY, *SMALL, "--period", "3", "--drop-ratio", "1", "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert result.keys() >= CONTRACT
    assert all(result[name] is None or result[name] > 0 for name in CONTRACT if "per_second" in name)
    assert len(result["runs"]) == 2
    assert result["speedup_over_bound"] == pytest.approx(result["speedup"] / result["bound"])
    assert result["device"]["decoder"] and ("kernels" in result["device"]) == (library() is not None)
    assert result["config"]["dropped"] == [3, 4]


def test_bytes_and_bound_are_those_of_the_run(tiny):
    config = LoraDropConfig(period=3, drop_ratio=1.0)
    result = bench(tiny, config, prompt_tokens=9, new_tokens=20, rounds=2)
    schedule = config.schedule_for(tiny.num_layers)
    assert result["kv_bytes_lora_drop"] == kv_bytes(tiny.shape, schedule, 9, 19, 4)
    assert result["kv_bytes_baseline"] == kv_bytes(tiny.shape, baseline_schedule(tiny.num_layers), 9, 19, 4)
    assert result["bound"] == speed_bound(tiny.shape, schedule, 19, 9)
    for lane in ("baseline", "lora_drop"):
        block = 64 * tiny.shape.kv_per_token * 4 * tiny.num_layers
        spare = result[f"kv_allocated_bytes_{lane}"] - result[f"kv_bytes_{lane}"]
        assert 0 <= spare < block
    low, high = result["speedup_interval"]
    assert low <= high and result["head_only"] is None, "without adapters there is no screened head"
    assert result["rows_cost"].keys() == {"3", "4", "8"}
    assert result["token_cost"] is None, "its full steps repair nothing"
    assert result["accepted"] is None and result["config"]["prompts"] == []


def test_the_full_model_with_the_screened_head_is_a_row_of_its_own(tiny, tmp_path):
    torch.manual_seed(1)
    bank = AdapterBank.new([3, 4], tiny.shape.hidden_size, rank=2)
    head = tiny.model.get_output_embeddings().weight
    bank.head = screen(head, torch.eye(tiny.shape.hidden_size), 8, 16)
    bank.revision, bank.num_layers = tiny.revision, tiny.num_layers
    bank.save(tmp_path / "bank")
    config = LoraDropConfig(period=3, adapters=str(tmp_path / "bank"))
    alone = bench(tiny, config, prompt_tokens=9, new_tokens=12, rounds=1)["head_only"]
    assert alone["bound"] > 1
    assert bench(tiny, config.replace(adapters="none"), 9, 12, 1)["head_only"] is None


def test_a_setting_that_depends_on_the_text_is_timed_on_real_prompts(tiny, monkeypatch):
    monkeypatch.setattr("lora_drop.evaluation.measure.bench.rows_cost", lambda *_: {"4": 1.6})
    trained = dataclasses.replace(tiny, id="trained", weights=None)
    config = LoraDropConfig(period=3, drop_ratio=1.0, refresh="repair", kv="write", accept=0.5, adapters="none")
    result = bench(trained, config, new_tokens=12, rounds=1)
    assert result["config"]["prompts"] == list(read_prompt_set(limit=4).texts) and 0 <= result["accepted"] <= 1
    assert result["token_cost"] == pytest.approx((2 * result["lora_cost"] + 1 + 2 * result["row_cost"]) / 3)
    fixed = bench(tiny, LoraDropConfig(period=3), new_tokens=12, rounds=1, prompts=["Why?"])
    assert fixed["config"]["prompts"] == ["Why?"]


def test_a_prompts_file_and_transformers_own_drafts(tmp_path, capsys, monkeypatch):
    asked = []
    monkeypatch.setattr("lora_drop.evaluation.measure.bench_reference.isolated", lambda *args: asked.append(args))
    (tmp_path / "p.jsonl").write_text('{"prompt": "Why?"}\n')
    files = ["--prompts", str(tmp_path / "p.jsonl")]
    argv = [*TINY[:-1], "1", "--new-tokens", "8", *files, "--refresh", "repair", "--kv", "write", "--json"]
    monkeypatch.setattr("lora_drop.evaluation.measure.bench._prompts_for", lambda loaded, plan: ())
    assert main([*argv, "--accept", "1"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["hf_prompt_lookup_tokens_per_second"] is None and result["config"]["prompts"] == ["Why?"]
    assert [(args[6], args[7]) for args in asked] == [(["Why?"], None), (["Why?"], 10)]


def test_transformers_prompt_lookup_runs_in_a_process_of_its_own():
    row = isolated("hf_generate", "random:tiny-llama", "cpu", "float32", 9, 8, ["Why?"], 4)
    assert row.keys() == {"tokens_per_second", "dtype"} and row["dtype"] == "float32"


def test_a_rate_at_which_the_weights_were_not_read_is_none(monkeypatch):
    """1 s for eight tokens and 0.3 s for the first one: 10 tokens/s."""
    monkeypatch.setattr(bench_reference, "_timed", lambda loaded, ids, count, lookup: {8: 1.0, 1: 0.3}[count])
    call = "random:tiny-llama", "cpu", "float32", 9, 8, ["Why?"]
    assert hf_generate(*call)["tokens_per_second"] == pytest.approx(10)
    slow = 5e-9 * step_bytes(load_model(*call[:3]).shape, baseline_schedule(6), 1, 1, 4)  # 5 steps/s
    assert hf_generate(*call, None, slow)["tokens_per_second"] is None
    assert hf_generate(*call, 1, 1.01 * slow)["tokens_per_second"] == pytest.approx(10), "two tokens a step"


@pytest.fixture(params=[0, -1], ids=["stands still", "runs backwards"])
def no_time(request, set_clocks):
    """Clocks all of whose differences are 0, or below."""
    set_clocks(request.param)


def timed_figures(value):
    """Every figure of a clock in a result, at any depth."""
    if isinstance(value, list):
        return [figure for one in value for figure in timed_figures(one)]
    if not isinstance(value, dict):
        return []
    named = [figure for name, figure in value.items() if any(word in name for word in TIMED)]
    return [one for one in named if not isinstance(one, dict)] + timed_figures([*value.values()])


TIMED = ("per_second", "speedup", "first_token_ms", "row_cost", "lora_cost", "token_cost", "outside", "share_of")


def test_without_a_difference_of_times_bench_says_null(no_time, in_process, monkeypatch, capsys):
    argv = [*TINY[:-1], "1", *SMALL, "--period", "3", "--refresh", "repair", "--kv", "write"]
    assert main([*argv, "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    figures = timed_figures(result)
    figures += result["rows_cost"].values()
    assert len(figures) > 15 and set(figures) == {None}
    monkeypatch.setattr("lora_drop.evaluation.measure.bench.bench", lambda *_: result)
    monkeypatch.setattr(bench_reference, "isolated", lambda *_: {"tokens_per_second": None, "dtype": "float32"})
    assert main(argv) == 0
    out, err = capsys.readouterr()
    (line,) = (line for line in out.splitlines() if "too noisy" in line)
    assert line.startswith("too noisy to time: the baseline, LoRA-Drop, the speedup") and "--rounds" in line
    assert err.count("transformers' generate is too noisy to time here: raise --new-tokens.") == 2


def test_without_a_difference_of_times_the_other_measurements_say_null(no_time, data, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("lora_drop.evaluation.measure.calibrate.LEAST_TOKENS", 1)
    monkeypatch.setattr("lora_drop.run.results.calibration.calibrations", lambda: tmp_path / "speeds")
    monkeypatch.setattr("lora_drop.evaluation.presets.presets_of", lambda *_: Presets([PRESETS["fast"]]))
    (tmp_path / "asked.jsonl").write_text('{"prompt": "Why?"}\n')
    asked, fields = str(tmp_path / "asked.jsonl"), ["--data", str(data), "--prompt-field", "q"]
    commands = {
        "calibrate": ["--seconds", "0.01"],
        "compare": [*fields, "--methods", "exit:4", "--max-new-tokens", "6", "--out", str(tmp_path / "c")],
        "presets": [*fields, "--target-field", "a", "--prompts", asked, "--out", str(tmp_path / "p")],
    }
    for name, options in commands.items():
        for form in ([], ["--json"]):
            assert main([name, "--model", "random:tiny-llama", "--dtype", "float32", *options, *form]) == 0
        result = json.loads(capsys.readouterr().out.splitlines()[-1])
        figures = timed_figures(result["rows"])
        assert figures and set(figures) == {None}, name


def test_the_table_for_people(capsys):
    assert main([*TINY, *SMALL, "--no-hf"]) == 0
    out = capsys.readouterr().out
    assert "baseline" in out and "LoRA-Drop" in out and "bound" in out and "transformers" not in out


def test_a_run_that_does_not_fit_is_one_line(tiny, monkeypatch):
    def full(*args, **kwargs):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr("lora_drop.decode.reference.ReferenceDecoder.read_prompt", full)
    with pytest.raises(LoraDropError, match="ran out of memory .* ask for fewer tokens"):
        bench(tiny, LoraDropConfig(), prompt_tokens=9, new_tokens=12, rounds=1)


LLAMA = """
import itertools, os, time
time.perf_counter = itertools.count().__next__  # each look at the clock takes a second
class Llama:
    def __init__(self, path, n_ctx, n_threads, n_threads_batch, verbose):
        if not path.endswith(".gguf") or n_ctx != 17 or verbose:  # no assert: PYTHONOPTIMIZE would take it away
            raise ValueError("not what it is called with")
        if os.environ["OMP_WAIT_POLICY"] != "active":  # what is best for it, whatever this program waits by
            raise ValueError("its threads sleep")
    def reset(self): self.read = 0
    def eval(self, tokens): self.read += len(tokens)
    def sample(self, temp): return {(0.0, True): 7}[temp, self.read >= 9]
"""


@pytest.mark.full
def test_llama_cpp_is_beside_it_where_it_is_here(tmp_path, monkeypatch):
    """A stub in its place, in the process of its own: the same tokens, one at a time, prefill left out."""
    (tmp_path / "llama_cpp.py").write_text(LLAMA)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert gguf_of("model.gguf", str(tmp_path / "model.gguf"), "cpu") is None
    monkeypatch.setattr("importlib.util.find_spec", lambda name: name)
    path = gguf_of("model.gguf", str(tmp_path / "model.gguf"), "cpu")
    assert path == tmp_path / "model.gguf" and gguf_of("random:tiny-llama", "random:tiny-llama", "cpu") is None
    assert gguf_of("model.gguf", str(path), "cuda") is None
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join((str(tmp_path), str(ROOT))))
    monkeypatch.setenv("OMP_WAIT_POLICY", "passive")
    assert isolated("llama_generate", str(path), "random:tiny-llama", 9, 8, [], 1) == 7
    refused = isolated("llama_generate", str(path), "random:tiny-llama", 12, 8, [], 1)
    assert refused is None  # by the stub: no figure, no crash


# ---- timed lanes: what their passes say, tokens taken back included ----


PROMPT = [5, 99, 17, 42, 200]


def timed(tiny, tokens=20, **settings):
    reference = dataclasses.replace(tiny, weights=None)
    config = LoraDropConfig(drop_ratio=1.0, adapters="none", **settings)
    schedule = config.schedule_for(tiny.num_layers)
    lanes = {BASELINE: baseline_lane(tiny.num_layers), LORA_DROP: LanePlan("", config, schedule)}
    return time_lanes(reference, lanes, PROMPT, tokens)


def test_every_step_of_both_lanes_is_there(tiny):
    report = timed(tiny, period=3)
    for name, lane in report.lanes.items():
        assert [one.step for one in lane.passes] == list(range(20))
        ms = report.trace.summary.lanes[name]["decode_ms"]
        assert sum(one.ms for one in lane.passes[1:]) == pytest.approx(ms)
        assert rate_of([report, report], name) == pytest.approx(1000 * 19 / ms)
    assert set(median_ms([report], LORA_DROP)) == {"lora", "refresh"}
    assert set(median_ms([report], BASELINE)) == {"refresh"}
    assert beside([report], LORA_DROP)["bound"] == speed_bound(tiny.shape, report.lanes[LORA_DROP].schedule, 19, 5)
    low, high = beside([report, report], LORA_DROP)["speedup_interval"]
    assert low <= high and beside([report], LORA_DROP)["accepted"] is None


def test_passes_for_rejected_tokens_count(tiny):
    report = timed(tiny, period=4, refresh="repair", kv="write", accept=1.0)
    lane = report.lanes[LORA_DROP]
    assert beside([report], LORA_DROP)["accepted"] < 1, "the full model rejects some drafts of the untrained rule"
    assert any(isinstance(one, RewindRecord) for one in lane.passes)
    assert report.trace.token_ids(LORA_DROP) == report.trace.token_ids(BASELINE)
    ran = [one for one in lane.passes if isinstance(one, (StepRecord, JudgeRecord))]
    assert len(ran) > 20 and rate_of([report], LORA_DROP) == pytest.approx(19000 / sum(one.ms for one in ran[1:]))
    all_kept = speed_bound(tiny.shape, lane.schedule, 19, 5)
    assert beside([report], LORA_DROP)["bound"] < all_kept, "the bytes of rejected tokens were read for nothing"


def test_a_speedup_is_that_of_what_both_did_at_the_same_time(tiny):
    report = timed(tiny, period=3)
    rates = [rate_of([report], name) for name in (LORA_DROP, BASELINE)]

    def speedup(*runs):
        figures = beside(runs, LORA_DROP)
        low, high = figures["speedup_interval"]
        assert low <= figures["speedup"] <= high
        return figures["speedup"]

    before = speedup(report)
    assert before == pytest.approx(rates[0] / rates[1], rel=0.05)
    lane = report.lanes[BASELINE]
    lane.steps.append(dataclasses.replace(lane.steps[-1], step=20, ms=1e6))  # after the other lane had ended
    lane.decode_ms += 1e6
    lane._ends.append((lane.standing, lane.decode_ms))
    assert speedup(report) == before
    assert speedup(*[report] * 8) == pytest.approx(rates[0] / rates[1], abs=1e-4), "equal prompts have no spread"
