"""The trace's JSON Schema: the records of a run and of the traces that must read fit it, and broken ones do not."""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from lora_drop.errors import LoraDropError
from lora_drop.method.config import LoraDropConfig
from lora_drop.method.fields import RUN, SCHEDULE
from lora_drop.method.settings import settings_of
from lora_drop.run.request import Request
from lora_drop.run.run import run
from lora_drop.run.trace import trace as module
from lora_drop.run.trace.records import MAX_TEXT, MAX_VALUES, VERSION, Header, read_line, trace_schema, write_line
from lora_drop.run.trace.trace import parse_trace, read_trace
from scripts.attack import traces
from scripts.trace_schema import FILE, text
from tests.support import ROOT
from tests.support.documented import FENCE
from tests.support.made import rejecting

jsonschema = pytest.importorskip("jsonschema")
READERS = {"python": [sys.executable, "-X", "utf8"], "js": ["node"]}
TRACES = Path(__file__).parents[1] / "corpus" / "traces"
GOOD = sorted(path for path in TRACES.glob("*.jsonl") if not path.name.startswith("bad_"))


@pytest.fixture(scope="module")
def schema() -> Any:
    jsonschema.Draft202012Validator.check_schema(trace_schema())
    return jsonschema.Draft202012Validator(trace_schema())


def _lines(path: Path) -> list[Any]:
    lines = [line for line in path.read_bytes().splitlines() if line.strip()]
    return [json.loads(line) for line in (lines[:-1] if "cut" in path.stem else lines)]


def test_every_record_of_a_run_fits(tiny, schema):
    config = LoraDropConfig(period=3, refresh_entropy=4.5)
    kinds = set()
    for record in run(tiny, Request("Hello", config, 12, ignore_eos=True)):
        line = json.loads(write_line(record))
        schema.validate(line)
        assert write_line(read_line(write_line(record).encode())) == write_line(record)
        kinds.add(line["type"])
    assert kinds == {"header", "step", "audit", "summary"}


@pytest.mark.parametrize("path", GOOD, ids=lambda path: path.stem)
def test_the_good_traces_of_the_corpus_fit(schema, path):
    for line in _lines(path):
        schema.validate(line)


@pytest.mark.parametrize(
    "change",
    [
        *({"ms": "5"}, {"kind": "rest"}, {"active": [2]}, {"step": -1}, {"kv_bytes": 2**60}, {"trigger": "fear"}),
        *({"text": "x" * 10_001}, {"active": [1] * 1001}, {"top": [["x" * 10_001, 0.5]]}),
    ],
    ids=lambda change: str(change)[:20],
)
def test_what_does_not_read_does_not_fit(schema, change):
    schema.validate(traces.step(1, kind="refresh"))
    assert not schema.is_valid(traces.step(1, kind="refresh") | change)
    with pytest.raises(ValueError):
        read_line(json.dumps(traces.step(1, kind="refresh") | change).encode())


@pytest.mark.parametrize(
    "change",
    [{"software": dict.fromkeys(map(str, range(MAX_VALUES + 1)))}, {"device": {"name": "x" * (MAX_TEXT + 1)}}],
    ids=["many values", "a long text"],
)
def test_what_a_header_has_is_bounded(change):
    assert read_line(json.dumps(traces.header()).encode())
    with pytest.raises(LoraDropError, match="not one that a run writes"):
        read_line(json.dumps(traces.header() | change).encode())


def test_the_number_of_records_is_bounded(monkeypatch):
    raw = traces.text(traces.header(), traces.step(0), traces.step(1)).encode()
    monkeypatch.setattr(module, "MAX_RECORDS", 3)
    assert len(parse_trace(raw).steps["lora_drop"]) == 2
    with pytest.raises(LoraDropError, match="line 5: a trace has at most 3 records"):
        parse_trace(raw + b"\n" + traces.text(traces.step(2)).encode())


def test_the_settings_of_the_table_are_in_it():
    types = trace_schema()["$defs"]
    assert {one.name for one in settings_of(SCHEDULE)} <= set(types["LaneConfig"]["properties"])
    assert {one.name for one in settings_of(RUN)} <= set(types["Sampling"]["properties"])


def test_the_shipped_schema_is_that_of_the_code_and_names_its_version():
    assert FILE.read_text(encoding="utf-8") == text(), "run: python -m scripts.trace_schema"
    schema = json.loads(text())
    assert schema["$id"].endswith(f":{VERSION}")
    assert schema["$defs"][Header.__name__]["properties"]["version"]["const"] == VERSION


@pytest.mark.parametrize("language", READERS)
def test_the_readers_in_the_docs_read_what_the_program_reads(tmp_path, language):
    [block] = [one for kind, one in FENCE.findall((ROOT / "docs" / "trace.md").read_text()) if kind == language]
    assert len([line for line in block.splitlines() if line.strip()]) <= 30
    if shutil.which(READERS[language][0]) is None:
        pytest.skip(f"{READERS[language][0]} is not installed")
    rejected = "".join(map(write_line, rejecting())).encode()
    assert b'"rewind"' in rejected
    for raw in (rejected, *(TRACES.joinpath(f"good_{name}.jsonl").read_bytes() for name in ("three_lanes", "crlf"))):
        (tmp_path / "run.jsonl").write_bytes(raw + b'{"type": "st')
        trace = read_trace(tmp_path / "run.jsonl")
        read = subprocess.run([*READERS[language], "-"], input=block, cwd=tmp_path, capture_output=True, text=True)
        lines = [f"{name} {len(steps)} {trace.text(name)}" for name, steps in trace.steps.items()]
        assert read.stdout.splitlines() == "\n".join(lines).splitlines(), read.stderr
    (tmp_path / "run.jsonl").write_bytes(re.sub(rb'"version": \d', b'"version": 3', rejected))
    read = subprocess.run([*READERS[language], "-"], input=block, cwd=tmp_path, capture_output=True, text=True)
    assert read.returncode and "version 4, not 3" in read.stderr
