"""Another method beside LoRA-Drop: a lane of its own, drafts without a pass, and the table under the race."""

import itertools

import pytest
from playwright.sync_api import expect

from lora_drop.run.trace.trace import gather
from tests.support.page import open_advanced, pane_text, press_run, run_to_end, wait_done, wait_still

pytestmark = [pytest.mark.browser, pytest.mark.full]


def test_another_method_is_a_lane_and_a_row(server, open_page):
    page = open_page(f"{server.url}?lanes=full,lora-drop,prompt-lookup&compare=&max_new_tokens=24")
    open_advanced(page)
    expect(page.locator("#ld-lanes input")).to_have_value("Prompt lookup")
    page.fill("#ld-prompt textarea", "a b a b a b")
    press_run(page)
    wait_done(page)
    trace = gather(server.runs[-1])
    at, name = 2, list(trace.steps)[2]
    assert name.startswith("prompt_lookup") and pane_text(page, at) == trace.text(name) == trace.text("baseline")
    kinds = page.evaluate(
        f"document.querySelector('.ld-live').loraDropRun.lanes[{at}].steps.map(({{ kind }}) => kind)"
    )
    assert kinds == [step.kind for step in trace.steps[name]]
    rows = page.locator("[data-testid=methods] tbody tr")
    assert rows.count() == at + 1
    assert "the full model's text" in rows.nth(at).inner_text()
    # Without another method there is no table.
    page.locator("#ld-lanes input").click()
    page.get_by_role("option", name="none").click()
    press_run(page)
    wait_done(page)
    expect(page.locator("[data-testid=methods]")).to_be_hidden()


def test_four_lanes_fit_and_each_has_its_row(server, open_page):
    """LoRA-Drop, its own comparison and a rival beside the full model, at each width and in talk mode."""
    page = open_page(
        f"{server.url}?lanes=full,lora-drop,prompt-lookup&compare=skip&layers=1-4&drop_ratio=1&max_new_tokens=24"
    )
    page.fill("#ld-prompt textarea", "a b a b a b")
    run_to_end(page)
    trace = gather(server.runs[-1])
    names = list(trace.steps)
    assert len(names) == 4 == page.locator("[data-testid=methods] tbody tr").count()
    assert [pane_text(page, at) for at in range(4)] == [trace.text(name) for name in names]
    for width, height in 2 * ((1366, 768), (1920, 1080), (390, 844)):  # the page, then talk mode
        page.set_viewport_size({"width": width, "height": height})
        wait_still(page)
        boxes = [page.locator(f".ld-pane[data-lane='{at}']").bounding_box() for at in range(4)]
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        assert all(box["x"] >= 0 and box["x"] + box["width"] <= width for box in boxes)
        for one, two in itertools.combinations(boxes, 2):
            apart = one["x"] + one["width"] <= two["x"] + 1 or one["y"] + one["height"] <= two["y"] + 1
            assert apart, (one, two)
        if width == 390:  # the last size
            page.keyboard.press("Escape")
            page.evaluate("document.activeElement.blur()")
            page.keyboard.press("t")
