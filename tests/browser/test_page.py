"""The page in a real Chromium, on tiny random models."""

from __future__ import annotations

import dataclasses
import random
import time
from collections.abc import Callable

import pytest
from playwright.sync_api import Page, expect

from lora_drop.errors import LoraDropError
from lora_drop.method.config import LoraDropConfig
from lora_drop.method.cost import ModelShape, human_bytes, kv_bytes, kv_saved, speed_bound, step_bytes
from lora_drop.method.schedule import Schedule, dropped_layers
from lora_drop.run.records import AuditRecord, Header, StepRecord, Summary
from lora_drop.run.request import Request
from lora_drop.run.run import run
from lora_drop.run.trace import gather, top1_agreement
from lora_drop.ui.facts import model_facts

pytestmark = pytest.mark.browser

HOSTILE = "`${alert(1)}<img src=x onerror=alert(2)>{{7*7}}\\u0041"


def set_number(page: Page, name: str, value: object) -> None:
    field = page.locator(f"#{name} input[type=number]")
    field.fill(str(value))
    field.press("Tab")


def set_text(page: Page, name: str, value: object) -> None:
    page.fill(f"#{name} textarea, #{name} input", str(value))


def set_range(page: Page, low: int, high: int) -> None:
    """Both handles, as a pointer would: `input`, then `change`."""
    for name, value in (("hi", high), ("lo", low)):
        page.locator(f".ld-range-{name}").evaluate(
            "(e, v) => { e.value = v; e.dispatchEvent(new Event('input')); e.dispatchEvent(new Event('change')); }",
            value,
        )


def open_advanced(page: Page) -> None:
    page.click("#ld-advanced button")
    page.wait_for_selector("#ld-max-new-tokens input", state="visible")
    page.wait_for_timeout(200)  # Gradio mounts what is inside only now


def prepare(page: Page, tokens: int, period: int = 4, layers: tuple[int, int] = (1, 4), ratio: float = 1) -> None:
    """Settings that drop something on the model, and an end that the model does not choose."""
    open_advanced(page)
    set_number(page, "ld-max-new-tokens", tokens)
    set_number(page, "ld-period", period)
    set_range(page, *layers)
    set_number(page, "ld-drop-ratio", ratio)
    page.check("#ld-ignore-eos input")
    expect(page.locator(".ld-whatif-note")).to_contain_text(f"{tokens:,} new tokens")


def figure(page: Page, name: str, lane: int | None = None) -> str:
    where = ".ld-summary" if lane is None else f".ld-pane[data-lane='{lane}']"
    return page.inner_text(f"{where} [data-figure='{name}']")


def wait_done(page: Page, timeout: float = 60_000) -> None:
    page.wait_for_selector(".ld-live[data-state='done']", timeout=timeout)
    expect(page.locator(".ld-status")).to_have_attribute("data-kind", "done")


def pane_text(page: Page, lane: int) -> str:
    return page.eval_on_selector_all(
        f".ld-pane[data-lane='{lane}'] .ld-token", "spans => spans.map(s => s.textContent).join('')"
    )


def wait_until(condition: Callable[[], bool], what: str, seconds: float = 15) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, f"not within {seconds} s: {what}"
        time.sleep(0.05)


def wait_ended(server, runs: int) -> None:
    """Until so many runs have begun and the last one has its summary."""

    def ended() -> bool:
        return len(server.runs) == runs and bool(server.runs[-1]) and isinstance(server.runs[-1][-1], Summary)

    wait_until(ended, f"run {runs} ended")


