"""How often the page calls plotly while a run streams, and what it hands over, counted in a real Chromium."""

import threading
from collections import Counter

import pytest

from tests.browser.conftest import release
from tests.support.page import open_rest, prepare, press_run, wait_done, wait_still

pytestmark = [pytest.mark.browser, pytest.mark.full]

CHARTS = {"activity", "drift", "kv", "drift-map", "time", "kl"}
# What runs in one frame has one time.
COUNT = """() => {
    window.calls = [];
    for (const name of ["react", "extendTraces"]) {
        const real = window.Plotly[name];
        window.Plotly[name] = (plot, given, ...rest) => {
            const fresh = name === "react" ? [] : given.x.map((points, i) => [rest[0][i], points.length]);
            const chart = plot.closest("[data-chart]").dataset.chart;
            window.calls.push({ frame: document.timeline.currentTime, chart, name, fresh });
            return real(plot, given, ...rest);
        };
    }
}"""


def test_a_frame_has_one_call_at_most_and_no_step_is_handed_over_twice(deep, open_page):
    steps, deep.goes_on = 120, threading.Event()
    page = open_page(deep.url, viewport={"width": 1600, "height": 2400})
    prepare(page, tokens=steps + 1, layers=(3, 28), ratio=0.5)
    open_rest(page)
    page.evaluate(COUNT)
    press_run(page)
    page.wait_for_function("window.calls.some(call => call.name === 'extendTraces')", timeout=60_000)
    release(deep)
    wait_done(page)
    wait_still(page)
    calls = page.evaluate("window.calls")
    assert {call["chart"] for call in calls} == CHARTS
    frames = Counter(call["frame"] for call in calls)
    assert set(frames.values()) == {1}, [call for call in calls if frames[call["frame"]] > 1]
    handed: Counter[tuple[str, int]] = Counter()
    for call in calls:
        handed.update({(call["chart"], trace): count for trace, count in call["fresh"]})
    assert 0 < max(handed.values()) <= steps + 1
    drawn = page.evaluate("document.querySelector('[data-chart=kv] .ld-plot').data.slice(0, 2).map(t => t.x)")
    assert drawn == [list(range(steps + 1))] * 2, "and none is left out"
