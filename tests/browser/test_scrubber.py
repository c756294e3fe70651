"""The scrubber, linked views, a third lane, talk mode and what is left of a long run, in a real Chromium."""

import pytest
from playwright.sync_api import expect

from lora_drop.run.report.speed import speedup_words
from lora_drop.run.request import Request
from lora_drop.run.run import run
from lora_drop.run.trace.trace import gather
from tests.support.page import (
    CONFIG,
    figure,
    open_rest,
    pane_text,
    prepare,
    prepare_and_run,
    requests_of,
    run_to_end,
    scrub,
    set_number,
    wait_done,
    wait_still,
    wait_until,
)
from tests.support.runs import timed

pytestmark = [pytest.mark.browser, pytest.mark.full]

SHOWN = """lane => document.querySelectorAll(
    `.ld-pane[data-lane='${lane}'] .ld-line:not(.ld-later-line) .ld-token:not(.ld-later)`).length"""
CURSORS = """() => [...document.querySelectorAll('.ld-chart[data-chart]')].map(figure => {
    const cursor = figure.querySelector('.ld-cursor'), plot = figure.querySelector('.ld-plot');
    const axes = plot._fullLayout;
    if (cursor.hidden || !axes) return null;
    return Math.round(axes.xaxis.p2l(parseFloat(cursor.style.left) - plot.offsetLeft - axes.xaxis._offset));
})"""

# Pixels of the smallest letters in sight, those of charts too.
SMALLEST = """() => {
    const all = [...document.querySelectorAll('.ld-live :not(.ld-spoken p)')].filter(node => node.checkVisibility()
        && [...node.childNodes].some(child => child.nodeType === 3 && child.textContent.trim()));
    const scale = ({ a, b } = { a: 1, b: 0 }) => Math.hypot(a, b); // of a drawing
    return Math.min(...all.map(node => scale(node.getScreenCTM?.()) * parseFloat(getComputedStyle(node).fontSize)));
}"""

TEXTS = """() => [...document.querySelectorAll('.ld-text')].map(text => ({
    top: text.getBoundingClientRect().top, height: text.clientHeight, scrolled: text.scrollTop,
    line: parseFloat(getComputedStyle(text).lineHeight),
}))"""


def test_one_scrubber_moves_the_tokens_and_every_chart(server, open_page):
    page = open_page(server.url, viewport={"width": 1600, "height": 3000})  # all charts in sight
    open_rest(page)
    for name in ("back", "play", "forward"):
        expect(page.locator(f"[data-act={name}]")).to_be_disabled()  # there is no run yet
    prepare_and_run(page, 48)
    trace = gather(server.runs[-1])
    page.check(".ld-same-step")
    for step in (17, 3, 40):
        scrub(page, step)
        assert [page.evaluate(SHOWN, lane) for lane in (0, 1)] == [step + 1, step + 1]
        wait_until(lambda step=step: page.evaluate(CURSORS) == [step] * 6, f"six cursors at step {step}")
        record = trace.steps["lora_drop"][step]
        words = {"lora": "LoRA step", "refresh": "full step"}[record.kind]
        audit = trace.audits["lora_drop"][step]
        said = page.inner_text(".ld-scrub-words")
        where, ms, kl = said.split(", ")
        assert where == f"step {step} of 47: {words}"
        assert float(ms.removesuffix(" ms")) == pytest.approx(record.ms, abs=0.056)
        assert float(kl.removeprefix("KL ")) == pytest.approx(audit.kl, abs=0.0056)
        now = page.locator(".ld-pane[data-lane='1'] .ld-now")
        expect(now).to_have_attribute("data-step", str(step))
    # A dot lies where the chart's value is.
    dots = page.evaluate(
        """() => { const f = document.querySelector('[data-chart=drift]');
        const axes = f.querySelector('.ld-plot')._fullLayout;
        return [...f.querySelectorAll('.ld-cursor i')].map(d => axes.yaxis.p2l(parseFloat(d.style.top))) }"""
    )
    drift = trace.audits["lora_drop"][40].drift
    assert dots == pytest.approx([sum(drift) / len(drift)], abs=2e-3)
    # Off: the baseline stands where its own clock stands.
    page.uncheck(".ld-same-step")
    clock = sum(s.ms for s in trace.steps["lora_drop"][1:41])  # of decoding: the prompt is read once for all
    own, total = 1, 0.0
    for step in trace.steps["baseline"][1:]:
        total += step.ms
        own += total <= clock
    assert abs(page.evaluate(SHOWN, 0) - own) <= 1, "rounded milliseconds"
    page.keyboard.press("Escape")
    assert page.evaluate(SHOWN, 1) == 48 and page.evaluate(CURSORS) == [None] * 6