def test_a_run_to_its_end_shows_what_the_trace_says(server, open_page):
    page = open_page(server.url)
    prepare(page, tokens=48)
    page.click("#ld-run")
    wait_done(page)
    trace = gather(server.runs[-1])
    summary = trace.summary
    for lane, name in enumerate(("baseline", "lora_drop")):
        assert pane_text(page, lane) == trace.text(name)
        assert figure(page, "speed", lane) == f"{summary.lanes[name]['tokens_per_second']:,.1f}"
        assert figure(page, "tokens", lane) == "48"
        assert figure(page, "kv", lane) == human_bytes(summary.lanes[name]["kv_bytes"])
        kinds = page.eval_on_selector_all(
            f".ld-pane[data-lane='{lane}'] .ld-token", "spans => spans.map(s => s.className.match(/token-(\\w+)/)[1])"
        )
        assert kinds == [step.kind for step in trace.steps[name]]
    assert figure(page, "speedup") == f"{summary.speedup:.2f}×"
    assert figure(page, "bound") == f"{summary.bound:.2f}×"
    assert figure(page, "kv-saved") == f"{100 * summary.kv_saved:.1f}%"
    assert figure(page, "agreement") == f"{100 * top1_agreement(trace, 'lora_drop'):.1f}%"
    assert figure(page, "divergence") == f"token {summary.first_divergence + 1}"
    page.wait_for_timeout(600)  # the charts take the frames after the text
    charts = page.evaluate(
        """() => [...document.querySelectorAll('.ld-plot')].slice(0, 3).map(plot => plot.data.map(t => t.z ?? t.y))"""
    )
    activity, drift, kv = charts[:3]
    config = LoraDropConfig(period=4, layers=(1, 4), drop_ratio=1)
    schedule = config.schedule_for(6)
    columns = list(zip(*activity[0], strict=True))
    assert len(columns) == 48
    for step, column in enumerate(columns):
        assert [value < 2 for value in column] == [bool(x) for x in schedule.active(step)]
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


def test_early_refreshes_are_seen_counted_and_explained(server, open_page):
    config = LoraDropConfig(period=4, layers=(1, 4), drop_ratio=1)
    page = open_page(server.url)
    prepare(page, tokens=48)
    heights = "() => [...document.querySelectorAll('.ld-chart')].map(e => e.offsetHeight)"
    before = page.evaluate(heights)
    prompt = page.input_value("#ld-prompt textarea")
    probe = gather(run(server.loaded, Request(prompt, config, 48, ignore_eos=True)))
    threshold = round(sorted(step.entropy for step in probe.steps["lora_drop"])[38], 3)
    refreshes = page.locator(".ld-whatif [data-figure='refreshes']")
    expect(refreshes).to_have_text("1 in 4")
    set_text(page, "ld-refresh-entropy", threshold)
    expect(refreshes).to_have_text("at least 1 in 4")
    expect(page.locator(".ld-whatif [data-figure='kv-saved']")).to_contain_text("at most")
    expect(page.locator("#ld-preset input[value=custom]")).to_be_checked()
    page.click("#ld-run")
    wait_done(page)
    trace = gather(server.runs[-1])
    assert trace.header.lanes[1]["config"]["refresh_entropy"] == threshold
    steps = trace.steps["lora_drop"]
    early = [step.step for step in steps if step.trigger == "entropy"]
    regular = [step.step for step in steps if step.kind == "refresh" and not step.trigger]
    assert early and regular and len(early) + len(regular) < 47
    assert figure(page, "bound") == f"{trace.summary.bound:.2f}×"
    page.wait_for_timeout(600)  # the charts take the frames after the text
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
    for chart in ("activity", "drift"):
        expect(page.locator(f"[data-chart={chart}] .ld-key-early")).to_be_visible()
    shown = next(step for step in steps if step.trigger and step.text.isprintable() and step.text.strip())
    page.hover(f".ld-pane[data-lane='1'] .ld-token[data-step='{shown.step}']")
    tip = page.inner_text(".ld-tip")
    assert f"{shown.step}, full step, early" in tip and "entropy was high" in tip

    # An empty field is off again, and the marks go with the run that had them.
    set_text(page, "ld-refresh-entropy", "")
    expect(refreshes).to_have_text("1 in 4")
    page.click("#ld-run")
    wait_ended(server, 2)
    wait_done(page)
    assert server.runs[-1][0].lanes[1]["config"]["refresh_entropy"] is None
    expect(page.locator("[data-chart=activity] .ld-key-early")).to_be_hidden()
    for text, words in (("-1", "must be a finite number from 0"), ("much", "must be a number, or left empty")):
        set_text(page, "ld-refresh-norm", text)
        expect(page.locator(".ld-whatif-note")).to_contain_text("a number from 0 upwards")
        page.click("#ld-run")
        expect(page.locator(".ld-status")).to_contain_text(f"refresh_norm {words}")


