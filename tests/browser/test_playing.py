"""A run that is played: at one pace for all lanes, as far as it has come."""

import threading

import pytest
from playwright.sync_api import expect

from lora_drop.paths import SHIPPED_RECORDED
from lora_drop.run.request import Request
from lora_drop.run.run import run
from lora_drop.run.trace.records import StepRecord, Summary, write_line
from lora_drop.run.trace.trace import gather
from lora_drop.ui import callbacks
from tests.support.page import CONFIG, pane_text, prepare, run_to_end, save, set_number, wait_done
from tests.support.runs import JUDGED, timed

pytestmark = pytest.mark.browser

# What of each lane is seen, and the moment that it is seen at.
SEEN = """() => ({
    moment: window.LoraDrop.store.state.moment,
    state: document.querySelector('.ld-live').dataset.state,
    shown: [...document.querySelectorAll('.ld-pane')].map(pane => pane.querySelectorAll(
        '.ld-line:not(.ld-later-line) .ld-token:not(.ld-later)').length),
})"""

# Once, while it plays at a known pace; all at one moment: on a busy machine there may be few.
LOOK = f"""() => {{
    const {{ store }} = window.LoraDrop;
    store.subscribe(["step"], ({{ step }}) => {{
        const words = document.querySelector(".ld-pace-words").textContent;
        if (window.seen || !(step > 3) || !words) return;
        const verdict = document.querySelector("[data-testid=verdict]").dataset.kind;
        window.seen = {{ ...({SEEN})(), words, verdict }};
    }});
}}"""


def test_a_changed_prompt_and_seed_are_what_is_played_and_what_is_downloaded(slow_server, open_page, tmp_path):
    page = open_page(slow_server.url)
    prepare(page, tokens=128)
    page.fill("#ld-prompt textarea", "Another prompt, and a seed")
    set_number(page, "ld-seed", 7)
    set_number(page, "ld-temperature", 1)
    page.evaluate(LOOK)
    page.click("#ld-run")
    seen = page.wait_for_function("window.seen", timeout=60_000).json_value()
    slow_server.goes_on.set()
    page.select_option(".ld-rate", "4")
    assert "real speed" in seen["words"] and seen["verdict"] == "running"
    page.wait_for_selector(".ld-live[data-state=done]", timeout=60_000)  # by itself: nothing is skipped
    records = slow_server.runs[-1]
    trace = gather(records)
    assert (trace.header.prompt, trace.header.seed) == ("Another prompt, and a seed", 7)
    assert [pane_text(page, lane) for lane in (0, 1)] == [trace.text(name) for name in ("baseline", "lora_drop")]
    # Both lanes were at one moment of their own clocks, which start when the prompt has been read.
    assert 0 < sum(seen["shown"]) < 256
    for shown, steps in zip(seen["shown"], trace.steps.values(), strict=True):
        clock = [sum(step.ms for step in steps[1 : i + 1]) for i in range(len(steps))]
        early, late = (sum(ms <= seen["moment"] + slack for ms in clock) for slack in (-0.5, 0.5))
        assert early <= shown <= late
    file = save(page, "trace", tmp_path)
    expect(page.locator(".ld-menu-note")).to_contain_text("Saved")
    assert file.read_text() == "".join(map(write_line, records)), "no ms was changed"
    page.wait_for_function("!document.querySelector('.ld-menu').open")


@pytest.mark.full
def test_playing_waits_where_the_stream_is_behind_and_can_be_skipped(server, open_page):
    records = timed(
        run(server.loaded, Request("Why?", CONFIG, 400, ignore_eos=True, view="lock-step")), each=50.0
    )  # 185 s at rate 0.1
    half = next(i for i, one in enumerate(records) if isinstance(one, StepRecord) and one.step == 20)
    more = next(i for i, one in enumerate(records) if isinstance(one, StepRecord) and one.step == 30)
    goes_on = threading.Event()

    def script():
        yield from records[:half]
        goes_on.wait(1)  # then an update is due, some steps later
        yield from records[half:more]
        assert goes_on.wait(60)
        yield from records[more:]

    server.script = script
    page = open_page(server.url)
    page.click("#ld-run")
    page.select_option(".ld-rate", "4")
    page.wait_for_function("window.LoraDrop.store.state.step >= 15")
    page.wait_for_timeout(500)
    seen = page.evaluate(SEEN)
    assert seen["state"] == "running" and max(seen["shown"]) <= 31, "it waits at what has come"
    page.select_option(".ld-rate", "0.1")
    goes_on.set()
    page.wait_for_selector(".ld-live[data-state=playing]", timeout=60_000)
    page.click("[data-act=skip]")
    expect(page.locator(".ld-live")).to_have_attribute("data-state", "done")
    assert page.evaluate(SEEN)["shown"] == [400, 400]
    expect(page.locator("[data-act=skip]")).to_be_hidden()


