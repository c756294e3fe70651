"""Safe zone and Method load when they are opened, charts are drawn when they come into view, in a real Chromium."""

import re

import pytest
from playwright.sync_api import Page, expect

from tests.browser.visit import Visit
from tests.support.page import run_to_end, set_text, wait_still

pytestmark = [pytest.mark.browser, pytest.mark.full]

LATE = re.compile(r"/lora-drop-js/\w+/(safe_zone|method/\w+)\.js")
WORDS = "prunes LoRA adapters"  # of the Method tab's, and of nothing else


def watched(page: Page) -> list[str]:
    """What a page asks for from now on: modules of the two tabs by name, calls by what they carry."""
    asked: list[str] = []

    def note(request) -> None:
        if found := LATE.search(request.url):
            asked.append(found[1])
        elif request.method == "POST" and "component_server" in request.url:
            if (name := request.post_data_json["fn_name"]) != "count_tokens":  # which may come late, and for no tab
                asked.append(name)
        elif request.method == "POST" and "queue/join" in request.url:
            asked.append("queue")

    page.on("request", note)
    return asked


def test_nothing_of_a_tab_comes_before_it_is_opened_and_then_it_comes_once(server, new_page):
    """Before the page goes anywhere: `open_page` would look too late."""
    page = new_page()
    asked = watched(page)
    answer = page.goto(server.url)
    page.wait_for_selector(".ld-pane[data-lane='1']", timeout=60_000)
    assert asked == []
    assert WORDS not in answer.text()
    config = page.evaluate("window.gradio_config.components")
    values = {one["props"].get("elem_id"): one["props"].get("value") for one in config}
    assert values["ld-zone-map"] is None and values["ld-zone-dial"] is None
    assert page.locator("#ld-zone, #ld-method").count() == 0, "nothing of them is on the page"

    page.get_by_role("tab", name="Method").click()
    page.wait_for_selector(".ld-idea-svg rect")
    page.wait_for_selector("#ld-method .ld-pays-svg")  # the last thing that the tab asks for
    assert WORDS in page.inner_text(".ld-method-lead")
    assert {"method/method", "method_words", "where_it_pays"} <= set(asked) and "safe_zone" not in asked
    asked.clear()
    page.get_by_role("tab", name="Safe zone").click()
    expect(page.locator(".ld-map-answer")).to_contain_text("run a sweep")
    assert sorted(asked) == ["queue", "safe_zone"]
    set_text(page, "ld-sweep-ratios", "0.75")
    asked.clear()
    for name in ("Method", "Run", "Safe zone"):
        page.get_by_role("tab", name=name).click()
        wait_still(page)
    assert asked == [], "it is there"
    assert page.input_value("#ld-sweep-ratios input, #ld-sweep-ratios textarea") == "0.75", "and stays as it was"


def test_the_tabs_open_by_the_keyboard_and_shift_nothing(server, new_page):
    page = new_page(viewport={"width": 375, "height": 812})
    seen = Visit(page)
    page.goto(server.url)
    page.wait_for_selector(".ld-pane[data-lane='1']", timeout=60_000)
    seen.wait_idle()
    before = seen.shift
    page.get_by_role("tab", name="Run").focus()
    for name, there in (("Safe zone", ".ld-map[data-state=empty]"), ("Method", ".ld-idea-svg rect")):
        page.keyboard.press("Tab")
        expect(page.get_by_role("tab", name=name)).to_be_focused()
        page.keyboard.press("Enter")
        page.wait_for_selector(there)
        wait_still(page)
    assert seen.shift - before < 0.05, page.evaluate("window.visit.shifted")


def test_a_tab_whose_scripts_do_not_come_says_so(server, browser):
    """The server has been renewed since the page was opened: its scripts have another address."""
    page = browser.new_page()
    page.goto(server.url)
    page.wait_for_selector(".ld-pane[data-lane='1']", timeout=60_000)
    page.route(LATE, lambda route: route.fulfill(status=404))
    page.get_by_role("tab", name="Method").click()
    expect(page.locator("#ld-method").get_by_role("alert")).to_contain_text("Reload the page")
    page.get_by_role("tab", name="Run").click()
    run_to_end(page)
    page.close()


def test_a_chart_is_drawn_when_it_comes_into_view(server, open_page):
    page = open_page(server.url, viewport={"width": 1366, "height": 650})
    run_to_end(page)
    wait_still(page)
    drawn = """() => [...document.querySelectorAll(".ld-chart[data-chart]")]
        .filter((figure) => figure.querySelector(".ld-plot").data?.length).map((figure) => figure.dataset.chart)"""
    assert page.evaluate(drawn) == []
    page.locator("[data-chart=drift] .ld-plot").scroll_into_view_if_needed()
    page.wait_for_function("document.querySelector('[data-chart=drift] .ld-plot').data?.length")
    assert not {"drift-map", "time", "kl"} & set(page.evaluate(drawn)), "they are folded"