def test_the_page_and_the_session_agree_on_the_default_settings(server):
    """What the page asks for is what the command line would: same text from the same request."""
    wanted = Request("Hello", LoraDropConfig(period=3, layers=(1, 4)), max_new_tokens=12, ignore_eos=True)
    one, two = (gather(run(server.loaded, wanted)) for _ in range(2))
    assert one.token_ids("lora_drop") == two.token_ids("lora_drop")


def test_stop_keeps_what_ran_and_a_summary(server, open_page):
    page = open_page(server.url)
    prepare(page, tokens=2000)
    page.click("#ld-run")
    page.wait_for_function("document.querySelectorAll('.ld-token').length > 40")
    expect(page.locator("#ld-stop")).to_be_enabled()
    page.click("#ld-stop")
    wait_done(page)
    assert "Stopped" in page.inner_text(".ld-status")
    trace = gather(server.runs[-1])
    assert trace.summary.lanes["lora_drop"]["ended"] == "stopped"
    assert pane_text(page, 1) == trace.text("lora_drop") and len(trace.steps["lora_drop"]) < 2000
    assert figure(page, "speedup") == f"{trace.summary.speedup:.2f}×"
    expect(page.locator("#ld-stop")).to_be_disabled()
    # The next run is not stopped by the flag of the last one.
    set_number(page, "ld-max-new-tokens", 12)
    page.click("#ld-run")
    expect(page.locator(".ld-status")).to_contain_text("Finished: 12 tokens, 12 tokens.", timeout=20_000)


def test_sliders_redraw_the_what_if_strip_with_no_request(server, open_page):
    page = open_page(server.url)
    open_advanced(page)
    page.wait_for_timeout(500)
    requests: list[str] = []
    page.on("request", lambda r: requests.append(r.url) if r.url.startswith("http") else None)
    value = page.locator(".ld-range-value")
    dropped = page.locator(".ld-whatif [data-figure='dropped']")

    page.focus(".ld-range-lo")
    page.keyboard.press("ArrowLeft")
    page.keyboard.press("ArrowLeft")
    expect(value).to_have_text("1 – 4")
    page.focus("#ld-drop-ratio input[type=range]")
    page.keyboard.press("End")
    expect(dropped).to_have_text("4 of 6")
    expect(page.locator("#ld-preset input[value=custom]")).to_be_checked()

    # While the pointer still holds the handle, the strip has followed already.
    handle = page.locator("#ld-period input[type=range]")
    box = handle.bounding_box()
    page.mouse.move(box["x"] + box["width"] * 1 / 15, box["y"] + box["height"] / 2)
    page.mouse.down()
    page.mouse.move(box["x"] + box["width"] * 0.5, box["y"] + box["height"] / 2, steps=6)
    held = int(page.input_value("#ld-period input[type=number]"))
    assert 7 <= held <= 10
    expect(page.locator(".ld-whatif [data-figure='refreshes']")).to_have_text(f"1 in {held}")
    page.mouse.up()
    assert page.locator(".ld-pattern-svg rect").count() == 6 * held

    # The upper handle, by the mouse, from layer 4 to layer 2.
    track = page.locator(".ld-range-track").bounding_box()
    y, at = track["y"] + track["height"] / 2, lambda layer: track["x"] + 8 + (track["width"] - 16) * (layer - 1) / 4
    page.mouse.move(at(4), y)
    page.mouse.down()
    page.mouse.move(at(2), y, steps=5)
    expect(value).to_have_text("1 – 2")
    expect(dropped).to_have_text("2 of 6")
    page.mouse.up()
    expect(dropped).to_have_text("2 of 6")

    set_number(page, "ld-period", 1)
    expect(page.locator(".ld-whatif-note")).to_have_text("This is the baseline: nothing is dropped.")
    page.fill("#ld-drop-layers textarea, #ld-drop-layers input", "0,2")
    expect(page.locator(".ld-whatif-note")).to_contain_text("layer 0 always runs")
    page.fill("#ld-drop-layers textarea, #ld-drop-layers input", "")

    page.check("#ld-preset input[value=paper]")
    expect(page.locator(".ld-whatif [data-figure='refreshes']")).to_have_text("1 in 4")
    expect(value).to_have_text("3 – 4")
    expect(page.locator("#ld-preset input[value=paper]")).to_be_checked()
    assert requests == []


