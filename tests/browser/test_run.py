"""A run in the page: what it shows is what the trace says."""

import pytest
from playwright.sync_api import expect

from lora_drop.method.cost import human_bytes
from lora_drop.run.report.speed import speedup_words
from lora_drop.run.request import Request
from lora_drop.run.run import run
from lora_drop.run.trace.trace import gather
from tests.browser.visit import streamed_bytes
from tests.support.page import (
    CONFIG,
    figure,
    pane_text,
    prepare,
    prepare_and_run,
    press_run,
    run_to_end,
    set_number,
    set_text,
    wait_done,
    wait_ended,
    wait_still,
)

pytestmark = pytest.mark.browser


def test_a_run_to_its_end_shows_what_the_trace_says(server, open_page):
    page = open_page(server.url, viewport={"width": 1600, "height": 1400})
    prepare_and_run(page, 48)
    trace = gather(server.runs[-1])
    summary = trace.summary
    for lane, name in enumerate(("baseline", "lora_drop")):
        assert pane_text(page, lane) == trace.text(name)
        shown = float(figure(page, "speed", lane).replace(",", ""))  # one decimal of the two that the page is sent
        assert shown == pytest.approx(summary.lanes[name]["tokens_per_second"], abs=0.056)
        assert figure(page, "tokens", lane) == "48"
        assert figure(page, "kv", lane) == human_bytes(summary.lanes[name]["kv_bytes"])
        kinds = page.eval_on_selector_all(
            f".ld-pane[data-lane='{lane}'] .ld-token", "spans => spans.map(s => s.className.match(/token-(\\w+)/)[1])"
        )
        assert kinds == [step.kind for step in trace.steps[name]]
    words = speedup_words(summary.speedup, summary.speedup_interval)
    assert figure(page, "speedup") == (words or f"{summary.speedup:.2f}×")
    assert figure(page, "bound") == f"{summary.bound:.2f}×"
    assert figure(page, "kv-saved") == f"{100 * summary.kv_saved:.1f}%"
    assert figure(page, "agreement") == f"{100 * summary.top1_agreement:.1f}%"
    assert figure(page, "quality") == f"{summary.verdict['facts']['quality_loss']:.2f} nats"
    assert figure(page, "accepted") == ""
    assert figure(page, "divergence") == f"token {summary.first_divergence + 1}"
    wait_still(page)
    charts = page.evaluate(
        """() => [...document.querySelectorAll('.ld-plot')].slice(0, 3).map(plot => plot.data.map(t => t.z ?? t.y))"""
    )
    activity, drift, kv = charts[:3]
    schedule = CONFIG.schedule_for(6)
    columns = list(zip(*activity[0], strict=True))
    assert len(columns) == 48
    for step, column in enumerate(columns):
        assert [value < 2 for value in column] == [bool(x) for x in schedule.active(schedule.kind(step))]
    means = [sum(a.drift) / len(a.drift) for _, a in sorted(trace.audits["lora_drop"].items())]
    assert drift[3] == pytest.approx(means, abs=1e-4)
    counted = [step.kv_bytes / 1024 for step in trace.steps["lora_drop"]]
    assert kv[1] == pytest.approx(counted)
    assert kv[3] == pytest.approx(counted)  # the formula, dashed, lies on the count

    step = next(s for s in trace.steps["lora_drop"] if s.kind == "lora" and s.text.isprintable() and s.text.strip())
    page.hover(f".ld-pane[data-lane='1'] .ld-token[data-step='{step.step}']")
    tip = page.inner_text(".ld-tip")
    assert f"{step.step}, LoRA step" in tip and "KL" in tip
    shown = float(tip.split("entropy\n")[1].split(" nats")[0])
    assert shown == pytest.approx(step.entropy, abs=0.0056)  # three digits on the wire, two on the page


