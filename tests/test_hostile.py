"""Everything that a stranger can reach, given what a stranger may send: the API, the page's functions, the command
line, prompts, names of files, and the addresses of a running app.

Each call ends as its contract says: a result that is plain JSON, or one line. Nothing is executed, nothing becomes a
special token, no file of the machine is read or written.
"""

from __future__ import annotations

import contextlib
import functools
import http.client
import inspect
import itertools
import json
import os
import pickle
import re
import shutil
import socket
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from types import SimpleNamespace
from urllib.parse import quote

import gradio as gr
import orjson
import pytest
import torch
from fuzzing import CORPUS, HOSTILE, TRIED, anything, one_line, profile, strict_json, texts
from hypothesis import example, given
from hypothesis import strategies as st

from lora_drop.adapters.bank import AdapterBank
from lora_drop.cli.main import _parser, main
from lora_drop.errors import LoraDropError
from lora_drop.method.presets import COMPARISONS, PRESETS
from lora_drop.method.settings import KV_RULES, PARTS, REUSE_RULES
from lora_drop.models import bundled as bundled_model
from lora_drop.models import hub
from lora_drop.models.load import load_model
from lora_drop.models.pool import ModelPool
from lora_drop.models.tokens import ByteTokenizer, encode_prompt, encode_text
from lora_drop.paths import ASSETS
from lora_drop.run.exports import html as replay
from lora_drop.run.exports.scripts import plotly_script
from lora_drop.run.trace import parse_trace, read_trace
from lora_drop.ui import scripts
from lora_drop.ui.callbacks import Callbacks
from lora_drop.ui.kept import Stops
from lora_drop.ui.page import build_app, launch
from lora_drop.ui.safe_zone import SafeZone

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
    "refresh_norm": usually(None, 0, 0.5),
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


@pytest.fixture
def calls(tiny, monkeypatch):
    """The page's functions; a replay without its scripts, which are the same in each and megabytes."""
    monkeypatch.setattr(replay, "_scripts", lambda: "")
    return Callbacks(ModelPool(tiny))


def examples(each: Iterable[dict]) -> Callable:
    """Inputs that are tried each time, before the drawn ones."""
    return lambda test: functools.reduce(lambda so_far, values: example(**values)(so_far), each, test)


def refused(error: gr.Error) -> None:
    """What Gradio sends of a mistake is one line that its encoder takes."""
    one_line(error.message)
    orjson.dumps(error.message)
    assert not error.print_exception


# ---- the API --------------------------------------------------------------------------------------------------------


@profile(150)
@given(prompt=prompts, options=st.fixed_dictionaries({}, optional=SETTINGS) | one_or_two_of(SETTINGS))
@examples({"prompt": "Hi", "options": found} for found in FOUND)
def test_generate_runs_or_refuses_in_one_line(calls, prompt, options):
    TRIED["generate"] += 1
    try:
        with contextlib.closing(calls.generate(prompt, **options)) as updates:
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
        answer = calls.estimate(prompt, **options)
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
        calls.replay(text)
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


PAGE = {
    "compare": usually("", *COMPARISONS),
    "prompt": st.one_of(st.none(), texts),
    "period": SETTINGS["period"],
    "layers": st.one_of(st.just((1, 4)), st.tuples(st.integers(), st.integers())),
    "drop_ratio": SETTINGS["drop_ratio"],
    "drop_layers": usually("", "2,4", otherwise=texts),
    "reuse": st.sampled_from([*REUSE_RULES, None]),
    "part": st.sampled_from([*PARTS, None]),
    "kv": st.sampled_from([*KV_RULES, None]),
    "refresh_entropy": usually("", "4.5", otherwise=texts),
    "refresh_norm": usually("", "0.5", otherwise=texts),
    "adapters": st.sampled_from(["auto", "none", None]),
    "max_new_tokens": SETTINGS["max_new_tokens"],
    "temperature": SETTINGS["temperature"],
    "top_p": SETTINGS["top_p"],
    "seed": SETTINGS["seed"],
    "view": st.sampled_from(["race", "lock-step", None]),
    "audit": SETTINGS["audit"],
    "ignore_eos": SETTINGS["ignore_eos"],
    "model": SETTINGS["model"],
}