def test_a_new_prompt_is_counted_for_the_strip(server, open_page):
    page = open_page(server.url)
    open_advanced(page)
    page.fill("#ld-prompt textarea", "word " * 50)
    set_range(page, 1, 4)
    set_number(page, "ld-drop-ratio", 1)
    from lora_drop.models.tokens import encode_prompt

    count = len(encode_prompt(server.loaded.tokenizer, "word " * 50))
    expect(page.locator(".ld-whatif-note")).to_contain_text(f"For {count} prompt")


def _random_case(rng: random.Random) -> tuple[dict, dict, dict]:
    layers = rng.randint(3, 48)
    heads = rng.choice([2, 4, 8])
    shape = ModelShape(
        layers,
        hidden_size=64 * rng.randint(1, 32),
        num_heads=heads,
        num_kv_heads=rng.choice([1, 2, heads]),
        head_dim=rng.choice([16, 64, 128]),
        intermediate_size=64 * rng.randint(1, 99),
        vocab_size=rng.randint(100, 150_000),
        tied=rng.random() < 0.5,
        qkv_bias=rng.random() < 0.5,
        qk_norm=rng.random() < 0.5,
        # Sizes of packed weights that are exact in binary, as those of real blocks are.
        matrix_size=rng.choice([1, 0.3125, 0.15625]),
        head_size=rng.choice([1, 0.53125]),
    )
    lo = rng.randint(1, layers - 1)
    hi = rng.randint(lo, layers - 1)
    ratio = rng.choice([0, 0.25, 0.5, 0.75, 1, round(rng.random(), 2)])
    schedule = Schedule(
        rng.randint(1, 16),
        layers,
        dropped_layers(lo, hi, ratio),
        rng.choice(["state", "anchor", "residual", "skip"]),
        rng.choice(["block", "attention"]),
        rng.choice(["skip", "write"]),
    )
    case = {
        "lo": lo,
        "hi": hi,
        "ratio": ratio,
        "prompt": rng.randint(0, 2000),
        "steps": rng.choice([None, 0, 1, rng.randint(2, 90)]),
        "rank": rng.choice([0, 16, 128]),
        "corrected": rng.choice([None, rng.sample(range(1, layers), rng.randint(0, layers - 1))]),
        "happened": sorted(rng.sample(range(1, 40), rng.randint(0, 39))),
    }
    return dataclasses.asdict(shape), dataclasses.asdict(schedule), case


