"""The frontier of methods: what is searched, what is reported, who wins; and the stored one of the bundled model."""

import re

import pytest

from lora_drop.evaluation import rivals
from lora_drop.evaluation.measure import protocol
from lora_drop.evaluation.measure.bench import time_lanes
from lora_drop.evaluation.measure.pairs import PromptSet
from lora_drop.method.config import LoraDropConfig
from lora_drop.method.methods import METHODS
from lora_drop.paths import SHIPPED_METHODS
from lora_drop.run.exports.figures.methods import PICTURE, frontier_picture
from lora_drop.run.request import Request, plan
from lora_drop.run.results.compared import accepted_words, repeats_words, reported, winner_words
from lora_drop.run.results.files import COMPARE
from lora_drop.run.results.prompts import HELD_OUT
from scripts import methods_frontier
from tests.support import ROOT

PROMPTS, OTHERS = (
    PromptSet(("a b a b", "c d"), ("chat", "code"), {"file": "x", "sha256": "0", "prompts": 2}),
    ["e f e f"],
)


def test_values_are_searched_on_other_prompts_and_a_row_is_measured_once(tiny, tmp_path, monkeypatch):
    seen = []
    measure = rivals.measure_lanes

    def watched(loaded, lanes, prompts, *more):
        seen.extend((name, prompts.texts) for name in lanes)
        return measure(loaded, lanes, prompts, *more)

    monkeypatch.setattr(rivals, "measure_lanes", watched)
    call = tiny, ["draft-verify", "exit:4", "layerskip:2:1"], PROMPTS, OTHERS, tmp_path, 6
    content = rivals.compare_methods(*call)
    searched = [name.removeprefix("search ") for name, prompts in seen if prompts == tuple(OTHERS)]
    tried = content["searches"]["draft-verify"]
    assert searched == rivals._best(tried) and content["searches"].keys() == {"draft-verify"}
    assert len(tried) == 3 * 4, "the layers by the drafts: this model has no screened head"
    assert [row["speedup"] for row in tried] == sorted((row["speedup"] for row in tried), reverse=True)
    rows = {row["method"]: row for row in reported(content)}
    best = max((row for row in content["rows"] if row["is_search"]), key=lambda row: row["speedup"] or 0)
    assert {"exit:4", "layerskip:2:1", best["method"], "draft-verify:2:8"} == rows.keys()
    assert all(row["regret"] == 0 and row["same_texts"] == 2 for name, row in rows.items() if "exit" not in name)
    assert rows["exit:4"]["regret"] > 0 and rows["exit:4"]["kv_saved"] == pytest.approx(1 / 3)
    assert rows["exit:4"]["layer_runs"] == 4
    assert len({row["baseline_tokens_per_second"] for row in rows.values()}) == 1, "all beside one run of it"
    count = len(seen)
    assert rivals.compare_methods(*call)["rows"] == content["rows"] and len(seen) == count
    assert (tmp_path / PICTURE).read_text() == frontier_picture(content)


def test_a_stopped_comparison_goes_on_with_the_next_prompt(tiny, tmp_path, monkeypatch):
    counted, count = [], protocol._counts
    monkeypatch.setattr(protocol, "_counts", lambda *of: counted.append(of[2]) or count(*of))

    def stop(done, total):
        if (done, total) == (1, len(PROMPTS.texts)):
            raise KeyboardInterrupt

    call = tiny, ["draft-verify", "exit:4"], PROMPTS, OTHERS, tmp_path, 6
    with pytest.raises(KeyboardInterrupt):
        rivals.compare_methods(*call, stop)
    counted.clear()
    rows = reported(rivals.compare_methods(*call))
    assert len(counted) == len(rows), "one prompt of the two, and no search"


def test_every_method_that_drafts_is_searched_alike():
    drafting = ("lossless-tuned", "layerskip", "draft-verify", "prompt-lookup", "hybrid", "hybrid-lossless")
    for name in drafting:
        values = METHODS[name].searched(30)
        assert len(set(values)) == len(values) == 40, name
    assert {name for name, method in METHODS.items() if len(method.searched(30)) > 3} == set(drafting)


def test_settings_alike_by_counts_are_timed_once():
    tried = [
        {"method": f"x:{i}", "speedup": speed} for i, speed in enumerate((1.3, 1.2, 1.2, 1.1, 1.0, 1.0, 0.9, 0.8))
    ]
    assert rivals._best(tried) == ["x:0", "x:1", "x:3", "x:4", "x:6"]