PLAIN = {
    **{"compare": "", "prompt": "Hi", "period": 3, "layers": (1, 4), "drop_ratio": 1, "drop_layers": ""},
    **{"reuse": "residual", "part": "block", "kv": "skip", "refresh_entropy": "", "refresh_norm": ""},
    **{"adapters": "auto", "max_new_tokens": 4, "temperature": 0, "top_p": 1, "seed": 0, "view": "race"},
    **{"audit": True, "ignore_eos": True, "model": None},
}
# Those that Gradio hands on as they come; it checks a list's, and makes texts of texts.
FREE = (
    "compare",
    "period",
    "drop_ratio",
    "max_new_tokens",
    "temperature",
    "top_p",
    "seed",
    "audit",
    "ignore_eos",
    "model",
)


@profile(250)
@given(
    controls=st.fixed_dictionaries(PAGE)
    | one_or_two_of({name: PAGE[name] for name in FREE}).map(lambda some: PLAIN | some)
)
@examples(
    {"controls": PLAIN | found} for found in ({"audit": float("nan")}, {"compare": ["x"]}, {"ignore_eos": 1e999})
)
def test_the_run_button_ends_with_a_status_line(calls, controls):
    """The controls' values as Gradio hands them on: of a list checked by it, of a slider or a number by nobody."""
    TRIED["run button"] += 1
    with contextlib.closing(calls.run_page(**controls, request=VISITOR)) as updates:
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
    zone._pairs = lambda loaded, should_stop: iter(
        [[("Why?", "So.")]]
    )  # what the tiny model would write first is no matter
    with contextlib.closing(zone.run_page(ratios, periods, *rules, "agreement", None, None, VISITOR)) as updates:
        for progress, *_ in itertools.islice(updates, 2):
            assert "inside the app" not in one_line(progress["text"])
            orjson.dumps(progress)
    assert len(zone.stops) == 0
    assert all(isinstance(figure, str) for figure in zone.show(*shown, None))


# ---- prompts --------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def tokenizer():
    """The real one of the bundled model."""
    from transformers import AutoTokenizer

    loaded = AutoTokenizer.from_pretrained(str(bundled_model.ensure()), local_files_only=True)
    loaded.model_max_length = sys.maxsize
    return loaded


@pytest.fixture(scope="module")
def special(tokenizer):
    """The strings that the tokenizer turns into one token each."""
    return tokenizer.get_added_vocab()


def pieces(data, special: dict[str, int]) -> str:
    """A text of special tokens, halves of them, and anything else."""
    names = st.sampled_from(sorted(special))
    half = st.tuples(names, st.integers(0, 12)).map(lambda name: name[0][: name[1]])
    return "".join(
        data.draw(st.lists(st.one_of(names, half, texts, st.sampled_from(["\n", " ", "<", "|>"])), max_size=8))
    )


@pytest.fixture(scope="module")
def known(tokenizer):
    """Does the vocabulary have all bytes of a character?"""
    return functools.cache(
        lambda sign: sign in "\n\ud800\udc00" or tokenizer.decode(encode_text(tokenizer, sign)) == sign
    )


@profile(250)
@given(data=st.data())
def test_nothing_that_is_typed_becomes_a_special_token(tokenizer, special, known, data):
    TRIED["prompts"] += 1
    ids = set(special.values())
    # The vocabulary lacks some bytes (of controls, and of planes without characters): what it cannot say is left out.
    prompt = "".join(sign for sign in pieces(data, special) if sign.isascii() and sign.isprintable() or known(sign))
    text = prompt.encode("utf-8", "replace").decode()
    plain = encode_text(tokenizer, prompt)
    assert not ids & set(plain) and tokenizer.decode(plain, clean_up_tokenization_spaces=False) == text
    if not prompt.strip():
        with pytest.raises(LoraDropError):
            encode_prompt(tokenizer, prompt)
        return
    encoded = encode_prompt(tokenizer, prompt)
    around = [token for token in encode_prompt(tokenizer, "Hi") if token in ids]
    assert [token for token in encoded if token in ids] == around, "the template's own, and no other"
    assert text in tokenizer.decode(encoded, clean_up_tokenization_spaces=False)


