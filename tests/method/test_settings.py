"""The table of settings is the one home of a setting: what is made from it has each of them, a new one too."""

import dataclasses
import json
import os
import subprocess
import sys
from typing import Any

import pytest
from pydantic import TypeAdapter

from lora_drop.errors import LoraDropError
from lora_drop.method.fields import RUN, SCHEDULE, checked, read_layer_order, setting, settings_in
from lora_drop.method.kinds import Choice, Flag, LayerList, Layers, Number, Whole
from lora_drop.method.settings import BY_NAME, SETTINGS
from lora_drop.training.settings import TrainSettings
from scripts.settings_table import PAGE, page
from tests.support import ROOT
from tests.support.golden import check_golden

NAN = float("nan")
ALL = (*SETTINGS, *settings_in(TrainSettings))

# Adds one field to the source of `LoraDropConfig`, and prints where the setting turns up.
MADE_UP = """
import csv, importlib.util, io, json, sys
from pathlib import Path

import lora_drop

spec = importlib.util.find_spec("lora_drop.method.config")
config = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
field = 'made_up: float | None = setting(None, "a made-up setting", low=0, high=1, label="Made up")'
source, end = Path(spec.origin).read_text(), "    def __post_init__"
exec(compile(source.replace(end, f"    {field}\\n\\n{end}"), spec.origin, "exec"), config.__dict__)

from lora_drop.cli.main import main
from lora_drop.evaluation.measure.point import check_point, measure
from lora_drop.run.results.files import CSV_NAME
from lora_drop.evaluation.sweep import _table
from lora_drop.method.config import LoraDropConfig
from lora_drop.models.load import load_model
from lora_drop.models.pool import ModelPool
from lora_drop.run.request import Request
from lora_drop.run.run import run
from lora_drop.ui.controls import SHOWN, linked
from lora_drop.ui.page import build_app
from scripts.settings_table import page

folder, seen = Path(sys.argv[1]), {}
trace = folder / "made.jsonl"
code = main(["run", "--model", "random:tiny-llama", "--prompt", "Hi", "--layers", "1-4", "--made-up", "0.25",
             "--max-new-tokens", "4", "--trace", str(trace), "--json"])
seen["flag"] = code
seen["refused"] = main(["run", "--model", "random:tiny-llama", "--prompt", "Hi", "--made-up", "7"])
header = json.loads(trace.read_text().splitlines()[0])
seen["trace"] = next(lane for lane in header["lanes"] if lane["id"] == "lora_drop")["config"]["made_up"]
loaded = load_model("random:tiny-llama", "cpu", "float32")
demo = build_app(ModelPool(loaded))
controls = {block.elem_id: block for block in demo.blocks.values() if getattr(block, "elem_id", None)}
seen["page"] = controls["ld-made-up"].label
api = demo.get_api_info()["named_endpoints"]
seen["api"] = ["made_up" in [one["parameter_name"] for one in api[name]["parameters"]] for name in api]
seen["link"] = [one.facts for one in linked(SHOWN) if one.name == "made_up"]
config = LoraDropConfig(made_up=0.5, layers=(1, 4))
row = measure(loaded, check_point(loaded, config, "Hi"), [("Hi", "there")], None)
seen["sweep"] = next(csv.DictReader(io.StringIO(_table({"rows": [row]})[CSV_NAME])))["made_up"]
seen["docs"] = [line for line in page().splitlines() if "--made-up" in line]
print("\\nSEEN", json.dumps(seen))
"""


def test_a_made_up_setting_is_everywhere_by_its_one_field(tmp_path):
    command = [sys.executable, "-c", MADE_UP, str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env=os.environ | {"PYTHONPATH": "."})
    assert done.returncode == 0, done.stderr[-3000:]
    seen = json.loads(done.stdout.rpartition("SEEN ")[2])
    assert seen["trace"] == 0.25 and seen["flag"] == 0 and seen["refused"] == 2
    assert "made_up must lie between 0 and 1, got 7.0" in done.stderr
    assert seen["page"] == "Made up" and seen["sweep"] == "0.5"
    assert seen["api"] == [True, False, True, False, False], "/generate, /estimate; not /compare, /replay, /inspect"
    assert seen["link"][0] | {"kind": "number", "off": True, "low": 0, "high": 1} == seen["link"][0]
    (line,) = seen["docs"]
    assert "a made-up setting" in line


def test_the_page_of_the_docs_is_the_tables():
    assert PAGE.read_text(encoding="utf-8") == page(), "run: python -m scripts.settings_table"


def test_every_setting_has_its_own_name_and_says_what_it_does():
    assert len(BY_NAME) == len(SETTINGS)
    assert all(one.help and not one.help.endswith(".") and one.kind.must_be for one in ALL)


