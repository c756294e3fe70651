"""A run that takes tokens back: what the pane, the clock and the charts hold is what stands."""

import threading
import time

import pytest
from playwright.sync_api import expect

from lora_drop.run.request import Request
from lora_drop.run.run import run
from lora_drop.run.trace.records import RewindRecord, StepRecord
from lora_drop.run.trace.trace import gather
from lora_drop.ui.stream import MIN_INTERVAL
from tests.support.page import figure, open_rest, pane_text, run_to_end, wait_done, wait_still
from tests.support.runs import JUDGED

pytestmark = pytest.mark.browser

TALL = {"width": 1600, "height": 3000}  # all charts are seen, and so drawn, while the run streams
WATCH = """() => {
    window.struck = [];
    new MutationObserver((changes) => {
        for (const { addedNodes } of changes)
            for (const node of addedNodes)
                for (const del of [node, ...(node.querySelectorAll?.("del") ?? [])])
                    if (del.className === "ld-taken-back") window.struck.push(del.textContent);
    }).observe(document.querySelector(".ld-panes"), { childList: true, subtree: true });
}"""


def scripted(server, tokens: int = 120):
    """Runs on the server take tokens back, whatever the page asks for."""

    def script():
        return run(server.loaded, Request("Why?", JUDGED, tokens, ignore_eos=True, compare="skip"))

    server.script = script


def check(page, trace) -> None:
    """The page holds what the trace has."""
    summary = trace.summary
    lanes = page.evaluate("document.querySelector('.ld-live').loraDropRun.lanes")
    for lane, name in enumerate(trace.steps):
        assert pane_text(page, lane) == trace.text(name)
        figures = summary.lanes[name]
        ms = figures["prefill_ms"] + figures["decode_ms"]
        assert lanes[lane]["clock"][-1] == pytest.approx(ms, abs=0.006 * len(trace.passes[name]))
        assert [step["kind"] for step in lanes[lane]["steps"]] == [step.kind for step in trace.steps[name]]
        assert figure(page, "tokens", lane) == str(len(trace.steps[name]))
    differs = f".ld-pane[data-lane='1'] .ld-token[data-step='{summary.first_divergence}'].ld-diverged"
    assert page.locator(".ld-pane[data-lane='1'] .ld-diverged").count() == page.locator(differs).count() == 1
    audits = trace.audits["lora_drop"]
    marked = page.eval_on_selector_all(
        ".ld-pane[data-lane='1'] .ld-replaced", "spans => spans.map(s => Number(s.dataset.step))"
    )
    taken_to = [one.to for one in trace.passes["lora_drop"] if one.type == "rewind"]
    assert marked == sorted({to + 1 for to in taken_to if to + 1 < len(trace.steps["lora_drop"])})
    assert figure(page, "accepted") == f"{100 * summary.accepted:.0f}% of drafts accepted"
    assert figure(page, "quality") == f"{summary.verdict['facts']['quality_loss']:.2f} nats"
    activity, drift, kv, by_layer, clocks, kl = page.evaluate(
        "() => [...document.querySelectorAll('.ld-live .ld-plot')]"
        ".map(plot => plot.data.map(({ x, y, z }) => ({ x, y, z })))"
    )
    steps = trace.steps["lora_drop"]
    assert [value < 2 for value in activity[0]["z"][1]] == [step.kind != "lora" for step in steps]
    assert drift[3]["x"] == kl[0]["x"] == sorted(audits) and len(by_layer[0]["z"][0]) == len(steps)
    for row, cells in enumerate(by_layer[0]["z"]):
        assert [cells[step] for step in sorted(audits)] == pytest.approx(
            [audits[step].drift[row] for step in sorted(audits)], abs=5.1e-5
        )
    assert kl[0]["y"] == pytest.approx([audits[step].kl for step in sorted(audits)], abs=5.1e-5)
    assert kl[1]["x"] == [step for step in sorted(audits) if not audits[step].agrees]
    counted = [step.kv_bytes / 1024 for step in steps]
    # The formula is drawn for what happened, and lies on the count.
    assert kv[1]["y"] == pytest.approx(counted) and kv[len(trace.steps) + 1]["y"] == pytest.approx(counted)
    assert clocks[1]["y"] == pytest.approx([step.ms for step in steps[1:]], abs=0.006)


