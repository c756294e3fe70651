"""No accessibility finding by axe in the page's states and themes; charts as tables, answers as sentences."""

import dataclasses
import itertools

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Page, expect

from lora_drop.method.config import LoraDropConfig
from lora_drop.run.request import Request
from lora_drop.run.run import run
from lora_drop.run.trace.records import StepRecord
from lora_drop.run.trace.trace import gather
from tests.support.page import open_rest, prepare, run_to_end, wait_still

pytestmark = [pytest.mark.browser, pytest.mark.full]

# What axe does not look at, and why.
EXCLUDED = {
    ".ld-later": "tokens after the scrubber's step are veiled on purpose: they are not there yet",
    ".ld-later-line": "the same, of whole lines",
    "footer img": "Gradio's own pictures beside its own links, which repeat the links' words",
}
SPOKEN = """() => {
    window.spoken = [];
    new MutationObserver((changes) => {
        for (const { addedNodes } of changes) for (const node of addedNodes) window.spoken.push(node.textContent);
    }).observe(document.querySelector(".ld-spoken"), { childList: true });
}"""

OPTIONS = {"resultTypes": ["violations"]}


def findings(page: Page, within: str = "body") -> list[str]:
    """All violations, of whatever weight: the rule and where."""
    context = {"include": [[within]], "exclude": [[where] for where in EXCLUDED]}
    result = Axe().run(page, context=context, options=OPTIONS).response
    return [
        f"{rule['id']} ({rule['impact']}): {node['target']} {node.get('failureSummary', '').splitlines()[-1:]}"
        for rule in result["violations"]
        for node in rule["nodes"]
    ]


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_no_finding_in_any_state(server, open_page, theme):
    page = open_page(server.url, viewport={"width": 1600, "height": 1400})
    if theme == "dark":
        page.evaluate("document.body.classList.add('dark')")
        wait_still(page)  # Gradio's buttons fade from one colour to the other
    found = {"empty": findings(page)}
    prepare(page, tokens=24)
    page.click("[data-compare='skip']")
    run_to_end(page)
    page.evaluate("document.querySelector('.ld-menu').open = true")
    found["after a run"] = findings(page)
    page.click(".ld-pane[data-lane='1'] .ld-token[data-step='5']")
    found["scrubbed"] = findings(page)
    for tab in ("Safe zone", "Method"):
        page.get_by_role("tab", name=tab).click()
        wait_still(page)
        found[tab] = findings(page)
    page.get_by_role("tab", name="Run").click()
    page.keyboard.press("t")
    found["talk"] = findings(page)
    told = [f"{state}: {finding}" for state, all_of_it in found.items() for finding in all_of_it]
    assert not told, "\n".join(told)


def table_of(page: Page, figure: str) -> list[list[str]]:
    """Unfold the table of a figure and read its cells."""
    page.click(f"{figure} .ld-figure-table summary")
    page.wait_for_selector(f"{figure} .ld-table tbody tr")
    cells = "rows => rows.map(row => [...row.cells].map(cell => cell.textContent))"
    return page.eval_on_selector_all(f"{figure} .ld-table tr", cells)


def test_every_chart_has_a_table_of_the_trace(server, open_page):
    page = open_page(server.url)
    prepare(page, tokens=24)
    assert page.locator(".ld-live .ld-table").count() == 0
    run_to_end(page)
    open_rest(page)
    trace = gather(server.runs[-1])
    own, audits = trace.steps["lora_drop"], trace.audits["lora_drop"]
    charts = page.eval_on_selector_all("[data-chart]", "all => all.map(one => one.dataset.chart)")
    assert len(charts) == 6
    tables = {name: table_of(page, f"[data-chart={name}]")[1:] for name in charts}
    skipped = [", ".join(str(layer) for layer, ran in enumerate(step.active) if not ran) or "none" for step in own]
    assert [row[3] for row in tables["activity"]] == skipped
    means = {step: sum(audit.drift) / len(audit.drift) for step, audit in audits.items()}
    assert {int(row[0]): row[2] for row in tables["drift"]} == {step: f"{mean:.3f}" for step, mean in means.items()}
    assert [float(row[2]) for row in tables["kv"]] == pytest.approx([s.kv_bytes / 1024 for s in own], abs=0.006)
    by_layer = {int(row[0]): [float(cell) for cell in row[1:]] for row in tables["drift-map"][1:]}
    assert by_layer == {step: pytest.approx(audit.drift, abs=6e-4) for step, audit in audits.items()}
    assert [float(row[2]) for row in tables["time"]] == pytest.approx([step.ms for step in own[1:]], abs=0.011)
    kl = {step: (f"{audit.kl:.3f}", "–" if audit.agrees else "another one") for step, audit in audits.items()}
    assert {int(row[0]): tuple(row[1:]) for row in tables["kl"]} == kl
    race = table_of(page, ".ld-race")[1:]
    assert [(row[0], row[2]) for row in race] == [("Baseline", "24"), ("LoRA-Drop", "24")]
    decode = [lane["decode_ms"] for lane in trace.summary.lanes.values()]
    assert [float(row[3].removesuffix(" ms")) for row in race] == pytest.approx(decode, abs=0.6)
    run_to_end(page)
    assert page.locator(".ld-live .ld-table").count() == 0, "another run folds them"


