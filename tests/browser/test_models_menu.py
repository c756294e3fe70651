"""The models menu in a real Chromium: another model shows, runs and is linked to; what cannot be had is named."""

import re
from collections.abc import Iterator
from urllib.parse import urlencode

import pytest
from playwright.sync_api import Page, expect

from lora_drop.errors import LoraDropError
from lora_drop.models.load import load_model
from lora_drop.models.pool import ModelPool
from lora_drop.run.results.prompts import HELD_OUT
from lora_drop.run.trace.trace import parse_trace
from lora_drop.ui.safe_zone import callbacks as safe_zone
from tests.support.page import (
    figure,
    link_of,
    open_advanced,
    prepare,
    press_run,
    set_number,
    set_text,
    wait_done,
    wait_still,
)
from tests.support.server import SERVERS, Server, api_client, deep_model, serve

pytestmark = [pytest.mark.browser, pytest.mark.full]

LLAMA, DEEP, GATED = "random:tiny-llama", "deep test model", "owner/gated"
REFUSED = f"{GATED} is gated: accept its terms on its Hub page, then `hf auth login`."


@pytest.fixture(scope="module")
def menu() -> Iterator[Server]:
    """A page on a tiny model of 6 layers, with one of 30 and one that cannot be had to choose from."""
    servers: list[Server] = []

    def load(name: str):
        if name == GATED:
            raise LoraDropError(REFUSED)
        loaded = deep_model() if name == DEEP else load_model(name)
        SERVERS[id(loaded)] = servers[0]
        return loaded

    for server in serve(ModelPool(load_model(LLAMA), [DEEP, GATED], load)):
        servers.append(server)
        yield server


def shown(model: str) -> re.Pattern[str]:
    """The menu shows a model with what is known of it."""
    return re.compile(f"^{re.escape(model)} · ")


def choose(page: Page, model: str) -> None:
    page.click("#ld-model input")
    page.get_by_role("option", name=model).click()


def run_once(menu: Server, page: Page) -> str:
    """Press Run and wait for the end of a short answer; returns the id of the model that ran."""
    wait_still(page)  # the controls follow the new model
    set_number(page, "ld-max-new-tokens", 12)
    press_run(page)
    wait_done(page)
    return menu.runs[-1][0].model["id"]


def is_ready(page: Page, model: str) -> None:
    expect(page.locator("#ld-status .ld-status")).to_have_text(f"{model} is ready.", timeout=30_000)


def test_another_model_shows_runs_and_comes_back(menu, open_page):
    page = open_page(menu.url)
    expect(page.locator(".ld-range-last")).to_have_text("5")
    page.check("#ld-preset input[value=paper]")
    choose(page, DEEP)
    is_ready(page, DEEP)
    # All that is drawn is about the new model, and the controls are its preset's.
    expect(page.locator(".ld-range-last")).to_have_text("29")
    expect(page.locator(".ld-range-value")).to_have_text("3 – 28")
    expect(page.locator("#ld-preset input[value=balanced]")).to_be_checked()
    expect(page.locator(".ld-whatif [data-figure=dropped]")).to_have_text("9 of 30")
    expect(page.locator(".ld-pattern-caption")).to_contain_text("30 layers")
    assert "deep test model, float32" in figure(page, "device")
    open_advanced(page)
    expect(page.locator(".ld-train code")).to_contain_text("lora_drop train --model 'deep test model'")
    assert run_once(menu, page) == DEEP and menu.runs[-1][0].model["layers"] == 30
    choose(page, LLAMA)
    is_ready(page, LLAMA)
    expect(page.locator(".ld-range-last")).to_have_text("5")
    assert run_once(menu, page) == LLAMA


def test_two_visitors_have_each_their_model(menu, open_page):
    pages = [open_page(menu.url) for _ in range(2)]
    choose(pages[1], DEEP)
    is_ready(pages[1], DEEP)
    for _ in range(2):
        for page, name in zip(pages, (LLAMA, DEEP), strict=True):
            assert run_once(menu, page) == name
    assert "tiny-llama" in figure(pages[0], "device") and "deep test model" in figure(pages[1], "device")


def test_what_cannot_be_had_is_reported_and_the_page_stays(menu, open_page):
    page = open_page(menu.url)
    choose(page, GATED)
    expect(page.locator("#ld-status .ld-status")).to_have_attribute("data-kind", "error", timeout=30_000)
    assert page.inner_text("#ld-status .ld-status") == REFUSED
    expect(page.locator("#ld-model input")).to_have_value(shown(LLAMA))
    wait_still(page)
    assert "is gated" in page.inner_text("#ld-status .ld-status"), "putting the menu back says nothing new"
    assert run_once(menu, page) == LLAMA


def test_a_link_restores_the_model_and_its_settings(menu, open_page):
    page = open_page(menu.url)
    choose(page, DEEP)
    is_ready(page, DEEP)
    prepare(page, tokens=12, period=3, layers=(7, 22), ratio=0.5)
    run_once(menu, page)
    there = open_page(link_of(page))
    expect(there.locator("#ld-model input")).to_have_value(shown(DEEP))
    is_ready(there, DEEP)
    expect(there.locator(".ld-range-value")).to_have_text("7 – 22")
    expect(there.locator("#ld-period input[type=number]")).to_have_value("3")
    run_once(menu, there)
    expect(there.locator(".ld-link-note")).to_contain_text("Reproduced")


@pytest.mark.parametrize("model", ["../../etc/passwd@0", "<img src=x onerror=alert(1)>" + "x" * 4000])
def test_a_link_names_no_model_that_is_not_on_offer(menu, open_page, model):
    page = open_page(f"{menu.url}?{urlencode({'period': 3, 'model': model})}")
    expect(page.locator("#ld-status .ld-status")).to_contain_text("Settings restored")
    expect(page.locator("#ld-model input")).to_have_value(shown(LLAMA))


def test_the_safe_zone_follows_the_model(menu, open_page, monkeypatch):
    monkeypatch.setattr(safe_zone, "PROMPTS", HELD_OUT[:3])  # the page's own make this random model go in circles
    page = open_page(menu.url)
    choose(page, DEEP)
    is_ready(page, DEEP)
    page.get_by_role("tab", name="Safe zone").click()
    set_text(page, "ld-sweep-ratios", "0.5")
    set_text(page, "ld-sweep-periods", "2")
    page.click("#ld-sweep-run")
    expect(page.locator("#ld-sweep-progress")).to_contain_text("Finished: 1 point measured", timeout=60_000)
    page.get_by_role("tab", name="Run").click()
    choose(page, LLAMA)
    is_ready(page, LLAMA)
    page.get_by_role("tab", name="Safe zone").click()
    expect(page.locator("#ld-zone-map")).to_contain_text("No point yet")
    page.get_by_role("tab", name="Run").click()
    choose(page, DEEP)
    is_ready(page, DEEP)
    page.get_by_role("tab", name="Safe zone").click()
    expect(page.locator("#ld-zone-choice input")).to_have_value("Run here: residual, whole layers, no adapters")


def test_the_api_takes_a_model_of_the_menu(menu):
    client = api_client(menu.url)
    *_, last = client.submit("Why?", period=2, max_new_tokens=6, model=DEEP, api_name="/generate")
    assert parse_trace(last.encode()).header.model["layers"] == 30
    assert client.predict(model=DEEP, api_name="/estimate")["dropped"][-1] > 5
    for endpoint in ("/generate", "/estimate"):
        with pytest.raises(Exception, match="model must be one of random:tiny-llama, deep test model, owner/gated"):
            client.predict("Why?", model="random:tiny-qwen2", api_name=endpoint)
