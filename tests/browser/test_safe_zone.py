"""The Safe zone tab in a real Chromium, on tiny random models."""

import json
import re
import threading
from collections.abc import Iterator

import pytest
from playwright.sync_api import Page, expect

from lora_drop.models.pool import ModelPool
from lora_drop.run.exports.colors import COLORS
from lora_drop.run.results.safe_zone import PROMPT, answer_of
from lora_drop.ui.safe_zone import callbacks as safe_zone
from tests.support.page import HOSTILE, requests_of, set_number, set_text, wait_still, wait_until
from tests.support.server import Server, deep_model, serve

pytestmark = [pytest.mark.browser, pytest.mark.full]

FRONT = "#ld-zone-pareto .ld-figure-plot"


def open_zone(page: Page) -> None:
    page.get_by_role("tab", name="Safe zone").click()
    page.wait_for_selector(".ld-progress .ld-status:not(:empty)")
    page.wait_for_selector("#ld-zone-map .ld-map:not([data-state=waiting])")
    page.wait_for_selector("#ld-zone-dial .ld-dial:not([data-state=waiting])")


def open_front(page: Page) -> None:
    page.get_by_role("button", name="Speed against quality").click()
    page.wait_for_selector(f"{FRONT} > svg")


def cells(page: Page) -> dict[tuple[str, str], str]:
    """What the map's cells say, by ratio and period."""
    page.wait_for_selector(".ld-map-cell")
    found = page.eval_on_selector_all(
        ".ld-map-cell", "all => all.map(c => [c.dataset.ratio, c.dataset.period, c.querySelector('span').textContent])"
    )
    return {(ratio, period): text for ratio, period, text in found}


def marks(page: Page, mark: str) -> list[tuple[str, str]]:
    found = page.eval_on_selector_all(
        f".ld-map-cell[data-marks~='{mark}']", "all => all.map(c => [c.dataset.ratio, c.dataset.period])"
    )
    return [tuple(pair) for pair in found]


def measured(page: Page) -> list[tuple[str, str]]:
    return [place for place, text in cells(page).items() if text != "not measured"]


def bands(page: Page) -> list[str]:
    """The scale of the map's colours."""
    return page.eval_on_selector_all(
        ".ld-map-scale li", "all => all.map(e => `${e.dataset.tone} ${e.style.getPropertyValue('--strength')}`)"
    )


def show(page: Page, measure: str) -> None:
    page.locator(".ld-map-switch").get_by_label(measure, exact=True).check()


def run_begun(server: Server, page: Page) -> dict:
    """Wait for a run; returns its settings."""
    wait_until(lambda: bool(server.runs and server.runs[-1]), "a run began", page=page)
    return server.runs[-1][0].lanes[1]["config"]


def run_done(page: Page) -> None:
    page.wait_for_selector(".ld-live[data-state='done']", state="attached", timeout=60_000)


def answer(page: Page) -> str:
    return page.get_by_test_id("safe-zone-answer").inner_text()


def sweep_ended(page: Page, kind: str = "done") -> str:
    line = page.locator(".ld-progress .ld-status")
    expect(line).to_have_attribute("data-kind", kind, timeout=60_000)
    return line.inner_text()


def made_row(ratio: float, period: int, adapters: str = HOSTILE, own: float | None = 0.4, **more) -> dict:
    return {
        "reuse": "residual", "part": "block", "kv": "skip", "adapters": adapters, "drop_ratio": ratio,
        "period": period, "layers_dropped": 3, "tokens": 1234, "lora_steps_top1_agreement": ratio,
        "all_steps_nll_gap": 0.1 * period, "all_steps_kl": 0.5, "own_all_steps_kl": own, "free_regret": own,
        "free_repeated_4grams": 0.1, "free_repeated_4grams_baseline": 0.1, "speedup": 1 + ratio * period / 10,
        "bound": 2.9, "kv_saved": 0.1, "kv_bytes": 900, "kv_bytes_baseline": 1000, "sample": HOSTILE, **more,
    }  # fmt: skip


