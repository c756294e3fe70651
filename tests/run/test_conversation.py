"""System messages, thoughts and models without a chat template, from the request to the report."""

import dataclasses

import pytest

from lora_drop.cli.run_report import show_run
from lora_drop.errors import LoraDropError
from lora_drop.method.config import LoraDropConfig
from lora_drop.models.tokens import Thoughts
from lora_drop.run.inspect import recorded_lane
from lora_drop.run.request import Request, plan
from lora_drop.run.run import run
from lora_drop.run.trace.records import LORA_DROP, StepRecord, read_line, write_line
from lora_drop.run.trace.trace import gather
from lora_drop.run.wire import page_values
from tests.support.tokenizer import TEMPLATE, make_tokenizer

THINKS = TEMPLATE.replace("assistant\n", "assistant\n<think>\n{% if enable_thinking is false %}</think>\n{% endif %}")


def model_with(tiny, template: str | None):
    tokenizer = make_tokenizer("first", template)
    tokenizer.add_tokens(["<think>", "</think>"])
    return dataclasses.replace(tiny, tokenizer=tokenizer, id="OWNER/BASE")


def test_thoughts_are_shown_apart_and_counted(tiny, capsys):
    loaded = model_with(tiny, THINKS)
    request = Request("Why?", LoraDropConfig(), max_new_tokens=6, ignore_eos=True)
    trace = gather(run(loaded, request))
    assert trace.summary.lanes[LORA_DROP]["thoughts"] == 6 and trace.answer(LORA_DROP) == ""
    step = trace.steps[LORA_DROP][3]
    assert read_line(write_line(step).encode()) == step and page_values(step, ["baseline", LORA_DROP])[8:] == [None, 1]
    show_run(trace, as_json=False)
    assert "thoughts, 6 tokens:" in capsys.readouterr().out
    off = gather(run(loaded, dataclasses.replace(request, thinking="off")))
    assert off.header.prompt_tokens > trace.header.prompt_tokens and "thoughts" not in off.summary.lanes[LORA_DROP]
    assert '"thought"' not in write_line(off.steps[LORA_DROP][3])


def test_thoughts_begin_and_end_at_their_markers(tiny):
    tokenizer = model_with(tiny, TEMPLATE).tokenizer
    start, end = (tokenizer.convert_tokens_to_ids(word) for word in ("<think>", "</think>"))
    thoughts = Thoughts(tokenizer, [7, end])
    assert [thoughts.add(token) for token in (5, start, 6, end, end, 5)] == [False, True, True, True, False, False]
    thoughts.rewind(3)  # a rejected draft ended them
    assert thoughts.add(6) and thoughts.add(end) and not thoughts.add(5)
    assert Thoughts(tokenizer, [start, 7]).add(7) and not Thoughts(tiny.tokenizer, [start, 7]).add(7)


def test_a_system_message_is_in_every_lane_and_is_inspected(tiny):
    loaded = model_with(tiny, TEMPLATE)
    request = Request("Why?", LoraDropConfig(), max_new_tokens=4, system="Be terse.", audit=False)
    trace = gather(run(loaded, request))
    ids = recorded_lane(loaded, trace, LORA_DROP).prompt_ids
    assert len(ids) == trace.header.prompt_tokens > len(plan(loaded, Request("Why?")).prompt_ids)
    assert "t e r s e ." in loaded.tokenizer.decode(ids) and trace.header.sampling["system"] == "Be terse."


def test_a_base_model_continues_the_prompt(tiny):
    base, chat = model_with(tiny, None), model_with(tiny, TEMPLATE)
    planned = plan(base, Request("Why?"))
    assert planned.prompt_ids == base.tokenizer.encode("Why?")
    assert planned.notes[-1] == "OWNER/BASE has no chat template: it continues the prompt as plain text."
    plain = plan(chat, Request("Why?", plain=True))
    assert plain.prompt_ids == planned.prompt_ids and not any("template" in note for note in plain.notes)
    for options, line in (
        ({"system": "Be terse."}, "no system message without a chat template"),
        ({"thinking": "on"}, "no choice of thinking without a chat template"),
        ({"plain": True, "system": "Be terse."}, "plain has no chat template"),
        ({"thinking": "maybe"}, "thinking must be one of auto, on, off"),
        ({"system": 5}, "system must be a text"),
    ):
        with pytest.raises(LoraDropError, match=line):
            plan(base, Request("Why?", **options))
    with pytest.raises(LoraDropError, match="no choice of thinking in this chat template"):
        plan(chat, Request("Why?", thinking="off"))


def test_an_older_trace_has_no_thoughts():
    line = b'{"type":"step","lane":"a","step":0,"token_id":1,"text":"","kind":"prefill","active":[],"ms":1,'
    step = read_line(line + b'"kv_bytes":0,"entropy":null}')
    assert isinstance(step, StepRecord) and not step.thought