@pytest.mark.full
@pytest.mark.parametrize("view", ["race", "lock-step"])
def test_a_lane_that_ends_early_holds_up_no_other(server, open_page, view):
    """The third lane ends at its step 3, and the stream waits at step 30 of the others."""
    records = timed(
        run(server.loaded, Request("Why?", CONFIG, 60, ignore_eos=True, compare="skip", view="lock-step")), each=1.0
    )
    records[0].sampling["view"] = view  # at equal times both take turns alike
    short = [one for one in records if getattr(one, "lane", "") != "third" or one.step <= 3]
    until = next(i for i, one in enumerate(short) if isinstance(one, StepRecord) and one.step == 30)
    goes_on = threading.Event()

    def script():
        yield from short[:until]
        goes_on.wait(1)  # then an update is due, some steps later
        yield from short[until : until + 20]
        assert goes_on.wait(60)
        yield from short[until + 20 :]

    server.script = script
    page = open_page(server.url)
    page.click("#ld-run")
    page.select_option(".ld-rate", "4")
    page.wait_for_function("window.LoraDrop.store.state.step >= 20")
    goes_on.set()
    wait_done(page)


@pytest.mark.full
def test_after_a_busy_moment_playing_goes_on_and_does_not_leap(server, open_page):
    records = timed(
        run(server.loaded, Request("Why?", CONFIG, 100, ignore_eos=True, view="lock-step")), each=100.0
    )  # 99 s at rate 0.1
    server.script = lambda: (one for one in records)
    page = open_page(server.url)
    page.select_option(".ld-rate", "0.1")
    page.click("#ld-run")
    page.wait_for_selector(".ld-live[data-state=playing]")
    page.wait_for_function("window.LoraDrop.store.state.moment > 0")
    leap = page.evaluate(
        """async () => {
            const { state } = window.LoraDrop.store, before = state.moment;
            const frame = () => new Promise(requestAnimationFrame);
            for (const end = performance.now() + 2500; performance.now() < end; );
            await frame();
            await frame();
            return window.LoraDrop.store.state.moment - before;
        }"""
    )
    assert 0 <= leap < 200, "2.5 s at rate 0.1 are 250 ms"
    page.select_option(".ld-rate", "4")
    page.wait_for_selector(".ld-live[data-state=done]")


@pytest.mark.full
def test_the_pace_is_one_factor_for_all_lanes_and_never_faster_than_the_run(server, open_page):
    page = open_page(server.url)
    rates = page.evaluate(
        """() => {
            const { readingPace } = window.LoraDrop;
            const clock = (count, ms) => Array.from({ length: count }, (_, i) => 30 + i * ms);
            const lane = (count, ms) => ({ steps: Array(count), clock: clock(count, ms), takenMs: 0 });
            const header = { sampling: {} };
            const run = (...lanes) => ({ isOver: true, planned: 127, lanes, header });
            return [
                readingPace(run(lane(128, 5), lane(128, 4))),
                readingPace(run(lane(128, 100), lane(128, 4))),
                readingPace(run(lane(33, 5), lane(33, 5))),
                readingPace({ ...run(lane(5, 10), lane(9, 5)), isOver: false }),
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
def test_a_rejected_draft_is_marked_where_it_was(server, open_page):
    server.script = lambda: run(server.loaded, Request("Why?", JUDGED, 60, ignore_eos=True))
    page = open_page(server.url)
    run_to_end(page)
    marked = page.locator(".ld-pane[data-lane='1'] .ld-replaced")
    assert marked.count() > 0
    expect(page.locator(".ld-key-taken").first).to_be_visible()
    marked.first.hover()
    expect(page.locator(".ld-tip")).to_contain_text("rejected")


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
    page.wait_for_function("window.LoraDrop.store.state.step > 2")
    note = page.locator(".ld-verdict-note")
    expect(note).to_contain_text("While you wait: a recorded run", timeout=20_000)
    expect(note).to_contain_text("recorded 20")  # the day
    recorded = page.evaluate("document.querySelector('.ld-live').loraDropRun.header")
    assert recorded["device"]["name"] in note.inner_text() and len(recorded["lanes"]) == 3
    expect(page.locator(".ld-live")).to_have_attribute("data-state", "recorded")
    goes_on.set()
    page.wait_for_function("document.querySelector('.ld-live').loraDropRun.header.prompt === 'Mine'")
    expect(note).not_to_contain_text("recorded")
    wait_done(page)
    assert isinstance(server.runs[-1][-1], Summary)
