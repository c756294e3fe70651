"""The static Space of recorded runs: its files, read as text and as YAML."""

import dataclasses
import re
from pathlib import Path

import pytest
from huggingface_hub import metadata_load

from lora_drop.cli.main import main
from lora_drop.method.config import LoraDropConfig
from lora_drop.run.exports import replay_space
from lora_drop.run.exports.html import replay_html
from lora_drop.run.request import Request
from lora_drop.run.run import run
from lora_drop.run.trace.records import write_line
from lora_drop.run.trace.trace import Trace, gather
from tests.support.elements import Elements

HOSTILE = "</a></li><script>alert(1)</script><img src=x onerror=alert(2)>'\"{{runs}}${x}\ud800\u2028"


@pytest.fixture(scope="module")
def trace(tiny) -> Trace:
    config = LoraDropConfig(period=3, layers=(1, 4), drop_ratio=1.0)
    return gather(run(tiny, Request("Why is the sky blue?", config, 12, ignore_eos=True)))


def written(path: Path, trace: Trace) -> Path:
    path.write_text("".join(map(write_line, trace.records())))
    return path


def test_the_space(tmp_path, capsys, trace):
    out, files = tmp_path / "space", [written(tmp_path / name, trace) for name in ("one.jsonl", "two.jsonl")]
    address = "https://example.org/app?a=1&b=2"
    assert main(["replay-space", str(out), *map(str, files), "--app", address, "--title", 'Runs: "a" & <b>']) == 0
    assert "run-2.html" in capsys.readouterr().out
    assert sorted(path.name for path in out.iterdir()) == ["README.md", "index.html", "run-1.html", "run-2.html"]
    assert (out / "run-1.html").read_text(encoding="utf-8") == replay_html(trace)
    meta = metadata_load(out / "README.md")
    assert meta["sdk"] == "static" and (out / meta["app_file"]).is_file() and meta["title"] == 'Runs: "a" & <b>'
    assert len(meta["short_description"]) <= 60

    page = Elements((out / "index.html").read_text(encoding="utf-8"))
    links = [attributes["href"] for tag, attributes in page.found if tag == "a"]
    assert links == ["https://arxiv.org/abs/2601.02569", address, "run-1.html", "run-2.html"]
    assert not {"script", "img", "link", "iframe"} & {tag for tag, _ in page.found}
    policy = next(a["content"] for _, a in page.found if a.get("http-equiv") == "Content-Security-Policy")
    assert policy.startswith("default-src 'none'; style-src")


def test_the_figures_are_the_traces(trace):
    page = replay_space.index_html([("run-1.html", trace)])
    assert not re.findall(r"\{\{\w+\}\}", page), "every blank is filled"
    text = Elements(page).text
    summary = trace.summary
    for words in (
        *("Why is the sky blue?", "random:tiny-llama", "4 of 6 layers skipped", "full step every 3 tokens"),
        *(f"{summary.speedup:.2f}x", f"{summary.bound:.2f}x", f"{summary.kv_saved:.0%}"),
        f"{summary.lanes['lora_drop']['tokens_per_second']:.0f} tokens/s",
        f"{summary.top1_agreement:.0%}",
    ):
        assert words in text


def test_hostile_texts_stay_texts(trace):
    header = dataclasses.replace(
        trace.header,
        prompt=HOSTILE,
        model=trace.header.model | {"id": HOSTILE, "dtype": HOSTILE},
        device=trace.header.device | {"name": HOSTILE},
        sampling=trace.header.sampling | {"view": HOSTILE},
    )
    hostile = Trace(header)
    for record in list(trace.records())[1:]:
        hostile.add(record)
    page = replay_space.index_html([("run-1.html", hostile)], HOSTILE)
    page.encode("utf-8")
    tags = [tag for tag, _ in Elements(page).found]
    assert "script" not in tags and "img" not in tags and tags.count("li") == 1
    assert "{{runs}}" in page  # a blank's name in a text stays a text


def test_a_cut_trace_says_so(trace):
    cut = Trace(trace.header)
    page = replay_space.index_html([("run-1.html", cut)])
    assert "Cut short" in page and "<dl>" not in page
    assert "Cut short" not in replay_space.index_html([("run-1.html", trace)])


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["bad.jsonl/below"], "cannot write the folder"),
        (["space", "--app", "javascript:alert(1)"], "--app must be"),
        (["space", "--title", "two\nlines"], "--title must be"),
    ],
)
def test_mistakes_are_one_line_and_exit_code_2(tmp_path, monkeypatch, capsys, trace, words, says):
    monkeypatch.chdir(tmp_path)
    written(tmp_path / "run.jsonl", trace)
    (tmp_path / "bad.jsonl").write_text("{}\n")
    out, *more = words
    assert main(["replay-space", out, "run.jsonl", *more]) == 2
    captured = capsys.readouterr()
    assert captured.out == "" and captured.err.count("\n") == 1 and says in captured.err
    assert not (tmp_path / "space").exists()
