"""The first minute: one button, answers played at a pace to read, the verdict, the race, and what stands where."""

from __future__ import annotations

import re
import threading

import pytest
from playwright.sync_api import Page, expect

from lora_drop.method.config import LoraDropConfig
from lora_drop.method.presets import COMPARISONS, PRESETS
from lora_drop.paths import SHIPPED_RECORDED
from lora_drop.run.lines import write_line
from lora_drop.run.records import StepRecord, Summary
from lora_drop.run.request import Request
from lora_drop.run.run import run
from lora_drop.run.told import told_of
from lora_drop.run.trace import gather
from lora_drop.ui import callbacks
from lora_drop.ui.controls import SHOWN, element_id
from tests.browser.test_presets import shipped  # noqa: F401  # a model whose presets were measured
from tests.support.page import open_advanced, pane_text, prepare, set_number, wait_done, wait_still
from tests.support.runs import JUDGED

pytestmark = pytest.mark.browser

CONFIG = LoraDropConfig(period=4, layers=(1, 4), drop_ratio=1.0)
IN_VIEW = ("ld-model", "ld-preset", "ld-period", "ld-layers", "ld-drop-ratio", "ld-max-new-tokens")
# What of each lane is seen, and the moment that it is seen at.
SEEN = """() => ({
    moment: window.LoraDrop.store.state.moment,
    state: document.querySelector('.ld-live').dataset.state,
    shown: [...document.querySelectorAll('.ld-pane')].map(pane => pane.querySelectorAll(
        '.ld-line:not(.ld-later-line) .ld-token:not(.ld-later)').length),
})"""
STALE = """() => { const [r, g, b] = getComputedStyle(document.querySelector('.ld-verdict-text')).color.match(/\\d+/g);
    return [r, g, b].map(Number) }"""


def show(page: Page, at: str = "to the end") -> None:
    """Press the one button; the run is told to its end, unless it is to be seen on the way."""
    page.click("#ld-run")
    if at == "to the end":
        wait_done(page)
        wait_still(page)


def contrast(one: list[int], two: list[int]) -> float:
    """The ratio of the WCAG."""

    def luminance(rgb: list[int]) -> float:
        parts = [c / 255 / 12.92 if c / 255 <= 0.04045 else ((c / 255 + 0.055) / 1.055) ** 2.4 for c in rgb]
        return 0.2126 * parts[0] + 0.7152 * parts[1] + 0.0722 * parts[2]

    dark, light = sorted((luminance(one), luminance(two)))
    return (light + 0.05) / (dark + 0.05)


def test_a_changed_prompt_and_seed_are_what_is_played_and_what_is_downloaded(server, open_page, tmp_path):
    page = open_page(server.url)
    prepare(page, tokens=40)
    page.fill("#ld-prompt textarea", "Another prompt, and a seed")
    set_number(page, "ld-seed", 7)
    set_number(page, "ld-temperature", 1)
    page.click("#ld-run")
    page.wait_for_selector(".ld-live[data-state=running], .ld-live[data-state=playing]")
    page.wait_for_function("window.LoraDrop.store.state.step > 3")
    seen = page.evaluate(SEEN)
    expect(page.locator(".ld-pace-words")).to_contain_text("real speed")
    expect(page.locator("[data-testid=verdict]")).to_have_attribute("data-kind", "running")
    page.wait_for_selector(".ld-live[data-state=done]", timeout=60_000)  # by itself: nothing is skipped
    records = server.runs[-1]
    trace = gather(records)
    assert (trace.header.prompt, trace.header.seed) == ("Another prompt, and a seed", 7)
    assert [pane_text(page, lane) for lane in (0, 1)] == [trace.text(name) for name in ("baseline", "lora_drop")]
    # Both lanes were at one moment of their own clocks, which start when the prompt has been read.
    assert 0 < sum(seen["shown"]) < 80
    for shown, steps in zip(seen["shown"], trace.steps.values(), strict=True):
        clock = [sum(step.ms for step in steps[1 : i + 1]) for i in range(len(steps))]
        early, late = (sum(ms <= seen["moment"] + slack for ms in clock) for slack in (-0.5, 0.5))
        assert early <= shown <= late
    page.evaluate("document.querySelector('.ld-menu').open = true")
    with page.expect_download() as download:
        page.click("[data-save=trace]")
    expect(page.locator(".ld-menu-note")).to_contain_text("Saved")
    download.value.save_as(tmp_path / "trace.jsonl")
    assert (tmp_path / "trace.jsonl").read_text() == "".join(map(write_line, records)), "no ms was changed"
    page.wait_for_function("!document.querySelector('.ld-menu').open")