def test_a_run_that_takes_tokens_back_ends_with_what_stands(slow_server, open_page):
    server = slow_server
    scripted(server)
    page = open_page(server.url, viewport=TALL)
    open_rest(page)
    page.evaluate(WATCH)
    wait_still(page)
    page.click("#ld-run")
    page.wait_for_function("window.struck.length > 0", timeout=60_000)
    server.goes_on.set()
    wait_done(page)
    trace = gather(server.runs[-1])
    taken = [one for one in trace.passes["lora_drop"] if one.type == "rewind"]
    assert len(taken) > 5
    expect(page.locator(".ld-taken-back")).to_have_count(0, timeout=5000)
    wait_still(page)
    check(page, trace)
    for words in ("full steps repair", "accept 0.6"):
        expect(page.locator(".ld-pane[data-lane='1'] .ld-pane-note")).to_contain_text(words)


@pytest.mark.full
def test_a_run_that_comes_whole_or_without_motion_shows_nothing_struck(server, open_page, open_replay):
    scripted(server, 60)
    page = open_page(server.url, viewport=TALL, reduced_motion="reduce")
    open_rest(page)
    page.evaluate(WATCH)
    wait_still(page)
    run_to_end(page)
    trace = gather(server.runs[-1])
    wait_still(page)
    check(page, trace)
    assert page.evaluate("window.struck") == []
    replay = open_replay(trace, viewport=TALL, reduced_motion="reduce")
    replay.wait_for_selector(".ld-live[data-state='done']")
    assert replay.locator(".ld-taken-back").count() == 0
    replay.evaluate("window.dispatchEvent(new Event('beforeprint'))")
    wait_still(replay)
    check(replay, trace)


@pytest.mark.full
def test_the_scrubber_leaves_what_is_taken_back(server, open_page):
    """The run waits before a rewind while the scrubber is put on a token that goes."""
    records = list(run(server.loaded, Request("Why?", JUDGED, 60, ignore_eos=True)))
    lengths, length = {}, 0  # how far the lane had come at each rewind
    for place, one in enumerate(records):
        if isinstance(one, RewindRecord):
            lengths[place] = (length, one.to)
        elif isinstance(one, StepRecord) and one.lane == "lora_drop":
            length = one.step
    at = next(place for place, (length, to) in lengths.items() if length - to > 2)
    length = lengths[at][0]
    goes_on = threading.Event()

    def script():
        yield from records[: at - 1]
        # Then an update is due, and none is held for the steps that come fast (ui/stream.py).
        time.sleep(0.6 + MIN_INTERVAL * max(one.step for one in records[:at] if isinstance(one, StepRecord)))
        yield records[at - 1]
        assert goes_on.wait(60)
        yield from records[at:]

    server.script = script
    page = open_page(server.url, viewport=TALL)
    open_rest(page)
    wait_still(page)
    page.click("#ld-run")
    goes = f".ld-pane[data-lane='1'] .ld-token[data-step='{length - 1}']"
    page.wait_for_selector(f".ld-pane[data-lane='1'] .ld-token[data-step='{length}']", state="attached")
    page.eval_on_selector(goes, "span => span.click()")
    expect(page.locator(".ld-scrub-words")).to_contain_text(f"step {length - 1} of {length}")
    goes_on.set()
    wait_done(page)
    expect(page.locator(".ld-pane[data-lane='1'] .ld-now")).to_have_count(1)
    page.keyboard.press("Escape")
    expect(page.locator(".ld-taken-back")).to_have_count(0, timeout=5000)
    wait_still(page)
    check(page, gather(records))
