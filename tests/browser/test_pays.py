"""Where it pays: the picture and its calculator in a real Chromium."""

import pytest
from playwright.sync_api import expect

from lora_drop.run.results.pays import calculated, where_it_pays
from tests.support.server import deep_model

pytestmark = [pytest.mark.browser, pytest.mark.full]

OVERLAPS = """() => {
    const boxes = [...document.querySelectorAll(".ld-pays-svg text")].filter((text) => text.checkVisibility());
    const places = boxes.map((text) => [text.textContent, text.getBoundingClientRect()]);
    const meet = (a, b) => Math.min(a.right, b.right) - Math.max(a.left, b.left) > 1 &&
        Math.min(a.bottom, b.bottom) - Math.max(a.top, b.top) > 0.25 * a.height;
    const after = ([, a], i) => places.slice(i + 1).filter(([, b]) => meet(a, b)).map(([other]) => other);
    return places.flatMap(after);
}"""


def test_the_picture_is_drawn_when_it_is_unfolded_and_calculates(server, open_page):
    facts = where_it_pays(deep_model())
    values = {field["name"]: field["value"] for field in facts["fields"]}
    page = open_page(server.url)
    pays = page.get_by_test_id("pays")
    assert pays.locator("svg").count() == 0
    pays.locator("summary").first.click()
    words = pays.locator(".ld-pays-words")
    expect(words).to_have_text(calculated(values)["text"])
    shapes = [point for point in facts["points"] if point["kind"] == "shape"]
    assert pays.locator(".ld-pays-dot.ld-pays-shape").count() == len(shapes) > 0
    names = {point[key] for point in shapes for key in ("name", "setting")}
    for width in (1366, 390):
        page.set_viewport_size({"width": width, "height": 844})
        expect(pays.locator(".ld-pays-label")).to_have_count(len(names))
        assert set(pays.locator(".ld-pays-label").all_text_contents()) == names
        assert page.evaluate(OVERLAPS) == []
    assert pays.locator(".ld-pays-dot.ld-pays-own").count() == 1 and pays.locator(".ld-pays-curve").count() == 2
    pays.get_by_label("Drop ratio p").fill("0.75")
    expect(words).to_have_text(calculated(values | {"drop_ratio": 0.75})["text"])
    pays.get_by_label("Period w").fill("1")
    expect(words).to_have_text("Period w must be a number from 2 to 64.")
    assert pays.locator(".ld-pays-curve").count() == 0 and pays.locator(".ld-pays-shape").count() > 0
    page.get_by_role("tab", name="Method").click()
    expect(page.locator(".ld-method .ld-pays-words")).to_have_text(calculated(values)["text"])


def test_without_an_answer_its_place_says_so_and_the_tab_stays(server, new_page):
    page = new_page(allowed=("Failed to load resource", "TypeError"))
    page.route(
        "**/component_server/**",
        lambda route: route.abort() if "where_it_pays" in route.request.post_data else route.continue_(),
    )
    page.goto(server.url)
    page.get_by_role("tab", name="Method").click()
    expect(page.locator(".ld-method .ld-pays [role=alert]")).to_contain_text("the server cannot be reached")
    expect(page.locator(".ld-idea-svg rect").first).to_be_visible()