def test_the_javascript_computes_what_python_does(server, open_page):
    page = open_page(server.url)
    rng = random.Random(0)
    cases = [_random_case(rng) for _ in range(300)]
    results = page.evaluate(
        """(cases) => cases.map(([shape, s, c]) => {
            const S = window.LoraDrop.schedule;
            const schedule = { ...s, numLayers: s.num_layers, corrected: c.corrected };
            const steps = c.steps ?? 7;
            return {
                dropped: S.droppedLayers(c.lo, c.hi, c.ratio),
                bound: S.speedBound(shape, schedule, c.steps, c.prompt, c.rank),
                kv: S.kvBytes(shape, schedule, c.prompt, steps, 2),
                saved: S.kvSaved(shape, schedule, c.prompt, steps),
                kinds: Array.from({ length: 20 }, (_, i) => S.kind(schedule, i)),
                early: Array.from({ length: 39 }, (_, i) => {
                    const refreshes = c.happened.filter((step) => step <= i + 1).length;
                    const happened = { isLora: !c.happened.includes(i + 1), refreshes };
                    return [
                        S.stepBytes(shape, schedule, i + 1, c.prompt, 1, c.rank, true, happened),
                        S.kvTokens(schedule, c.prompt, i + 1, refreshes),
                    ];
                }),
            };
        })""",
        cases,
    )
    for (shape, schedule, case), got in zip(cases, results, strict=True):
        shape, schedule = ModelShape(**shape), Schedule(**schedule)
        steps = 7 if case["steps"] is None else case["steps"]
        assert tuple(got["dropped"]) == schedule.dropped
        assert got["bound"] == pytest.approx(
            speed_bound(shape, schedule, case["steps"], case["prompt"], case["rank"], case["corrected"]), rel=1e-12
        )
        assert got["kv"] == kv_bytes(shape, schedule, case["prompt"], steps, 2)
        assert got["saved"] == pytest.approx(kv_saved(shape, schedule, case["prompt"], steps), rel=1e-12, abs=1e-12)
        assert got["kinds"] == [schedule.kind(step) for step in range(20)]
        happened = case["happened"]
        for step, (read, held) in enumerate(got["early"], start=1):
            now = {"lora": step not in happened, "refreshes": sum(s <= step for s in happened)}
            rank, corrected = case["rank"], case["corrected"]
            assert read == step_bytes(shape, schedule, step, case["prompt"], 1, rank, corrected, **now)
            entries = shape.kv_per_token * held
            assert entries == kv_bytes(shape, schedule, case["prompt"], step, 1, now["refreshes"])
    halves = {0.5: 0, 1.5: 2, 2.5: 2, 6.5: 6, 3.7: 4, -0.5: 0}
    assert page.evaluate("xs => xs.map(window.LoraDrop.schedule.roundHalfEven)", list(halves)) == list(halves.values())


def test_400_steps_keep_the_charts_the_zoom_and_the_bytes(deep, open_page):
    page = open_page(deep.url)
    prepare(page, tokens=401, layers=(3, 28), ratio=0.5)
    cdp = page.context.new_cdp_session(page)
    cdp.send("Network.enable")
    streams: set[str] = set()
    received: list[int] = []
    cdp.on(
        "Network.requestWillBeSent",
        lambda e: streams.add(e["requestId"]) if "queue/data" in e["request"]["url"] else None,
    )
    cdp.on("Network.dataReceived", lambda e: received.append(e["dataLength"]) if e["requestId"] in streams else None)
    page.evaluate(
        """() => {
            window.blocked = 0;
            new PerformanceObserver((list) => {
                for (const entry of list.getEntries()) window.blocked += entry.duration;
            }).observe({ entryTypes: ["longtask"] });
            window.plots = [...document.querySelectorAll(".ld-plot")].slice(0, 3);
        }"""
    )
    page.click("#ld-run")
    page.wait_for_function("document.querySelectorAll('.ld-pane[data-lane=\"1\"] .ld-token').length > 60")
    page.wait_for_function("window.plots.every(p => p.data)")
    page.evaluate("window.parts = window.plots.map(p => p.querySelector('.main-svg'))")
    # Zoom into the drift as a reader does: drag over steps in the plot.
    box = page.locator("[data-chart=drift] .nsewdrag").first.bounding_box()
    page.mouse.move(box["x"] + 10, box["y"] + box["height"] / 2)
    page.mouse.down()
    page.mouse.move(box["x"] + 60, box["y"] + box["height"] / 2 + 2, steps=4)
    page.mouse.up()
    read = "document.querySelector('[data-chart=drift] .ld-plot').layout.xaxis.range.map(Number)"
    page.wait_for_function(f"({read})[1] < 200")
    zoomed = page.evaluate(read)
    wait_done(page, 120_000)
    page.wait_for_timeout(600)
    assert page.evaluate(read) == zoomed
    assert page.evaluate(
        "window.plots.every((p, i) => p.isConnected && p.querySelector('.main-svg') === window.parts[i])"
    )
    assert page.evaluate("document.querySelectorAll('.ld-plot')[0].data[0].z[0].length") == 401
    per_step = sum(received) / 400
    print(f"{per_step:.0f} bytes a step; main thread in long tasks for {page.evaluate('window.blocked'):.0f} ms")
    assert 100 < per_step <= 450


