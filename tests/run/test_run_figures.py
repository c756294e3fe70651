"""The figures of a run as SVG and PNG: the numbers are the trace's, texts stay texts, and no browser is needed."""

import dataclasses
import struct
import sys
from xml.etree import ElementTree

import pytest

from lora_drop.cli.main import main
from lora_drop.errors import LoraDropError
from lora_drop.paths import ASSETS
from lora_drop.run.exports.colors import COLORS
from lora_drop.run.exports.figures import svg as writer
from lora_drop.run.exports.figures.run import FIGURES, run_svg
from lora_drop.run.exports.figures.svg import png_of, ticks, width_of, wrapped
from lora_drop.run.trace.records import LORA_DROP
from lora_drop.run.trace.trace import gather, read_trace
from tests.support import ROOT
from tests.support.golden import check_golden_text
from tests.support.made import audit, header, rejecting, step, summary

SVG = "{http://www.w3.org/2000/svg}"
TRACES = sorted((ROOT / "tests" / "corpus" / "traces").glob("good_*.jsonl"))
SHOWN = ASSETS / "recorded" / "show-me.jsonl"


def made():
    """A run with a rejected draft, drift, an early refresh and sizes for the formula."""
    records = rejecting()
    head = dataclasses.replace(records[0], model=records[0].model | {"kv_bytes_per_token": 8})
    early = [step(LORA_DROP, 8, "refresh", 9.0, trigger="entropy"), audit(8, drift=[0.1, 0.3])]
    return gather([head, *records[1:], *early, summary()])


def texts(svg):
    """Every text of a drawing."""
    return ["".join(one.itertext()) for one in ElementTree.fromstring(svg).iter(f"{SVG}text")]


@pytest.mark.parametrize("theme", COLORS)
def test_a_run_is_drawn_as_it_was(theme):
    check_golden_text(f"run-{theme}.svg", run_svg(made(), theme))


def test_the_answers_and_figures_are_the_trace_s():
    trace = read_trace(SHOWN)
    drawn = " ".join(texts(run_svg(trace)))
    for lane in trace.steps:
        assert " ".join(trace.text(lane).split()) in " ".join(drawn.split())
    assert f"{trace.summary.lanes[LORA_DROP]['tokens_per_second']:.1f} tokens/s" in drawn
    assert len(run_svg(trace).encode()) <= 150_000
    for name, (title, *_) in FIGURES.items():
        alone = texts(run_svg(trace, "dark", name))
        assert title == alone[0] and not {title for title, *_ in FIGURES.values()} & set(alone[1:])


@pytest.mark.parametrize("path", TRACES, ids=lambda path: path.stem)
def test_any_trace_is_drawn_and_stays_text(path):
    """Markup, huge numbers and negative times: an SVG of shapes and text, without a number that is none."""
    drawn = run_svg(read_trace(path))
    tags = {one.tag.removeprefix(SVG) for one in ElementTree.fromstring(drawn).iter()}
    assert tags <= {"svg", "rect", "path", "circle", "polygon", "text", "tspan", "clipPath", "title"}
    assert not {"nan", "inf"} & set(drawn.replace('"', " ").split())


def test_a_run_without_a_step_says_so():
    assert texts(run_svg(gather([header()]))).count("This run has nothing to draw here.") == 5


def test_lines_are_as_wide_as_they_may_be():
    text = "The sky  is blue\u3042\u3044\u3046, " * 20 + "a" * 100 + "\nnew"
    lines = [text[start:end] for start, end in wrapped(text, 200, 12)]
    assert "".join(lines) == text.replace("\n", "") and lines[-1] == "new"
    assert all(width_of(line.rstrip(), 12) <= 200 for line in lines)
    assert ticks(0, 95, 10) == [0, 10, 20, 30, 40, 50, 60, 70, 80, 90] and ticks(3, 0, 8, 1) == [0, 1, 2, 3]


def test_a_picture_needs_no_browser_and_no_font_of_the_system(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("FONTCONFIG_FILE", str(tmp_path / "none"))
    files = ["--svg", str(tmp_path / "run.svg"), "--png", str(tmp_path / "run.png"), "--figure", "race"]
    assert main(["replay", str(SHOWN), *files, "--theme", "dark"]) == 0
    picture = (tmp_path / "run.png").read_bytes()
    drawn = ElementTree.parse(tmp_path / "run.svg").getroot()
    assert struct.unpack(">II", picture[16:24]) == (2 * int(drawn.get("width")), 2 * int(drawn.get("height")))
    monkeypatch.setattr(writer, "FONTS", [tmp_path / "gone.ttf"])
    with pytest.raises(LoraDropError, match="gone.ttf is missing"):
        png_of(run_svg(made()))
    monkeypatch.setitem(sys.modules, "resvg_py", None)
    capsys.readouterr()
    assert main(["replay", str(SHOWN), *files]) == 2
    assert writer.GET_RESVG in capsys.readouterr().err
