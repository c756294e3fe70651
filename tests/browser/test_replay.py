"""The replay's file in a real Chromium: from the disk, with no network, under its own Content-Security-Policy."""

import dataclasses
import time

import pytest
from playwright.sync_api import Page, expect

from lora_drop.run.report.align import side_by_side, words_of
from lora_drop.run.report.speed import speedup_words
from lora_drop.run.request import Request
from lora_drop.run.run import run
from lora_drop.run.trace.trace import Trace, gather
from tests.support.made import hostile
from tests.support.page import CONFIG, figure, pane_text, save

pytestmark = [pytest.mark.browser, pytest.mark.full]

HOSTILE = "</script><script>alert(1)</script><!--<script>${alert(2)}<img src=x onerror=alert(3)>'\"{{run}}\u2028\ud800"


@pytest.fixture(scope="module")
def trace(tiny) -> Trace:
    return gather(run(tiny, Request("Why is the sky blue?", CONFIG, 40, ignore_eos=True)))


def wait_drawn(page: Page) -> None:
    """Until each plot has something of the run in it; one is drawn when it comes into view, the folded ones too."""
    page.locator(".ld-rest").evaluate("rest => { rest.open = true; }")
    filled = "plot => (plot.data ?? []).some(trace => (trace.z?.[0] ?? trace.x ?? []).length)"
    for plot in page.locator(".ld-plot").all():
        plot.scroll_into_view_if_needed()
        end = time.monotonic() + 60
        while not plot.evaluate(filled):  # page.wait_for_function would call eval, which the page's policy forbids
            assert time.monotonic() < end, "a plot stays empty"
            page.wait_for_timeout(50)


def test_the_file_shows_the_run(trace, open_replay):
    page = open_replay(trace)
    assert page.evaluate("scrollY") == 0
    for lane, name in enumerate(("baseline", "lora_drop")):
        assert pane_text(page, lane) == trace.text(name)
        assert figure(page, "tokens", lane) == "40"
        shown = float(figure(page, "speed", lane).replace(",", ""))  # a half may be rounded up or down
        assert shown == pytest.approx(trace.summary.lanes[name]["tokens_per_second"], abs=0.056)
    words = speedup_words(trace.summary.speedup, trace.summary.speedup_interval)
    assert figure(page, "speedup") == (words or f"{trace.summary.speedup:.2f}×")
    assert figure(page, "bound") == f"{trace.summary.bound:.2f}×"
    wait_drawn(page)
    for plot in page.locator(".ld-plot").all():
        expect(plot.locator("svg.main-svg").first).to_be_visible()
    head = page.inner_text(".ld-replay-head")
    assert page.title() == page.inner_text("h1") == "LoRA-Drop replay: random:tiny-llama"
    assert "Recorded run, replayed" in head and "Why is the sky blue?" in head and "cut short" not in head


def test_a_picture_can_be_saved_under_the_pages_policy(trace, open_replay, tmp_path):
    page = open_replay(trace)
    wait_drawn(page)
    assert save(page, "png", tmp_path).read_bytes().startswith(b"\x89PNG")


def test_it_is_as_dark_as_its_reader_wants(trace, open_replay):
    page = open_replay(trace, color_scheme="dark")
    dark = page.evaluate("getComputedStyle(document.body).backgroundColor")
    page.emulate_media(color_scheme="light")
    expect(page.locator("body.dark")).to_have_count(0)
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") != dark


def test_hostile_texts_stay_text(trace, open_replay):
    page = open_replay(hostile(trace, HOSTILE))
    assert pane_text(page, 0) == HOSTILE * 40
    page.hover(".ld-pane[data-lane='1'] .ld-token >> nth=1")
    wait_drawn(page)
    assert page.locator("img").count() == 0
    assert page.inner_text(".ld-replay-prompt").startswith("</script><script>alert(1)")
    assert page.evaluate("document.title").startswith("LoRA-Drop replay: </script>")


