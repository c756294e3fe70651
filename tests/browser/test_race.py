"""The race by distance: accepted tokens of all lanes at one moment, and below them each token's time."""

import threading
from xml.etree import ElementTree

import pytest
from playwright.sync_api import Page, expect

from lora_drop.run.request import Request
from lora_drop.run.run import run
from lora_drop.run.trace.records import JudgeRecord, RewindRecord, StepRecord
from lora_drop.run.trace.trace import gather
from lora_drop.ui.stream import MIN_INTERVAL
from tests.support.page import CONFIG, run_to_end, save, scrub, wait_done
from tests.support.runs import JUDGED, timed

pytestmark = [pytest.mark.browser, pytest.mark.full]

LABEL = "document.querySelector('.ld-race-canvas').ariaLabel"
BAR, STRIP, GAP, BETWEEN, TEXT, TALL = 18, 16, 4, 24, 12, 4  # of assets/js/charts/race_drawing.js and race.js
# Number of pixels of a colour, or of any, in a row of the canvas, with the first and the last of them; no names.
ROW = """([y, name]) => {
    const canvas = document.querySelector(".ld-race-canvas");
    const at = Math.round(y * canvas.height / canvas.offsetHeight);
    const { data } = canvas.getContext("2d").getImageData(0, at, canvas.width, 1);
    const hex = name && getComputedStyle(document.body).getPropertyValue(`--ld-${name}`).trim();
    const rgb = name && [1, 3, 5].map(i => parseInt(hex.slice(i, i + 2), 16));
    const all = Array.from({ length: canvas.width }, (_, x) => x).slice(name ? 150 : 0);
    const isColour = x => rgb.every((c, i) => Math.abs(c - data[4 * x + i]) < 3);
    const drawn = all.filter(x => name ? isColour(x) : data[4 * x + 3] > 100);
    return [drawn.length, drawn[0], drawn.at(-1)];
}"""


def wait_label(page: Page, words: str) -> None:
    page.wait_for_function(f"words => {LABEL}?.includes(words)", arg=words)


def test_the_leader_is_seen_while_it_is_written_and_at_every_moment(server, open_page):
    """LoRA-Drop is twice as fast; the run waits at its step 10, and the scrubber goes back to step 20."""
    records = list(run(server.loaded, Request("Why?", CONFIG, 41, ignore_eos=True, view="lock-step")))
    records = timed(records, baseline=10.0, lora_drop=5.0)
    at = next(i for i, one in enumerate(records) if isinstance(one, StepRecord) and one.step == 11)
    goes_on = threading.Event()

    def script():
        yield from records[:at]
        goes_on.wait(0.3 + 11 * MIN_INTERVAL)  # then an update is due, and none is held (ui/stream.py)
        yield records[at]
        assert goes_on.wait(60)
        yield from records[at + 1 :]

    server.script = script
    page = open_page(server.url, reduced_motion="reduce")
    page.click("#ld-run")
    wait_label(page, "Baseline 6 tokens, 0.05 s; LoRA-Drop 11 tokens, 0.05 s")
    goes_on.set()
    wait_done(page)
    for is_aligned in (False, True):  # with equal tokens in the answers the race keeps its clock
        page.set_checked(".ld-same-step", is_aligned)
        scrub(page, 20)
        wait_label(page, "Baseline 11 tokens, 0.10 s; LoRA-Drop 21 tokens, 0.10 s")
        lengths = [page.evaluate(ROW, [y, name])[0] for y, name in ((9, "baseline"), (31, "lora-drop"))]
        assert lengths[0] / lengths[1] == pytest.approx(11 / 21, abs=0.01)
    page.keyboard.press("Escape")
    wait_label(page, "Baseline 41 tokens, 0.40 s; LoRA-Drop 41 tokens, 0.20 s")
    solid, whole = (page.evaluate(ROW, [y, "baseline"])[0] for y in (2, 9))
    assert solid / whole == pytest.approx(21 / 41, abs=0.01), "where it was when LoRA-Drop had finished"


def test_drafts_are_hollow_until_they_are_verified_and_rejected_ones_vanish(server, open_page):
    records = timed(run(server.loaded, Request("Why?", JUDGED, 40, ignore_eos=True)), baseline=10.0, lora_drop=4.0)
    # The lane ends with a draft, which a pass of its own verifies.
    last = next(step for step in reversed(gather(records).steps["lora_drop"]) if step.kind == "lora")
    until, after = records[: records.index(last) + 1], records[records.index(last) + 1 : -1]
    others = [one for one in after if one.lane != "lora_drop"]
    ended = [*until, *others, JudgeRecord("lora_drop", 1, 4.0, 1), records[-1]]
    server.script = lambda: (one for one in ended)
    page = open_page(server.url)
    run_to_end(page)
    trace = gather(server.runs[-1])
    ms, accepted, drafts, moments = 0.0, 1, 0, {}
    for one in trace.passes["lora_drop"][:-2]:  # the last token comes with its verification
        if isinstance(one, RewindRecord) or one.step == 0:
            continue  # a rewind comes with the step after it
        ms += one.ms
        accepted, drafts = (accepted, drafts + 1) if one.kind == "lora" else (one.step + 1, 0)
        moments[ms + 2] = accepted, drafts
    taken = max(i for i, one in enumerate(trace.passes["lora_drop"]) if isinstance(one, RewindRecord))
    near = sum(one.ms for one in trace.passes["lora_drop"][1:taken] if isinstance(one, StepRecord))
    seen = sorted(moments, key=lambda moment: abs(moment - near))[:6]  # around the last that are rejected
    assert {drafts for _, drafts in map(moments.get, seen)} > {0, 1}
    for moment in seen:
        accepted, drafts = moments[moment]
        page.evaluate("moment => window.LoraDrop.store.update({ step: 0, moment })", moment)
        hollow = f", {drafts} not yet checked" if drafts else ""
        wait_label(page, f"LoRA-Drop {accepted} tokens, {moment / 1000:.2f} s{hollow}")
        if drafts:
            solid, outline = (page.evaluate(ROW, [y, "lora-drop"]) for y in (31, 22))
            token = (outline[2] + 1 - outline[1]) / (accepted + drafts)
            assert solid[0] == pytest.approx(token * accepted, abs=5), "and the edges of an outline"
    page.keyboard.press("Escape")
    wait_label(page, f"LoRA-Drop {len(trace.steps['lora_drop'])} tokens")
    assert "not yet checked" not in page.evaluate(LABEL)