@profile(60)
@given(prompt=texts)
def test_the_byte_tokenizer_takes_any_text_as_bytes(prompt):
    TRIED["prompts"] += 1
    assert all(0 <= token < 256 for token in ByteTokenizer().encode(prompt, add_special_tokens=False))


@pytest.mark.parametrize("piece", ["a", "\n!", "<|im_end|>", "\x00", "\ud800", "😀"])
def test_a_megabyte_is_encoded_in_seconds_or_refused(tokenizer, special, calls, piece):
    TRIED["prompts"] += 1
    prompt = "Hi" + piece * (2**20 // len(piece.encode("utf-8", "replace")))
    started = time.monotonic()
    encoded = encode_prompt(tokenizer, prompt)
    assert sum(token in special.values() for token in encoded) == sum(
        token in special.values() for token in encode_prompt(tokenizer, "Hi")
    )
    assert calls.count_tokens(prompt) is None, "not counted while it is typed"
    with pytest.raises(gr.Error, match="at most 100,000 characters") as caught:
        list(calls.generate(prompt))
    refused(caught.value)
    assert time.monotonic() - started < 60


# ---- the command line -----------------------------------------------------------------------------------------------

TINY = ["--model", "random:tiny-llama", "--device", "cpu", "--dtype", "float32"]
DATA = ["--data", "pairs.jsonl", "--prompt-field", "q", "--target-field", "a", "--limit", "1"]
# Of each command, the least that it can be asked to do; an option given once more takes the place of the first.
COMMANDS = {
    "run": ["--prompt", "Hi", *TINY, "--max-new-tokens", "2"],
    "evaluate": [*DATA, *TINY],
    "adaptive": [*DATA, *TINY, "--quantiles", "0.5", "--triggers", "entropy"],
    "sweep": [*DATA, *TINY, "--drop-ratios", "0.5", "--periods", "2", "--out", "swept"],
    "presets": [*DATA, *TINY, "--out", "measured"],
    "sweep-figures": ["swept", "--out", "drawn"],
    "recommend": ["swept/sweep.json", "--min-agreement", "0"],
    "bench": [*TINY, "--prompt-tokens", "2", "--new-tokens", "3", "--rounds", "1", "--no-hf"],
    "benchmark": ["--data-dir", "tasks", "--out", "scores", *TINY, "--limit", "1", "--max-new-tokens", "2"],
    "drop-order": ["--data", "text.txt", *TINY, "--windows", "1", "--count", "1"],
    "train": [
        *("--data", "text.txt", *TINY, "--out", "bank", "--max-tokens", "1", "--length", "16"),
        *("--batch-size", "1", "--rank", "1", "--fit-batches", "0"),
    ],
    "replay": ["run.jsonl"],
}
SLOW = {"presets", "bench"}  # a whole run of them takes seconds
WRITES = {"--out", "--trace", "--html", "--chrome"}
UNBOUNDED = {"--rounds", "--max-tokens", "--self-generate"}  # who asks for a million rounds may wait for them
WORDS = [word for word in HOSTILE if "\x00" not in word]  # no program can be given a null byte
NUMBERS = [
    "-1",
    "0",
    "1",
    "2",
    "0.5",
    "-0.0",
    "1e-9",
    "1e3",
    "nan",
    "inf",
    "-inf",
    "5000",
    "1_0",
    str(2**63),
    str(10**30),
]


@pytest.fixture(scope="module")
def workplace(tmp_path_factory):
    """A folder with what the commands read; the only one that they may write to."""
    folder = tmp_path_factory.mktemp("outer") / "workplace"
    folder.mkdir()
    pairs = [{"q": "Why is the sky blue?", "a": "It scatters light."}, {"q": "Why?", "a": "So."}]
    (folder / "pairs.jsonl").write_text("".join(json.dumps(pair) + "\n" for pair in pairs))
    (folder / "text.txt").write_text("The sky is blue because the air scatters light. " * 40)
    (folder / "tasks" / "hellaswag").mkdir(parents=True)
    (folder / "swept").mkdir()
    shutil.copy(ASSETS / "sweeps" / "sweep.json", folder / "swept")
    shutil.copy(CORPUS / "traces" / "good_three_lanes.jsonl", folder / "run.jsonl")
    return folder


def ends_well(argv: list[str], capsys) -> int:
    """The exit code: 0, or 2 with one line on stderr and nothing on stdout."""
    TRIED["command line"] += 1
    code = main(argv)
    captured = capsys.readouterr()
    if code:
        assert code == 2 and captured.out == "", (argv, captured)
        last = [line for line in captured.err.splitlines() if not PROGRESS.match(line)]
        assert len(last) == 1 and last[0].startswith("lora_drop: "), (argv, captured)
        one_line(last[0])
    assert "Traceback" not in captured.err
    return code


PROGRESS = re.compile(r"\d+ of \d+ |note: |warm-up|round \d|bandwidth|\r|\d+ \(KL |\s*\d+%|.*\bbatch/s|.*records?/s|$")


def options_of(command: str) -> list[str]:
    """All options of a command, and its positional argument as an empty name."""
    commands = next(action for action in _parser()._actions if action.choices)
    actions = [action for action in commands.choices[command]._actions if action.dest != "help"]
    return ["" if not action.option_strings else action.option_strings[0] for action in actions]


@pytest.fixture
def offline(monkeypatch, workplace):
    """In the workplace; a model that is named after nothing is looked for on this machine alone."""
    monkeypatch.chdir(workplace)
    monkeypatch.setattr(hub, "_hub_answers", lambda name: False)


@pytest.mark.parametrize("command", [*COMMANDS])
def test_any_word_for_any_option_runs_or_is_refused_in_one_line(command, workplace, offline, capsys):
    @profile(100 if command == "run" else 20 if command not in SLOW else 8)
    @given(data=st.data())
    def try_one(data):
        option = data.draw(st.sampled_from(options_of(command)), "option")
        value = data.draw(st.one_of(st.sampled_from([*WORDS, *NUMBERS]), words), "value")
        if option in WRITES:
            value = value.replace("/", "").replace("..", "") or "x"
        if option in UNBOUNDED and value.strip().isdecimal():
            value = "2"
        base = COMMANDS[command]
        if option == "" and command in ("sweep-figures", "recommend", "replay"):
            ends_well([command, "--", value] if command == "replay" else [command, *base[1:], "--", value], capsys)
        else:
            ends_well([command, *base, *([f"{option}={value}"] if option else [value])], capsys)

    outside = set(workplace.parent.iterdir())
    try_one()
    assert set(workplace.parent.iterdir()) == outside and not [*workplace.rglob("hacked")]


PATHS = [
    *(
        ("run", "--trace"),
        ("run", "--adapters"),
        ("evaluate", "--data"),
        ("sweep", "--out"),
        ("sweep-figures", "--out"),
    ),
    *(
        ("benchmark", "--data-dir"),
        ("benchmark", "--out"),
        ("train", "--out"),
        ("train", "--data"),
        ("train", "--start"),
    ),
    *(("replay", "--html"), ("replay", "--chrome"), ("drop-order", "--data")),
]


@pytest.mark.parametrize(("command", "option"), PATHS)
def test_a_path_too_long_is_one_line(command, option, offline, capsys):
    """It is also told where the system only says so when a file is looked for, which was taken for a full disk."""
    for path in ("a" * 5000, "a/" * 3000):
        assert ends_well([command, *COMMANDS[command], option, path], capsys) == 2


words = st.text(alphabet=st.characters(exclude_characters="\x00"), max_size=20)


@profile(60)
@given(
    argv=st.lists(st.one_of(st.sampled_from([*COMMANDS, "--json", "--prompt", "--model", *WORDS]), words), max_size=5)
)
def test_any_words_are_no_command(argv, offline, capsys):
    argv = [word for word in argv if word not in ("-h", "--help")]
    if argv[:1] not in (["run"], ["bench"]):  # these go on to the bundled model
        ends_well(argv, capsys)


# ---- files: weights, names, paths -----------------------------------------------------------------------------------


class Opened(Exception):
    """A pickle was opened."""


@pytest.fixture
def no_pickles(monkeypatch):
    """Fails the test if anything opens a pickle, by whatever way."""

    def opened(*args, **kwargs):
        raise Opened

    for module, name in ((torch, "load"), (pickle, "load"), (pickle, "loads"), (pickle, "Unpickler")):
        monkeypatch.setattr(module, name, opened)


PICKLES = ("pytorch_model.bin", "adapter_model.bin", "adapter_model.pt", "model.pt", "weights.pkl", "model.ckpt")


def kinds(error: BaseException | None) -> Iterator[type]:
    while error is not None:
        yield type(error)
        error = error.__cause__ or error.__context__


def test_pickled_weights_are_never_opened(tiny, tmp_path, no_pickles):
    """Instead of safetensors they are refused, beside them they are ignored: of models and of adapters."""
    model = tmp_path / "model"
    tiny.model.save_pretrained(model)
    evil = b"cposix\nsystem\n(S'touch hacked'\ntR."
    for name in PICKLES:
        (model / name).write_bytes(evil)
    (model / "pytorch_model.bin.index.json").write_text('{"weight_map": {"x": "pytorch_model.bin"}}')
    with pytest.raises(LoraDropError, match="its tokenizer cannot be loaded") as caught:  # it has none, but weights
        load_model(str(model))
    assert Opened not in kinds(caught.value)
    shutil.copytree(
        bundled_model.ensure(), tmp_path / "real", ignore=shutil.ignore_patterns("*.safetensors", "*.gguf")
    )
    for name in PICKLES:
        (tmp_path / "real" / name).write_bytes(evil)
    with pytest.raises(LoraDropError, match="no safetensors weights .pickled ones are refused.") as caught:
        load_model(str(tmp_path / "real"))
    assert Opened not in kinds(caught.value)
    for name in ("good_pickle_beside", "bad_pickle_instead", "bad_pickle_by_another_name"):
        folder = CORPUS / "adapters" / name
        with contextlib.nullcontext() if name.startswith("good") else pytest.raises(LoraDropError):
            AdapterBank.load(folder)


class Touch:
    """What a pickle of this would do when it is opened."""

    def __reduce__(self):
        return os.mkdir, ("hacked",)


@pytest.mark.parametrize("state", [Touch(), [], {}, {"revision": 1}, {"revision": Touch()}, b"x", "cut"])
def test_a_checkpoint_of_someone_else_is_refused(state, tmp_path, monkeypatch, capsys):
    """Training goes on from a file of torch's: numbers are read from it, and nothing else."""
    monkeypatch.chdir(tmp_path)
    Path("text.txt").write_text("The sky is blue because the air scatters light. " * 40)
    train = ["train", *COMMANDS["train"]]
    assert main(train) == 0
    capsys.readouterr()
    path = next(Path("bank").rglob("state.pt"))
    if state == "cut":
        path.write_bytes(path.read_bytes()[:-200])
    else:
        torch.save(state, path)
    assert ends_well([*train, "--resume"], capsys) == 2
    assert not Path("hacked").exists()


@pytest.mark.parametrize("missing", ["settings", "parameters", "scales", "optimizer", "step"])
def test_a_checkpoint_without_a_part_is_refused(missing, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    Path("text.txt").write_text("The sky is blue because the air scatters light. " * 40)
    train = ["train", *COMMANDS["train"]]
    assert main(train) == 0
    capsys.readouterr()
    path = next(Path("bank").rglob("state.pt"))
    state = torch.load(path, weights_only=True)
    for value in ([], None, "x"):
        torch.save(state | {missing: value}, path)
        assert ends_well([*train, "--resume"], capsys) == 2
    torch.save({name: value for name, value in state.items() if name != missing}, path)
    assert ends_well([*train, "--resume"], capsys) == 2


@profile(80)
@given(name=st.one_of(texts, st.sampled_from(["..", ".", "~", "~root", "/", "/etc", "/proc/self", "//", "a/../.."])))
def test_a_model_s_name_leads_nowhere(name, monkeypatch):
    """A name is bundled, random:, a folder of safetensors, or goes to the Hub; the Hub is asked for no path."""
    TRIED["names of models"] += 1
    asked = []

    def answers(hub_id):
        asked.append(hub_id)
        raise LoraDropError("not asked in a test.")

    monkeypatch.setattr(hub, "_hub_answers", answers)
    with pytest.raises(LoraDropError) as caught:
        load_model(name, device="cpu")
    one_line(caught.value)
    for hub_id in asked:
        assert re.fullmatch(r"[\w.-]+(/[\w.-]+)?", hub_id) and not hub_id.startswith((".", "/"))


@profile(80)
@given(name=anything)
def test_no_visitor_names_a_folder_of_adapters(calls, name):
    TRIED["names of adapters"] += 1
    if name in ("auto", "none"):
        return
    for call in (calls.generate, calls.estimate):
        with (
            pytest.raises(gr.Error, match="adapters must be auto or none")
            if name is not None
            else contextlib.nullcontext()
        ):
            answer = call("Hi", adapters=name, max_new_tokens=1)
            assert list(answer)


@profile(80)
@given(name=texts)
def test_a_trace_s_name_is_told_and_not_followed(calls, name):
    """The error names the file, never its folder."""
    TRIED["names of traces"] += 1
    path = Path("/proc/no-such-folder") / name.replace("/", "_")
    with pytest.raises(LoraDropError) as caught:
        read_trace(path)
    assert "no-such-folder" not in one_line(caught.value) or path.name == "no-such-folder"
    _, status = calls.open_trace(str(path))
    assert status == {"kind": "error", "text": str(caught.value)}


ENDLESS = {
    "replay": ["/dev/zero"],
    "recommend": ["/dev/zero", "--min-agreement", "0"],
    "train": [*TINY, "--out", "x", "--data", "/dev/zero"],
    "evaluate": [*TINY, "--prompt-field", "a", "--target-field", "b", "--data", "/dev/zero"],
}


@pytest.mark.parametrize("command", ENDLESS)
@pytest.mark.skipif(not os.path.exists("/dev/zero"), reason="there is no file without an end here")
def test_a_file_without_an_end_is_refused(command, offline, capsys):
    assert ends_well([command, *ENDLESS[command]], capsys) == 2


# ---- a running app --------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def address(tiny) -> Iterator[tuple[str, int]]:
    """Host and port of the page, launched as app.py does."""
    with contextlib.closing(socket.socket()) as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
    demo = build_app(ModelPool(tiny))
    launch(demo, "127.0.0.1", port, block=False)
    yield "127.0.0.1", port
    demo.close(verbose=False)


def ask(address, target: str, body: bytes | None = None, kind: str = "application/json") -> tuple[int, bytes, dict]:
    """Status, content and headers of a request whose target goes out letter for letter."""
    TRIED["addresses"] += 1
    connection = http.client.HTTPConnection(*address, timeout=60)
    try:
        connection.putrequest("GET" if body is None else "POST", target, skip_host=False)
        if body is not None:
            connection.putheader("Content-Type", kind)
            connection.putheader("Content-Length", str(len(body)))
        connection.endheaders(body)
        answer = connection.getresponse()
        return answer.status, answer.read(), {name.lower(): value for name, value in answer.getheaders()}
    finally:
        connection.close()


def forms(path: str) -> Iterator[str]:
    """A path in the ways that an address can write it."""
    yield path
    yield quote(path, safe="")
    yield quote(quote(path, safe=""), safe="")
    yield path.replace("/", "//")
    yield path.replace("/", "%2f").replace(".", "%2e")
    yield "/" + path
    yield f"{ASSETS}/../../../../../../../../../..{path}"
    yield f"{plotly_script()}/../../../../../../../../../../..{path}"
    yield "/".join([".."] * 12) + path
    yield "%2e%2e/" * 12 + path.lstrip("/")
    yield "..%2f" * 12 + path.lstrip("/")
    yield f"file://{path}"


ROOT = ASSETS.parent
OUTSIDE = {
    "a file of the system": Path("/etc/passwd"),
    "the environment": Path("/proc/self/environ"),
    "the code": ROOT / "app.py",
    "a file beside the code": ROOT / "pyproject.toml",
    "a template": ASSETS / "html" / "live.html",
    "a script, which has a route of its own": ASSETS / "js" / "main.js",
    "adapters": next((ASSETS / "adapters").glob("*/*.json")),
    "another file of a package": plotly_script().parent.parent / "__init__.py",
}


@pytest.mark.parametrize("outside", OUTSIDE)
def test_a_file_outside_of_the_assets_is_refused(address, outside):
    path = OUTSIDE[outside]
    for route in ("/gradio_api/file=", "/file=", "/gradio_api/file/"):
        for form in forms(str(path)):
            status, content, _ = ask(address, route + form)
            assert status in (403, 404), (route, form, status)
            assert path.read_bytes()[:40] not in content or not path.read_bytes()[:40]
    assert ask(address, f"/gradio_api/file={path}")[0] == 403


def test_the_model_s_cache_and_links_are_refused(address, tmp_path):
    weights = next(bundled_model.ensure().glob("*.safetensors"))
    link = tmp_path / "link.js"
    link.symlink_to("/etc/passwd")
    back = tmp_path / "assets"
    back.symlink_to(ASSETS)  # a way to an asset that is not its own
    for path in (weights, weights.parent, weights.parent / "tokenizer.json", link, back / ".." / "app.py", tmp_path):
        status, content, _ = ask(address, f"/gradio_api/file={path}")
        assert status == 403 and len(content) < 300


def test_the_assets_are_served_and_nothing_else_beside_them(address):
    modules = f"/{scripts.address()}/"
    for path, where in (
        (plotly_script(), f"/gradio_api/file={plotly_script()}"),
        (ASSETS / "js" / "main.js", f"{modules}main.js"),
        (ASSETS / "js" / "charts" / "drift.js", f"{modules}charts/drift.js"),
    ):
        status, content, headers = ask(address, where)
        assert status == 200 and path.read_bytes().startswith(content)
        assert headers["content-type"].startswith(("text/javascript", "application/javascript"))
    for name in ("", "charts", "../css/base.css", "..%2fcss/base.css", "%2e%2e/html/live.html", "gone.js"):
        assert ask(address, modules + name)[0] == 404
    for route in (modules, "/static/", "/assets/", "/svelte/", "/gradio_api/custom_component/1/client/component/"):
        for way in ("../" * 14, "..%2f" * 14, "%2e%2e/" * 14, "%2e%2e%2f" * 14, "..%5c" * 14, "....//" * 14):
            status, content, _ = ask(address, f"{route}{way}etc/passwd")
            assert status in (400, 403, 404) and b"root:" not in content
    for name in ("http://127.0.0.1:{}/", "http://localhost:{}/", "http://[::1]:{}/", "http://0.0.0.0:{}/"):
        status, content, _ = ask(address, "/gradio_api/file=" + name.format(address[1]))
        assert status >= 400 and b"LoRA" not in content, "the server asks no server of its own network"


def test_the_server_asks_no_other_host_for_a_visitor(address, monkeypatch):
    """Neither through the file route nor as a file that a call names."""
    asked, real = [], socket.getaddrinfo
    monkeypatch.setattr(socket, "getaddrinfo", lambda host, *args, **kw: asked.append(host) or real(host, *args, **kw))
    for name in ("http://visitor.example/x", "https://visitor.example:8000/x.js"):
        status, content, _ = ask(address, f"/gradio_api/file={name}")
        assert status == 403 and len(content) < 300
        file = {"path": name, "meta": {"_type": "gradio.FileData"}}
        assert b"event: error" in answers(address, "estimate", json.dumps({"data": [file] + [None] * 13}).encode())
    assert not [host for host in asked if "visitor" in str(host) or "dns" in str(host)]


def test_an_upload_stays_in_its_folder_and_is_no_page(address, tmp_path):
    for name in (
        "../../../evil.html",
        "/etc/evil.html",
        "..\\evil.html",
        "<img src=x>.svg",
        "a" * 300 + ".html",
        "\x1b.js",
    ):
        body = (
            f'--x\r\nContent-Disposition: form-data; name="files"; filename="{name}"\r\n'
            "Content-Type: text/html\r\n\r\n<script>alert(1)</script>\r\n--x--\r\n"
        ).encode()
        status, content, _ = ask(address, "/gradio_api/upload", body, "multipart/form-data; boundary=x")
        assert status < 500
        if status != 200:
            continue
        kept = Path(json.loads(content)[0])
        assert ".." not in kept.parts and "etc" not in kept.parts[:2] and kept.exists()
        _, _, headers = ask(address, f"/gradio_api/file={quote(str(kept))}")
        assert headers["content-disposition"].startswith("attachment") or "html" not in headers["content-type"]


BODIES = (
    b"",
    b"{",
    b"null",
    b"[]",
    b'{"data": 5}',
    b'{"data": []}',
    b'{"data": ["Hi"], "session_hash": "../../x", "fn_index": -1}',
    b'{"data": ' + b"[" * 5000 + b"]" * 5000 + b"}",
    b"\xff\xfe\x00",
)
# What a parameter may be given, as it stands in a request.
WRITTEN = (
    b'"\\ud800"',
    b'"\\ud83d\\ude00<img src=x onerror=alert(1)>\\u2028"',
    b"NaN",
    b"-Infinity",
    b"1" + b"0" * 400,
    b"9" * 5000,
    b"1e999",
    b'["x"]',
    b'"' + b"a" * 2**20 + b'"',
    b"[" * 300 + b"]" * 300,
)


def answers(address, name: str, body: bytes) -> bytes:
    """What a call over the network comes to: its last event, or the server's refusal."""
    status, content, _ = ask(address, f"/gradio_api/call/{name}", body)
    if status != 200:
        assert 400 <= status < 500, (status, body[:80])
        return content
    return ask(address, f"/gradio_api/call/{name}/{json.loads(content)['event_id']}")[1]


@pytest.mark.parametrize("name", ["generate", "estimate", "replay"])
def test_any_body_of_a_call_is_answered(address, name, capfd):
    """The server goes on, a mistake is a line, and no answer tells of the server's insides."""
    parameters = inspect.signature(getattr(Callbacks, name)).parameters
    usual = [json.dumps(None if one.default is one.empty else one.default).encode() for one in parameters.values()][1:]
    usual = [b'"Hi"', *(b"4" if text == b"128" else text for text in usual[1:])]
    for body in BODIES:
        content = answers(address, name, body)
        assert b"event: complete" not in content and b"Traceback" not in content and b"site-packages" not in content
    file = (
        b'{"data": ['
        + b", ".join([*usual[:-1], b'{"path": "/etc/passwd", "meta": {"_type": "gradio.FileData"}}'])
        + b"]}"
    )
    assert b"event: error" in (content := answers(address, name, file)) and b"root:" not in content
    capfd.readouterr()  # of such a file and of a wrong number of parameters, Gradio prints a traceback of its own
    for place in range(len(usual)):
        for value in WRITTEN:
            content = answers(
                address, name, b'{"data": [' + b", ".join([*usual[:place], value, *usual[place + 1 :]]) + b"]}"
            )
            assert b"Traceback" not in content and b"site-packages" not in content
            if b"event: error" in content:
                error = strict_json(content.split(b"event: error\ndata: ")[1].decode())["error"]
                assert isinstance(error, str) and one_line(error)
            elif b"event: complete" in content:
                strict_json(content.rpartition(b"data: ")[2].decode())
            else:
                assert b"error parsing the body" in content
    assert b"event: complete" in answers(
        address, "estimate", b'{"data": ["Hi"' + b", null" * 9 + b", 8, null, null, null]}"
    )
    assert "Traceback" not in "".join(capfd.readouterr())


def test_a_trace_that_is_a_file_of_the_server_is_not_opened(address):
    """The Open trace button's own call, by number, with a path that nobody uploaded."""
    config = json.loads(ask(address, "/config")[1])
    number = next(one["id"] for one in config["dependencies"] if one["api_name"] == "open_trace")
    for path in ("/etc/passwd", str(ROOT / "app.py"), f"{ASSETS}/../app.py"):
        data = [{"path": path, "meta": {"_type": "gradio.FileData"}}]
        body = json.dumps({"data": data, "fn_index": number, "session_hash": "visitor"}).encode()
        status, content, _ = ask(address, "/gradio_api/queue/join", body)
        assert status == 200
        seen = ask(address, "/gradio_api/queue/data?session_hash=visitor")[1]
        assert b'"success":false' in seen.replace(b" ", b"") and b"root:" not in seen and b"import" not in seen
