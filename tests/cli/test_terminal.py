"""What a person at a terminal sees of the commands, and what a pipe gets: two runs compared, hints, stdin."""

from __future__ import annotations

import io
import json
import sys
from pathlib import Path

import pytest

from lora_drop.cli.main import main
from lora_drop.run.trace.records import write_line
from lora_drop.run.trace.trace import read_trace
from tests.support.commands import TINY
from tests.support.fuzzing import CORPUS
from tests.support.golden import check_golden
from tests.support.made import LORA_DROP, gathered, header, rejecting, step, steps

TIMES = {"p": 20.0, "l": 4.0, "r": 12.0}


def written(path: Path, records) -> str:
    path.write_text("".join(map(write_line, records)))
    return str(path)


def test_piped_output_is_as_before(capsys, tmp_path):
    """Written before `run` drew anything on a terminal; `run` and `replay` print the same."""
    texts = {}
    for path in (CORPUS / "traces" / "good_three_lanes.jsonl", written(tmp_path / "rejecting.jsonl", rejecting())):
        assert main(["replay", str(path)]) == 0
        texts[Path(path).stem] = capsys.readouterr().out.splitlines()
    check_golden("piped", texts)


def test_a_prompt_from_stdin(capsys, monkeypatch, tmp_path):
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO("Why — so?\nNow.\n".encode())))
    trace = tmp_path / "run.jsonl"
    assert main(["run", "--prompt", "-", *TINY, "--max-new-tokens", "2", "--trace", str(trace)]) == 0
    assert read_trace(trace).header.prompt == "Why — so?\nNow."
    for raw, line in ((b"\xff", "stdin is not UTF-8"), (b"", "the prompt is empty"), (b"x" * 2**25, "16 MiB")):
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(raw)))
        assert main(["run", "--prompt", "-", *TINY]) == 2
        assert line in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "name"),
    {
        "rn --prompt x": "run",
        "run --promt x": "--prompt",
        "run --prompt x --peri=3": "--period",
        "run --prompt x --preset balancd": "balanced",
        "sweep-figurs x --out y": "sweep-figures",
        "replay x --htm y": "--html",
        "run --prompt x --colour red": None,
        "run --prompt x --preset warp": None,
    }.items(),
)
def test_did_you_mean(words, name, capsys):
    assert main(words.split()) == 2
    error = capsys.readouterr().err
    assert f"Did you mean {name}?" in error if name else "Did you mean" not in error


def test_two_runs_side_by_side(capsys, tmp_path):
    a = written(tmp_path / "a.jsonl", rejecting())
    other = [header({"period": 4}), *steps("baseline", "prr", TIMES), *steps(LORA_DROP, "plr", TIMES)]
    other[-1] = step(LORA_DROP, 2, "refresh", 12.0, text="<b>\x1b[1m ")
    b = written(tmp_path / "b.jsonl", other)
    assert main(["diff", a, b, "--json", "--html", str(tmp_path / "d.html")]) == 0
    result = json.loads(capsys.readouterr().out)
    one, two = read_trace(a), read_trace(b)
    assert [run["name"] for run in result["runs"]] == ["A a.jsonl", "B b.jsonl"]
    assert result["settings"]["period"] == [str(t.header.config_of(LORA_DROP)["period"]) for t in (one, two)]
    assert result["figures"]["tokens/s, baseline"][1] == f"{2000 / 24:.1f}"
    for lane, answer in result["answers"].items():
        for side, trace in enumerate((one, two), start=1):
            assert " ".join(" ".join(piece[side] for piece in answer["pieces"]).split()) == trace.text(lane).strip()
    page = (tmp_path / "d.html").read_text()
    assert (
        "&lt;b&gt;" in page and "<b>" not in page and "<script" not in page and "http" not in page.split("</head>")[1]
    )
    assert main(["diff", a, b]) == 0
    out = capsys.readouterr().out
    assert "{+<b>\ufffd[1m+}" in out and "\x1b" not in out and "period" in out
    assert main(["diff", a, a]) == 0
    out = capsys.readouterr().out
    assert "settings: the same" in out and "{+" not in out.split("---")[1]


def test_view_opens_the_replay(capsys, monkeypatch, tmp_path):
    opened = []
    monkeypatch.setattr("webbrowser.open", lambda address: opened.append(address) or False)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    trace = written(tmp_path / "a.jsonl", gathered(*rejecting()).records())
    assert main(["view", trace]) == 0
    captured = capsys.readouterr()
    path = Path(captured.out.strip())
    assert opened == [path.as_uri()] and "open the file yourself" in captured.err
    assert main(["replay", trace, "--html", str(tmp_path / "replay.html")]) == 0
    assert path.read_text() == (tmp_path / "replay.html").read_text()
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "gone"))
    assert main(["view", trace]) == 2 and len(capsys.readouterr().err.splitlines()) == 1
