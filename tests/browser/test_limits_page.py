"""The operator's limits as a visitor meets them, in a real Chromium."""

import threading
from collections.abc import Iterator

import pytest
from playwright.sync_api import expect

from lora_drop.method.config import LoraDropConfig
from lora_drop.models.load import load_model
from lora_drop.models.pool import ModelPool
from lora_drop.run.request import Request
from tests.support.page import open_advanced, set_number, wait_done, wait_until
from tests.support.server import REAL_RUN, Server, serve

pytestmark = [pytest.mark.browser, pytest.mark.full]

REFUSED = "The run did not start: the note says why"


@pytest.fixture(scope="module")
def narrow() -> Iterator[Server]:
    """A page where one run may wait, of at most 20 tokens."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LORA_DROP_MAX_QUEUE", "1")
        patch.setenv("LORA_DROP_MAX_TOKENS", "20")
        yield from serve(ModelPool(load_model("random:tiny-llama")))


def test_a_full_queue_is_reported_and_those_in_it_are_served(narrow, open_page):
    release = threading.Event()

    def held():
        assert release.wait(60)
        yield from REAL_RUN(narrow.loaded, Request("Why?", LoraDropConfig(period=2), 6, ignore_eos=True))

    narrow.script = held
    pages = [open_page(narrow.url, busy=True) for _ in range(3)]
    for page in pages:
        open_advanced(page)
        set_number(page, "ld-max-new-tokens", 6)
    status = [page.locator("#ld-status") for page in pages]
    pages[0].click("#ld-run")
    wait_until(lambda: len(narrow.runs) == 1, "the first visitor runs", page=pages[0])
    pages[1].click("#ld-run")
    expect(status[1]).to_contain_text("queue: 1/1")
    pages[2].click("#ld-run")
    expect(status[2].locator(".ld-status")).to_contain_text(REFUSED)
    expect(status[2].locator(".ld-status")).to_be_visible()
    expect(pages[2].get_by_text("This app's queue is full (it holds 1): try again in a moment.")).to_be_visible()
    release.set()
    for page in pages[:2]:
        wait_done(page)
    narrow.script = None
    pages[2].click("#ld-run")
    wait_done(pages[2])


def test_tokens_over_the_limit_are_refused_before_they_wait(narrow, open_page):
    page = open_page(narrow.url)
    open_advanced(page)
    expect(page.locator("#ld-max-new-tokens input")).to_have_value("20")
    set_number(page, "ld-max-new-tokens", 21)
    page.click("#ld-run")
    expect(page.get_by_text("at most 20 new tokens")).to_be_visible()
    expect(page.locator("#ld-status .ld-status")).to_contain_text(REFUSED)
