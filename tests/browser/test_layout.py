"""The layout: first screen, no jumps, the dark theme."""

import itertools

import pytest
from playwright.sync_api import expect

from tests.browser.visit import Visit
from tests.support.page import prepare_and_run, run_to_end, wait_done, wait_still

pytestmark = [pytest.mark.browser, pytest.mark.full]


@pytest.mark.parametrize("size", [(1600, 900), (1366, 768), (375, 800)])
def test_a_visit_and_its_run_move_nothing_and_the_bytes_are_told_apart(server, new_page, size):
    """From the first byte to the end of a run; Gradio's own parts, which come piece by piece, included."""
    page = new_page(viewport=dict(zip(("width", "height"), size, strict=True)))
    seen = Visit(page)
    page.goto(server.url)
    page.wait_for_selector(".ld-pane[data-lane='1']", timeout=60_000)
    seen.wait_idle()
    assert seen.bytes["ours"] > 50_000 and seen.bytes["plotly"] > 300_000 and seen.bytes["gradio"] > 50_000
    boxes = "() => [...document.querySelectorAll('.ld-pane, .ld-charts .ld-chart')].map(e => e.offsetHeight)"
    before = page.evaluate(boxes)
    page.click("#ld-run")
    page.wait_for_function("document.querySelectorAll('.ld-token').length > 20")
    during = page.evaluate(boxes)
    wait_done(page)
    wait_still(page)
    assert before == pytest.approx(during, abs=1) == page.evaluate(boxes), "a pixel is rounding"
    assert page.evaluate("document.documentElement.scrollWidth") <= size[0], "nothing is cut off to the side"
    assert seen.shift < 0.05, page.evaluate("window.visit.shifted")


def test_on_a_phone_the_answers_come_before_the_charts_and_the_settings(server, open_page):
    page = open_page(server.url, viewport={"width": 375, "height": 800})
    order = ("#ld-prompt", "#ld-run", ".ld-verdict", ".ld-panes", ".ld-race", "[data-chart=activity]", "#ld-settings")
    for has_run in (False, True):
        if has_run:
            run_to_end(page)
        boxes = [page.locator(where).bounding_box() for where in order]
        assert all(one["y"] + one["height"] <= two["y"] for one, two in itertools.pairwise(boxes)), has_run
        assert all(box["x"] >= 0 and box["x"] + box["width"] <= 375 for box in boxes)


def test_on_a_phone_the_sliders_are_one_tap_away(server, open_page):
    page = open_page(server.url, viewport={"width": 390, "height": 844})
    button = page.locator("#ld-to-settings")
    box = button.bounding_box()
    assert box["y"] + box["height"] <= 844
    button.click()
    for slider in ("#ld-period", "#ld-drop-ratio"):
        expect(page.locator(slider)).to_be_in_viewport(ratio=1)
    page.evaluate("window.scrollTo(0, 0)")
    button.click()
    expect(page.locator("#ld-period")).not_to_be_in_viewport()


def test_the_dark_theme_repaints_the_charts_in_place(server, open_page):
    page = open_page(server.url, viewport={"width": 1600, "height": 1400})
    prepare_and_run(page, 12)
    line = "document.querySelector('[data-chart=kv] .ld-plot').data[0].line.color"
    light = page.evaluate(line)
    page.evaluate("window.part = document.querySelector('[data-chart=kv] .main-svg')")
    page.evaluate("document.body.classList.toggle('dark')")
    page.wait_for_function(f"{line} !== '{light}'")
    assert page.evaluate("window.part.isConnected")
