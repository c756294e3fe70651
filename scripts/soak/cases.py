"""The visitors' questions, the answers that a single user gets, and requests that must be refused."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from typing import Any

from lora_drop.errors import LoraDropError
from lora_drop.method.fields import RUN, SCHEDULE
from lora_drop.method.presets import config_from
from lora_drop.method.settings import BY_NAME, settings_of
from lora_drop.models.load import LoadedModel
from lora_drop.run.request import Request
from lora_drop.run.results.bank_presets import presets_of
from lora_drop.run.run import run
from lora_drop.run.trace.records import StepRecord, write_line
from lora_drop.run.trace.trace import Trace, parse_trace
from lora_drop.run.wire import wire_line
from lora_drop.ui.controls import control_value, control_values, element_id

FIELDS = [f.name for f in dataclasses.fields(StepRecord) if f.name not in ("lane", "ms", "outside", "type")]
PROMPTS = ("Hello", "Explain why the sky is blue.", "Déjà vu 日本語 🙂 <b>&amp;</b>", "one two three " * 12)
OPTIONS = ("preset", *(setting.name for setting in settings_of(SCHEDULE)))  # of the API, that make a config
RULES: dict[str, dict[str, Any]] = {
    "defaults": {},
    "state": {"reuse": "state", "period": 2},
    "attention": {"part": "attention", "kv": "write", "period": 3},
    "listed": {"drop_layers": "2,4", "period": 8, "reuse": "anchor"},
    "baseline": {"period": 1},
    "third lane": {"compare": "skip", "drop_ratio": 1.0},
    "adaptive": {"period": 8, "refresh_entropy": 4.6},
}
SAMPLED = {"temperature": 0.9, "top_p": 0.95}
# The repeated question: with all that could make two runs differ, in both views.
REPEATED = {
    **{"prompt": PROMPTS[2], "period": 6, "drop_ratio": 1.0, "refresh_entropy": 4.6, "compare": "skip"},
    **{"max_new_tokens": 48, "seed": 7, **SAMPLED},
}
# Requests that must be refused, and a word of the error.
BAD_CALLS: list[tuple[dict[str, Any], str]] = [
    ({"prompt": " "}, "prompt is empty"),
    ({"period": 0}, "period"),
    ({"layers": "3-999"}, "layers"),
    ({"adapters": "/etc"}, "adapters must be auto or none"),
    ({"temperature": -1}, "temperature"),
    ({"preset": "nope"}, "no preset"),
    ({"max_new_tokens": 10**9}, "new tokens"),
    ({"drop_layers": "1,1"}, "twice"),
]
BAD_PAGES: list[tuple[dict[str, Any], str]] = [
    ({"ld-prompt": ""}, "prompt is empty"),
    ({"ld-period": 0}, "period"),
    ({"ld-layers": [4, 99]}, "layers"),
    ({"ld-layers": "junk"}, "layers"),
    ({"ld-drop-layers": "x"}, "drop_layers"),
    ({"ld-max-new-tokens": None}, "max_new_tokens"),
    ({"ld-refresh-entropy": "hot"}, "refresh_entropy"),
]


# Parts of a summary, also of a third lane's, that depend on the clocks or on earlier requests.
BY_CLOCK = ("speedup", "speedup_interval", "words", "verdict", "why", "parts", "prefill_cached")


class Wrong(Exception):
    """A fault that a visitor saw."""


def hold(true: Any, otherwise: str) -> None:
    """Raise Wrong with these words unless a condition is true."""
    if not true:
        raise Wrong(otherwise)


@dataclass(frozen=True)
class Case:
    """A question, and the answer that a single user gets."""

    name: str
    options: dict[str, Any]  # by the API's names
    page: dict[str, Any]  # the same by the page's controls
    answer: Answer
    page_answer: Answer  # its header says what the controls ask for
    wire: list[Any]  # lines for the page: the header, then the lines of steps and other records


class Answer:
    """A run's records without their times, a lane at a time: lanes take turns by the clock."""

    def __init__(self, trace: Trace):
        self.header = dataclasses.asdict(trace.header)
        self.steps = {
            lane: [tuple(getattr(step, name) for name in FIELDS) for step in steps]
            for lane, steps in trace.steps.items()
        }
        self.audits = {lane: list(audits.values()) for lane, audits in trace.audits.items()}
        self.quality = {lane: list(audits.values()) for lane, audits in trace.quality.items()}
        self.summary = timeless(dataclasses.asdict(trace.summary)) if trace.summary else None
        self.texts = {lane: trace.text(lane) for lane in trace.steps}

    def same_as(self, expected: Answer) -> None:
        """Raise Wrong unless this is the whole expected answer."""
        same_fields("header", self.header, expected.header)
        for name in ("steps", "audits", "quality", "texts", "summary"):
            hold(getattr(self, name) == getattr(expected, name), f"another answer: the {name} differ")

    def begins(self, expected: Answer) -> None:
        """Raise Wrong unless this is the start of the expected answer, in each lane."""
        same_fields("header", self.header, expected.header)
        for name in ("steps", "audits", "quality"):
            for lane, part in getattr(self, name).items():
                whole = getattr(expected, name)[lane]
                hold(part == whole[: len(part)], f"another answer: lane {lane}'s {name} are not the start of it")


