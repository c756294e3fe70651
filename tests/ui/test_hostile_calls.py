"""What the API and the page's functions are given is whatever a visitor can send: an answer, or one line."""

import contextlib
import functools
import itertools
from collections.abc import Callable, Iterable
from types import SimpleNamespace

import gradio as gr
import orjson
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from lora_drop.evaluation.measure.texts import Answers
from lora_drop.method.presets import COMPARISONS, PRESETS
from lora_drop.method.schedule import KV_RULES, PARTS, REUSE_RULES
from lora_drop.models.pool import ModelPool
from lora_drop.run.results.bank_presets import presets_of
from lora_drop.run.trace.trace import parse_trace
from lora_drop.ui.api import functions
from lora_drop.ui.safe_zone.callbacks import SafeZone
from lora_drop.ui.serve.runs import Stops
from tests.support.calls import press_run, refused
from tests.support.fuzzing import CORPUS, TRIED, anything, one_line, profile, strict_json, texts
from tests.support.presets import BUNDLED

pytestmark = pytest.mark.full

VISITOR = SimpleNamespace(session_hash="visitor")
UPDATES = 3  # of a run are read, then it is left: whatever was asked for, a test takes little time


def usually(*fitting, otherwise=anything):
    """One of the values that fit, three times out of four."""
    fits = st.sampled_from(fitting)
    return st.one_of(fits, fits, fits, otherwise)


RULES = {
    "preset": usually(None, *PRESETS),
    "period": usually(1, 2, 3, 4, 5.0, 10**6),
    "layers": usually(None, "1-4", "3-5"),
    "drop_ratio": usually(0, 0.25, 0.5, 1.0),
    "reuse": usually(*REUSE_RULES),
    "part": usually(*PARTS),
    "kv": usually(*KV_RULES),
    "drop_layers": usually(None, "", "2,4"),
    "adapters": usually("auto", "none"),
    "max_new_tokens": usually(1, 2, 6, 100),
    "refresh_entropy": usually(None, 0, 4.5),
}
SETTINGS = RULES | {
    "temperature": usually(0, 0.7, 1e-9, 100),
    "top_p": usually(0.5, 1),
    "seed": usually(0, 5, 2**63 - 1),
    "view": usually("race", "lock-step"),
    "audit": usually(True, False),
    "ignore_eos": usually(True, False),
    "lanes": usually("both", "baseline", "lora-drop"),
    "compare": usually(None, *COMPARISONS),
    "model": usually(None, "random:tiny-llama"),
}
prompts = st.one_of(st.just("Hi"), st.just("Hi"), texts, anything)


def one_or_two_of(options: dict[str, st.SearchStrategy]) -> st.SearchStrategy[dict]:
    """One or two of the options, each with a value of its own or with anything: what is wrong is met alone."""
    one = st.sampled_from(sorted(options)).flatmap(lambda name: st.tuples(st.just(name), options[name] | anything))
    return st.lists(one, min_size=1, max_size=2).map(dict)


# What was found once: values that no dictionary can look up, and numbers that no writer of JSON takes.
FOUND = ({"compare": ["x"]}, {"preset": ["x"]}, {"preset": {}}, {"period": 10**300}, {"refresh_entropy": 10**300})


def examples(each: Iterable[dict]) -> Callable:
    """Inputs that are tried each time, before the drawn ones."""
    return lambda test: functools.reduce(lambda so_far, values: example(**values)(so_far), each, test)


@pytest.mark.parametrize("model", [BUNDLED, None])
def test_the_docstring_has_the_sentences_of_the_first_models_presets(tiny, model):
    info = model or tiny
    calls = SimpleNamespace(settings=(), pool=SimpleNamespace(info=lambda label: info))
    for name in ("generate", "compare", "estimate"):
        text = functions(calls)[name].__doc__
        assert all(preset.note in text for preset in presets_of(info).values())


@profile(150)
@given(prompt=prompts, options=st.fixed_dictionaries({}, optional=SETTINGS) | one_or_two_of(SETTINGS))
@examples({"prompt": "Hi", "options": found} for found in FOUND)
def test_generate_runs_or_refuses_in_one_line(calls, prompt, options):
    TRIED["generate"] += 1
    try:
        with contextlib.closing(functions(calls)["generate"](prompt, **options)) as updates:
            seen = list(itertools.islice(updates, UPDATES))
    except gr.Error as error:
        refused(error)
        return
    orjson.dumps(seen)
    for line in seen[-1].splitlines():
        strict_json(line)
    assert parse_trace(seen[-1].encode()).header.prompt == prompt


