"""A card's first day: in order, resumable, each step alone; what is measured is not judged."""

import json
import sys

import pytest

from scripts import gpu_day


@pytest.fixture
def day(tmp_path, monkeypatch):
    """A day of three short steps, the second of which fails until `mended` exists."""
    log, mended = tmp_path / "log", tmp_path / "mended"

    def short(name, code="0"):
        words = f"import sys; open({str(log)!r}, 'a').write('{name} '); print('{{}}'); sys.exit({code})"
        return [sys.executable, "-c", words], {}

    made = {"one": short("one"), "two": short("two", f"not __import__('os').path.exists({str(mended)!r})")}
    made |= {"page": short("page"), "slow": ([sys.executable, "-c", "import time; time.sleep(600)"], {})}
    monkeypatch.setattr(gpu_day, "steps", lambda out: made)
    monkeypatch.setattr(gpu_day, "skipped", lambda name: "there is no Chromium here" if name == "page" else None)
    run = gpu_day.run
    monkeypatch.setattr(gpu_day, "run", lambda name, out, seconds: run(name, out, {"slow": 1}.get(name, seconds)))

    def call(*names):
        code = gpu_day.main([*names, "--out", str(tmp_path / "out")])
        ran = log.read_text().split() if log.exists() else []
        log.write_text("")
        return code, ran, json.loads((tmp_path / "out" / "done.json").read_text())

    call.mended = mended
    return call


def test_a_day_goes_on_where_it_ended(day, capsys):
    code, ran, done = day()
    assert (code, ran) == (1, ["one", "two"]) and done["two"]["code"] == 1
    assert done["page"] == {"skipped": "there is no Chromium here"} and done["slow"]["code"] == gpu_day.OUT_OF_TIME
    assert "no Chromium" in capsys.readouterr().out
    day.mended.touch()
    assert day()[1] == ["two"]
    assert day("one")[:2] == (1, ["one"])
    with pytest.raises(SystemExit):
        day("three")


def test_each_step_has_a_command_and_its_data(tmp_path):
    made = gpu_day.steps(tmp_path)
    assert {"tests", "bench-bundled", "bench-llama3-8b", "presets", "memory", "profile", "page"} <= made.keys()
    pairs = [json.loads(line) for line in (tmp_path / "prompts.jsonl").read_text().splitlines()]
    assert pairs and all(pair["prompt"] and pair["target"] for pair in pairs)