@pytest.mark.parametrize("one", ALL, ids=lambda one: f"{one.of}-{one.name}")
def test_a_default_fits_and_is_read_back_from_its_text(one):
    assert one.fits(one.default) and one.fits(json.loads(json.dumps(one.default)))
    assert TypeAdapter(dict).validate_python(one.schema)["description"] == one.help
    if one.default is not None:
        assert one.read(one.kind.write(one.default)) == one.default


@pytest.mark.parametrize(
    ("kind", "value", "text"),
    [
        (Whole(1, 9), 4, "4"),
        (Whole(1, 9, off=True), None, " "),
        (Number(0, 1), 0.25, "0.25"),
        (Number(0, off=True), None, ""),
        (Flag(), False, "false"),
        (Flag(), True, "True"),
        (Choice(("a", "b")), "a", "a"),
        (Choice(("a", "b"), off=True), None, ""),
        (Layers(), (3, 28), "3 - 28"),
        (Layers(off=True), None, None),
        (LayerList(), (4, 999999), " 4, 999999"),
        (LayerList(), (), " "),
    ],
)
def test_texts_and_values(kind, value, text):
    assert kind.read(text) == value and kind.read(value) == value
    if text is not None:
        assert kind.write(value) == text.replace(" ", "").lower()


def test_the_kind_of_each_setting():
    """Made from the type of its field. The page's scripts get its facts; `main` controls are in view."""
    check_golden(
        "table",
        {
            f"{one.of} {one.flag}": {
                **one.facts,
                "must be": one.kind.must_be,
                "outside": one.kind.out_of_range(),
                "label": one.label,
                "main": one.main,
            }
            for one in ALL
        },
    )
    assert Choice(("a", "b"), ("A", "B")).labelled == [("A", "a"), ("B", "b")]
    assert Choice(("a", "b")).labelled == [("a", "a"), ("b", "b")]


def test_values_of_json_that_a_setting_can_have():
    top_p = BY_NAME["top_p"]
    assert all(map(top_p.fits, (1e-9, 1))) and not any(map(top_p.fits, (0, 1.01, "1", None, NAN, 10**400)))
    assert BY_NAME["refresh_entropy"].fits(None) and not BY_NAME["layers"].fits([28, 3])


def test_a_number_field_may_hold_a_whole_number_as_a_float():
    assert BY_NAME["period"].read(64.0) == 64 and BY_NAME["period"].read(64.5) == 64.5


def test_layers_in_an_order():
    assert read_layer_order("14, 9,12") == (14, 9, 12) and read_layer_order(None) == read_layer_order(" ") == ()
    with pytest.raises(LoraDropError, match="drop_order must be"):
        read_layer_order("4,x")


UNREADABLE = {
    "layers": ("3", "a-b", "3-", "-3", "1-2-3", "9999999-1"),
    "drop_layers": ("4;6", "9999999", "4,,6"),
    "refresh_entropy": ("much",),
    "drop_ratio": ("half",),
    "period": ("two", "", "9" * 5000),
    "audit": ("yes",),
}


def test_a_text_that_cannot_be_read_is_one_line():
    lines = {}
    for name, text in ((name, text) for name, texts in UNREADABLE.items() for text in texts):
        with pytest.raises(LoraDropError) as error:
            BY_NAME[name].read(text)
        lines[f"{name}: {text[:20]}"] = str(error.value)
    check_golden("texts", lines)


def test_other_fields_are_no_settings():
    """A class of settings may have other fields, and has the settings of its bases, after theirs."""

    @dataclasses.dataclass(frozen=True)
    class Name:
        name: str

    @checked(RUN)
    class First:
        size: int = setting(2, "a size", between=(1, 9))

    @checked(SCHEDULE)
    class Both(First, Name):
        share: float = setting(0.5, "a share", between=(0, 1))
        note: Any = None

        def __post_init__(self):
            if self.size * self.share > 4:
                raise LoraDropError("too much")

    assert [(one.name, one.of) for one in settings_in(Both)] == [("size", RUN), ("share", SCHEDULE)]
    assert vars(Both("x", 3)) == {"name": "x", "size": 3, "share": 0.5, "note": None}
    for values, line in (
        ({"size": 9}, "too much"),
        ({"size": 0}, "size must be a whole number from 1 to 9; got 0."),
        ({"share": NAN}, "share must lie between 0 and 1, got nan."),
        ({"share": True}, "share must be a number from 0 to 1; got True."),
        ({"name": 3}, "name: Input should be a valid string."),
        ({"shape": 3, "sise": 3}, "unknown setting 'shape'; the settings are name, note, share, size."),
    ):
        with pytest.raises(LoraDropError) as error:
            Both(**{"name": "x"} | values)
        assert str(error.value) == line
    with pytest.raises(LoraDropError, match="name: Field required"):
        Both()
