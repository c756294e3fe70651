"""The scripts that compare free answers: the figures by hand, and a sheet that gives no side away."""

import json
import sys

import pytest

from lora_drop.method.quality import collapse_at
from scripts import circles, reading
from scripts.prompt_sets import SETS, main, prompt_hash


def answer(tokens, passes, **more):
    steps = sum(passes.values())
    return {"tokens": tokens, "steps": steps, "passes": passes, "drafts": 0, "accepted": 0, **more}


def test_the_figures_of_a_setting():
    plain, loop = list(range(40)), [1, 2] * 20
    assert collapse_at(loop) is not None
    full = {"a": answer(plain, {"1": 39}), "b": answer(plain, {"1": 39}), "c": answer(loop, {"1": 39})}
    ours = {
        "a": answer(loop, {"lora": 26, "3": 13}, regret=4.0, worst=2.0) | {"drafts": 26, "accepted": 13},
        "b": answer(plain[:20], {"lora": 13, "1": 6}),
    }
    row = circles.summary(ours, full, skipped=10)
    repeats = 1 - 2 / 37  # two of 37 are the first of their kind
    assert (row["prompts"], row["repeats"], row["above"]) == (
        2,
        pytest.approx(repeats / 2),
        pytest.approx(repeats / 2),
    )
    assert (row["collapsed"], row["collapsed_full"], row["length"]) == (1, 0, 60 / 80)
    assert (row["regret"], row["worst"], row["accepted"]) == (4 / 40, 2, 0.5), "of those that the full model read"
    cost = 39 * (circles.LORA_STEP - 2 * circles.LAYER) + 13 * circles.PASS[3] + 6 * circles.PASS[1]
    assert row["speed"] == pytest.approx((39 + 19) / cost)


def test_sets_are_made_by_hash(tmp_path, monkeypatch):
    first, second = tmp_path / "vicuna.jsonl", tmp_path / "arena.jsonl"
    first.write_text(json.dumps({"turns": ["One?", "And then?"]}) + "\n")
    second.write_text(json.dumps({"prompt": "Two?"}) + "\n" + json.dumps({"prompt": "Not listed?"}) + "\n")
    monkeypatch.setitem(SETS, "report", [prompt_hash("Two?"), prompt_hash("One?")])
    monkeypatch.setitem(SETS, "circles", [prompt_hash("Gone?")])
    monkeypatch.setattr(sys, "argv", ["prompt_sets", "--out", str(tmp_path / "out"), str(first), str(second)])
    assert main() == 1, "one prompt is in no file"
    assert (tmp_path / "out" / "report.jsonl").read_text() == '{"prompt": "Two?"}\n{"prompt": "One?"}\n'


@pytest.fixture
def sheet(tmp_path, bundled):
    prompts = [f"Prompt {n}?" for n in range(24)]
    lanes = (circles.FULL, *reading.PRESETS)
    records = [
        {"prompt": prompt_hash(prompt), "setting": lane, "tokens": [100 + i, 200 + n]}
        for n, prompt in enumerate(prompts)
        for i, lane in enumerate(lanes)
    ]
    answers = tmp_path / "answers.jsonl"
    answers.write_text("".join(json.dumps(record) + "\n" for record in records))
    reading.write_sheet(prompts, reading.PRESETS, answers, tmp_path)
    return tmp_path


def test_the_sheet_names_no_lane_and_the_key_counts(sheet, capsys):
    text, key = (sheet / "sheet.md").read_text(), json.loads((sheet / "key.json").read_text())
    assert len(key) == text.count("## Pair ") == 24 * 3 + 12
    assert not any(name in text for name in (*reading.PRESETS, circles.FULL))
    controls = [row for row in key if row["A"] == row["B"] == circles.FULL]
    assert len(controls) == 12 and len({row["A"] for row in key[:30]}) > 1
    judged = [row for row in key if "balanced" in (row["A"], row["B"])]
    assert 0 < sum(row["A"] == "balanced" for row in judged) < 24, "sides are shuffled"
    lines = [f"{row['pair']}: {'A' if row['A'] == 'balanced' else 'B'} clearly better; sense" for row in judged]
    (sheet / "verdicts.txt").write_text("\n".join([*lines, f"{controls[0]['pair']}: same; the same text"]))
    assert reading.count(sheet) == len(key) - 25
    out = capsys.readouterr().out
    assert "| balanced | 24 | 0 | 0 | 0 | 0 |" in out and f"| {circles.FULL} | 0 | 0 | 1 | 0 | 0 |" in out
