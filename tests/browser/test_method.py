"""The Method tab in a real Chromium, on a tiny random model."""

import dataclasses

import pytest
from playwright.sync_api import Page, expect

from lora_drop.method import paper
from lora_drop.method.config import LoraDropConfig
from lora_drop.method.cost import human_bytes, kv_bytes, kv_saved, speed_bound
from lora_drop.method.schedule import baseline_schedule
from lora_drop.ui.facts import model_facts
from tests.support.page import prepare, set_number, set_text

pytestmark = [pytest.mark.browser, pytest.mark.full]

PROMPT = 6  # tokens of the drawing's prompt
IDEAS = {"climb": 10, "skip": 7, "holes": 8, "repair": 8}  # each with the end of its slider
TOY = {"period": 4, "layers": (2, 8), "drop_ratio": 0.5}  # the schedule of the build-up's small model
TOY_LAYERS, TOY_PROMPT = 10, 3
NO_QUESTION_IS_OPEN = "[...document.querySelectorAll('.ld-pays')].every(place => place.querySelector('svg'))"


def open_method(page: Page) -> None:
    """The tab, with all that is folded open."""
    page.get_by_role("tab", name="Method").click()
    page.wait_for_selector(".ld-idea-svg rect")
    page.evaluate("document.querySelectorAll('.ld-fold').forEach(fold => { fold.open = true; })")
    page.wait_for_selector(".ld-drawing-svg .ld-cell")
    page.wait_for_function(NO_QUESTION_IS_OPEN)


def move(page: Page, idea: str, at: int) -> str:
    """Move an idea's slider; returns its words."""
    card = page.locator(f"[data-idea={idea}]")
    card.locator("input").evaluate("(e, v) => { e.value = v; e.dispatchEvent(new Event('input')); }", at)
    return card.locator(".ld-idea-words").inner_text()


def shapes(page: Page, idea: str) -> dict[str, int]:
    """How many cells of each kind an idea's drawing has."""
    names = page.eval_on_selector_all(
        f"[data-idea={idea}] rect", "rects => rects.map(r => r.getAttribute('class').replace('ld-toy-', ''))"
    )
    return {name: names.count(name) for name in set(names)}


def test_each_idea_is_one_slider_and_few_words_of_a_readable_size(server, open_page):
    page = open_page(server.url, viewport={"width": 375, "height": 812})
    page.get_by_role("tab", name="Method").click()
    page.wait_for_selector(".ld-idea-svg rect")
    assert page.eval_on_selector_all("[data-idea]", "cards => cards.map(c => c.dataset.idea)") == list(IDEAS)
    for idea, most in IDEAS.items():
        card = page.locator(f"[data-idea={idea}]")
        assert card.locator("input").count() == 1 and card.locator("input").get_attribute("max") == str(most)
        for at in range(most + 1):
            assert 5 < len(move(page, idea, at).split()) <= 40, (idea, at)
            assert card.locator("rect").count()
    sizes = page.eval_on_selector_all(
        ".ld-idea-words, .ld-idea-slider", "all => all.map(e => parseFloat(getComputedStyle(e).fontSize))"
    )
    assert min(sizes) >= 14
    assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth")
    assert page.locator(".ld-fold[open]").count() == 0, "what is long is folded"
    assert "2402.07721" in page.inner_text(".ld-method-lead") and "another method" in page.inner_text(
        ".ld-method-lead"
    )
    page.focus("[data-idea=holes] input")
    before = page.locator("[data-idea=holes] output").inner_text()
    page.keyboard.press("ArrowLeft")
    assert page.locator("[data-idea=holes] output").inner_text() != before, "the keyboard moves it too"
    open_method(page)
    assert page.locator(".ld-drawing-svg").bounding_box()["width"] <= 375
    assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth")