def test_keys_and_clicks_move_the_scrubber(server, open_page):
    page = open_page(server.url, viewport={"width": 1600, "height": 1400})
    prepare_and_run(page, 48)
    page.click(".ld-pane[data-lane='1'] .ld-token[data-step='20']")
    expect(page.locator(".ld-scrub-words")).to_contain_text("step 20 of 47")
    page.keyboard.press("ArrowRight")
    page.keyboard.press("ArrowRight")
    page.keyboard.press("ArrowLeft")
    expect(page.locator(".ld-scrub-words")).to_contain_text("step 21 of 47")
    page.focus(".ld-scrub")
    page.keyboard.press("Home")
    expect(page.locator(".ld-scrub-words")).to_contain_text("step 0 of 47: prefill")
    page.keyboard.press("ArrowRight")
    expect(page.locator(".ld-scrub-words")).to_contain_text("step 1 of 47")
    # Typing a prompt is no command.
    page.fill("#ld-prompt textarea", "talk to me")
    page.focus("#ld-prompt textarea")
    page.keyboard.type(" t ")
    page.keyboard.press("ArrowLeft")
    expect(page.locator(".ld-scrub-words")).to_contain_text("step 1 of 47")
    assert not page.evaluate("document.body.classList.contains('ld-talk')")

    # A click on a cell of the activity map: its column, and that layer's drift.
    page.locator("[data-chart=activity] .ld-plot").evaluate("plot => plot.scrollIntoView({ block: 'center' })")
    wait_still(page)
    trace = gather(server.runs[-1])
    at = page.evaluate(
        """() => { const p = document.querySelector('[data-chart=activity] .ld-plot'), a = p._fullLayout;
        const box = p.getBoundingClientRect();
        return [box.x + a.xaxis._offset + a.xaxis.l2p(30), box.y + a.yaxis._offset + a.yaxis.l2p(2)] }"""
    )
    page.mouse.move(*at)
    page.mouse.click(*at)
    expect(page.locator(".ld-scrub-words")).to_contain_text("step 30 of 47")
    expect(page.locator(".ld-chip")).to_have_text("layer 2 ✕")
    line = page.evaluate("document.querySelector('[data-chart=drift] .ld-plot').data[7].y")
    assert line == pytest.approx([a.drift[1] for _, a in sorted(trace.audits["lora_drop"].items())], abs=1e-4)
    page.click(".ld-chip")
    expect(page.locator(".ld-chip")).to_have_count(0)
    assert page.evaluate("document.querySelector('[data-chart=drift] .ld-plot').data[7].y.length") == 0


def test_playing_goes_from_the_first_step_to_the_last_and_can_pause(server, open_page):
    slow = timed(run(server.loaded, Request("Why?", CONFIG, 60, ignore_eos=True)), each=100.0)
    server.script = lambda: (record for record in slow)  # a minute at rate 0.1
    page = open_page(server.url)
    run_to_end(page)
    page.select_option(".ld-rate", "0.1")
    page.click("[data-act=play]")
    expect(page.locator("[data-act=play]")).to_have_attribute("aria-label", "Pause")
    page.wait_for_function("document.querySelector('.ld-scrub').value > 0")
    page.click("[data-act=play]")
    expect(page.locator("[data-act=play]")).to_have_attribute("aria-label", "Play")
    held = page.input_value(".ld-scrub")
    page.wait_for_timeout(300)
    assert page.input_value(".ld-scrub") == held
    page.select_option(".ld-rate", "4")
    page.click("[data-act=play]")
    expect(page.locator("[data-act=play]")).to_have_attribute("aria-label", "Play")
    assert [page.evaluate(SHOWN, lane) for lane in (0, 1)] == [60, 60]


def test_three_lanes_in_panes_and_charts(server, open_page):
    page = open_page(server.url)
    prepare(page, tokens=32)
    page.click("[data-compare='skip']")
    page.set_viewport_size({"width": 1600, "height": 1600})
    run_to_end(page)
    trace = gather(server.runs[-1])
    assert [pane_text(page, lane) for lane in range(3)] == [trace.text(n) for n in ("baseline", "lora_drop", "third")]
    words = speedup_words(trace.summary.speedup, trace.summary.speedup_interval)
    assert figure(page, "speedup") == (words or f"{trace.summary.speedup:.2f}×"), "the headline stays LoRA-Drop's"
    kv = page.evaluate("document.querySelector('[data-chart=kv] .ld-plot').data.map(t => t.y)")
    assert kv[2] == pytest.approx([s.kv_bytes / 1024 for s in trace.steps["third"]])
    means = [sum(a.drift) / len(a.drift) for _, a in sorted(trace.audits["third"].items())]
    drift = page.evaluate("document.querySelector('[data-chart=drift] .ld-plot').data.map(t => t.y)")
    assert drift[8] == pytest.approx(means, abs=1e-4)
    page.click(".ld-pane[data-lane='2'] h2")  # the charts turn to it
    wait_still(page)
    drift = page.evaluate("document.querySelector('[data-chart=drift] .ld-plot').data.map(t => t.y)")
    assert drift[3] == pytest.approx(means, abs=1e-4)
    expect(page.locator(".ld-pane[data-lane='2'] .ld-diverged")).to_have_count(1)
    # The next run has two again.
    page.click("[data-compare='']")
    page.click("#ld-run")
    expect(page.locator(".ld-pane")).to_have_count(2)
    wait_done(page)