@pytest.mark.parametrize("motion", ["no-preference", "reduce"])
def test_answers_are_announced_by_sentences_each_once(server, open_page, motion):
    texts = {
        "baseline": ["The sky is blue. ", "It is not 3.5 m", " away! ", "Or", " so."],
        "lora_drop": ["The sky is blue. ", "It was", " once. ", "1. Or", " not"],
    }

    def script():
        records = list(run(server.loaded, Request("Why?", LoraDropConfig(), 5, ignore_eos=True)))
        for one in records:
            yield dataclasses.replace(one, text=texts[one.lane][one.step]) if isinstance(one, StepRecord) else one

    server.script = script
    page = open_page(server.url, reduced_motion=motion)
    page.evaluate(SPOKEN)
    run_to_end(page)
    said = page.evaluate("window.spoken")
    assert said.count("Baseline: The sky is blue.") + said.count("LoRA-Drop: The sky is blue.") == 1
    assert sorted(said) == sorted(
        [
            *(said[0], "Baseline: It is not 3.5 m away!", "Baseline: Or so."),
            *("LoRA-Drop: It was once.", "LoRA-Drop: 1. Or not"),
        ]
    )
    expect(page.locator(".ld-status").first).to_have_text("Finished: 5 tokens in each answer.")
    outputs = page.eval_on_selector_all("output", "all => all.map(one => one.getAttribute('aria-live'))")
    assert outputs[0] == "off", "the scrubber's words change with every token"


STOP = """() => {
    const node = document.activeElement;
    if (!node || node === document.body) return null;
    const folded = node.closest("details:not([open])");
    const { top, bottom, width, height } = node.getBoundingClientRect();
    return {
        name: node.id || node.dataset.act || node.className || node.textContent.slice(0, 40),
        isFolded: Boolean(folded && node !== folded.querySelector("summary")),
        isSeen: width > 0 && height > 0 && node.checkVisibility({ visibilityProperty: true }),
        top: top + window.scrollY, bottom: bottom + window.scrollY,
    };
}"""


def stops(page: Page) -> list[dict]:
    """Every place where Tab stops, from the first one on, till it leaves the page."""
    page.evaluate("document.activeElement?.blur(); window.scrollTo(0, 0)")
    found = []
    for _ in range(120):
        page.keyboard.press("Tab")
        stop = page.evaluate(STOP)
        if stop is None or (found and stop["name"] == found[0]["name"] and abs(stop["top"] - found[0]["top"]) < 1):
            return found
        found.append(stop)
    raise AssertionError("Tab goes on and on")


def test_the_keyboard_goes_down_the_page_and_never_into_what_is_closed(server, open_page):
    """On a phone, where all stands in one column."""
    page = open_page(server.url, viewport={"width": 375, "height": 800})
    before = stops(page)
    prepare(page, tokens=8)
    page.click("#ld-advanced button")  # folded again
    run_to_end(page)
    after = stops(page)
    for found in (before, after):
        assert [stop["name"] for stop in found if stop["isFolded"] or not stop["isSeen"]] == []
        bad = [(one, two) for one, two in itertools.pairwise(found) if two["bottom"] < one["top"]]
        assert bad == [], "the next stop is above the one before"
    assert len(after) - len(before) < 25, "a run brings its scrubber and tables, not its words"
