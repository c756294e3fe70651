"""Pinned runs, kept over a reload, and the guess which answer is LoRA-Drop's."""

import pytest
from playwright.sync_api import expect

from lora_drop.run.report.align import side_by_side
from lora_drop.run.trace.trace import gather
from tests.support.page import pane_text, prepare, run_to_end, set_number

pytestmark = [pytest.mark.browser, pytest.mark.full]


def run_again(page, period: int) -> None:
    set_number(page, "ld-period", period)
    run_to_end(page)
    page.get_by_role("button", name="Pin this run").click()


def check_words(page, one: str, other: str) -> None:
    """The two answers stand side by side as `run.align` has them: what is not struck is the second, and so on."""
    found = side_by_side(one, other)
    expect(page.locator(".ld-diff-said")).to_have_text(found["text"])
    shown = page.eval_on_selector_all(".ld-diff-text > *", "all => all.map(n => [n.tagName, n.textContent])")
    told = [[("SPAN", a)] if kind == "same" else [("DEL", a), ("INS", b)] for kind, a, b in found["pieces"]]
    assert [tuple(one) for one in shown] == [one for piece in told for one in piece if one[1]]


def test_five_pinned_runs_stay_over_a_reload_and_are_compared(server, open_page):
    page = open_page(server.url)
    prepare(page, tokens=12)
    for period in (2, 3, 4, 5, 6):
        run_again(page, period)
    expect(page.locator(".ld-pins summary")).to_have_text("Pinned runs (5)")
    page.reload()
    page.wait_for_selector(".ld-whatif[data-state]", timeout=60_000)
    page.click(".ld-pins summary")
    table = page.locator(".ld-pins-table")
    expect(table.locator("th[scope=col]")).to_have_count(5, timeout=30_000)
    speeds = table.locator("tr", has_text="Speed of this run").locator("td").all_text_contents()
    for text, records in zip(speeds, server.runs[:5], strict=True):
        assert text.startswith(f"{records[-1].speedup:.2f}x"), "a run's own speed, also where it is noisy"
    row = table.locator("tr", has=page.locator("th[scope=row]", has_text="period"))
    assert row.locator("td").all_text_contents() == ["2", "3", "4", "5", "6"]
    assert table.locator("th[scope=row]", has_text="seed").count() == 0  # the same in all
    expect(page.locator(".ld-pins-chart")).to_have_count(2)
    assert page.locator(".ld-pins-chart").first.locator("path[d^='M']").count() == 5
    check_words(page, gather(server.runs[0]).text("lora_drop"), gather(server.runs[4]).text("lora_drop"))
    page.get_by_label("Second answer").select_option(label="2. Baseline")
    check_words(page, gather(server.runs[0]).text("lora_drop"), gather(server.runs[1]).text("baseline"))
    page.get_by_role("button", name="Unpin run 1").click()
    expect(table.locator("th[scope=col]")).to_have_count(4)


def test_a_pin_whose_run_is_gone_says_so(server, open_page):
    page = open_page(server.url)
    pins = '[{"id": "gone", "prompt": "<img src=x onerror=alert(1)>"}, 7]'
    page.evaluate("pins => localStorage.setItem('lora-drop-pins', pins)", pins)
    page.reload()
    page.wait_for_selector(".ld-whatif[data-state]", timeout=60_000)
    page.click(".ld-pins summary")
    expect(page.locator(".ld-pins-note")).to_contain_text('"<img')
    page.get_by_role("button", name="Unpin the lost runs").click()
    expect(page.locator(".ld-pins summary")).to_have_text("Pinned runs (0)")


def test_the_vote_comes_before_any_name_or_figure_of_the_run_is_visible(server, open_page):
    page = open_page(server.url)
    prepare(page, tokens=12)
    page.get_by_role("button", name="Which one is LoRA-Drop?").click()
    vote = page.locator(".ld-blind")
    expect(vote).to_contain_text("The names stay hidden until you vote.")
    page.click("#ld-run")
    expect(vote.locator(".ld-blind-text")).to_have_count(2, timeout=60_000)
    assert page.locator(".ld-live > :not(.ld-blind)").evaluate_all("all => all.every(one => !one.checkVisibility())")
    expect(page.locator(".ld-status")).to_be_hidden()  # it has each answer's length
    texts = vote.locator(".ld-blind-text").all_text_contents()
    ours = [pane_text(page, lane) for lane in (0, 1)]
    assert sorted(texts) == sorted(ours)
    assert "Baseline" not in vote.inner_text() and "LoRA-Drop:" not in vote.inner_text()
    vote.get_by_role("button", name="A is LoRA-Drop").click()
    right = texts[0] == ours[1]
    expect(vote.locator("[role=status]")).to_contain_text("Right." if right else "No: it was the other one.")
    expect(vote.locator("h3").nth(0 if right else 1)).to_contain_text("LoRA-Drop")
    for part in (".ld-panes", ".ld-race", ".ld-status"):
        expect(page.locator(part)).to_be_visible()
    run_to_end(page)  # the next run hides nothing
    expect(vote).to_be_hidden()
