"""The trace's JSON Schema: the records of a run and of the traces that must read fit it, and broken ones do not."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from lora_drop.method.config import LoraDropConfig
from lora_drop.method.fields import RUN, SCHEDULE
from lora_drop.method.settings import settings_of
from lora_drop.run.request import Request
from lora_drop.run.run import run
from lora_drop.run.trace.records import read_line, trace_schema, write_line

jsonschema = pytest.importorskip("jsonschema")
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
    [{"ms": "5"}, {"kind": "rest"}, {"active": [2]}, {"step": -1}, {"kv_bytes": 2**60}, {"trigger": "fear"}],
    ids=str,
)
def test_what_does_not_read_does_not_fit(schema, change):
    step = {"type": "step", "lane": "baseline", "step": 1, "token_id": 1, "text": "x", "kind": "refresh"}
    step |= {"active": [1], "ms": 1.5, "kv_bytes": 64, "entropy": None}
    schema.validate(step)
    assert not schema.is_valid(step | change)
    with pytest.raises(ValueError):
        read_line(json.dumps(step | change).encode())


def test_the_settings_of_the_table_are_in_it():
    types = trace_schema()["$defs"]
    assert {one.name for one in settings_of(SCHEDULE)} <= set(types["LaneConfig"]["properties"])
    assert {one.name for one in settings_of(RUN)} <= set(types["Sampling"]["properties"])