@pytest.mark.full
def test_show_me_runs_the_default_preset_in_three_lanes_and_never_overwrites_a_slider(shipped, open_page):  # noqa: F811
    page = open_page(shipped.url)
    button = page.get_by_test_id("show-me")
    expect(button).to_have_text("Show me")
    for name in IN_VIEW:
        expect(page.locator(f"#{name}")).to_be_visible()
    others = {element_id(one) for one in SHOWN} - set(IN_VIEW)
    assert not [name for name in others if page.locator(f"#{name}").is_visible()]
    shipped.runs.clear()
    button.click()
    wait_done(page)
    trace = gather(shipped.runs[-1])
    asked = PRESETS["balanced"].config
    one, two = (trace.header.lanes[lane]["config"] for lane in (1, 2))
    assert {key: one[key] for key in ("period", "drop_ratio", "accept", "refresh", "head")} == {
        key: getattr(asked, key) for key in ("period", "drop_ratio", "accept", "refresh", "head")
    }
    assert {key: two[key] for key in COMPARISONS["bare"].changes} == COMPARISONS["bare"].changes
    assert two["dropped"] == one["dropped"]
    for lane in ("baseline", "lora_drop", "third"):
        expect(page.get_by_test_id(f"answer-{lane}")).to_be_visible()
    set_number(page, "ld-period", 5)
    expect(page.get_by_test_id("run")).to_have_text("Run")
    expect(page.get_by_test_id("show-me")).to_have_count(0)
    page.get_by_test_id("run").click()
    wait_done(page)
    assert shipped.runs[-1][0].lanes[1]["config"]["period"] == 5
    page.check("#ld-preset input[value=balanced]")  # the way back
    expect(page.get_by_test_id("show-me")).to_have_text("Show me")


@pytest.mark.full
def test_the_page_has_its_order_and_no_axes_before_data(server, open_page):
    page = open_page(server.url, viewport={"width": 1600, "height": 1200})
    order = (
        *("#ld-prompt", "[data-testid=verdict]", ".ld-panes", ".ld-player", "[data-testid=race]"),
        *("[data-chart=activity]", ".ld-rest"),
    )
    tops = [page.locator(where).bounding_box()["y"] for where in order]
    assert tops == sorted(tops)
    assert [
        page.locator(f"[data-chart={name}]").bounding_box()["x"] for name in ("activity", "drift", "kv")
    ] == sorted(page.locator(f"[data-chart={name}]").bounding_box()["x"] for name in ("activity", "drift", "kv"))
    expect(page.locator(".ld-rest > .ld-charts")).to_be_hidden()
    for name in ("activity", "drift", "kv"):
        expect(page.locator(f"[data-chart={name}] .ld-plot")).to_be_hidden()
        expect(page.locator(f"[data-chart={name}] .ld-empty")).to_contain_text("This will show")
    expect(page.locator(".ld-race-canvas")).to_be_hidden()
    prepare(page, tokens=12)
    show(page)
    for where in ("[data-chart=activity] .ld-plot", ".ld-race-canvas"):
        expect(page.locator(where)).to_be_visible()


@pytest.mark.full
def test_the_verdict_the_whys_and_the_parts_are_the_records(server, open_page):
    server.script = lambda: run(server.loaded, Request("Why?", CONFIG, 40, ignore_eos=True, compare="skip"))
    page = open_page(server.url, viewport={"width": 1600, "height": 1600})
    page.evaluate("document.querySelector('.ld-rest').open = true")
    show(page)
    said = told_of(gather(server.runs[-1]))
    expect(page.locator(".ld-verdict-text")).to_have_text(said["verdict"]["text"])
    expect(page.get_by_test_id("verdict")).to_have_attribute("data-kind", said["verdict"]["kind"])
    shown = page.eval_on_selector_all(
        "[data-why]", "nodes => Object.fromEntries(nodes.map(n => [n.dataset.why, n.textContent]))"
    )
    assert shown == {name: words or "" for name, words in said["why"].items()}
    assert sum(bool(words) for words in shown.values()) >= 5
    assert page.locator(".ld-parts").is_visible() == bool(said["parts"])