@pytest.fixture(scope="module")
def stored(tmp_path_factory) -> Iterator[Server]:
    """The deep model with a stored sweep of its own, whose every name tries to be code."""
    loaded = deep_model()
    path = tmp_path_factory.mktemp("sweep") / "sweep.json"
    exact = {"kv": "write", "refresh": "repair", "accept": 0.1, "drop_layers": [5, 7]}
    rows = [
        *(made_row(0.25, 2, own=0.1), made_row(0.75, 2), made_row(0.25, 8, own=0.12), made_row(0.75, 8, own=2.0)),
        made_row(0.5, 4, own=0.01, speedup=1.0),
        made_row(0.25, 2, "none", own=None, free_regret=None),
        made_row(0.25, 3, own=0.3, **exact),
    ]
    sweep = {
        "model": {"id": HOSTILE, "revision": loaded.revision, "dtype": "float32"},
        "device": {"name": HOSTILE},
        "data": {"file": HOSTILE, "records": 2},
        "settings": {"layers": [3, 28]},
        "sample": {"prompt": PROMPT, "text": f"The full model: {HOSTILE}"},
        "date": "2026-01-02T03:04:05+00:00",
        "rows": rows,
    }
    path.write_text(json.dumps(sweep))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(safe_zone, "SHIPPED_SWEEP", path)
        patch.setattr(safe_zone, "timed_here", lambda rows, about, loaded: list(rows))  # the device is no processor
        yield from serve(ModelPool(loaded))


def test_the_map_answers_and_its_names_stay_texts(stored, open_page):
    page = open_page(stored.url)
    open_zone(page)
    assert answer(page).startswith("Choose drop ratio 0.25, period 8: the fastest here that reads well on average")
    assert "a regret of 0.12 nats per token" in answer(page) and "1.20×" in answer(page)
    assert marks(page, "chosen") == [("0.25", "8")] and marks(page, "nearest") == []
    assert sorted(marks(page, "safe")) == [("0.25", "2"), ("0.25", "8"), ("0.5", "4")]
    assert sorted(marks(page, "frontier")) == [("0.25", "2"), ("0.25", "8"), ("0.5", "4"), ("0.75", "8")]
    assert marks(page, "paper") == [("0.5", "4"), ("0.75", "4")]
    assert sorted(marks(page, "zone")) == [("0.25", "2"), ("0.25", "4"), ("0.5", "2"), ("0.5", "4")]
    assert "The paper's own figures there (other models, second-hand)" in page.inner_text(".ld-map-paper")
    own = cells(page)
    assert own["0.25", "2"] == "0.10" and own["0.75", "8"] == "2.00" and own["0.5", "2"] == "not measured"
    hatched = page.locator(".ld-map-cell[data-ratio='0.5'][data-period='2']")
    assert "gradient" in hatched.evaluate("cell => getComputedStyle(cell).backgroundImage")
    assert bands(page) == ["good 1", "bad 0.4", "bad 1"], "a break of colour at the limit, in the scale"
    show(page, "Free text")
    tones = page.eval_on_selector_all(".ld-map-cell[data-measured=true]", "all => all.map(c => c.dataset.tone)")
    assert [tone == "good" for tone in tones] == [cell in marks(page, "safe") for cell in measured(page)]
    asked = requests_of(page)
    for measure, text in (("Given text", "0.50"), ("Free text", "0.10"), ("Speed", "1.05×"), ("Memory", "10%")):
        show(page, measure)
        assert cells(page)["0.25", "2"] == text
    assert not [url for url in asked if "queue" in url or "run" in url], "the switch needs no server"
    assert "holds 7 measured points" in page.inner_text("#ld-zone-show")
    assert page.locator("#ld-zone img, #ld-zone script").count() == 0

    page.click("#ld-zone-choice input")
    page.get_by_role("option", name="Stored: residual, whole layers, no adapters").click()
    page.wait_for_function("document.querySelectorAll('.ld-map-cell').length === 1")
    assert "so no setting can be called safe. The nearest on given texts is drop ratio 0.25" in answer(page)
    show(page, "Own answers")
    assert cells(page) == {("0.25", "2"): "not measured"}
    open_front(page)
    assert "the PAPER'S own points" in page.locator(f"{FRONT} text").all_text_contents()
    page.get_by_label("NLL gap, given text").check()
    page.wait_for_selector(f"{FRONT} text:has-text('NLL gap')")


@pytest.mark.parametrize("by", ["mouse", "keyboard"])
def test_a_cell_sets_the_sliders_and_runs(stored, open_page, by):
    stored.runs.clear()
    page = open_page(stored.url)
    set_number(page, "ld-max-new-tokens", 12)
    open_zone(page)
    chosen = page.locator(".ld-map-cell[data-ratio='0.25'][data-period='8']")
    chosen.click() if by == "mouse" else chosen.press("Enter")
    config = run_begun(stored, page)
    names = ("drop_ratio", "period", "reuse", "layers")
    assert [config[name] for name in names] == [0.25, 8, "residual", [3, 28]]
    run_done(page)
    assert page.locator("#ld-period input[type=number]").input_value() == "8"
    expect(page.get_by_role("tab", name="Run")).to_have_attribute("aria-selected", "true")