def test_the_build_up_counts_as_the_schedule_does_and_needs_no_server(server, open_page):
    page = open_page(server.url)
    open_method(page)
    page.context.set_offline(True)
    for at in range(IDEAS["skip"] + 1):
        words = move(page, "skip", at)
        skipped = {"refresh": at, "skipped": at} if at else {}
        assert shapes(page, "skip") == {"runs": 20 - 2 * at} | skipped
        assert not at or (f"skips {at} of 10 layers" in words and f"{10 * at}%" in words)
    holes, repaired = (
        LoraDropConfig(**TOY, kv=kv, refresh=refresh).schedule_for(TOY_LAYERS)
        for kv, refresh in (("skip", "single"), ("write", "repair"))
    )
    for at in range(1, 9):
        words, drawn = move(page, "holes", at), shapes(page, "holes")
        held = holes.kv_length(holes.dropped[0], TOY_PROMPT, at)
        saved = kv_saved(dataclasses.replace(server.loaded.shape, num_layers=TOY_LAYERS), holes, TOY_PROMPT, at)
        assert f"holds {held} tokens, a running one {TOY_PROMPT + at}" in words and f"saves {saved:.0%}" in words
        assert drawn["hole"] == len(holes.dropped) * (TOY_PROMPT + at - held)
        move(page, "repair", at)
        drawn = shapes(page, "repair")
        pending = at % 4  # LoRA steps since the last refresh
        kept_above = sum(i not in repaired.dropped for i in range(repaired.dropped[0], TOY_LAYERS))
        assert drawn.get("hole", 0) == len(repaired.dropped) * pending
        assert drawn.get("approximate", 0) == kept_above * pending
    page.context.set_offline(False)


def cells(page: Page) -> dict[tuple[int, int], dict]:
    found = page.eval_on_selector_all(
        ".ld-drawing-svg .ld-cell",
        "rects => rects.map(r => ({ ...r.dataset, name: r.getAttribute('class'), on: r.matches('.ld-on') }))",
    )
    return {(int(cell["step"]), int(cell["layer"])): cell for cell in found}


@pytest.mark.parametrize(("period", "layers", "ratio"), [(4, (1, 4), 1), (3, (2, 4), 0.5), (1, (1, 4), 1)])
def test_the_drawing_is_the_run_tabs_schedule(server, open_page, period, layers, ratio):
    page = open_page(server.url, reduced_motion="reduce")
    prepare(page, tokens=20, layers=layers, ratio=ratio)
    set_number(page, "ld-period", period)
    expect(page.locator(".ld-whatif [data-figure=refreshes]")).to_have_text("all" if period == 1 else f"1 in {period}")
    open_method(page)
    schedule = LoraDropConfig(period=period, layers=layers, drop_ratio=ratio).schedule_for(6)
    drawn = cells(page)
    steps = 8 if period == 1 else 2 * period
    assert set(drawn) == {(step, layer) for step in range(steps + 1) for layer in range(6)}
    for (step, layer), cell in drawn.items():
        kind = schedule.kind(step)
        assert cell["kind"] == kind
        assert int(cell["active"]) == schedule.active(kind)[layer]
        kept = schedule.is_baseline or layer not in schedule.dropped
        colour = "full" if kept else "dropped" if kind == "lora" else "refresh"
        assert cell["name"].split()[1] == f"ld-cell-{colour}"
    bound = speed_bound(server.loaded.shape, schedule)
    expect(page.locator(".ld-drawing [data-figure=bound]")).to_have_text(f"{bound:.2f}×")