@pytest.mark.full
def test_playing_waits_where_the_stream_is_behind_and_can_be_skipped(server, open_page):
    records = list(run(server.loaded, Request("Why?", CONFIG, 60, ignore_eos=True, view="lock-step")))
    half = next(i for i, one in enumerate(records) if isinstance(one, StepRecord) and one.step == 20)
    goes_on = threading.Event()

    def script():
        yield from records[:half]
        goes_on.wait(1)  # then an update is due
        yield records[half]
        assert goes_on.wait(60)
        yield from records[half + 1 :]

    server.script = script
    page = open_page(server.url)
    page.click("#ld-run")
    page.select_option(".ld-rate", "4")
    page.wait_for_function("window.LoraDrop.store.state.step >= 15")
    page.wait_for_timeout(500)
    seen = page.evaluate(SEEN)
    assert seen["state"] == "running" and max(seen["shown"]) <= 22, "it waits at what has come"
    page.select_option(".ld-rate", "0.1")
    goes_on.set()
    page.wait_for_selector(".ld-live[data-state=playing]", timeout=60_000)
    page.click("[data-act=skip]")
    expect(page.locator(".ld-live")).to_have_attribute("data-state", "done")
    assert page.evaluate(SEEN)["shown"] == [60, 60]
    expect(page.locator("[data-act=skip]")).to_be_hidden()


@pytest.mark.full
def test_the_pace_is_one_factor_for_all_lanes_and_never_faster_than_the_run(server, open_page):
    page = open_page(server.url)
    rates = page.evaluate(
        """() => {
            const { readingPace } = window.LoraDrop;
            const clock = (count, ms) => Array.from({ length: count }, (_, i) => 30 + i * ms);
            const lane = (count, ms) => ({ steps: Array(count), clock: clock(count, ms) });
            const run = (...lanes) => ({ isOver: true, planned: 127, lanes });
            return [
                readingPace(run(lane(128, 5), lane(128, 4))),
                readingPace(run(lane(128, 100), lane(128, 4))),
                readingPace(run(lane(33, 5), lane(33, 5))),
                readingPace({ ...run(lane(5, 5), lane(9, 5)), isOver: false }),
            ];
        }"""
    )
    assert rates[0]["rate"] == pytest.approx(127 * 5 / (127 * 62.5))  # the slowest lane takes about 8 s
    assert rates[1]["rate"] == 1, "slower than reading: real time"
    assert rates[2]["rate"] == pytest.approx(5 / 62.5)
    assert [rate["isSure"] for rate in rates] == [True, True, True, False]


@pytest.mark.full
def test_without_motion_the_end_is_shown(server, open_page):
    page = open_page(server.url, reduced_motion="reduce")
    prepare(page, tokens=24)
    page.click("#ld-run")
    page.wait_for_selector(".ld-live[data-state=done]")
    assert page.evaluate(SEEN)["shown"] == [24, 24]
    expect(page.locator("[data-act=skip]")).to_be_hidden()


@pytest.mark.full
def test_the_race_compares_at_equal_tokens_and_follows_the_scrubber(server, open_page):
    records = list(run(server.loaded, Request("Why?", CONFIG, 40, ignore_eos=True)))
    short = [one for one in records if getattr(one, "lane", "") != "lora_drop" or one.step <= 24]
    server.script = lambda: (one for one in short)
    page = open_page(server.url)
    show(page)
    trace = gather(records)
    canvas = page.locator(".ld-race-canvas")
    words = canvas.get_attribute("aria-label")
    for name, label in (("baseline", "Baseline"), ("lora_drop", "LoRA-Drop")):
        ms = sum(step.ms for step in trace.steps[name][1:25])
        time, unit = re.search(rf"{label} ([\d.]+) (ms|s) for 25 tokens", words).groups()  # none wins by saying less
        assert float(time) * (1000 if unit == "s" else 1) == pytest.approx(ms, abs=6 if unit == "s" else 1)
    assert words.startswith("Time of each lane")
    box = canvas.bounding_box()
    page.mouse.click(box["x"] + box["width"] / 2, box["y"] + box["height"] - 30)
    step = page.evaluate("window.LoraDrop.store.state.step")
    assert 0 < step < 25
    page.wait_for_function(f"document.querySelector('.ld-race-canvas').ariaLabel?.includes(' for {step + 1} tokens')")