def test_exact_layers_and_an_unmeasured_cell_run_too(stored, open_page):
    page = open_page(stored.url)
    set_number(page, "ld-max-new-tokens", 12)
    open_zone(page)
    page.click("#ld-zone-choice input")
    page.get_by_role("option", name="accept 0.1").click()
    page.wait_for_function("document.querySelectorAll('.ld-map-cell').length === 1")
    assert answer(page).startswith("No setting of this map is safe. The nearest is drop ratio 0.25, period 3")
    stored.runs.clear()
    page.click(".ld-map-cell")
    config = run_begun(stored, page)
    assert (config["drop_layers"], config["accept"], config["refresh"]) == ([5, 7], 0.1, "repair")
    run_done(page)
    page.get_by_role("tab", name="Safe zone").click()
    page.click("#ld-zone-choice input")
    page.get_by_role("option").first.click()
    page.wait_for_selector(".ld-map-cell[data-ratio='0.75'][data-period='4']")
    stored.runs.clear()
    page.click(".ld-map-cell[data-ratio='0.75'][data-period='4']")
    config = run_begun(stored, page)
    assert (config["drop_ratio"], config["period"], config["drop_layers"], config["accept"]) == (0.75, 4, None, 0)
    run_done(page)


def test_the_dial_shows_each_stop_and_runs_it(stored, open_page):
    stored.runs.clear()
    page = open_page(stored.url)
    set_number(page, "ld-max-new-tokens", 12)
    open_zone(page)
    dial = page.get_by_test_id("break-it")
    assert page.inner_text(".ld-dial-label") == "Never skip"
    assert page.inner_text(".ld-dial-sample") == f"The full model: {HOSTILE}"
    wait_still(page)
    asked = requests_of(page)
    dial.press("End")
    assert page.inner_text(".ld-dial-label") == "Drop ratio 0.75, period 8"
    assert "Regret 2.00 nats per token on average: reads badly" in page.inner_text(".ld-dial-words")
    assert "1.60×" in page.inner_text(".ld-dial-words") and page.inner_text(".ld-dial-sample") == HOSTILE
    assert not [url for url in asked if "queue" in url or "run" in url]
    assert page.locator(".ld-dial img").count() == 0
    page.click(".ld-dial-run")
    config = run_begun(stored, page)
    assert (config["drop_ratio"], config["period"]) == (0.75, 8)
    run_done(page)
    page.get_by_role("tab", name="Safe zone").click()
    assert page.inner_text(".ld-dial-label") == "Drop ratio 0.75, period 8", "it stays where it was"
    dial.press("Home")
    stored.runs.clear()
    page.click(".ld-dial-run")
    assert run_begun(stored, page)["period"] == 1
    run_done(page)


def test_the_figure_follows_the_theme_with_no_request(stored, open_page):
    page = open_page(stored.url)
    open_zone(page)
    assert len(cells(page)) == 9
    open_front(page)
    asked = requests_of(page)
    colour = f"document.querySelector('{FRONT} > svg > rect').getAttribute('fill')"
    assert page.evaluate(colour) == COLORS["light"]["panel"]
    page.evaluate("document.body.classList.toggle('dark')")
    page.wait_for_function(f"{colour} === '{COLORS['dark']['panel']}'")
    page.set_viewport_size({"width": 375, "height": 812})
    page.wait_for_selector("#ld-zone-pareto .ld-figure[data-shape=narrow]")
    assert page.evaluate(colour) == COLORS["dark"]["panel"]
    assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth"), "nothing is cut off to the side"
    assert not [url for url in asked if "queue" in url or "run" in url]


