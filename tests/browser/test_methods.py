"""Another method beside LoRA-Drop: a lane of its own, drafts without a pass, and the table under the race."""

from __future__ import annotations

import pytest
from playwright.sync_api import expect

from lora_drop.run.trace.trace import gather
from tests.support.page import open_advanced, pane_text, press_run, wait_done

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
