"""The replay's file, read as text; tests/browser/test_replay.py opens it."""

import html
import json
import re
import shutil
from urllib.parse import unquote

import pytest

from lora_drop.cli.main import main
from lora_drop.method.config import LoraDropConfig
from lora_drop.paths import ASSETS
from lora_drop.run.exports import scripts as modules
from lora_drop.run.exports.html import ENTRY, replay_html, wire_text
from lora_drop.run.exports.scripts import PLOTLY
from lora_drop.run.report.align import answers_side_by_side
from lora_drop.run.report.speed import speedup_words
from lora_drop.run.report.steps import inside
from lora_drop.run.report.words import setting_words
from lora_drop.run.request import Request
from lora_drop.run.run import run
from lora_drop.run.trace.records import write_line
from lora_drop.run.trace.trace import Trace, gather, read_trace
from lora_drop.run.wire import FIGURES
from lora_drop.ui import components
from tests.support.elements import Elements
from tests.support.made import gathered, header, hostile, rejecting, step

HOSTILE = (
    "</script><SCRIPT>alert(1)</SCRIPT><!--<script>${alert(2)}<img src=x onerror=alert(3)>'\"{{run}}\u2028\ud800\x00"
)
CONFIG = LoraDropConfig(period=3, layers=(1, 4), drop_ratio=1.0)


@pytest.fixture(scope="module")
def trace(tiny) -> Trace:
    return gather(run(tiny, Request("Why?", CONFIG, 12, ignore_eos=True, compare="skip")))


def run_in(page: str) -> str:
    return re.search(r'id="ld-run">(.*?)</script>', page, re.DOTALL)[1]


def test_the_page_is_whole_in_itself(trace):
    page = Elements(replay_html(trace))
    for _, attributes in page.found:
        assert not {"src", "srcset", "href", "action", "data"} & attributes.keys()
    policy = next(a["content"] for _, a in page.found if a.get("http-equiv") == "Content-Security-Policy")
    assert policy.startswith(
        "default-src 'none'; script-src 'unsafe-inline' data:; style-src 'unsafe-inline'; img-src"
    )
    tags = [tag for tag, _ in page.found]
    assert tags.index("meta") < tags.index("script")  # a policy binds what comes after it
    assert PLOTLY.read_text(encoding="utf-8") in page.scripts


def test_the_shipped_run_is_at_most_2500_kb():
    assert len(replay_html(read_trace(ASSETS / "recorded" / "show-me.jsonl")).encode()) <= 2_500_000


def test_the_modules_are_in_the_page_as_they_are(trace):
    page = Elements(replay_html(trace))
    text = page.scripts[[a.get("type") for tag, a in page.found if tag == "script"].index("importmap")]
    assert "<" not in text
    held = {name: unquote(url.partition(",")[2]) for name, url in json.loads(text)["imports"].items()}
    assert f"lora-drop/{ENTRY}" in held and "lora-drop/main.js" not in held
    for name, source in held.items():
        path = modules.SCRIPTS / name.removeprefix("lora-drop/")
        theirs = path.read_text(encoding="utf-8").splitlines()
        for ours, line in zip(source.splitlines(), theirs, strict=True):
            assert ours == line or re.search(r' from "\.{1,2}/', line)
        code = re.sub(r"/\*.*?\*/", "", source, flags=re.DOTALL)
        assert "import(" not in code, "a file that needs nothing else cannot ask for more"
        named = re.findall(r'^(?:import|export|\}).* from "(.+)";$', source, re.MULTILINE)
        assert set(named) <= held.keys()


@pytest.mark.parametrize("name", ["dom.js", "method/scenes.js"])
def test_the_modules_have_an_address_that_changes_with_each_of_them(monkeypatch, tmp_path, name):
    before = components.address()
    changed = shutil.copytree(modules.SCRIPTS, tmp_path / "js")
    monkeypatch.setattr(components, "SCRIPTS", changed)
    assert components.address.__wrapped__() == before
    with (changed / name).open("a") as file:
        file.write("\n")
    assert components.address.__wrapped__() != before
    assert re.fullmatch(r"lora-drop-js/[0-9a-f]{12}", before)


def test_no_module_is_left_over():
    """What no module names is not loaded: types only, and the replay's own entry."""
    names = {path.relative_to(modules.SCRIPTS).as_posix() for path in modules.SCRIPTS.rglob("*.js")}
    at_once = modules.modules("main.js")
    late = set(re.findall(r'import\("\./(.+?)"\)', at_once["main.js"]))
    assert late == {"safe_zone.js", "pays.js", "method/method.js", "method/build_up.js"} and not late & at_once.keys()
    assert names - at_once.keys() - set().union(*map(modules.modules, late)) == {"records.js", "replay.js"}