def _hostile_run(loaded):
    """A hand-made run whose every text tries to be code."""
    shape, config = model_facts(loaded)["shape"], LoraDropConfig(period=2, drop_layers=(2, 3)).to_dict()
    lanes = [
        {"id": "baseline", "label": HOSTILE, "config": {**config, "period": 1, "dropped": [], "rank": 0}},
        {"id": "lora_drop", "label": "LoRA-Drop", "config": {**config, "dropped": [2, 3], "rank": 0}},
    ]
    model = {"id": HOSTILE, "layers": shape["num_layers"], "dtype": "float32", "kv_bytes_per_token": 64}
    sampling = {"max_new_tokens": 9, "notes": [HOSTILE]}
    yield Header(lanes, model, {"name": HOSTILE, "type": "cpu"}, HOSTILE, 3, 0, sampling, {})
    texts = [HOSTILE, "</script><script>alert(3)</script>", "\ud800", "{{this}}", "\x00\u2028", "](javascript:x)", "Z"]
    for step, text in enumerate(texts):
        for lane in ("baseline", "lora_drop"):
            kind = "prefill" if step == 0 else "refresh" if lane == "baseline" or step % 2 == 0 else "lora"
            yield StepRecord(lane, step, step, text, kind, [1] * shape["num_layers"], 1.0, 64 * (step + 1), None)
        if step:
            yield AuditRecord("lora_drop", step, [0.1, None], [0.9, None], None, False, HOSTILE)
    lane = {"tokens": 7, "tokens_per_second": 5.0, "prefill_ms": 1.0, "kv_bytes": 1, "ended": "length"}
    yield Summary({"baseline": lane, "lora_drop": lane}, 1.0, 1.1, 0.1, None, 0.0)


def test_hostile_texts_show_as_text(server, open_page):
    server.script = lambda: _hostile_run(server.loaded)
    page = open_page(server.url)
    page.fill("#ld-prompt textarea", HOSTILE)
    page.click("#ld-run")
    wait_done(page)
    assert page.locator(".ld-pane[data-lane='0'] .ld-token").first.text_content() == HOSTILE
    assert "<script>alert(3)</script>" in pane_text(page, 1)
    page.hover(".ld-pane[data-lane='1'] .ld-token-lora >> nth=0")
    assert "onerror=alert(2)" in page.inner_text(".ld-tip")
    assert page.locator(".ld-live img, .ld-live script").count() == 0
    assert page.evaluate("!document.querySelector('img[src=x]')")


def test_a_hostile_prompt_is_only_a_prompt(server, open_page):
    page = open_page(server.url)
    prepare(page, tokens=8)
    page.fill("#ld-prompt textarea", HOSTILE + "<|im_end|>\n\u202e\U0001f600\x07")
    page.click("#ld-run")
    wait_done(page)
    assert server.runs[-1][0].prompt.startswith(HOSTILE)


def test_two_visitors_get_their_own_runs_and_the_second_sees_its_place(server, open_page):
    one, two = open_page(server.url), open_page(server.url)
    for page, tokens in ((one, 600), (two, 16)):
        prepare(page, tokens)
    one.fill("#ld-prompt textarea", "first visitor")
    two.fill("#ld-prompt textarea", "second visitor")
    one.click("#ld-run")
    one.wait_for_function("document.querySelectorAll('.ld-token').length > 10")
    two.click("#ld-run")
    place = two.locator("#ld-status .progress-text")
    expect(place).to_contain_text("queue: 1/1", timeout=5_000)
    assert place.bounding_box()["height"] > 10
    expect(two.locator("#ld-stop")).to_be_disabled()
    one.click("#ld-stop")  # the first visitor's stop is not the second's
    wait_done(one)
    wait_done(two)
    assert "Finished: 16 tokens, 16 tokens." in two.inner_text(".ld-status")
    first, second = (gather(records) for records in server.runs[-2:])
    assert (first.header.prompt, second.header.prompt) == ("first visitor", "second visitor")
    assert pane_text(one, 1) == first.text("lora_drop") and pane_text(two, 1) == second.text("lora_drop")


