"""The Safe zone tab without a browser: which sweep is shown, what is measured, and how a sweep ends."""

import json
from types import SimpleNamespace

import gradio as gr
import pytest
import torch

from lora_drop.errors import LoraDropError
from lora_drop.evaluation.measure.texts import Answers
from lora_drop.method.paper import ROWS
from lora_drop.models.place import describe_device
from lora_drop.models.pool import ModelPool
from lora_drop.run.exports.colors import COLORS
from lora_drop.ui import method
from lora_drop.ui.safe_zone import callbacks as safe_zone
from lora_drop.ui.safe_zone.callbacks import (
    MAX_POINTS,
    SHIPPED_SWEEP,
    SafeZone,
    choices_of,
    merged,
    points_of,
    stored_sweep,
)
from lora_drop.ui.safe_zone.views import NO_POINTS, NO_STOPS
from lora_drop.ui.serve.runs import Stops

VISITOR = SimpleNamespace(session_hash="visitor")


def row(reuse="residual", adapters="none", ratio=0.25, period=2, **more):
    return {
        "reuse": reuse, "part": "block", "kv": "skip", "adapters": adapters, "drop_ratio": ratio, "period": period,
        "layers_dropped": 2, "tokens": 40, "lora_steps_top1_agreement": 0.5, "all_steps_nll_gap": 0.2,
        "speedup": 1.1, "bound": 1.2, "kv_saved": 0.1, **more,
    }  # fmt: skip


def a_sweep(*rows, data="d"):
    return {
        "model": {"id": "m", "revision": "r"},
        "device": describe_device(torch.device("cpu")),
        "data": {"file": data},
        "rows": list(rows),
    }


@pytest.fixture
def zone(tiny):
    return SafeZone(ModelPool(tiny), None, Stops())


def run(zone, ratios="0.5,1", periods="2", before=None):
    return list(zone.run_sweep(ratios, periods, "residual", "block", "auto", "agreement", before, None, VISITOR))


def test_what_cannot_be_measured_is_refused_in_a_line(tiny):
    many = ",".join(str(i / 100) for i in range(25))
    for words, ratios, periods, rule, adapters in (
        *(
            ("drop ratios must be numbers with commas, such as", wrong, "2", "residual", "auto")
            for wrong in ("", "  ", "a", "0.5;1", "1,,2", "nan", "inf", None, 3, "1," * 400 + "1")
        ),
        ("between 0 and 1", "2", "2", "residual", "auto"),
        ("period must be", "0.5", "0", "residual", "auto"),
        *(("periods must be numbers", "0.5", wrong, "residual", "auto") for wrong in ("", "2.5")),
        ("are 500 points; the page measures at most 16", many, ",".join(map(str, range(1, 21))), "residual", "auto"),
        ("reuse must be", "0.5", "2", "magic", "auto"),
        ("adapters must be auto or none", "0.5", "2", "residual", "/etc"),
    ):
        with pytest.raises(LoraDropError, match=words) as caught:
            points_of(tiny, ratios, periods, rule, "block", adapters)
        assert "\n" not in str(caught.value) and len(str(caught.value)) < 150
    points = points_of(tiny, " 0.25, 0.5,0.25,0.75,1", "2,3,4,8", "state", "attention", "none")
    assert len(points) == MAX_POINTS
    assert (points[1].config.drop_ratio, points[1].config.period, points[1].adapters) == (0.25, 3, "none")


def test_the_stored_sweep_is_shown_for_its_own_weights_alone(tmp_path, tiny):
    sweep, missing = stored_sweep()
    assert sweep["rows"] and not missing
    zone = SafeZone(ModelPool(tiny), sweep, Stops())
    shown, why = zone.stored_for(sweep["model"]["revision"])
    assert [r["bound"] for r in shown["rows"]] == [r["bound"] for r in sweep["rows"]] and not why
    assert zone.stored_for(tiny.revision)[0] is None
    assert "no stored sweep of this model" in zone.note(tiny.revision)
    name = zone.pool.first
    _, choice, maps, front, dial = zone.use_model(name, "agreement", None, True)
    assert choice["value"] is None and maps == front == NO_POINTS and dial == NO_STOPS