@pytest.mark.full
def test_the_answers_scroll_together_and_stand_at_the_first_difference(server, open_page):
    server.script = lambda: run(server.loaded, Request("Why?", CONFIG, 900, ignore_eos=True))
    page = open_page(server.url)
    show(page)
    seen = page.evaluate(
        """() => { const text = document.querySelector(".ld-pane[data-lane='1'] .ld-text").getBoundingClientRect();
        const mark = document.querySelector(".ld-pane[data-lane='1'] .ld-diverged").getBoundingClientRect();
        return mark.top >= text.top && mark.bottom <= text.bottom }"""
    )
    assert seen, "the first difference is in sight"
    tops = "[...document.querySelectorAll('.ld-text')].map(text => Math.round(text.scrollTop))"
    page.evaluate("document.querySelector('.ld-text').scrollTop = 60")
    page.wait_for_function(f"({tops}).every(top => top === 60)")
    # A full step is marked among LoRA steps, and not where every step is full.
    marks = page.evaluate(
        """() => [...document.querySelectorAll('.ld-pane')].map(pane => ['refresh', 'lora'].map(kind => {
            const token = pane.querySelector(`.ld-token-${kind}:not(.ld-diverged)`);
            return token ? getComputedStyle(token).boxShadow !== 'none' : null }))"""
    )
    assert marks == [[False, None], [True, False]]


@pytest.mark.full
def test_what_was_taken_back_is_marked_where_it_was(server, open_page):
    server.script = lambda: run(server.loaded, Request("Why?", JUDGED, 60, ignore_eos=True))
    page = open_page(server.url)
    show(page)
    marked = page.locator(".ld-pane[data-lane='1'] .ld-replaced")
    assert marked.count() > 0
    expect(page.locator(".ld-key-taken").first).to_be_visible()
    marked.first.hover()
    expect(page.locator(".ld-tip")).to_contain_text("taken back")


@pytest.mark.full
@pytest.mark.parametrize("theme", ["light", "dark"])
def test_a_result_that_does_not_fit_the_sliders_is_grey_and_says_so(server, open_page, theme):
    page = open_page(f"{server.url}?__theme={theme}")
    prepare(page, tokens=16)
    show(page)
    live, note = page.locator(".ld-live"), page.locator(".ld-verdict-note")
    expect(live).to_have_attribute("data-stale", "false")
    expect(page.locator(".ld-whatif")).to_have_attribute("data-ran", "true")
    expect(page.locator(".ld-whatif-line")).to_be_visible()
    expect(page.locator(".ld-pattern")).to_be_hidden()
    set_number(page, "ld-period", 6)
    expect(live).to_have_attribute("data-stale", "true")
    expect(note).to_contain_text("period 4 (now 6)")
    expect(page.locator(".ld-pattern")).to_be_visible()
    ground = page.evaluate(
        "getComputedStyle(document.querySelector('.ld-verdict')).backgroundColor.match(/\\d+/g).map(Number)"
    )
    assert contrast(page.evaluate(STALE), ground) >= 4.5
    set_number(page, "ld-period", 4)
    expect(live).to_have_attribute("data-stale", "false")
    expect(note).to_be_hidden()
    page.fill("#ld-prompt textarea", "Something else")
    expect(note).to_contain_text("another prompt")


@pytest.mark.full
def test_while_one_waits_a_recorded_run_plays_and_says_that_it_is_one(server, open_page, monkeypatch):
    monkeypatch.setattr(callbacks, "SHIPPED_RECORDED", SHIPPED_RECORDED)
    goes_on = threading.Event()

    def script():
        assert goes_on.wait(60)
        yield from run(server.loaded, Request("Mine", CONFIG, 12, ignore_eos=True))

    server.script = script
    page = open_page(server.url)
    page.click("#ld-run")
    note = page.locator(".ld-verdict-note")
    expect(note).to_contain_text("While you wait: a recorded run", timeout=20_000)
    expect(note).to_contain_text("recorded 20")  # the day
    recorded = page.evaluate("document.querySelector('.ld-live').loraDropRun.header")
    assert recorded["device"]["name"] in note.inner_text() and len(recorded["lanes"]) == 3
    page.wait_for_function("window.LoraDrop.store.state.step > 2")
    expect(page.locator(".ld-live")).to_have_attribute("data-state", "recorded")
    goes_on.set()
    page.wait_for_function("document.querySelector('.ld-live').loraDropRun.header.prompt === 'Mine'")
    expect(note).to_be_hidden()
    wait_done(page)
    assert isinstance(server.runs[-1][-1], Summary)