def test_a_closed_tab_and_a_reload_end_the_run_and_release_it(server, open_page):
    page = open_page(server.url, leaves=True)
    prepare(page, tokens=2000)
    page.click("#ld-run")
    page.wait_for_function("document.querySelectorAll('.ld-token').length > 10")
    page.reload()
    page.wait_for_selector(".ld-status:not(:empty)")
    wait_until(lambda: server.closed == 1, "the reloaded page's run ended")
    assert len(server.runs[-1]) < 4000
    prepare(page, tokens=10)
    page.click("#ld-run")
    wait_done(page)
    set_number(page, "ld-max-new-tokens", 2000)
    page.click("#ld-run")
    page.wait_for_function("document.querySelectorAll('.ld-token').length > 30")
    page.close()
    wait_until(lambda: server.closed == 3, "the closed tab's run ended")


def test_bad_input_is_one_line_and_the_app_stays_up(server, open_page):
    page = open_page(server.url)
    prepare(page, tokens=8)
    line = page.locator(".ld-status")
    height = page.locator("#ld-ask").bounding_box()["height"]

    def refused(words: str) -> None:
        page.click("#ld-run")
        expect(line).to_contain_text(words, timeout=10_000)
        expect(line).to_have_attribute("data-kind", "error")

    page.fill("#ld-prompt textarea", "   ")
    refused("the prompt is empty")
    page.fill("#ld-prompt textarea", "x" * 5000)
    refused("context")
    page.fill("#ld-prompt textarea", "fine")
    set_number(page, "ld-max-new-tokens", 0)
    refused("max_new_tokens")
    set_number(page, "ld-max-new-tokens", 8)
    set_number(page, "ld-temperature", -1)
    refused("temperature")
    set_number(page, "ld-temperature", 0)
    page.fill("#ld-drop-layers textarea, #ld-drop-layers input", "2,99")
    refused("this model's layers are 0-5")
    page.fill("#ld-drop-layers textarea, #ld-drop-layers input", "")
    assert page.locator("#ld-ask").bounding_box()["height"] == height, "the page jumped"
    page.click("#ld-run")
    wait_done(page)


def test_the_api_streams_the_trace_and_refuses_bad_input(server):
    from gradio_client import Client

    from lora_drop.run.trace import parse_trace

    client = Client(server.url, verbose=False)
    job = client.submit(
        prompt="Hello", period=3, layers="1-4", drop_ratio=1, max_new_tokens=24, ignore_eos=True, api_name="/generate"
    )
    texts = [*job.outputs(), job.result()]
    assert all(later.startswith(earlier) for earlier, later in zip(texts, texts[1:], strict=False))
    trace = parse_trace(texts[-1].encode())
    wanted = Request("Hello", LoraDropConfig(period=3, layers=(1, 4), drop_ratio=1.0), 24, ignore_eos=True)
    assert trace.token_ids("lora_drop") == gather(run(server.loaded, wanted)).token_ids("lora_drop")
    assert trace.summary is not None

    estimate = client.predict(prompt="Hello", period=4, layers="1-4", drop_ratio=1, api_name="/estimate")
    assert estimate["dropped"] == [1, 2, 3, 4] and estimate["bound"] > 1 and not estimate["at_most"]
    at_most = client.predict(
        prompt="Hello", period=4, layers="1-4", drop_ratio=1, refresh_entropy=2.5, api_name="/estimate"
    )
    assert at_most["at_most"] and at_most["bound"] == estimate["bound"]
    every = client.predict(
        prompt="Hello", period=9, layers="1-4", drop_ratio=1, refresh_entropy=0, max_new_tokens=9, ignore_eos=True,
        api_name="/generate",
    )  # fmt: skip
    every = parse_trace(every.encode())
    assert {step.trigger for step in every.steps["lora_drop"][1:]} == {"entropy"}
    assert every.token_ids("lora_drop") == every.token_ids("baseline")

    bad = {
        "period must be": {"period": 0},
        "outside this model": {"layers": "3-28"},
        "drop_ratio must": {"drop_ratio": 1.5},
        "layer 0 always runs": {"drop_layers": "0,2"},
        "there is no preset": {"preset": "nope"},
        "the prompt is empty": {"prompt": " "},
        "reuse must be": {"reuse": "magic"},
        "lanes must be": {"lanes": "three"},
        "adapters must be auto or none": {"adapters": "/etc"},
        "refresh_entropy must be": {"refresh_entropy": -1},
        "refresh_norm must be": {"refresh_norm": "much"},
    }
    for words, values in bad.items():
        with pytest.raises(Exception, match=words) as caught:
            client.predict(**{"prompt": "Hello"} | values, api_name="/generate")
        assert "\n" not in str(caught.value), "one line"
    page = client.predict(trace=texts[-1], api_name="/replay")
    assert page.startswith("<!doctype html>") or page.startswith("<!DOCTYPE html>")
    with pytest.raises(Exception, match="line 1: this is not a line of a LoRA-Drop trace"):
        client.predict(trace="<html>", api_name="/replay")
    assert client.predict(prompt="still up", max_new_tokens=2, api_name="/generate")


