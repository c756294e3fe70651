"""The Safe zone tab in a real Chromium, on tiny random models."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Iterator

import pytest
from playwright.sync_api import Page, expect

from lora_drop.models.pool import ModelPool
from lora_drop.run.exports.colors import COLORS
from lora_drop.ui import safe_zone
from tests.support.page import HOSTILE, set_text
from tests.support.server import Server, deep_model, serve

pytestmark = [pytest.mark.browser, pytest.mark.full]

MAPS, FRONT = "#ld-zone-heatmaps .ld-figure-plot", "#ld-zone-pareto .ld-figure-plot"
PHONE = {"viewport": {"width": 390, "height": 844}}


def open_tab(page: Page, name: str, wait: str) -> None:
    page.get_by_role("tab", name=name).click()
    page.wait_for_selector(wait)


def open_zone(page: Page) -> None:
    open_tab(page, "Safe zone", ".ld-progress .ld-status:not(:empty)")
    page.wait_for_selector("#ld-zone-pareto .ld-figure[data-state]")


def wait_drawn(page: Page, plot: str) -> None:
    page.wait_for_function("s => document.querySelector(s)?.data?.length > 0", arg=plot)


def heat(page: Page) -> list[dict]:
    """The maps on the page: x, y, z of each."""
    wait_drawn(page, MAPS)
    return page.evaluate(
        "s => document.querySelector(s).data.filter(t => t.type === 'heatmap').map(({ x, y, z }) => ({ x, y, z }))",
        MAPS,
    )


def sweep_ended(page: Page, kind: str = "done") -> str:
    line = page.locator(".ld-progress .ld-status")
    expect(line).to_have_attribute("data-kind", kind, timeout=60_000)
    return line.inner_text()


def fits(page: Page) -> bool:
    return page.evaluate("document.documentElement.scrollWidth <= window.innerWidth")


def made_row(ratio: float, period: int, adapters: str = HOSTILE) -> dict:
    return {
        "reuse": "residual", "part": "block", "kv": "skip", "adapters": adapters, "drop_ratio": ratio,
        "period": period, "layers_dropped": 3, "tokens": 1234, "lora_steps_top1_agreement": ratio,
        "all_steps_nll_gap": 0.1 * period, "speedup": 1.1, "bound": 1.2, "kv_saved": 0.1, "kv_bytes": 900,
        "kv_bytes_baseline": 1000,
    }  # fmt: skip


@pytest.fixture(scope="module")
def stored(tmp_path_factory) -> Iterator[Server]:
    """The deep model with a stored sweep of its own, whose every name tries to be code."""
    loaded = deep_model()
    path = tmp_path_factory.mktemp("sweep") / "sweep.json"
    rows = [made_row(ratio, period) for ratio in (0.25, 0.75) for period in (2, 8)]
    sweep = {
        "model": {"id": HOSTILE, "revision": loaded.revision, "dtype": "float32"},
        "device": {"name": HOSTILE},
        "data": {"file": HOSTILE, "records": 2},
        "date": "2026-01-02T03:04:05+00:00",
        "rows": [*rows, made_row(0.25, 2, "none")],
    }
    path.write_text(json.dumps(sweep))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(safe_zone, "SHIPPED_SWEEP", path)
        yield from serve(ModelPool(loaded))


def test_the_stored_sweep_is_drawn_and_its_names_stay_texts(stored, open_page):
    page = open_page(stored.url)
    open_zone(page)
    maps = heat(page)
    assert [m["z"] for m in maps[:2]] == [[[0.25, 0.75], [0.25, 0.75]], [[0.2, 0.2], [0.8, 0.8]]]
    assert "holds 5 measured points" in page.inner_text("#ld-zone-show")
    names = page.evaluate("s => document.querySelector(s).data.map(t => t.name ?? '')", FRONT)
    assert "the PAPER'S own points" in names
    shown = page.evaluate("s => document.querySelector(s).layout.annotations.map(a => a.text)", MAPS)
    assert shown.count("the paper's safe zone") == 5
    page.click("#ld-zone-heatmaps summary")
    cells = page.locator("#ld-zone-heatmaps tbody tr").first.locator("td").all_inner_texts()
    assert cells[2:] == [HOSTILE, "0.25", "2", "25.0%", "+0.20", "10.0%", "1.10x", "1.20x"]
    assert page.locator(".ld-figure img, .ld-figure script").count() == 0

    page.click("#ld-zone-choice input")
    page.get_by_role("option", name="Stored: residual, whole layers, no adapters").click()
    page.wait_for_function(f"document.querySelector('{MAPS}').data[0].x.length === 1")
    assert heat(page)[0]["z"] == [[0.25]]
    page.get_by_label("quality loss (nats per token)").check()
    page.wait_for_function(f"document.querySelector('{FRONT}').layout.yaxis2.title.text.startsWith('NLL gap')")


def test_the_figures_follow_the_theme_and_the_width_with_no_request(stored, open_page):
    page = open_page(stored.url)
    open_zone(page)
    wait_drawn(page, MAPS)
    asked: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    colour = f"document.querySelector('{MAPS}').layout.paper_bgcolor"
    assert page.evaluate(colour) == COLORS["light"]["panel"]
    page.evaluate("document.body.classList.toggle('dark')")
    page.wait_for_function(f"{colour} === '{COLORS['dark']['panel']}'")
    domains = f"document.querySelector('{MAPS}').layout.yaxis5.domain[1]"
    page.wait_for_function(f"{domains} > 0.3")
    page.set_viewport_size({"width": 390, "height": 844})
    page.wait_for_function(f"{domains} < 0.2")
    assert page.evaluate(colour) == COLORS["dark"]["panel"]
    assert fits(page)
    assert not [url for url in asked if "queue" in url or "run" in url]


def test_a_sweep_runs_to_its_end_and_grows_in_the_figures(server, open_page, monkeypatch):
    page = open_page(server.url)
    open_zone(page)
    assert "There is no stored sweep of this model" in page.inner_text("#ld-zone-show")
    assert "run a sweep" in page.inner_text("#ld-zone-heatmaps .ld-empty")
    measured = []
    real = safe_zone.measure

    def slow(*args):
        time.sleep(1)  # so that the page is seen between two points
        measured.append(real(*args))
        return measured[-1]

    monkeypatch.setattr(safe_zone, "measure", slow)
    set_text(page, "ld-sweep-ratios", "0.5,1")
    set_text(page, "ld-sweep-periods", "3")
    height = page.locator("#ld-zone-run").bounding_box()["height"]
    page.click("#ld-sweep-run")
    line = page.locator(".ld-progress .ld-status")
    expect(line).to_contain_text("Point 2 of 2: drop ratio 1, period 3.", timeout=30_000)
    expect(page.locator("#ld-sweep-run")).to_be_disabled()
    assert page.evaluate("document.querySelector('.ld-progress progress').value") == 1
    assert len(heat(page)[0]["x"]) == 1, "the first point is there before the second"
    assert page.locator("#ld-zone-run").bounding_box()["height"] == height, "the form jumped"
    assert sweep_ended(page) == "Finished: 2 points measured."
    page.wait_for_function(f"document.querySelector('{MAPS}').data[0].x.length === 2")
    agreement, gap, saved, speed, bound = (m["z"] for m in heat(page))
    for maps, name in (
        (agreement, "lora_steps_top1_agreement"),
        (gap, "all_steps_nll_gap"),
        (saved, "kv_saved"),
        (speed, "speedup"),
        (bound, "bound"),
    ):
        assert maps == [pytest.approx([row[name] for row in measured])]
    wait_drawn(page, FRONT)
    expect(page.locator("#ld-sweep-run")).to_be_enabled()
    expect(page.locator("#ld-sweep-cancel")).to_be_disabled()
    assert page.input_value("#ld-zone-choice input") == "Run here: residual, whole layers, no adapters"

    # What was measured stays, and the next sweep adds to it.
    page.get_by_label("quality loss (nats per token)").check()
    page.wait_for_function(f"document.querySelector('{FRONT}').layout.yaxis2.title.text.startsWith('NLL gap')")
    set_text(page, "ld-sweep-periods", "2")
    page.click("#ld-sweep-run")
    page.wait_for_function(f"document.querySelector('{MAPS}').data[0].y.length === 2")
    sweep_ended(page)
    page.wait_for_function(f"document.querySelector('{MAPS}').data[0].z.flat().filter(v => v !== null).length === 4")


def test_cancel_keeps_what_ran(server, open_page, monkeypatch):
    page = open_page(server.url)
    open_zone(page)
    calls = []

    def slow(loaded, point, *_):
        calls.append(point)
        time.sleep(1)
        return made_row(point.config.drop_ratio, point.config.period, "none")

    monkeypatch.setattr(safe_zone, "measure", slow)
    set_text(page, "ld-sweep-ratios", "0.25,0.5,0.75,1")
    set_text(page, "ld-sweep-periods", "2,4")
    page.click("#ld-sweep-run")
    expect(page.locator(".ld-progress .ld-status")).to_contain_text(re.compile("Point [2-4] of 8"), timeout=30_000)
    page.click("#ld-sweep-cancel")
    ending = sweep_ended(page)
    assert ending == f"Cancelled: {len(calls)} of 8 points were measured." and 2 <= len(calls) < 8
    shown = [value for line in heat(page)[0]["z"] for value in line if value is not None]
    assert len(shown) == len(calls)
    expect(page.locator("#ld-sweep-run")).to_be_enabled()


def test_a_closed_tab_ends_the_sweep(server, open_page, monkeypatch):
    page = open_page(server.url, leaves=True)
    open_zone(page)
    calls = []

    def slow(loaded, point, *_):
        calls.append(point)
        time.sleep(1)
        return made_row(point.config.drop_ratio, point.config.period, "none")

    monkeypatch.setattr(safe_zone, "measure", slow)
    set_text(page, "ld-sweep-periods", "2,3,4,5,6,7,8,9")
    page.click("#ld-sweep-run")
    expect(page.locator(".ld-progress .ld-status")).to_contain_text(re.compile("Point [2-9] of 16"), timeout=30_000)
    page.close()
    # The device is free again after the point that ran: another visitor's sweep has its turn.
    other = open_page(server.url)
    open_zone(other)
    set_text(other, "ld-sweep-ratios", "0.5")
    set_text(other, "ld-sweep-periods", "2")
    other.click("#ld-sweep-run")
    assert sweep_ended(other) == "Finished: 1 point measured."
    assert len(calls) < 14, "one of them the other visitor's"


def test_bad_input_is_one_clear_line(server, open_page):
    page = open_page(server.url)
    open_zone(page)
    for ratios, periods, words in (
        ("2", "2", "drop_ratio must lie between 0 and 1, got 2.0."),
        ("0.5", "0", "period must be a whole number from 1"),
        ("half", "2", "drop ratios must be numbers with commas, such as 0.25,0.5; got 'half'."),
        ("0.5", "", "periods must be numbers with commas"),
        (HOSTILE, "2", "drop ratios must be numbers"),
        (",".join(f"{i / 100:g}" for i in range(25)), ",".join(map(str, range(1, 21))), "are 500 points"),
    ):
        set_text(page, "ld-sweep-ratios", ratios)
        set_text(page, "ld-sweep-periods", periods)
        page.click("#ld-sweep-run")
        expect(page.locator(".ld-progress .ld-status")).to_contain_text(words, timeout=10_000)
        assert "\n" not in sweep_ended(page, "error")
        expect(page.locator("#ld-sweep-run")).to_be_enabled()
    assert page.locator("#ld-zone .ld-figure[data-state=empty]").count() == 2


def test_a_phone_needs_no_scrolling_to_the_side(stored, open_page):
    page = open_page(stored.url, **PHONE)
    open_zone(page)
    wait_drawn(page, MAPS)
    assert page.locator("#ld-zone-run").bounding_box()["y"] < page.locator(MAPS).bounding_box()["y"]
    assert fits(page)