def test_the_same_trace_gives_the_same_page(trace):
    assert replay_html(trace) == replay_html(gather(trace.records()))


def test_the_run_goes_in_as_the_page_gets_it(trace):
    text = run_in(replay_html(trace))
    assert text.startswith(wire_text(trace).replace("<", "\\u003c")) and text.endswith("\n")
    *lines, told, answers = [json.loads(line) for line in text.splitlines()]
    assert told == json.loads(json.dumps(inside(trace)))
    assert answers == {
        "type": "answers",
        "pairs": answers_side_by_side({lane: trace.text(lane) for lane in trace.steps}),
    }
    assert text.startswith('{"type":"run","id":"') and [line["type"] for line in lines[:2]] == ["run", "header"]
    words = {"speedup": speedup_words(trace.summary.speedup, trace.summary.speedup_interval), "lanes": {}}
    assert lines[-2] == json.loads(write_line(trace.summary)) | {"words": words} and lines[-1][0] == FIGURES
    assert lines[1]["main"] == "lora_drop"
    assert lines[1]["lanes"] == trace.header.lanes and lines[1]["model"] == json.loads(json.dumps(trace.header.model))


def test_lanes_take_turns_and_an_audit_follows_its_step():
    """Rejected steps stay in their places: their times count."""
    trace = gather(rejecting())
    lines = [json.loads(line) for line in wire_text(trace).splitlines()[2:-2]]
    own, kinds = ([line[0:1] + line[1:2] for line in lines if line[0] % 100 == lane] for lane in (1, 0))
    assert [line for line in kinds if line[0] == 0] == [[0, step] for step in range(9)]
    marks = [[1, 0], [1, 1], [1, 2], [1, 3], [1, 4], [101, 4], [1, 5], [301, 4], [1, 5], [101, 5]]
    assert own == [*marks, [1, 6], [101, 6], [1, 7], [101, 7], [401, 2]]
    assert wire_text(gather(trace.records())) == wire_text(trace)


def test_hostile_texts_add_no_element(trace):
    page, plain = replay_html(hostile(trace, HOSTILE)), replay_html(trace)
    page.encode("utf-8")
    ours, theirs = ([tag for tag, _ in Elements(text).found] for text in (page, plain))
    assert ours == theirs
    assert "<" not in run_in(page)
    lines = [json.loads(line) for line in run_in(page).splitlines()]
    assert lines[1]["prompt"] == HOSTILE and lines[2][3] == HOSTILE
    assert "{{run}}" in page and page.count('"type":"header"') == 1  # a blank's name in a text stays a text


def test_the_head_says_what_ran(trace):
    head = html.unescape(replay_html(trace).split("<main")[0].split("</style>")[1])
    for words in (
        *("random:tiny-llama", "float32", trace.header.device["name"], "Recorded run, replayed", "Why?"),
        *(", ".join(setting_words(trace.header)), *trace.header.sampling["notes"]),
    ):
        assert words in head
    assert "cut short" not in head


def test_a_cut_trace_says_so(trace):
    for steps in (0, 3):
        cut = Trace(trace.header)
        for one in trace.steps["baseline"][:steps]:
            cut.add(one)
        page = replay_html(cut)
        lines = run_in(page).splitlines()
        assert "cut short" in page and len(lines) == 6 + steps
        told = json.loads(lines[-4])
        assert told["type"] == "cut" and told["verdict"]["kind"] == "stopped"


def test_a_header_of_the_bare_contract_is_completed():
    trace = gathered(header({"layers": [1, 2]}), step("lora_drop", 0, "prefill", 1.25))
    line = json.loads(run_in(replay_html(trace)).splitlines()[1])
    assert line["sampling"]["max_new_tokens"] == 1 and line["model"]["kv_bytes_per_token"] == 0
    assert line["lanes"][1]["config"]["part"] == "block" and line["lanes"][1]["config"]["dropped"] == [1, 2]


def test_the_command_writes_both_files(tmp_path, capsys, trace):
    source, page, chrome = tmp_path / "run.jsonl", tmp_path / "run.html", tmp_path / "run.json"
    source.write_text("".join(map(write_line, trace.records())))
    assert main(["replay", str(source), "--json"]) == 0
    before = capsys.readouterr().out
    page.write_text("an older file")
    assert main(["replay", str(source), "--json", "--html", str(page), "--chrome", str(chrome)]) == 0
    assert capsys.readouterr().out == before
    assert page.read_text(encoding="utf-8") == replay_html(trace)
    assert json.loads(chrome.read_text(encoding="utf-8"))["traceEvents"]
    assert main(["replay", str(source), "--html", str(source)]) == 2
    assert source.read_text() == "".join(map(write_line, trace.records()))
