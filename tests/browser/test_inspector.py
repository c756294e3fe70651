"""The token inspector on the page: by click and by keys, what it shows is the server's, and what a replay says."""

import dataclasses
import itertools

import pytest
from playwright.sync_api import Page, expect

from lora_drop.run.inspect import inspect, read_again
from lora_drop.run.request import Request
from lora_drop.run.run import run
from lora_drop.run.trace.records import BASELINE, LORA_DROP
from lora_drop.run.trace.trace import Trace, gather
from lora_drop.run.wire import page_values
from tests.browser.test_accessible import findings
from tests.support.page import CONFIG, open_menu, prepare_and_run, run_to_end, wait_still
from tests.support.runs import about_step

pytestmark = [pytest.mark.browser, pytest.mark.full]

PANEL = "[data-testid='token-inspector']"


def token(lane: int, step: int) -> str:
    return f".ld-pane[data-lane='{lane}'] .ld-token[data-step='{step}']"


def pick(page: Page, lane: int, step: int) -> None:
    """A click on a token, which may be one byte of a letter and have no width."""
    page.eval_on_selector(token(lane, step), "span => span.click()")


def ran(server, open_page, **options) -> Page:
    page = open_page(server.url, **options)
    prepare_and_run(page, 24)
    return page


def seen(text: str) -> str:
    """A token as the panel shows it."""
    text = ("␣" if text.startswith(" ") else text[:1]) + text[1:]
    text = text[:-1] + "␣" if len(text) > 1 and text.endswith(" ") else text
    return text.replace("\n", "⏎").replace("\t", "⇥") or "∅"


def test_a_click_shows_what_the_step_was(server, open_page):
    page = ran(server, open_page)
    pick(page, 1, 7)
    panel = page.locator(PANEL)
    expect(panel).to_have_attribute("data-state", "read", timeout=30_000)
    trace = gather(iter(server.runs[-1]))
    window = read_again(server.loaded, trace, LORA_DROP, 7)
    found = inspect(server.loaded, trace.header, about_step(trace, LORA_DROP, 7), window)
    rows = panel.locator("tbody tr")
    expect(rows).to_have_count(server.loaded.num_layers)
    for i, layer in enumerate(reversed(found["layers"])):  # layer 0 is at the bottom
        cells = rows.nth(i).locator("th, td")
        assert cells.nth(1).text_content() == layer["did"]
        assert cells.nth(2).text_content() == f"{layer['drift']:.3f}"
        for at, name in ((3, "lens"), (4, "full_lens")):
            shown = cells.nth(at).locator("code").all_text_contents()
            assert shown == [seen(text) for text, _ in layer[name]]
    boxes = panel.locator(".ld-five")
    expect(boxes).to_have_count(3)
    for at, five in enumerate([found["top"][BASELINE]["tokens"], found["top"][LORA_DROP]["tokens"], found["full"]]):
        shares = [float(text.removesuffix("%")) for text in boxes.nth(at).locator("li span").all_text_contents()]
        assert shares == pytest.approx([100 * p for _, p in five], abs=0.051)  # a half may be rounded up or down
    expect(panel.locator(".ld-inspector-prefix")).to_have_text(found["prefix_text"])
    expect(panel.locator(".ld-inspector-refresh")).to_contain_text(found["refresh"]["text"])


def test_an_answer_is_one_tab_stop_and_arrows_go_through_its_tokens(server, open_page):
    page = ran(server, open_page)
    text = page.locator(".ld-pane[data-lane='1'] .ld-text")
    stops = ".ld-pane[data-lane='1'] :is(.ld-text, .ld-text *)"
    count = "nodes => nodes.filter(node => node.tabIndex >= 0).length"
    assert page.eval_on_selector_all(stops, count) == 1
    text.focus()
    page.keyboard.press("ArrowRight")
    for _ in range(3):
        page.keyboard.press("ArrowRight")
    assert page.evaluate("document.activeElement.dataset.step") == "3"
    assert page.eval_on_selector_all(stops, count) == 1
    expect(page.locator(PANEL).locator("h3")).to_contain_text("LoRA-Drop, step 3:")
    expect(page.locator(PANEL)).to_have_attribute("data-state", "read", timeout=30_000)
    assert page.evaluate("document.querySelector('.ld-scrub').value") == "3"  # the scrubber is there too, once
    page.keyboard.press("ArrowLeft")
    assert page.evaluate("document.activeElement.dataset.step") == "2"
    page.keyboard.press("Home")
    assert page.evaluate("document.activeElement.dataset.step") == "0"
    page.keyboard.press("Escape")
    expect(page.locator(PANEL)).to_be_hidden()
    assert page.eval_on_selector_all(stops, count) == 1


