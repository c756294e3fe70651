"""What a person at a terminal sees of the commands, and what a pipe gets: two runs compared, hints, stdin."""

import io
import json
import re
import sys
from pathlib import Path

import pytest
from rich.console import Console

from lora_drop.cli import stream
from lora_drop.cli.main import main
from lora_drop.cli.output import progress
from lora_drop.run.report.report import Report
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
        "run --prompt x --zzz red": None,
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


class Terminal(io.StringIO):
    """A stream that says it is a terminal."""

    encoding = "utf-8"

    def isatty(self) -> bool:
        return True


@pytest.fixture
def terminal(monkeypatch):
    """Make stdout a terminal of some columns; the result is what was written to it."""

    def of(columns: int, **variables: str) -> Terminal:
        for name, value in ({"COLUMNS": str(columns), "LINES": "24", "TERM": "xterm-256color"} | variables).items():
            monkeypatch.setenv(name, value)
        for name in {"NO_COLOR", "FORCE_COLOR"} - set(variables):
            monkeypatch.delenv(name, raising=False)
        monkeypatch.setattr(stream, "EVERY", 0.0)
        monkeypatch.setattr(sys, "stdout", Terminal())
        return sys.stdout

    return of


RUN = ["run", "--prompt", "Hi", *TINY, "--max-new-tokens", "40", "--ignore-eos"]


def lines_of(text: str) -> list[str]:
    """The lines of a terminal's output, without colours and movements."""
    return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", text).replace("\r", "\n").splitlines()


def test_drafts_that_may_be_rejected_are_not_drawn(monkeypatch):
    monkeypatch.setattr(stream, "EVERY", 0.0)
    first, *records = rejecting()
    report, out = Report(first), io.StringIO()
    drawing = stream.Stream(report, Console(file=out, force_terminal=True, width=80, height=24, color_system=None))
    shown = []
    with drawing as draw:
        for record in records:
            report.add(record)
            drawing._due, start = 0.0, out.tell()
            draw(0)
            # LoRA-Drop's words begin in the second column of the line below the labels.
            lines = lines_of(out.getvalue()[start:])
            [at] = [n for n, line in enumerate(lines) if "lora_drop: of" in line]
            shown.append(lines[at + 1][40:].split())
    words = "a b c d e f g h".split()
    lane = [len(one) for record, one in zip(records, shown, strict=True) if getattr(record, "lane", "") == LORA_DROP]
    assert lane == [1, 1, 1, 4, 4, 4, 4, 4, 5, 6, 6, 6, 6, 8, 8, 8], "a refresh or the last verification shows them"
    assert "y" not in out.getvalue().split() and shown[-1] == [*words[:5], "x", *words[6:]]


@pytest.mark.parametrize("columns", [80, 40])
def test_a_run_on_a_terminal(terminal, columns):
    out = terminal(columns)
    assert main([*RUN, "--preset", "lossless", "--adapters", "none"]) == 0
    lines = lines_of(out.getvalue())
    assert max(map(len, lines[2:])) <= columns  # without its head, which the terminal wraps
    text = "\n".join(lines)
    assert "█" in text and "tokens/s" in text and "speedup: " in text and "--- Baseline" not in text
    assert any("Baseline" in line and "LoRA-Drop" in line for line in lines), "side by side"
    assert "\x1b[?25h" in out.getvalue() and re.search(r"\x1b\[[0-9;]*3[0-9]", out.getvalue()), "cursor back; colours"


def test_a_terminal_hears_of_the_model_before_it_is_loaded(monkeypatch):
    monkeypatch.setattr(sys, "stderr", Terminal())
    assert main(RUN) == 0
    assert "Loading the model." in sys.stderr.getvalue()


def test_no_color_and_a_narrow_terminal(terminal, capsys):
    out = terminal(80, NO_COLOR="1")
    assert main([*RUN, "--compare", "skip"]) == 0
    assert not re.search(r"\x1b\[[0-9;]*[34]8;|\x1b\[3[0-9]", out.getvalue()) and "Skip rule" in out.getvalue()
    out = terminal(20)
    assert main(RUN) == 0
    assert "--- Baseline" in out.getvalue() and "█" not in out.getvalue()
    assert len([line for line in capsys.readouterr().err.splitlines() if "24 columns" in line]) == 1


def test_a_pipe_is_no_terminal_whatever_colours_are_forced(monkeypatch, capsys):
    monkeypatch.setenv("FORCE_COLOR", "1")
    assert main(RUN) == 0
    out = capsys.readouterr().out
    assert "\x1b" not in out and "█" not in out and "--- Baseline" in out


def test_an_interrupt_keeps_the_trace_and_the_words_so_far(terminal, monkeypatch, tmp_path, capsys):
    from lora_drop.run.run import run as real

    def interrupted(*args):
        for at, record in enumerate(real(*args)):
            yield record
            if at == 40:
                raise KeyboardInterrupt

    monkeypatch.setattr("lora_drop.run.run.run", interrupted)
    out, path = terminal(80), tmp_path / "run.jsonl"
    assert main([*RUN, "--trace", str(path)]) == 130
    trace = read_trace(path)
    assert trace.summary is None and sum(map(len, trace.steps.values())) > 10
    assert any("tokens/s" in line for line in lines_of(out.getvalue())[-3:])
    assert "interrupted" in capsys.readouterr().err


def test_one_bar_with_the_time_left(monkeypatch, capsys):
    def work(**more):
        with progress("points", **more) as show:
            for done in range(2, 5):
                show(done, 4, "fine")

    work()
    assert capsys.readouterr().err.splitlines() == [f"{done} of 4 points, fine" for done in (2, 3, 4)]
    clock = [100.0]
    monkeypatch.setattr("lora_drop.cli.output.time.monotonic", lambda: clock[0])
    with progress("points") as show:
        for done in (0, 0.2, 0.5, 0.6, 1, 0, 2):  # then other work
            show(done, 4)
            clock[0] += 15
    lines = capsys.readouterr().err.splitlines()
    assert lines[:3] == ["0 of 4 points", "0 of 4 points, 03:30 left", "1 of 4 points, 03:00 left"]
    assert lines[3:] == ["0 of 4 points", "2 of 4 points, 00:15 left"]
    work(every=30)
    assert capsys.readouterr().err.splitlines() == ["2 of 4 points, fine", "4 of 4 points, fine"]
    monkeypatch.setattr(sys, "stderr", Terminal())
    work()
    assert re.search(r"3 of 4 points \|.*\| \d\d:\d\d left, fine", sys.stderr.getvalue())
    monkeypatch.setattr(sys, "stderr", Terminal())
    work(quiet=True)
    assert sys.stderr.getvalue() == ""
