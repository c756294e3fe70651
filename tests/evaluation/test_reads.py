"""One text gets one word for how it reads, on every tab: verdict, presets, Safe zone, dial, pins and exports."""

import dataclasses
import random

import pytest
import torch

from lora_drop.evaluation.measure import texts
from lora_drop.evaluation.measure.metrics import evaluate_free, read_target, regrets
from lora_drop.evaluation.measure.texts import own_answers
from lora_drop.method.config import LoraDropConfig
from lora_drop.method.quality import CRITERION, WORDS, collapse_at, repeated_share
from lora_drop.models.tokens import encode_prompt, encode_text
from lora_drop.paths import SHIPPED_PRESETS
from lora_drop.run.exports.html import wire_text
from lora_drop.run.report.compare import compared, side_of
from lora_drop.run.report.report import Report
from lora_drop.run.report.verdict import verdict
from lora_drop.run.request import Request
from lora_drop.run.results.files import SAMPLES
from lora_drop.run.results.preset_results import Measured, preset_words, verdict_of
from lora_drop.run.results.rows import group_of
from lora_drop.run.results.safe_zone import stops_of
from lora_drop.run.results.store import whole_setting
from lora_drop.run.run import run
from lora_drop.run.trace.records import BASELINE, LORA_DROP, write_line
from lora_drop.run.trace.trace import gather, parse_trace
from lora_drop.ui.safe_zone.views import dial_of, map_of
from tests.support.made import audit, gathered, header, step, summary

SPECIAL = ("Same text", "Goes in circles", "Refuses")  # what the verdict says in place of the word


def check_word(row, trace) -> str:
    """The word for a row of one text, which is the trace's."""
    word = verdict_of(row)
    is_lossless = whole_setting(row["config"])["accept"] == 1
    assert preset_words(row).split(",")[0] == ("same text" if is_lossless else word)
    about = {"model": {}, "device": {}, "data": {"own": {"prompts": 1}}}
    sweep = about | {"rows": [row]}
    shown = map_of(sweep, group_of(row))
    assert shown["criterion"] == CRITERION
    assert ("safe" in shown["cells"][0][0]["marks"]) == shown["safe"] == (word == WORDS["well"])
    (_, stop), dial = stops_of(Measured(), [], sweep), dial_of(stops_of(Measured(), [], sweep))
    assert f"on average over 1 prompt: {word}." in stop.words and stop.reads_well == (word == WORDS["well"])
    assert dial["criterion"] == CRITERION
    concluded = trace.summary.verdict
    assert WORDS[concluded["facts"]["reads"]] == word
    figure = next(one for one in concluded["figures"] if one["id"] == "reads")
    assert figure["value"] in (word.capitalize(), *SPECIAL) and CRITERION in figure["detail"]
    assert (
        concluded["facts"]["words"]["first"] is None or concluded["kind"] == "collapsed" or word in concluded["text"]
    )
    pins = compared({"x": side_of(trace)})
    assert (pins["runs"][0]["reads"], pins["criterion"]) == (word, CRITERION)
    again = parse_trace("".join(map(write_line, trace.records())).encode())
    assert verdict(Report.of(again)) == concluded and f'"value":"{figure["value"]}"' in wire_text(again)
    return word


def row_of(config, figures):
    speed = {"speedup": 1.1, "speedup_low": 1.09, "speedup_high": 1.11, "bound": 1.3, "kv_saved": 0.0}
    free = {f"free_{name}": value for name, value in figures.items()}
    return config.to_dict() | {"config": config.differences(), "adapters": "none", "layers_dropped": 2} | free | speed


@pytest.mark.full
def test_thirty_runs(tiny, monkeypatch):
    """Measured as presets are, and run: the same text, and the same word."""
    monkeypatch.setattr(texts, "ANSWER_TOKENS", 48)
    rng, words = random.Random(0), set()
    for i in range(30):
        rules = {"reuse": rng.choice(["state", "anchor", "residual", "skip"]), "period": rng.choice([2, 3, 4, 8])}
        exact = rng.choice([{}, {"refresh": "repair", "kv": "write", "accept": rng.choice([0.0, 0.3])}])
        config = LoraDropConfig(layers=(1, 4), drop_ratio=rng.choice([0.25, 0.5, 1.0]), **rules, **exact)
        prompt = f"Question {i}: {rng.random()}?"
        trace = gather(run(tiny, Request(prompt, config, 48)))
        figures = evaluate_free(tiny, config, own_answers(tiny, [prompt]))
        facts = trace.summary.verdict["facts"]
        assert facts["quality_loss"] == pytest.approx(figures["regret"], rel=1e-3, abs=1e-5)
        words.add(check_word(row_of(config, figures), trace))
    assert words == set(WORDS.values()), "the runs have all of them"


@pytest.mark.full
def test_the_stored_samples(bundled):
    samples = SAMPLES.read(SHIPPED_PRESETS / "samples.json")["samples"]
    own = {one["prompt"]: one["text"] for one in samples if one["lane"] == BASELINE}
    decoder, words = bundled.new_decoder(), set()
    for one in samples:
        if one["lane"] == BASELINE:
            continue
        prompt_ids = encode_prompt(bundled.tokenizer, one["prompt"])
        ids, full = (encode_text(bundled.tokenizer, text) for text in (one["text"], own[one["prompt"]]))
        losses = regrets(read_target(decoder, prompt_ids, ids), torch.tensor(ids))
        figures = {
            "texts": 1,
            "regret": float(losses.mean()),
            "repeated_4grams": repeated_share(ids),
            "repeated_4grams_baseline": repeated_share(full),
            "collapsed": int(collapse_at(ids) is not None),
        }
        words.add(check_word(row_of(LoraDropConfig(**one["config"]), figures), trace_of(ids, full, losses.tolist())))
    assert words == set(WORDS.values())


def trace_of(ids, full, losses):
    """A finished run whose lanes wrote these tokens."""
    lanes = {BASELINE: full, LORA_DROP: ids}
    steps = [
        step(lane, i, "prefill" if i == 0 else "refresh" if lane == BASELINE or i % 3 == 0 else "lora", 5.0, **token)
        for lane, tokens in lanes.items()
        for i, token in enumerate({"token_id": id_, "text": f"{id_} "} for id_ in tokens)
    ]
    audits = [audit(i, regret=loss) for i, loss in enumerate(losses)]
    trace = gathered(header(), *steps, *audits, summary())
    trace.summary = dataclasses.replace(trace.summary, verdict=verdict(Report.of(trace)))
    return trace