def test_a_sweep_runs_to_its_end_and_grows_in_the_figures(server, open_page, monkeypatch, goes_on):
    page = open_page(server.url)
    open_zone(page)
    assert "There is no stored sweep of this model" in page.inner_text("#ld-zone-show")
    assert "run a sweep" in answer(page)
    measured = []
    real = safe_zone.measure

    def held(*args, **more):
        assert not measured or goes_on.wait(60)
        measured.append(real(*args, **more))
        return measured[-1]

    monkeypatch.setattr(safe_zone, "measure", held)
    set_text(page, "ld-sweep-ratios", "0.5,1")
    set_text(page, "ld-sweep-periods", "3")
    height = page.locator("#ld-zone-run").bounding_box()["height"]
    page.click("#ld-sweep-run")
    line = page.locator(".ld-progress .ld-status")
    expect(line).to_contain_text("Point 2 of 2: drop ratio 1, period 3.", timeout=30_000)
    expect(page.locator("#ld-sweep-run")).to_be_disabled()
    assert page.evaluate("document.querySelector('.ld-progress progress').value") == 1
    assert len(cells(page)) == 1, "the first point is there before the second"
    assert page.locator("#ld-zone-run").bounding_box()["height"] == height, "the form jumped"
    goes_on.set()
    assert sweep_ended(page) == "Finished: 2 points measured."
    page.wait_for_function("document.querySelectorAll('.ld-map-cell').length === 2")
    for label, column, form in (
        ("Own answers", "own_all_steps_kl", "{:.2f}"),
        ("Free text", "free_regret", "{:.2f}"),
        ("Speed", "speedup", "{:.2f}×"),
        ("Memory", "kv_saved", "{:.0%}"),
    ):
        show(page, label)
        shown = {(f"{row['drop_ratio']:g}", f"{row['period']:g}"): form.format(row[column]) for row in measured}
        assert cells(page) == shown
    show(page, "Given text")
    assert set(cells(page).values()) == {"not measured"}
    expected = answer_of(measured)
    assert answer(page) == expected.text
    expect(page.locator("#ld-sweep-run")).to_be_enabled()
    expect(page.locator("#ld-sweep-cancel")).to_be_disabled()
    assert page.input_value("#ld-zone-choice input") == "Run here: residual, whole layers, no adapters"

    # What was measured stays, and the next sweep adds to it.
    set_text(page, "ld-sweep-periods", "2")
    page.click("#ld-sweep-run")
    page.wait_for_function("document.querySelectorAll('.ld-map-cell').length === 4")
    sweep_ended(page)
    show(page, "Speed")
    page.wait_for_function("document.querySelectorAll('.ld-map-cell[data-measured=true]').length === 4")


@pytest.fixture
def goes_on() -> Iterator[threading.Event]:
    event = threading.Event()
    yield event
    event.set()


@pytest.fixture
def calls(monkeypatch, goes_on):
    """The points of a sweep that takes two seconds for each after the first, until `goes_on` is set."""
    found = []

    def slow(loaded, point, *_, **__):
        if found:
            goes_on.wait(2)
        found.append(point)
        return made_row(point.config.drop_ratio, point.config.period, "none")

    monkeypatch.setattr(safe_zone, "measure", slow)
    return found


def test_cancel_keeps_what_ran(server, open_page, calls):
    page = open_page(server.url)
    open_zone(page)
    set_text(page, "ld-sweep-ratios", "0.25,0.5,0.75,1")
    set_text(page, "ld-sweep-periods", "2,4")
    page.click("#ld-sweep-run")
    expect(page.locator(".ld-progress .ld-status")).to_contain_text(re.compile("Point [2-4] of 8"), timeout=30_000)
    page.click("#ld-sweep-cancel")
    ending = sweep_ended(page)
    assert ending == f"Cancelled: {len(calls)} of 8 points were measured." and 2 <= len(calls) < 8
    page.wait_for_selector(".ld-map-cell")
    assert page.locator(".ld-map-cell[data-measured=true]").count() == len(calls)
    expect(page.locator("#ld-sweep-run")).to_be_enabled()


def test_a_closed_tab_ends_the_sweep(server, open_page, calls, goes_on):
    page = open_page(server.url, leaves=True)
    open_zone(page)
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
    expect(other.locator(".ld-progress .ld-status")).to_contain_text("Point 1 of 1", timeout=60_000)
    goes_on.set()
    assert sweep_ended(other) == "Finished: 1 point measured."
    assert len(calls) < 14, "one of them the other visitor's"


def test_bad_input_is_one_clear_line(server, open_page):
    page = open_page(server.url)
    open_zone(page)
    for ratios, periods, words in (
        ("2", "2", "drop_ratio must lie between 0 and 1, got 2.0."),
        (HOSTILE, "2", "drop ratios must be numbers"),
    ):
        set_text(page, "ld-sweep-ratios", ratios)
        set_text(page, "ld-sweep-periods", periods)
        page.click("#ld-sweep-run")
        expect(page.locator(".ld-progress .ld-status")).to_contain_text(words, timeout=10_000)
        assert "\n" not in sweep_ended(page, "error")
        expect(page.locator("#ld-sweep-run")).to_be_enabled()
    assert page.locator("#ld-zone-map .ld-map[data-state=empty]").count() == 1
