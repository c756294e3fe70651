"""The API as programs see it: `view_api` of gradio_client, and an MCP client."""

import asyncio
import dataclasses
import json
from urllib.parse import parse_qs

import pytest
from mcp import ClientSession
from mcp.client.streamable_http import streamablehttp_client

from lora_drop.method.config import LoraDropConfig
from lora_drop.method.presets import PRESETS
from lora_drop.models.pool import ModelPool
from lora_drop.run.report.brief import MOST, as_json, brief
from lora_drop.run.request import Request
from lora_drop.run.run import run
from lora_drop.run.trace.trace import gather
from lora_drop.ui.page import build_app, launch
from lora_drop.ui.serve.policy import LOOPBACK, PUBLIC, Policy
from scripts.space_check import free_port
from tests.support.server import api_client

ME = "127.0.0.1"


@pytest.fixture(scope="module")
def url(tiny):
    demo = build_app(ModelPool(tiny), Policy(public=True, limits=PUBLIC, hosts=LOOPBACK))
    launch(demo, ME, port := free_port(), block=False, mcp=True)
    yield f"http://{ME}:{port}"
    demo.close(verbose=False)


def ask(url: str, *calls: tuple[str, dict]) -> tuple[dict, list]:
    """The tools by name, and the answers of these calls."""

    async def work():
        address = f"{url}/gradio_api/mcp/"
        async with streamablehttp_client(address) as (read, write, _), ClientSession(read, write) as session:
            await session.initialize()
            tools = {tool.name: tool for tool in (await session.list_tools()).tools}
            return tools, [await session.call_tool(name, arguments) for name, arguments in calls]

    return asyncio.run(asyncio.wait_for(work(), 120))


def test_view_api_has_types_and_descriptions(url):
    functions = api_client(url).view_api(return_format="dict", print_info=False)["named_endpoints"]
    assert {"/generate", "/compare", "/estimate", "/replay", "/inspect"} <= functions.keys()
    for name, function in functions.items():
        assert function["description"], name
        for one in (*function["parameters"], *function["returns"]):
            assert one["python_type"]["description"], (name, one)
            assert one["python_type"]["type"] not in ("", "Any"), (name, one)
    returns = {name: function["returns"][0]["python_type"]["type"] for name, function in functions.items()}
    assert returns["/generate"] == returns["/replay"] == "str" and returns["/estimate"].startswith("dict")
    preset = next(one for one in functions["/generate"]["parameters"] if one["parameter_name"] == "preset")
    assert "Literal['balanced', 'copying'" in preset["python_type"]["type"]


def test_an_mcp_client_gets_words_numbers_and_json(url):
    prompt = 'Say "hi" to 日本,\n' + "and on " * 20
    options = {"prompt": prompt, "preset": "memory", "max_new_tokens": 120, "seed": 3}
    tools, (compared, estimated, wrong, unknown, empty) = ask(
        url,
        ("compare", options),
        ("estimate", {"preset": "fast", "prompt": "Hi"}),
        ("compare", {"prompt": "Hi", "preset": "fastest"}),
        ("compare", {"prompt": "Hi", "model": "OWNER/NAME"}),
        ("compare", {"prompt": " "}),
    )
    schema = tools["compare"].inputSchema["properties"]
    assert list(PRESETS) in [schema["preset"].get("enum")] and schema["preset"]["default"] == "balanced"
    assert all(f"{name}: {preset.note}" in schema["preset"]["description"] for name, preset in PRESETS.items())
    assert schema["thinking"]["enum"] == ["auto", "on", "off"] and len(json.dumps(schema)) < 3000
    assert "Returns:" in tools["compare"].description and tools["compare"].inputSchema["required"] == ["prompt"]
    assert {"enum": ["state", "anchor", "residual", "skip"]} in tools["generate"].inputSchema["properties"]["reuse"][
        "oneOf"
    ]

    text = compared.content[0].text
    result = json.loads(text)
    assert not compared.isError and len(text.encode()) <= MOST
    assert result["verdict"] and {"speedup", "interval", "bound", "note"} == result["speed"].keys()
    assert all(result[lane]["text"] and result[lane]["tokens"] > 1 for lane in ("baseline", "lora_drop"))
    link = parse_qs(result["link"].removeprefix("?"), keep_blank_values=True)
    assert (
        link["prompt"] == [prompt]
        and link["period"] == [str(PRESETS["memory"].config.period)]
        and link["seed"] == ["3"]
        and link["compare"] == [""]
    )

    assert json.loads(estimated.content[0].text)["config"]["period"] == 4
    for answer, line in ((wrong, "fastest"), (unknown, "model must be one of"), (empty, "the prompt is empty")):
        assert answer.isError and line in answer.content[0].text and len(answer.content[0].text.splitlines()) == 1


def test_long_answers_are_cut_to_fit(tiny):
    trace = gather(run(tiny, Request('"Why?"', LoraDropConfig(), audit=False, max_new_tokens=8, ignore_eos=True)))
    for text in ('é"\n', "日", "\ud800", "x"):
        steps = [dataclasses.replace(step, text=text * 100) for step in trace.steps["baseline"]]
        trace.steps["baseline"][:] = steps
        result = brief(trace)
        cut, whole = result["baseline"], result["lora_drop"]
        assert cut["is_cut"] and cut["text"].endswith(" […]") and not whole["is_cut"]
        assert len(as_json(result).encode()) <= MOST


def test_a_short_answer_is_whole_and_a_long_prompt_has_no_link(url):
    _, (answer,) = ask(url, ("compare", {"prompt": "é" * 900, "max_new_tokens": 2, "plain": True}))
    result = json.loads(answer.content[0].text)
    assert result["link"] is None and not result["baseline"]["is_cut"] and result["baseline"]["tokens"] <= 2
