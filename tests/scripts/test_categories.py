"""Prompts by category from benchmarks' files."""

import json
import sys

from scripts import categories
from tests.support.task_files import write_task_files


def made(monkeypatch, folder, out, *argv):
    monkeypatch.setattr(sys, "argv", ["categories", str(folder), "--out", str(out), *argv])
    return categories.main()


def test_each_category_has_its_records_in_turn(tmp_path, monkeypatch, capsys):
    folder, out = write_task_files(tmp_path / "bench"), tmp_path / "out.jsonl"
    asked = [("writing", "Write."), ("extraction", "Extract."), ("math", "Add."), ("roleplay", "Play.")]
    questions = [{"category": category, "turns": [prompt, "And then?"]} for category, prompt in asked]
    (folder / "mt_bench").mkdir()
    (folder / "mt_bench" / "question.jsonl").write_text("".join(json.dumps(one) + "\n" for one in questions))
    assert made(monkeypatch, folder, out, "--count", "3") == 0
    records = [json.loads(line) for line in out.read_text().splitlines()]
    by_kind = {kind: [one["prompt"] for one in records if one["kind"] == kind] for kind in categories.CATEGORIES}
    assert by_kind["chat"] == ["Write.", "Play."] and by_kind["retrieval"] == ["Extract."]
    assert by_kind["mathematics"] == ["1+1?", "Half?"] and by_kind["reasoning"] == ["not True is", "True is"]
    assert by_kind["code"][0].startswith("Complete this Python function:") and by_kind["code"][1:] == [
        "Write f11.",
        "Write f12.",
    ]
    assert by_kind["translation"][0] == "Translate into English: Avevo fame." and by_kind["summary"] == []
    assert [one["kind"] for one in records[:4]] == ["chat", "code", "mathematics", "reasoning"]
    assert "chat 2, code 3" in capsys.readouterr().out


def test_a_folder_without_their_files_is_one_line(tmp_path, monkeypatch, capsys):
    assert made(monkeypatch, tmp_path, tmp_path / "out.jsonl") == 1 and not (tmp_path / "out.jsonl").exists()
    assert "has none of the files" in capsys.readouterr().err