def same_fields(what: str, given: dict[str, Any], expected: dict[str, Any]) -> None:
    """Raise Wrong, with the names of the fields, unless two records are the same."""
    other = sorted(key for key in given.keys() | expected.keys() if given.get(key) != expected.get(key))
    hold(not other, f"another answer: the {what} differs in {', '.join(other)}")


def timeless(summary: dict[str, Any]) -> dict[str, Any]:
    """A summary without the parts that change with time."""
    lanes = {
        name: {k: v for k, v in lane.items() if k not in ("tokens_per_second", "prefill_ms", "decode_ms", *BY_CLOCK)}
        for name, lane in summary["lanes"].items()
    }
    return {k: v for k, v in summary.items() if k not in BY_CLOCK} | {"lanes": lanes}


def by_lane(lines: list[list[Any]]) -> dict[int, list[list[Any]]]:
    """The page's short lines of steps (`0, 1, ...`) and audits (`100, ...`) without their times, in order."""
    lanes: dict[int, list[list[Any]]] = {}
    for line in lines:
        lanes.setdefault(line[0], []).append(line[1:] if line[0] >= 100 else line[1:5] + line[6:])
    return lanes


def make_cases(loaded: LoadedModel, long: int, other: LoadedModel | None = None) -> list[Case]:
    """Make the questions and their answers. The first two are the repeated ones, the last two have `long` tokens.

    Args:
        other: a second model of the app's menu, which one question asks for.
    """
    asked = [(f"repeated, {view}", {**REPEATED, "view": view}) for view in ("race", "lock-step")]
    for i, (rule, options) in enumerate(RULES.items()):
        asked.append((rule, {"max_new_tokens": 16 + 8 * i, "seed": i, **options}))
        sampled = {"max_new_tokens": 40, "seed": 100 + i, "view": "lock-step", **SAMPLED}
        asked.append((f"{rule}, sampled", {**sampled, **options}))
    if other:
        asked.append(("another model", {"max_new_tokens": 32, "seed": 5, "model": other.id, **SAMPLED}))
    asked.append(("long", {"max_new_tokens": long}))
    asked.append(("long, sampled", {"max_new_tokens": long, "compare": "skip", **SAMPLED, "seed": 3}))
    return [
        make_case(
            other if other and "model" in options else loaded,
            name,
            {"prompt": PROMPTS[i % len(PROMPTS)], "ignore_eos": True, **options},
        )
        for i, (name, options) in enumerate(asked)
    ]


def make_case(loaded: LoadedModel, name: str, options: dict[str, Any]) -> Case:
    config = config_from({key: options.get(key) for key in OPTIONS}, presets_of(loaded, options.get("adapters")))
    rest = {key: value for key, value in options.items() if key not in (*OPTIONS, "model")}
    request = Request(config=config, **rest)
    values = control_values(config, loaded.num_layers)
    values |= {setting.name: control_value(setting, getattr(request, setting.name)) for setting in settings_of(RUN)}
    page = {element_id(BY_NAME[name]): value for name, value in values.items()}
    page |= {"ld-model": loaded.id, "ld-prompt": request.prompt, "ld-compare": request.compare or ""}
    records = list(run(loaded, request))
    seen = run(loaded, dataclasses.replace(request, config=config.replace(layers=tuple(values["layers"]))))
    page_records = [next(seen), *records[1:]]
    seen.close()
    answer, page_answer = (read_trace("".join(map(write_line, each))) for each in (records, page_records))
    ids = [lane["id"] for lane in answer.header.lanes]
    wire = [json.loads(line) for record in page_records[:-1] if (line := wire_line(record, ids))]
    return Case(name, options, page, Answer(answer), Answer(page_answer), wire)


def read_trace(text: str) -> Trace:
    try:
        return parse_trace(text.encode())
    except LoraDropError as error:
        raise Wrong(f"not a trace: {error}") from None