@pytest.mark.full
def test_early_refreshes_are_seen_counted_and_explained(server, open_page):
    page = open_page(server.url, viewport={"width": 1600, "height": 1400})
    prepare(page, tokens=48)
    heights = "() => [...document.querySelectorAll('.ld-chart')].map(e => e.offsetHeight)"
    before = page.evaluate(heights)
    prompt = page.input_value("#ld-prompt textarea")
    probe = gather(run(server.loaded, Request(prompt, CONFIG, 48, ignore_eos=True)))
    threshold = round(sorted(step.entropy for step in probe.steps["lora_drop"])[38], 3)
    refreshes = page.locator(".ld-whatif [data-figure='refreshes']")
    expect(refreshes).to_have_text("1 in 4")
    set_text(page, "ld-refresh-entropy", threshold)
    expect(refreshes).to_have_text("at least 1 in 4")
    expect(page.locator(".ld-whatif [data-figure='kv-saved']")).to_contain_text("at most")
    expect(page.locator("#ld-preset input[value=custom]")).to_be_checked()
    run_to_end(page)
    trace = gather(server.runs[-1])
    assert trace.header.lanes[1]["config"]["refresh_entropy"] == threshold
    steps = trace.steps["lora_drop"]
    early = [step.step for step in steps if step.trigger == "entropy"]
    regular = [step.step for step in steps if step.kind == "refresh" and not step.trigger]
    assert early and regular and len(early) + len(regular) < 47
    assert figure(page, "bound") == f"{trace.summary.bound:.2f}×"
    wait_still(page)
    activity, drift, kv = page.evaluate(
        "() => [...document.querySelectorAll('.ld-plot')].slice(0, 3)"
        ".map(p => p.data.map(t => ({ x: t.x, y: t.y, z: t.z, text: t.text, custom: t.customdata })))"
    )
    z, words = activity[0]["z"], activity[0]["text"]
    for layer in (1, 4):
        assert [s for s in range(48) if z[layer][s] == 2] == early
        assert [s for s in range(1, 48) if z[layer][s] == 1] == regular
        assert all("early: the last token's entropy was high" in words[layer][s] for s in early)
    assert 2 not in z[0] and 2 not in z[5], "what always runs is not refreshed"
    assert drift[6]["x"] == early and drift[4]["x"] == regular
    assert drift[5]["x"][::3] == early and drift[0]["x"][::3] == regular
    assert ["refreshed early" in row[3] for row in drift[3]["custom"]] == [s in early for s in range(1, 48)]
    assert kv[1]["y"] == kv[3]["y"] == pytest.approx([step.kv_bytes / 1024 for step in steps])
    assert page.evaluate(heights) == before, "the longer legends have room"
    page.click("[data-chart=drift] .ld-cycle-switch")  # the average cycle has no early ones
    for chart in ("activity", "drift"):
        expect(page.locator(f"[data-chart={chart}] .ld-key-early")).to_be_visible()
    shown = next(step for step in steps if step.trigger and step.text.isprintable() and step.text.strip())
    page.hover(f".ld-pane[data-lane='1'] .ld-token[data-step='{shown.step}']")
    tip = page.inner_text(".ld-tip")
    assert f"{shown.step}, full step, early" in tip and "entropy was high" in tip

    # An empty field is off again, and the marks go with the run that had them.
    set_text(page, "ld-refresh-entropy", "")
    expect(refreshes).to_have_text("1 in 4")
    press_run(page)
    wait_ended(server, 2, page)
    wait_done(page)
    assert server.runs[-1][0].lanes[1]["config"]["refresh_entropy"] is None
    expect(page.locator("[data-chart=activity] .ld-key-early")).to_be_hidden()
    for text in ("-1", "much"):
        set_text(page, "ld-refresh-entropy", text)
        expect(page.locator(".ld-whatif-note")).to_contain_text("a number from 0 upwards")


@pytest.mark.full
def test_stop_keeps_what_ran_and_a_summary(slow_server, open_page):
    server, page = slow_server, open_page(slow_server.url)
    prepare(page, tokens=2000)
    page.click("#ld-run")
    page.wait_for_function("document.querySelectorAll('.ld-token').length > 12")
    expect(page.locator("#ld-stop")).to_be_enabled()
    page.click("#ld-stop")
    wait_done(page)
    assert "Stopped" in page.inner_text(".ld-status")
    trace = gather(server.runs[-1])
    assert trace.summary.lanes["lora_drop"]["ended"] == "stopped"
    assert pane_text(page, 1) == trace.text("lora_drop") and len(trace.steps["lora_drop"]) < 2000
    assert figure(page, "tokens", 1) == f"{len(trace.steps['lora_drop']):,}"
    expect(page.locator("#ld-stop")).to_be_disabled()
    server.goes_on.set()
    # The next run is not stopped by the flag of the last one.
    set_number(page, "ld-max-new-tokens", 12)
    page.click("#ld-run")
    expect(page.locator(".ld-status")).to_contain_text("Finished: 12 tokens in each answer.", timeout=20_000)


@pytest.mark.full
def test_400_steps_keep_the_charts_the_zoom_and_the_bytes(deep, open_page):
    page = open_page(deep.url, viewport={"width": 1600, "height": 1400})
    prepare(page, tokens=401, layers=(3, 28), ratio=0.5)
    received = streamed_bytes(page)
    page.evaluate("window.plots = [...document.querySelectorAll('.ld-plot')].slice(0, 3)")
    page.click("#ld-run")
    page.wait_for_function("document.querySelectorAll('.ld-pane[data-lane=\"1\"] .ld-token').length > 60")
    page.wait_for_function("window.plots.every(p => p.data)")
    page.evaluate("window.parts = window.plots.map(p => p.querySelector('.main-svg'))")
    # Zoom into the drift of every token as a reader does: drag over steps in the plot.
    page.click(".ld-cycle-switch")
    box = page.locator("[data-chart=drift] .nsewdrag").first.bounding_box()
    page.mouse.move(box["x"] + 10, box["y"] + box["height"] / 2)
    page.mouse.down()
    page.mouse.move(box["x"] + 60, box["y"] + box["height"] / 2 + 2, steps=4)
    page.mouse.up()
    read = "document.querySelector('[data-chart=drift] .ld-plot').layout.xaxis.range.map(Number)"
    page.wait_for_function(f"({read})[1] < 200")
    zoomed = page.evaluate(read)
    wait_done(page, 120_000)
    wait_still(page)
    assert page.evaluate(read) == zoomed
    assert page.evaluate(
        "window.plots.every((p, i) => p.isConnected && p.querySelector('.main-svg') === window.parts[i])"
    )
    assert page.evaluate("document.querySelectorAll('.ld-plot')[0].data[0].z[0].length") == 401
    assert 100 < sum(received) / 400 <= 450, "bytes a step"