def test_a_cut_trace_opens_and_says_so(trace, open_replay):
    cut = Trace(trace.header)
    for step in range(9):
        for lane in trace.steps:
            cut.add(trace.steps[lane][step])
            if audit := trace.audits[lane].get(step):
                cut.add(audit)
    page = open_replay(cut)
    assert "cut short" in page.inner_text(".ld-replay-head")
    assert pane_text(page, 1) == "".join(step.text for step in trace.steps["lora_drop"][:9])
    assert figure(page, "tokens", 1) == "9" and figure(page, "bound") != "–"
    page = open_replay(Trace(trace.header))
    assert "cut short" in page.inner_text(".ld-replay-head") and pane_text(page, 0) == ""


def test_an_older_trace_without_the_models_shape_opens(trace, open_replay):
    header = trace.header
    older = {k: v for k, v in header.model.items() if k not in ("shape", "kv_bytes_per_token")}
    written = Trace(dataclasses.replace(header, model=older, sampling={}))
    for record in list(trace.records())[1:-1]:
        written.add(record)
    page = open_replay(written)
    wait_drawn(page)
    assert figure(page, "bound") == "–" and figure(page, "tokens", 0) == "40"


def test_three_lanes_have_their_panes_and_any_two_stand_word_by_word(tiny, open_replay):
    trace = gather(run(tiny, Request("Why?", CONFIG, 12, ignore_eos=True, compare="skip")))
    page = open_replay(trace)
    assert [pane_text(page, lane) for lane in range(3)] == [trace.text(name) for name in trace.steps]
    wait_drawn(page)
    assert page.locator(".ld-pane").count() == 3
    page.get_by_text("Two answers word by word").click()
    for one, other in (("baseline", "lora_drop"), ("third", "baseline")):
        for menu, lane in zip(("First answer", "Second answer"), (one, other), strict=True):
            page.get_by_label(menu).select_option(lane)
        said = side_by_side(*(trace.text(lane) for lane in ("baseline", one if other == "baseline" else other)))
        expect(page.locator(".ld-diff-said")).to_have_text(said["text"])
        struck = page.eval_on_selector_all(".ld-diff-text > :not(ins)", "all => all.map(n => n.textContent).join(' ')")
        assert words_of(struck) == words_of(trace.text(one))
    page.get_by_label("First answer").select_option("baseline")
    expect(page.locator(".ld-diff-said")).to_have_text("Both menus name the same answer.")


def test_a_single_lane(tiny, open_replay):
    trace = gather(run(tiny, Request("Why?", CONFIG, 8, ignore_eos=True, lanes="lora-drop")))
    page = open_replay(trace)
    wait_drawn(page)
    assert page.locator(".ld-pane").count() == 1 and pane_text(page, 0) == trace.text("lora_drop")


def test_the_method_is_in_the_file(trace, open_replay):
    page = open_replay(trace)
    page.click(".ld-fold summary")
    slider = page.locator("[data-idea=repair] input")
    expect(slider).to_be_visible()
    slider.press("End")
    expect(page.locator("[data-idea=repair] .ld-idea-words")).to_contain_text("Step 8, refresh")
    assert page.locator("[data-idea=repair] rect").count() == 10 * (3 + 8)


def test_playing_follows_the_words_and_ends_at_the_first_difference_on_a_phone_too(tiny, open_replay):
    trace = gather(run(tiny, Request("Why?", CONFIG, 300, ignore_eos=True, audit=False)))
    page = open_replay(trace, viewport={"width": 390, "height": 844})
    text = page.locator(".ld-pane[data-lane='1'] .ld-text")
    settled = text.evaluate("node => node.scrollTop")
    text.evaluate(
        """node => node.addEventListener(
            "scroll", () => (node.dataset.most = Math.max(node.scrollTop, node.dataset.most ?? 0)))"""
    )
    page.click("[data-act=play]")
    end = time.monotonic() + 60
    while float(text.get_attribute("data-most") or 0) < settled + 50:
        assert time.monotonic() < end, "the answer does not follow the played word"
        page.wait_for_timeout(50)
    page.keyboard.press("Escape")
    assert text.evaluate("node => node.scrollTop") == settled