def test_what_is_not_opened_is_not_sent(tiny):
    zone = SafeZone(ModelPool(tiny), None, Stops())
    name = zone.pool.first
    assert list(zone.follow(False, name, "own", None, False)) == [gr.skip()] * 5, "a model, before the tab is opened"
    *_, maps, front, dial, opened = zone.open(name, "own", None, False)
    assert (maps, dial, opened) == (NO_POINTS, NO_STOPS, True) and front == gr.skip(), "the curves are folded"
    assert zone.follow(True, name, "own", None, True)[2:] == (NO_POINTS, NO_POINTS, NO_STOPS)


def test_a_stored_sweep_that_cannot_be_read_is_reported(tmp_path, tiny):
    (tmp_path / "sweep.json").write_text("{}")
    for name, words in (("none.json", "No sweep is stored"), ("sweep.json", "is not a sweep.json")):
        sweep, missing = stored_sweep(tmp_path / name)
        assert sweep is None and words in missing
        assert words in SafeZone(ModelPool(tiny), sweep, Stops(), missing).note(tiny.revision)


def test_a_label_names_a_bank_only_where_two_have_to_be_distinguished():
    stored = a_sweep(row(adapters="bank"), row(), row("state", adapters="one"), row("state", adapters="two"))
    assert choices_of(stored, a_sweep(row())) == [
        ("Stored: residual, whole layers, adapters", "stored:0"),
        ("Stored: residual, whole layers, no adapters", "stored:1"),
        ("Stored: state, whole layers, adapters one", "stored:2"),
        ("Stored: state, whole layers, adapters two", "stored:3"),
        ("Run here: residual, whole layers, no adapters", "here:0"),
    ]
    assert choices_of(None, None) == []


def test_a_choice_shows_its_rows_in_both_themes_and_widths(tiny):
    zone = SafeZone(ModelPool(tiny), a_sweep(row(adapters="bank"), row("state", ratio=0.5)), Stops())
    shown, front = zone.show("stored:1", "nll_gap", None)
    assert shown["ratios"] == ["0.5"] and [cell["period"] for (cell,) in shown["cells"]] == ["2"]
    assert shown["cells"][0][0]["setting"]["reuse"] == "state"
    for shape in ("wide", "narrow"):
        assert all(COLORS[theme]["panel"] in front[shape][theme] for theme in COLORS)
    assert front["rows"][1] == ["state", "block", "none", "–", "0.5", "2", "50.0%", "+0.20", "10.0%", "1.10x", "1.20x"]
    assert len(front["rows"]) == 2
    assert "the PAPER&#x27;S own points" in front["wide"]["light"] and "hollow: the bound" in front["wide"]["light"]
    for wrong in ("stored:9", "here:0", "", None, "x:-1", "stored:9999999"):
        assert isinstance(zone.show(wrong, "magic", None)[0], str)
    own = {"own_all_steps_kl": 0.3, "lora_steps_top1_agreement": None, "all_steps_nll_gap": None}
    zone.stored = a_sweep(row(**own))  # the quality that was measured
    assert ">KL, own answers" in zone.show("stored:0", "agreement", None)[1]["wide"]["light"]


def test_rows_of_other_texts_are_left_behind_and_a_setting_is_replaced():
    first = merged(None, a_sweep(), row(speedup=1.0))
    second = merged(first, a_sweep(), row(ratio=0.5))
    third = merged(second, a_sweep(), row(speedup=1.3))
    assert [(r["drop_ratio"], r["speedup"]) for r in third["rows"]] == [(0.5, 1.1), (0.25, 1.3)]
    assert len(merged(third, a_sweep(data="other"), row())["rows"]) == 1