@pytest.mark.full
def test_the_charts_share_zoom_and_pointer(server, open_page):
    page = open_page(server.url, viewport={"width": 1600, "height": 1600})
    prepare(page, tokens=60)
    show(page)
    box = page.locator("[data-chart=drift] .nsewdrag").first.bounding_box()
    y = box["y"] + box["height"] / 2
    page.mouse.move(box["x"] + box["width"] * 0.25, y)
    page.mouse.down()
    page.mouse.move(box["x"] + box["width"] * 0.5, y + 2, steps=5)
    page.mouse.up()
    plot = "document.querySelector(`[data-chart=${n}] .ld-plot`)"
    ranges = f"['activity', 'drift', 'kv'].map(n => {plot}.layout.xaxis.range.map(x => Math.round(x)).join())"
    page.wait_for_function(f"new Set({ranges}).size === 1 && !({ranges})[0].startsWith('0')")
    page.mouse.move(box["x"] + box["width"] * 0.6, y)
    page.wait_for_function("window.LoraDrop.store.state.hover !== null")
    expect(page.locator("[data-chart=kv] .ld-pointer")).to_be_visible()


@pytest.mark.full
def test_nothing_leaves_the_page_in_a_whole_visit(server, open_page):
    page = open_page(server.url, viewport={"width": 1600, "height": 1600})  # fails at the end where a host was asked
    asked: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    prepare(page, tokens=16)
    page.evaluate("document.querySelector('.ld-rest').open = true")
    show(page)
    buttons = page.locator(".ld-chart .modebar-btn")
    titles = buttons.evaluate_all("nodes => nodes.map(node => node.dataset.title)")
    assert titles and not [t for t in titles if any(word in t.lower() for word in ("share", "cloud", "edit"))]
    for name in ("activity", "drift", "kl"):
        page.hover(f"[data-chart={name}] .ld-plot")
        for button in page.locator(f"[data-chart={name}] .modebar-btn").all():
            button.click()
    for tab in ("Safe zone", "Method", "Run"):
        page.get_by_role("tab", name=tab).click()
        wait_still(page)
    assert asked and all(url.startswith((server.url.rstrip("/"), "blob:", "data:")) for url in asked)


@pytest.mark.full
def test_every_control_says_what_will_change(server, open_page):
    page = open_page(server.url)
    open_advanced(page)
    for setting in SHOWN:
        assert setting.info, setting.name
        assert setting.info in page.inner_text(f"#{element_id(setting)}"), setting.name
    silent = page.eval_on_selector_all(
        ".ld-player > button, .ld-player > input, .ld-player > label, .ld-menu > summary, #ld-run, #ld-stop",
        "nodes => nodes.filter(node => !node.title).map(node => node.outerHTML)",
    )
    assert silent == []


@pytest.mark.full
def test_a_lost_connection_is_one_sentence_and_the_page_goes_on(server, open_page):
    page = open_page(server.url, leaves=True)
    prepare(page, tokens=2000)
    page.click("#ld-run")
    page.wait_for_function("document.querySelectorAll('.ld-token').length > 60")
    page.evaluate("window.LoraDrop.failed('refused', 'lost')")  # what Gradio calls where a stream breaks
    expect(page.get_by_test_id("verdict")).to_contain_text("The connection was lost", timeout=60_000)


@pytest.mark.full
def test_a_link_of_another_version_or_processor_is_one_sentence(server, open_page):
    page = open_page(f"{server.url}?prompt=Hi&refresh_rate=3&period=3")
    status = page.locator(".ld-status")
    expect(status).to_contain_text("“refresh_rate” is no setting of this version")
    expect(page.locator("#ld-period input[type=number]")).to_have_value("3")
    prepare(page, tokens=8)
    show(page)
    link = page.evaluate("window.LoraDrop.linkOf(document.querySelector('.ld-live').loraDropRun)")
    assert "&on=" in link
    texts = link.split("texts=")[1].split("&")[0]
    elsewhere = (
        link.replace(texts, texts[:-12] + "0" * 12).split("&on=")[0] + "&on=native+decoder,+float32,+Another+CPU"
    )
    other = open_page(elsewhere)
    show(other)
    note = other.locator(".ld-link-note")
    expect(note).to_contain_text("Same settings, other arithmetic")
    expect(note).to_contain_text("Another CPU")
    expect(note).to_have_attribute("data-state", "arithmetic")
