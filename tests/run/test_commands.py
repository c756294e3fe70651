"""A run as a command and as Python: what was copied gives the same texts."""

import contextlib
import io
import json
import shlex

import pytest

from lora_drop.cli.main import main
from lora_drop.method.config import LoraDropConfig
from lora_drop.run.report.commands import COMMAND, commands_of
from lora_drop.run.request import Request
from lora_drop.run.run import run
from lora_drop.run.trace.records import Header
from lora_drop.run.trace.trace import gather
from lora_drop.run.wire import page_values
from tests.support.runs import JUDGED, hostile_run

PROMPTS = ["Why?", "--json 'it''s' \"$HOME\" `id`\n${x} \\ é"]
REQUESTS = {
    "defaults": Request(PROMPTS[0], LoraDropConfig()),
    "sampled": Request(PROMPTS[1], LoraDropConfig(period=3, layers=(1, 3), reuse="state"), 9, 0.7, 0.9, 5),
    "exact": Request(PROMPTS[0], JUDGED, 20, view="lock-step", audit=False, ignore_eos=True),
    "third": Request(PROMPTS[1], LoraDropConfig(period=2, drop_layers=(2, 4)), 8, compare="skip"),
    "triggers": Request(PROMPTS[0], LoraDropConfig(refresh_entropy=5.0), 12, ignore_eos=True),
    "baseline": Request(PROMPTS[0], LoraDropConfig(), 8, lanes="baseline"),
    "one lane": Request(PROMPTS[0], LoraDropConfig(drop_ratio=1.0), 8, lanes="lora-drop"),
}


@pytest.fixture(params=REQUESTS)
def trace(request, tiny):
    return gather(run(tiny, REQUESTS[request.param]))


def test_the_command_gives_the_same_texts(trace, capsys):
    command = commands_of(trace.header)["command"]
    assert command.startswith(f"{COMMAND} ")
    words = shlex.split(command)[3:]  # as a shell reads it
    assert main([*words, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    for lane in trace.steps:
        assert found[lane]["token_ids"] == trace.token_ids(lane)


def test_the_python_gives_the_same_texts(trace):
    said = io.StringIO()
    with contextlib.redirect_stdout(said):
        exec(commands_of(trace.header)["python"], {})
    assert said.getvalue() == "".join(f"{lane}: {trace.text(lane)}\n" for lane in trace.steps)


def test_settings_are_flags_and_arguments(tiny):
    sampled, exact = (commands_of(next(run(tiny, REQUESTS[name]))) for name in ("sampled", "exact"))
    assert "layers=(1, 3)" in sampled["python"] and "temperature=0.7" in sampled["python"]
    assert {"--ignore-eos", "--no-audit"} <= set(exact["command"].split())


def test_what_is_at_its_default_is_left_out(tiny):
    header = next(iter(run(tiny, REQUESTS["defaults"])))
    found = commands_of(header)
    assert found["command"] == f"{COMMAND} '--prompt=Why?' --model random:tiny-llama --dtype float32"
    assert "LoraDropConfig()" in found["python"] and '"Why?", config)' in found["python"].replace("'", '"')


def test_the_packed_model_is_asked_for_as_it_came(tiny):
    header = next(iter(run(tiny, REQUESTS["defaults"])))
    values = vars(header) | {
        "model": {**header.model, "id": "bundled:SmolLM2-135M-Instruct", "dtype": "bfloat16"},
        "device": {**header.device, "decoder": "native (q4_1/q8_0 blocks)"},
    }
    found = commands_of(Header(**values))
    assert found["command"] == f"{COMMAND} '--prompt=Why?'" and "load_model('bundled')" in found["python"]


def test_of_a_hostile_trace_every_word_stays_one_word():
    header = next(hostile_run())
    found = commands_of(header)
    words = shlex.split(found["command"])
    assert words[:5] == [*COMMAND.split(), f"--prompt={header.prompt}"] and header.model["id"] in words
    compile(found["python"], "copied", "exec")
    assert page_values(header, [])["commands"] == found