def test_each_step_shows_the_exact_cache(server, open_page):
    page = open_page(server.url, reduced_motion="reduce")
    prepare(page, tokens=20, period=3)
    open_method(page)
    schedule, shape = LoraDropConfig(period=3, layers=(1, 4), drop_ratio=1).schedule_for(6), server.loaded.shape
    itemsize = model_facts(server.loaded)["itemsize"]

    def figure(name: str):
        return page.locator(f".ld-drawing [data-figure={name}]")

    for step in range(7):  # the still picture is the end: the next step is the first
        page.click(".ld-next")
        expect(figure("steps")).to_have_text(f"{step} of 6")
        expect(figure("kept")).to_have_text(f"{PROMPT + step} tokens")
        expect(figure("held")).to_have_text(f"{schedule.kv_length(1, PROMPT, step)} tokens")
        own = kv_bytes(shape, schedule, PROMPT, step, itemsize)
        full = kv_bytes(shape, baseline_schedule(6), PROMPT, step, itemsize)
        expect(figure("kv-full")).to_have_text(human_bytes(full))
        expect(figure("kv")).to_contain_text(human_bytes(own))
        on = {key for key, cell in cells(page).items() if cell["on"]}
        assert on == {(s, layer) for s in range(step + 1) for layer in range(6)}
        links = page.locator(".ld-reuse-links line")
        assert links.count() == (4 if schedule.kind(step) == "lora" else 0)
        if links.count():
            assert links.first.get_attribute("data-from") == str(step // 3 * 3)
            expect(page.locator(".ld-drawing-caption")).to_contain_text("4 of 6 layers are skipped")


def test_it_plays_pauses_and_starts_paused_where_motion_is_unwanted(server, open_page):
    page = open_page(server.url)
    open_method(page)
    play, token = page.locator(".ld-play"), ".ld-travelling"
    expect(play).to_have_text("Pause")
    where = f"document.querySelector('{token}').getAttribute('cy')"
    before = page.evaluate(where)
    page.wait_for_function(f"{where} !== '{before}'")
    page.wait_for_function("document.querySelectorAll('.ld-drawing-svg .ld-on').length > 8")
    play.focus()
    page.keyboard.press("Enter")
    expect(play).to_have_text("Play")
    stopped = page.evaluate(where)
    page.wait_for_timeout(400)
    assert page.evaluate(where) == stopped
    page.keyboard.press("Enter")
    page.wait_for_function(f"{where} !== '{stopped}'")

    still = open_page(server.url, reduced_motion="reduce")
    open_method(still)
    expect(still.locator(".ld-play")).to_have_text("Play")
    drawn = cells(still)
    assert all(cell["on"] for cell in drawn.values()), "the whole schedule, as a still picture"
    stopped = still.evaluate(where)
    still.wait_for_timeout(400)
    assert still.evaluate(where) == stopped
    still.click(".ld-play")  # asked for, it moves
    still.wait_for_function("document.querySelectorAll('.ld-drawing-svg .ld-cell:not(.ld-on)').length > 0")


def test_the_drawing_follows_the_settings_and_knows_the_papers(server, open_page):
    page = open_page(server.url, reduced_motion="reduce")
    prepare(page, tokens=20, period=2)
    open_method(page)
    assert max(step for step, _ in cells(page)) == 4
    expect(page.locator(".ld-rule[data-rule=residual]")).to_have_attribute("data-current", "true")
    page.select_option(".ld-drawing-which", "paper")
    assert max(step for step, _ in cells(page)) == 8
    expect(page.locator(".ld-rule[data-rule=state]")).to_have_attribute("data-current", "true")
    page.select_option(".ld-drawing-which", "page")
    page.get_by_role("tab", name="Run").click()
    set_number(page, "ld-period", 5)
    expect(page.locator(".ld-whatif [data-figure=refreshes]")).to_have_text("1 in 5")
    page.get_by_role("tab", name="Method").click()
    page.wait_for_function("document.querySelectorAll('.ld-drawing-svg .ld-cell').length === 66")
    page.get_by_role("tab", name="Run").click()
    set_text(page, "ld-drop-layers", "half, but no ratio")
    expect(page.locator(".ld-whatif")).to_have_attribute("data-state", "invalid")
    page.get_by_role("tab", name="Method").click()
    expect(page.locator(".ld-drawing-caption")).to_contain_text("The Run tab's settings are invalid")


def test_the_papers_table_is_the_papers_and_says_so(server, open_page):
    page = open_page(server.url, reduced_motion="reduce")
    open_method(page)
    assert "the paper's figures" in page.inner_text(".ld-paper-label")
    assert "second-hand" in page.inner_text(".ld-paper-label")
    assert paper.within_words() in page.inner_text(".ld-paper-label")
    rows = page.locator(".ld-paper tbody tr")
    assert rows.count() == len(paper.ROWS)
    for line, row in zip(rows.all(), paper.ROWS, strict=True):
        texts = line.locator("th, td").all_inner_texts()
        bounds = " / ".join(f"{bound:.2f}×" for bound in row.bounds)
        assert texts[0] == row.model and texts[5:7] == [f"{row.speedup:.2f}×", bounds]
        assert texts[8].split(" / ") == [f"{limit:.0%}" for limit in row.kv_limits]
        assert texts[4] == f"{row.accuracy_change:+.1f}".replace("-", "−")
    assert page.locator(".ld-method a[href='https://arxiv.org/abs/2601.02569']").count() == 1
