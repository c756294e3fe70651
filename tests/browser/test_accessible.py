"""No serious accessibility finding by axe, in the page's states and themes; labels and focus order."""

from __future__ import annotations

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Page

from tests.support.page import prepare, wait_done, wait_still

pytestmark = [pytest.mark.browser, pytest.mark.full]

# Tokens after the scrubber's step are veiled on purpose: they are not there yet.
CONTEXT = {"exclude": [[".ld-later"], [".ld-later-line"]]}
OPTIONS = {"resultTypes": ["violations"]}


def findings(page: Page) -> list[str]:
    """Serious and critical violations: the rule and where."""
    result = Axe().run(page, context=CONTEXT, options=OPTIONS).response
    return [
        f"{rule['id']} ({rule['impact']}): {node['target']} {node.get('failureSummary', '').splitlines()[-1:]}"
        for rule in result["violations"]
        if rule["impact"] in ("serious", "critical")
        for node in rule["nodes"]
    ]


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_no_serious_finding_in_any_state(server, open_page, theme):
    page = open_page(server.url, viewport={"width": 1600, "height": 1400})
    if theme == "dark":
        page.evaluate("document.body.classList.add('dark')")
        wait_still(page)  # Gradio's buttons fade from one colour to the other
    found = {"empty": findings(page)}
    prepare(page, tokens=24)
    page.click("[data-compare='skip']")
    page.click("#ld-run")
    wait_done(page)
    wait_still(page)
    page.evaluate("document.querySelector('.ld-menu').open = true")
    found["after a run"] = findings(page)
    page.click(".ld-pane[data-lane='1'] .ld-token[data-step='5']")
    found["scrubbed"] = findings(page)
    for tab in ("Safe zone", "Method"):
        page.get_by_role("tab", name=tab).click()
        wait_still(page)
        found[tab] = findings(page)
    page.get_by_role("tab", name="Run").click()
    page.keyboard.press("t")
    found["talk"] = findings(page)
    told = [f"{state}: {finding}" for state, all_of_it in found.items() for finding in all_of_it]
    assert not told, "\n".join(told)
