"""Two visitors, closed tabs, the API, failed runs."""

import itertools

import pytest
from playwright.sync_api import expect

from lora_drop.errors import LoraDropError
from lora_drop.run.request import Request
from lora_drop.run.run import run
from lora_drop.run.trace.trace import gather, parse_trace
from tests.support.page import CONFIG, pane_text, prepare, prepare_and_run, set_number, wait_done, wait_until
from tests.support.server import api_client

pytestmark = [pytest.mark.browser, pytest.mark.full]


def test_two_visitors_get_their_own_runs_and_the_second_sees_its_place(slow_server, open_page):
    server = slow_server
    one, two = open_page(server.url), open_page(server.url)
    for page, tokens in ((one, 1800), (two, 16)):  # the first is stopped
        prepare(page, tokens)
    one.fill("#ld-prompt textarea", "first visitor")
    two.fill("#ld-prompt textarea", "second visitor")
    one.click("#ld-run")
    one.wait_for_function("document.querySelectorAll('.ld-token').length > 10")
    two.click("#ld-run")
    place = two.locator("#ld-status .progress-text")
    expect(place).to_contain_text("queue: 1/1")
    assert place.bounding_box()["height"] > 10
    expect(two.locator("#ld-stop")).to_be_disabled()
    one.click("#ld-stop")  # the first visitor's stop is not the second's
    wait_done(one)
    server.goes_on.set()
    wait_done(two)
    assert "Finished: 16 tokens in each answer." in two.inner_text(".ld-status")
    first, second = (gather(records) for records in server.runs[-2:])
    assert (first.header.prompt, second.header.prompt) == ("first visitor", "second visitor")
    assert pane_text(one, 1) == first.text("lora_drop") and pane_text(two, 1) == second.text("lora_drop")


def test_a_closed_tab_and_a_reload_end_the_run_and_release_it(slow_server, open_page):
    server, page = slow_server, open_page(slow_server.url, leaves=True)
    prepare(page, tokens=2000)
    page.click("#ld-run")
    page.wait_for_function("document.querySelectorAll('.ld-token').length > 10")
    page.reload()
    page.wait_for_selector(".ld-status:not(:empty)")
    wait_until(lambda: server.closed == 1, "the reloaded page's run ended")
    assert len(server.runs[-1]) < 4000
    server.goes_on.set()
    prepare_and_run(page, 10)
    server.goes_on.clear()
    set_number(page, "ld-max-new-tokens", 2000)
    page.click("#ld-run")
    wait_until(lambda: len(server.runs) == 3 and len(server.runs[-1]) > 4, "it runs", page=page)
    page.close()
    wait_until(lambda: server.closed == 3, "the closed tab's run ended")


def test_the_api_streams_the_trace_and_refuses_bad_input(server):
    client = api_client(server.url)
    job = client.submit(
        prompt="Hello", period=4, layers="1-4", drop_ratio=1, max_new_tokens=24, ignore_eos=True, api_name="/generate"
    )
    texts = [*job.outputs(), job.result()]
    assert all(later.startswith(earlier) for earlier, later in itertools.pairwise(texts))
    trace = parse_trace(texts[-1].encode())
    wanted = Request("Hello", CONFIG, 24, ignore_eos=True)
    assert trace.token_ids("lora_drop") == gather(run(server.loaded, wanted)).token_ids("lora_drop")
    assert trace.summary is not None

    estimate = client.predict(prompt="Hello", period=4, layers="1-4", drop_ratio=1, api_name="/estimate")
    assert estimate["dropped"] == [1, 2, 3, 4] and estimate["bound"] > 1 and not estimate["at_most"]
    at_most = client.predict(
        prompt="Hello", period=4, layers="1-4", drop_ratio=1, refresh_entropy=2.5, api_name="/estimate"
    )
    assert at_most["at_most"] and at_most["bound"] == estimate["bound"]
    bad = {
        "period must be": {"period": 0},
        "outside this model": {"layers": "3-28"},
        "there is no preset": {"preset": "nope"},
        "the prompt is empty": {"prompt": " "},
        "adapters must be auto or none": {"adapters": "/etc"},
    }
    for words, values in bad.items():
        with pytest.raises(Exception, match=words) as caught:
            client.predict(**{"prompt": "Hello"} | values, api_name="/generate")
        assert "\n" not in str(caught.value), "one line"
    page = client.predict(trace=texts[-1], api_name="/replay")
    assert page.startswith("<!doctype html>") or page.startswith("<!DOCTYPE html>")
    with pytest.raises(Exception, match="line 1: this is not a line of a LoRA-Drop trace"):
        client.predict(trace="<html>", api_name="/replay")
    assert client.predict(prompt="still up", max_new_tokens=2, api_name="/generate")


def test_nothing_of_a_failed_run_is_left(server, open_page):
    def broken():
        yield from ()
        raise RuntimeError("the engine broke")

    def refused():
        yield from ()
        raise LoraDropError("no such thing.")

    page = open_page(server.url)
    for script, words in ((broken, "failed inside the app"), (refused, "no such thing.")):
        server.script = script
        page.click("#ld-run")
        expect(page.locator(".ld-status")).to_contain_text(words)
        expect(page.locator("#ld-stop")).to_be_disabled()
    server.script = None
    prepare_and_run(page, 6)