def test_a_setting_counts_by_its_passes(tiny, monkeypatch):
    """A setting that drafts nothing right pays its LoRA steps and rows for one token a pass."""
    monkeypatch.setattr(rivals, "rows_cost", lambda *_: {"3": 1.2, "4": 1.3, "8": 2.4})
    lane = rivals._lane(tiny, "layerskip:5:2", "a b a b", 9, {})
    (row,) = rivals.by_counts(tiny, {"layerskip:5:2": lane}, ["a b a b"], 48, lambda *_: None)
    ids = plan(tiny, Request("a b a b", LoraDropConfig(), 9)).prompt_ids
    report = time_lanes(tiny, {"x": lane}, ids, 48, ignore_eos=False).lanes["x"]
    shape = tiny.shape
    layer, head = sum(shape.layer_costs()[0][1:]), (shape.vocab_size + 2) * shape.hidden_size
    passes = [record for record in report.passes if record.type != "rewind" and getattr(record, "step", 1)]
    lora = sum(record.type == "step" and record.kind == "lora" for record in passes)
    rows = [record.rows for record in passes if record.type == "judge" or record.kind == "refresh"]
    cost = lora * (5 * layer + head) / (6 * layer + head) + sum(1 + 0.1 * (count - 1) for count in rows)
    assert row["speedup"] == pytest.approx(report.standing / cost) and row["accepted"] == report.acceptance


def row_of(method, speedup, regret=0.0, wide=0.02, accepted=None):
    return {
        **{"method": method, "is_search": False, "speedup": speedup, "regret": regret, "texts": 4, "same_texts": 4},
        **{"speedup_low": speedup - wide, "speedup_high": speedup + wide, "accepted": accepted},
    }


@pytest.mark.parametrize(
    ("rows", "words", "without"),
    [
        ([], "No method", "fastest"),
        (
            [row_of("screened-head", 1.2), row_of("balanced", 1.1, 0.06)],
            "Full model, screened head is the fast",
            "Of all",
        ),
        ([row_of("screened-head", 1.2), row_of("balanced", 1.4, 0.06)], "LoRA-Drop, Balanced is the fastest", "level"),
        ([row_of("screened-head", 1.2), row_of("lossless", 1.19)], "level with LoRA-Drop, Lossless", "Of all"),
        ([row_of("screened-head", 1.01, wide=0.3)], "none is surely faster", "is the fastest"),
        ([row_of("prune:8", 1.3, 2.0)], "Static pruning (8 layers) is faster", "is the fastest"),
    ],
)
def test_the_winner_is_named(rows, words, without):
    sentence = winner_words({"rows": rows, "device": {"name": "a CPU"}})
    assert words in sentence and without not in sentence


def test_accepted_drafts_say_why():
    content = {"rows": [row_of("layerskip:2:1", 0.8, accepted=0.4), row_of("balanced", 1.1, accepted=0.9)]}
    assert "LoRA-Drop, Balanced 90%; LayerSkip (exit 2, draft length 1) 40%" in accepted_words(content)


def test_speeds_by_repetition_are_said_where_they_were_measured():
    by_repeats = {"under 5%": {"speedup": 1.06}, "50% and more": {"speedup": None}}
    rows = [row_of("prompt-lookup:1:3", 1.19) | {"by_repeats": by_repeats}, row_of("balanced", 1.1)]
    words = repeats_words({"rows": rows})
    assert "repeats under 5%, 50% and more of its 4-grams: Prompt lookup (draft length 1, n-gram 3) 1.06x, –." in words
    assert repeats_words({"rows": rows[1:]}) == ""


def test_the_stored_frontier_is_of_other_prompts_and_in_step():
    content = COMPARE.read(SHIPPED_METHODS / COMPARE.name)
    assert content["data"]["file"] == "report.jsonl"  # not HELD_OUT, on which settings are chosen
    assert len(HELD_OUT) > content["data"]["searched_on"]["prompts"]
    assert (SHIPPED_METHODS / PICTURE).read_text("utf-8") == frontier_picture(content)
    assert methods_frontier.lines(content) in (ROOT / "README.md").read_text("utf-8")


def test_a_speed_in_the_text_is_the_stores():
    """README's block is written from the store, and no other text says a speed but logs, which date each of theirs."""
    speed = re.compile(r"\d\.\d\d ?[x×]|\bgains? \d+%|\d\.\d\d (?:to|-) \d\.\d\d\)")
    pages = {path.name: path.read_text("utf-8") for path in [ROOT / "README.md", *(ROOT / "docs").glob("*.md")]}
    for log in ("performance.md", "training-log.md", "before.md", "scale.md", "paper.md"):  # the last has the paper's
        del pages[log]
    pages["README.md"] = methods_frontier.BETWEEN.sub("", pages["README.md"])
    assert {name: found for name, text in pages.items() if (found := speed.findall(text))} == {}