def test_another_run_closes_it_and_a_lost_run_says_so(server, open_page):
    page = ran(server, open_page)
    pick(page, 0, 3)
    expect(page.locator(PANEL)).to_have_attribute("data-state", "read", timeout=30_000)
    page.click(f"{PANEL} button")
    expect(page.locator(PANEL)).to_be_hidden()
    page.evaluate("document.querySelector('.ld-live').loraDropRun.id = 'gone'")
    pick(page, 0, 3)
    expect(page.locator(f"{PANEL} [role=status]")).to_contain_text("no longer keeps this run")
    run_to_end(page)
    expect(page.locator(PANEL)).to_be_hidden()


def test_it_is_on_the_screen_whole_beside_its_token(deep, open_page):
    """With thirty layers, without scrolling the page; what does not fit scrolls inside."""
    page = open_page(deep.url)
    prepare_and_run(page, 24)
    for (width, height), lane in itertools.product([(1366, 650), (1600, 900), (390, 844)], (0, 1)):
        page.keyboard.press("Escape")
        page.set_viewport_size({"width": width, "height": height})
        page.evaluate("window.scrollTo(0, 0)")
        wait_still(page)
        pick(page, lane, 7)
        expect(page.locator(PANEL)).to_have_attribute("data-state", "read", timeout=30_000)
        box, place = page.locator(PANEL).bounding_box(), page.locator(token(lane, 7)).bounding_box()
        assert box["x"] >= 0 and box["x"] + box["width"] <= width
        assert box["y"] >= 0 and box["y"] + box["height"] <= height
        assert place["y"] >= 0 and place["y"] + place["height"] <= box["y"], "the token is beside it"
        bottom = page.locator(f"{PANEL} tbody tr:last-child")
        bottom.scroll_into_view_if_needed()
        row = bottom.bounding_box()
        assert bottom.locator("th").inner_text() == "0" and row["y"] + row["height"] <= box["y"] + box["height"]


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_it_is_accessible_and_fits_a_phone(server, open_page, theme):
    page = ran(server, open_page, viewport={"width": 375, "height": 800})
    if theme == "dark":
        page.evaluate("document.body.classList.add('dark')")
    pick(page, 1, 7)
    expect(page.locator(PANEL)).to_have_attribute("data-state", "read", timeout=30_000)
    wait_still(page)
    assert page.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth") <= 0
    assert findings(page, ".ld-inspector") == []


@pytest.fixture
def replayed(open_replay, tiny) -> tuple[Page, Trace]:
    config = dataclasses.replace(CONFIG, refresh="repair", kv="write")
    trace = gather(run(tiny, Request("Why?", config, 24, ignore_eos=True)))
    return open_replay(trace), trace


def test_a_replay_has_the_likeliest_tokens_and_no_lens(replayed):
    page, trace = replayed
    pick(page, 1, 6)
    panel = page.locator(PANEL)
    expect(panel.locator("[role=status]")).to_contain_text("not the lens of the layers")
    found = about_step(trace, LORA_DROP, 6)
    for at, name in enumerate((BASELINE, LORA_DROP)):
        box = panel.locator(".ld-five").nth(at)
        assert box.locator("li code").all_text_contents() == [seen(text) for text, _ in found["top"][name]["tokens"]]
    rows = panel.locator("tbody tr")
    assert rows.locator("td:nth-child(2)").all_text_contents() == [layer["did"] for layer in found["layers"][::-1]]
    drifts = trace.audits[LORA_DROP][6].drift[:4][::-1]
    expected = ["–", *(f"{drift:.3f}" for drift in drifts), "–"]
    assert rows.locator("td:nth-child(3)").all_text_contents() == expected
    expect(panel.locator(".ld-inspector-prefix")).to_have_text(found["prefix_text"])
    expect(panel.locator(".ld-inspector-refresh")).to_have_text(found["refresh"]["text"])
    assert panel.locator(".ld-lens").count() == 0


def test_what_was_run_is_copied_from_the_menu(server, open_page, replayed):
    page = ran(server, open_page, permissions=["clipboard-read", "clipboard-write"])
    for kind in ("command", "python"):
        open_menu(page)
        page.click(f"[data-save='{kind}']")
        expect(page.locator(".ld-menu-note")).to_contain_text("Copied")
        header = server.runs[-1][0]
        assert page.evaluate("navigator.clipboard.readText()") == page_values(header, [])["commands"][kind]
    offline, _ = replayed
    open_menu(offline)
    offline.click("[data-save='python']")
    expect(offline.locator(".ld-menu-note")).to_have_attribute("data-kind", "done")