def test_nothing_of_a_failed_run_is_left(server, open_page):
    def broken():
        yield from ()
        raise RuntimeError("the engine broke")

    def refused():
        yield from ()
        raise LoraDropError("no such thing.")

    page = open_page(server.url)
    for script, words in ((broken, "failed inside the app"), (refused, "no such thing.")):
        server.script = script
        page.click("#ld-run")
        expect(page.locator(".ld-status")).to_contain_text(words)
        expect(page.locator("#ld-stop")).to_be_disabled()
    server.script = None
    prepare(page, tokens=6)
    page.click("#ld-run")
    wait_done(page)


@pytest.mark.parametrize("width", [1600, 390])
def test_the_layout_does_not_jump_while_a_run_streams(server, open_page, width):
    page = open_page(server.url, viewport={"width": width, "height": 900 if width > 400 else 844})
    prepare(page, tokens=60)
    boxes = "() => [...document.querySelectorAll('.ld-pane, .ld-chart, #ld-settings')].map(e => e.offsetHeight)"
    before = page.evaluate(boxes)
    page.click("#ld-run")
    page.wait_for_function("document.querySelectorAll('.ld-token').length > 20")
    during = page.evaluate(boxes)
    wait_done(page)
    assert before == during == page.evaluate(boxes)
    assert page.evaluate("document.documentElement.scrollWidth") <= width, "nothing is cut off to the side"


def test_the_first_screen_holds_prompt_run_and_panes(server, open_page):
    page = open_page(server.url)
    for selector in ("#ld-prompt", "#ld-run", ".ld-pane[data-lane='0']", ".ld-chart"):
        box = page.locator(selector).first.bounding_box()
        assert box["y"] >= 0 and box["y"] + box["height"] <= 900, selector


def test_the_dark_theme_repaints_the_charts_in_place(server, open_page):
    page = open_page(server.url)
    prepare(page, tokens=12)
    page.click("#ld-run")
    wait_done(page)
    page.wait_for_timeout(500)
    line = "document.querySelector('[data-chart=kv] .ld-plot').data[0].line.color"
    light = page.evaluate(line)
    page.evaluate("window.part = document.querySelector('[data-chart=kv] .main-svg')")
    page.evaluate("document.body.classList.toggle('dark')")
    page.wait_for_function(f"{line} !== '{light}'")
    assert page.evaluate("window.part.isConnected")


def test_moving_the_range_or_the_ratio_takes_the_place_of_exact_layers(server, open_page):
    """A preset may set exact layers; a visitor who then moves a slider means the slider."""
    page = open_page(server.url)
    open_advanced(page)
    note, dropped = page.locator(".ld-range-note"), page.locator("[data-figure='dropped']")
    for move in (lambda: set_range(page, 1, 4), lambda: set_number(page, "ld-drop-ratio", 0.75)):
        set_text(page, "ld-drop-layers", "2")
        expect(dropped).to_have_text("1 of 6")
        expect(note).to_contain_text("exact layers are set")
        move()
        expect(page.locator("#ld-drop-layers textarea, #ld-drop-layers input")).to_have_value("")
        expect(note).to_have_text("layer 0 always runs")
    expect(dropped).to_have_text("3 of 6")