def test_talk_mode_is_entered_and_left_by_one_key_and_by_the_address(server, open_page):
    page = open_page(server.url)
    prepare_and_run(page, 48)
    page.mouse.click(700, 5)
    page.keyboard.press("t")
    expect(page.locator("#ld-left")).to_be_hidden()
    expect(page.locator("#ld-ask")).to_be_hidden()
    box = page.locator(".ld-live").bounding_box()
    assert (round(box["width"]), round(box["height"])) == (1600, 900)
    size = page.evaluate("parseFloat(getComputedStyle(document.querySelector('.ld-text')).fontSize)")
    assert size >= 24
    texts = page.evaluate(TEXTS)
    assert len(texts) == 2 and texts[0]["top"] == texts[1]["top"], "the answers are aligned"
    for text in texts:
        lines = text["height"] / text["line"]
        assert lines > 3 and abs(lines - round(lines)) < 0.05, "no line is cut"
        assert abs(text["scrolled"] / text["line"] - round(text["scrolled"] / text["line"])) < 0.05
    assert page.evaluate("document.documentElement.scrollHeight") <= 900
    # No controls on the slide, each slide is one thing, and no text is too small for the back of a room.
    things = {
        "answers": ".ld-panes",
        "verdict": ".ld-glance",
        "stack": ".ld-stack-canvas",
        "race": ".ld-race-canvas",
        "activity": "[data-chart=activity] .ld-plot",
        "drift": "[data-chart=drift] .ld-plot",
        "kv": "[data-chart=kv] .ld-plot",
    }
    for at, shown in enumerate(things):
        for name, where in things.items():
            expect(page.locator(where)).to_be_visible(visible=name == shown)
        expect(page.locator(".ld-player")).to_be_hidden()
        wait_still(page)
        assert page.evaluate(SMALLEST) >= 0.022 * 900, shown
        assert page.evaluate("document.documentElement.scrollHeight") <= 900
        if at + 1 < len(things):
            page.keyboard.press("PageDown" if at % 2 else "ArrowRight")
    for _ in range(len(things) + 1):
        page.keyboard.press("ArrowLeft")
    expect(page.locator(".ld-talk-head")).to_contain_text(gather(server.runs[-1]).header.prompt)
    expect(page.locator(".ld-verdict")).to_be_hidden()
    page.keyboard.press("ArrowRight")
    expect(page.locator(".ld-talk-head")).to_contain_text("Two kinds of step")
    expect(page.locator(".ld-steps .ld-idea-svg")).to_be_visible()
    expect(page.locator(".ld-steps .ld-idea-words")).to_contain_text("skips 4 of 10 layers")
    expect(page.locator(".ld-steps input")).to_be_hidden()
    assert page.evaluate(SMALLEST) >= 0.022 * 900
    assert page.evaluate("document.documentElement.scrollHeight") <= 900
    page.keyboard.press("r")
    wait_until(lambda: len(server.runs) == 2, "a run from the slide", page=page)
    page.keyboard.press("t")
    expect(page.locator("#ld-left")).to_be_visible()
    wait_done(page)
    page.goto(server.url + "?talk=1")
    page.wait_for_selector(".ld-live.ld-talking")
    expect(page.locator("#ld-left")).to_be_hidden()
    page.keyboard.press("Escape")
    expect(page.locator("#ld-left")).to_be_visible()


def test_on_a_slide_a_token_moves_the_scrubber_alone_and_one_escape_leaves(server, open_page):
    page = open_page(server.url)
    prepare_and_run(page, 48)
    inspector = page.get_by_test_id("token-inspector")
    token = page.locator(".ld-pane[data-lane='1'] .ld-token[data-step='5']")
    token.evaluate("span => span.click()")
    expect(inspector.locator(".ld-inspector-prefix")).to_be_visible()  # so its question to the server is answered
    asked = requests_of(page)
    page.keyboard.press("t")
    expect(inspector).to_be_hidden()
    assert page.locator(".ld-inspected").count() == 0, "no mark of it stands on the slide"
    token.evaluate("span => span.click()")
    expect(page.locator(".ld-tip")).to_be_visible()
    assert page.evaluate(SMALLEST) >= 0.022 * 900
    page.keyboard.press("ArrowRight")  # turns the slide
    expect(page.locator(".ld-glance")).to_be_visible()
    assert page.input_value(".ld-scrub") == "5"
    page.keyboard.press("Escape")
    expect(page.locator("#ld-left")).to_be_visible()
    page.keyboard.press("Escape")
    expect(page.locator(".ld-later")).to_have_count(0)
    expect(inspector).to_be_hidden()
    assert not [url for url in asked if "component_server" in url]


def test_3000_steps_stay_usable(server, open_page):
    page = open_page(server.url)
    prepare(page, tokens=1900)  # of the tiny model's 2,048 or 4,096 tokens of context
    set_number(page, "ld-max-new-tokens", 3001)
    page.click("#ld-run")
    wait_done(page, 240_000)
    wait_still(page)
    for step in (10, 2900, 1500, 1501, 700):
        scrub(page, step)
    assert page.evaluate(SHOWN, 1) == 701
    expect(page.locator(".ld-scrub-words")).to_contain_text("step 700 of 3000")