def test_a_sweep_measures_every_point_and_goes_on_from_the_last_one(zone, monkeypatch):
    updates = run(zone)
    lines = [progress["text"] for progress, *_ in updates]
    assert any("the full model answers the example prompts: 1 of 3" in text for text in lines)
    assert [text.partition(":")[0] for text in lines if text.startswith("Point")] == ["Point 1 of 2", "Point 2 of 2"]
    last = updates[-1][0]
    assert (last["kind"], last["done"], last["total"]) == ("done", 2, 2)
    *_, here, _, _, _ = updates[-2]
    assert [(r["drop_ratio"], r["period"], r["adapters"]) for r in here["rows"]] == [(p, 2, "none") for p in (0.5, 1)]
    for r in here["rows"]:
        assert r["own_all_steps_count"] > 0 and r["free_tokens"] > 0 and r["bound"] >= 1
    assert here["data"]["file"] == "the full model's own answers" and here["data"]["records"] == 3
    *_, more, _, _, _ = run(zone, periods="4", before=here)[-2]
    assert [(r["drop_ratio"], r["period"]) for r in more["rows"]] == [(0.5, 2), (1.0, 2), (0.5, 4), (1.0, 4)]
    assert len(zone.stops) == 0


def test_cancel_keeps_what_was_measured(zone, monkeypatch):
    monkeypatch.setattr(safe_zone, "measure", lambda loaded, point, *_, **__: row(ratio=point.config.drop_ratio))
    updates = []
    for update in zone.run_sweep("0.25,0.5,0.75", "2", "residual", "block", "auto", "agreement", None, None, VISITOR):
        updates.append(update)
        if update[0]["text"].startswith("Point 2"):
            zone.cancel_page(SimpleNamespace(session_hash="another visitor"))
            zone.cancel_page(VISITOR)
    assert updates[-1][0]["text"].startswith("Cancelled: 2 of 3")
    assert len(updates[-2][4]["rows"]) == 2 and len(zone.stops) == 0


def test_whatever_ends_a_sweep_releases_it(zone, monkeypatch, capsys):
    def fails(*_, **__):
        raise RuntimeError("secret detail")

    monkeypatch.setattr(safe_zone, "measure", fails)
    progress = run(zone)[-1][0]
    assert progress["kind"] == "error" and "secret" not in progress["text"] and len(zone.stops) == 0
    assert "secret detail" in capsys.readouterr().err
    progress = run(zone, ratios="2")[-1][0]
    assert (progress["kind"], progress["text"]) == ("error", "drop_ratio must lie between 0 and 1, got 2.0.")
    monkeypatch.setattr(safe_zone, "own_answers", lambda *_, **__: Answers([[1]], [[]]))
    assert "nothing to measure on" in run(zone)[-1][0]["text"]
    running = zone.run_sweep("0.5", "2", "residual", "block", "auto", "agreement", None, None, VISITOR)
    next(running)
    assert len(zone.stops) == 1
    running.close()  # as Gradio does when the tab is closed
    assert len(zone.stops) == 0


def test_the_method_tabs_table_is_the_papers_with_what_is_computed():
    rows = method.words()["paper"]
    assert [(r["model"], r["speedup"], r["kv_saved"]) for r in rows] == [
        (r.model, r.speedup, r.kv_saved) for r in ROWS
    ]
    assert all(r["speedup"] > r["bounds"][0] > 1 and r["kv_saved"] > r["kv_limits"][0] for r in rows)
    assert min(r["accuracy_change"] for r in rows if r["speedup"] == 2.6) == -2.5


def test_our_own_figures_are_the_stored_sweeps(tmp_path):
    rows = json.loads(SHIPPED_SWEEP.read_text())["rows"]
    paper = {"reuse": "residual", "part": "block", "refresh": "single", "drop_ratio": 0.5, "period": 4}
    ours = next(row for row in rows if paper.items() <= row.items())
    words = method.our_words()
    assert f"{ours['lora_steps_top1_agreement']:.0%}" in words and f"{ours['speedup']:.2f}×" in words
    assert "far from the paper's" in method.our_words(tmp_path / "none.json")