def test_no_strip_is_cut_at_any_width_nor_on_a_slide_nor_in_a_picture(server, open_page, tmp_path):
    records = list(run(server.loaded, Request("Why?", CONFIG, 400, ignore_eos=True, audit=False)))
    server.script = lambda: (one for one in timed(records, baseline=4.0, lora_drop=2.0))
    page = open_page(server.url)
    run_to_end(page)

    def ratio(tall: float = 1) -> float:
        """The length of LoRA-Drop's strip, the baseline's being 1."""
        text = page.evaluate("document.body.classList.contains('ld-talk') ? 0.023 * innerHeight : 12")
        top = 2 * (BAR * tall + GAP) + BETWEEN
        rows = [top + row * (STRIP * tall + GAP) + STRIP * tall / 2 for row in (0, 1)]
        ends = [page.evaluate(ROW, [y * text / TEXT, ""])[1:] for y in rows]
        return (ends[1][1] - ends[1][0]) / (ends[0][1] - ends[0][0])

    def settled() -> None:
        page.wait_for_function(
            "() => { const c = document.querySelector('.ld-race-canvas'); return c.width === c.offsetWidth; }"
        )

    assert ratio() == pytest.approx(0.5, abs=0.02)
    page.set_viewport_size({"width": 390, "height": 844})
    settled()
    assert ratio() == pytest.approx(0.5, abs=0.02)
    page.set_viewport_size({"width": 1600, "height": 900})
    settled()
    page.evaluate("document.querySelector('.ld-menu').open = true")
    page.select_option(".ld-picture", "race")
    rects = [one.attrib for one in ElementTree.parse(save(page, "svg", tmp_path)).findall(".//{*}rect")]
    ends = {
        opacity: max(float(one["x"]) + float(one["width"]) for one in rects if one.get("fill-opacity") == opacity)
        for opacity in ("0.6", "0.35")  # a step of the baseline, a LoRA step
    }
    start = min(float(one["x"]) for one in rects if one.get("fill-opacity") == "0.6")
    assert (ends["0.35"] - start) / (ends["0.6"] - start) == pytest.approx(0.5, abs=0.02)
    page.evaluate("document.querySelector('.ld-menu').open = false")
    page.mouse.click(700, 5)
    page.keyboard.press("t")
    while page.locator(".ld-live").get_attribute("data-slide") != "race":
        page.keyboard.press("PageDown")
    settled()
    assert ratio(TALL) == pytest.approx(0.5, abs=0.02)


def test_equal_tokens_are_compared_whatever_the_third_lane_does_and_a_click_moves_the_scrubber(server, open_page):
    records = timed(
        run(server.loaded, Request("Why?", CONFIG, 40, ignore_eos=True, compare="skip")),
        **{"baseline": 10.0, "lora_drop": 8.0, "third": 7.0},
    )
    ends = {"baseline": 39, "lora_drop": 24, "third": 9}
    short = [one for one in records if not hasattr(one, "lane") or one.step <= ends[one.lane]]
    server.script = lambda: (one for one in short)
    page = open_page(server.url)
    run_to_end(page)
    words = page.evaluate(LABEL)
    assert "Baseline 25 tokens, 0.24 s; LoRA-Drop 25 tokens, 0.19 s;" in words, "neither wins by writing less"
    assert words.endswith(" 10 tokens, 0.06 s")
    page.evaluate("document.querySelector('.ld-race .ld-figure-table').open = true")
    table = page.locator(".ld-race .ld-table")
    expect(table).to_contain_text("time for 25 tokens")
    assert [row.split("\t")[2] for row in table.inner_text().splitlines()[-3:]] == ["40", "25", "10"]
    assert table.locator("tbody tr").nth(2).locator("td").first.inner_text() == "–"
    canvas = page.locator(".ld-race-canvas")
    canvas.scroll_into_view_if_needed()
    box = canvas.bounding_box()
    for y in (box["height"] - 30, 9):  # in the strip, in a bar
        page.mouse.click(box["x"] + box["width"] * 0.4, box["y"] + y)
        step = page.evaluate("window.LoraDrop.store.state.step")
        assert 0 < step < 25
        wait_label(page, f"LoRA-Drop {step + 1} tokens, ")
        page.keyboard.press("Escape")