@profile(250)
@given(prompt=prompts, options=st.fixed_dictionaries({}, optional=RULES) | one_or_two_of(RULES))
@examples({"prompt": "Hi", "options": found} for found in FOUND if "compare" not in found)
def test_estimate_answers_or_refuses_in_one_line(calls, prompt, options):
    TRIED["estimate"] += 1
    try:
        answer = functions(calls)["estimate"](prompt, **options)
    except gr.Error as error:
        refused(error)
        return
    strict_json(orjson.dumps(answer).decode())
    assert answer["bound"] >= 0.9 and 0 <= answer["kv_bytes"] <= answer["kv_bytes_baseline"]


@profile(150)
@given(text=st.one_of(anything, st.text().map(lambda text: '{"type":"header"' + text)))
def test_replay_refuses_what_is_no_trace(calls, text):
    TRIED["replay"] += 1
    with pytest.raises(gr.Error) as caught:
        functions(calls)["replay"](text)
    refused(caught.value)


@profile(150)
@given(prompt=anything, run_id=anything, kind=st.one_of(st.sampled_from(["trace", "chrome", "html"]), anything))
def test_the_page_s_small_functions_answer_whatever_they_get(calls, prompt, run_id, kind):
    TRIED["small functions"] += 1
    count = calls.count_tokens(prompt)
    assert count is None or (isinstance(prompt, str) and 0 < count <= 4 * len(prompt) + 1)
    assert set(calls.export_run(run_id, kind)) == {"error"}
    kept = calls.traces.begin()
    for line in (CORPUS / "traces" / "good_bare.jsonl").read_text().splitlines(keepends=True):
        calls.traces.add(kept, line)
    answer = calls.export_run(kept, kind)
    orjson.dumps(answer)
    assert set(answer) == ({"name", "text"} if kind in ("trace", "chrome", "html") else {"error"})


# Those that Gradio hands on as they come; it checks a list's, and makes texts of texts.
FREE = {"compare": usually("", *COMPARISONS)} | {
    name: SETTINGS[name]
    for name in "period drop_ratio max_new_tokens temperature top_p seed audit ignore_eos model".split()
}
PAGE = FREE | {
    "prompt": st.one_of(st.none(), texts),
    "layers": st.one_of(st.just((1, 4)), st.tuples(st.integers(), st.integers())),
    "drop_layers": usually("", "2,4", otherwise=texts),
    "reuse": st.sampled_from([*REUSE_RULES, None]),
    "part": st.sampled_from([*PARTS, None]),
    "kv": st.sampled_from([*KV_RULES, None]),
    "refresh_entropy": usually("", "4.5", otherwise=texts),
    "adapters": st.sampled_from(["auto", "none", None]),
    "view": st.sampled_from(["race", "lock-step", None]),
}


@profile(250)
@given(controls=st.fixed_dictionaries(PAGE) | one_or_two_of(FREE))
@examples({"controls": found} for found in ({"audit": float("nan")}, {"compare": ["x"]}, {"ignore_eos": 1e999}))
def test_the_run_button_ends_with_a_status_line(calls, controls):
    """The controls' values as Gradio hands them on: of a list checked by it, of a slider or a number by nobody."""
    TRIED["run button"] += 1
    with contextlib.closing(press_run(calls, VISITOR, **controls)) as updates:
        seen = list(itertools.islice(updates, UPDATES))
    for view, status, _ in seen:
        assert status["kind"] in ("running", "done", "error")
        assert "inside the app" not in one_line(status["text"])
        orjson.dumps(status)
        if isinstance(view, str):
            for line in view.splitlines():
                strict_json(line)
    assert len(calls.stops) == 0, "a run that was left is released"


@profile(60)
@given(
    ratios=usually("0.25,0.5", "1", otherwise=anything),
    periods=usually("2,4", "3", otherwise=anything),
    rules=st.tuples(usually(*REUSE_RULES), usually(*PARTS), usually("auto", "none")),
    shown=st.tuples(st.one_of(st.none(), texts), texts),
)
def test_the_safe_zone_measures_or_refuses_in_one_line(tiny, ratios, periods, rules, shown):
    TRIED["safe zone"] += 1
    zone = SafeZone(ModelPool(tiny), None, Stops())
    # What the tiny model would write first is no matter.
    zone._answers = lambda loaded, should_stop: iter([Answers([[1, 2]], [[3, 4]])])
    with contextlib.closing(zone.run_sweep(ratios, periods, *rules, "agreement", None, None, VISITOR)) as updates:
        for progress, *_ in itertools.islice(updates, 2):
            assert "inside the app" not in one_line(progress["text"])
            orjson.dumps(progress)
    assert len(zone.stops) == 0
    assert all(isinstance(figure, str) for figure in zone.show(*shown, None))


@profile(80)
@given(name=anything)
def test_no_visitor_names_a_folder_of_adapters(calls, name):
    TRIED["names of adapters"] += 1
    if name in ("auto", "none", None):
        return
    for api in ("generate", "estimate"):
        with pytest.raises(gr.Error, match="adapters must be auto or none"):
            list(functions(calls)[api]("Hi", adapters=name, max_new_tokens=1))
