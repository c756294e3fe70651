"""What a stranger can send to another visitor's page: a link, a trace, a file's name. In a real Chromium."""

import json
import random
from urllib.parse import quote

import pytest
from playwright.sync_api import expect

from lora_drop.errors import LoraDropError
from lora_drop.run.exports.html import wire_text
from lora_drop.run.exports.templates import TEMPLATES
from lora_drop.run.trace.trace import parse_trace
from lora_drop.run.wire import wire_line
from lora_drop.ui import components
from lora_drop.ui.controls import SHOWN, linked
from tests.support.fuzzing import CORPUS, HOSTILE, SEED, TRIED, budget, mutated_lines
from tests.support.page import pane_text, prepare, prepare_and_run, run_to_end, wait_done, wait_still

pytestmark = [pytest.mark.browser, pytest.mark.full]

GOOD, BAD = ((CORPUS / "links" / f"{name}.txt").read_text().splitlines() for name in ("good", "bad"))
NAMES = ("prompt", *(one.name for one in linked(SHOWN)), "texts", "model", "talk", "__proto__", "constructor")
WORDS = (
    *HOSTILE,
    *("1", "4", "0.5", "1-4", "2,4", "true", "false", "auto", "none", "race", "residual", "block", "skip", "toString"),
    *("1e5", "1e-7", "-1", ".5", "5.", "+1", "1_0", "０", "Infinity", "null", "undefined", "[object Object]", "1-4-5"),
    *("baseline:0123456789ab", "valueOf:0123456789ab.lora_drop:0123456789ab"),
)

# The page's own module, with an address of our own in place of the browser's: many links in one page. For each link:
# what is wrong with the values that it gives the controls, and the kind of the status line.
READ_LINKS = """async ([module, links, run, table]) => {
  const { compareWithLink, linkOf, readLink } = await import(new URL(module, document.baseURI));
  return links.map((query) => {
    const search = new URL("http://127.0.0.1/?" + query).search;
    try {
        const { values, link } = readLink(search, [], table);
        const status = values.pop();
        const wrong = [];
        if (values.length !== table.length + 2) wrong.push(`${values.length} values`);
        for (const value of values) {
            const isRange = Array.isArray(value) && value.length === 2 && value.every(Number.isInteger);
            const isPlain = ["string", "boolean"].includes(typeof value) || Number.isFinite(value);
            const isUnchanged = value?.__type__ === "update" && Object.keys(value).length === 1;
            if (!(isRange || isPlain || isUnchanged)) wrong.push(`${typeof value} ${String(value)}`);
        }
        const words = status.text?.replace(/“[^]*?”/g, "") ?? ""; // parameters that no setting has are named in quotes
        if (status.__type__ !== "update" && /[<\\n]|undefined|object/.test(words)) wrong.push(status.text);
        const note = compareWithLink(link, run, table)?.text ?? "";
        if (note.length > 300 || /[<]|undefined|function|object/.test(note)) wrong.push(note);
        if (new URL(linkOf(run, table, "http://127.0.0.1/")).search.length > 4000) wrong.push("a long link");
        if ({}.polluted !== undefined) wrong.push("polluted");
        return [status.kind ?? "", wrong.join("; ")];
    } catch (error) {
        return ["", `threw ${error}`];
    }
  });
}"""


def a_run() -> dict:
    """The header and the summary of a run, as the page's script has them."""
    trace = parse_trace((CORPUS / "traces" / "good_three_lanes.jsonl").read_bytes())
    ids = list(trace.steps)
    return {"header": json.loads(wire_line(trace.header, ids)), "summary": json.loads(wire_line(trace.summary, ids))}


def mutated_link(rng: random.Random) -> str:
    """A link of known and unknown parameters with likely and unlikely values; sometimes with a bite out of it."""
    some = [rng.choice([*NAMES, rng.choice(HOSTILE)]) for _ in range(rng.choice([1, 1, 2, 5, 19]))]
    pairs = [(name, rng.choice(WORDS)) for name in some]
    text = "&".join(f"{quote(name.encode('utf-8', 'replace'))}={written(value, rng)}" for name, value in pairs)
    if rng.random() < 0.3 or not text:
        text = rng.choice([*GOOD, *BAD])
        at = rng.randrange(len(text) + 1)
        text = (
            text[:at]
            + rng.choice(["%", "&", "=", "+", "%00", "%E2%80", ";", "#", "\\", "é"])
            + text[at + rng.randrange(3) :]
        )
    return text


def written(value: str, rng: random.Random) -> str:
    raw = value.encode("utf-8", "replace").decode()
    return raw if rng.random() < 0.1 else quote(raw)


def test_any_link_sets_plain_values_or_says_what_it_cannot(server, open_page):
    page = open_page(server.url)
    module, run = f"{components.address()}/export/link.js", a_run()

    def read(links: list[str]) -> list[tuple[str, str]]:
        TRIED["links"] += len(links)
        found = page.evaluate(READ_LINKS, [module, links, run, [one.facts for one in linked(SHOWN)]])
        assert [(link, wrong) for link, (_, wrong) in zip(links, found, strict=True) if wrong] == []
        return found

    assert [(link, kind) for link, (kind, _) in zip(GOOD, read(GOOD), strict=True) if kind != "idle"] == []
    assert [(link, kind) for link, (kind, _) in zip(BAD, read(BAD), strict=True) if kind != "error"] == []
    rng = random.Random(SEED)
    for _ in range(budget(4)):
        read([mutated_link(rng) for _ in range(500)])


def test_a_hostile_link_in_the_address_is_text_and_runs(server, open_page):
    prompt = "</textarea><script>alert(1)</script>${alert(2)}{{7*7}}<|im_end|>" + " long" * 30 + "\u2028\x1b"
    bad = "layers=1-9999&audit=constructor&reuse=__proto__&period=1e9"
    query = f"prompt={quote(prompt)}&max_new_tokens=6&ignore_eos=true&{bad}"
    page = open_page(server.url)
    fresh = page.input_value("#ld-period input[type=number]")
    page = open_page(f"{server.url}?{query}")
    expect(page.locator(".ld-status")).to_contain_text("period, reuse, audit")
    assert page.input_value("#ld-period input[type=number]") == fresh
    expect(page.locator("#ld-prompt textarea")).to_have_value(prompt)
    page.click("#ld-run")
    expect(page.locator(".ld-status")).to_contain_text("layers")  # a range beyond the model is the run's to report
    expect(page.locator(".ld-status")).to_have_attribute("data-kind", "error")
    assert page.locator("#ld-page :is(script, img, iframe)").count() == 0
    prepare_and_run(page, 6)
    assert server.runs[-1][0].prompt.startswith(prompt[:-2])


# Mount a live view of our own and give it one recorded run after another. For each: what it threw, what it let in.
SHOW_RUNS = """async ([template, texts]) => {
    const element = document.createElement("div");
    element.innerHTML = template;
    document.body.append(element);
    const props = { value: "" };
    let changed;
    window.LoraDrop.mountLive(element, props, (name, call) => (changed = call));
    const found = [];
    const thrown = [];
    const note = (event) => thrown.push(String(event.error ?? event.reason));
    window.addEventListener("error", note);
    window.addEventListener("unhandledrejection", note);
    for (const text of texts) {
        thrown.length = 0;
        props.value = text;
        const began = performance.now();
        try {
            changed();
        } catch (error) {
            thrown.push(String(error));
        }
        for (let frame = 0; frame < 6; frame++) await new Promise(requestAnimationFrame);
        for (const token of [...element.querySelectorAll(".ld-token")].slice(0, 3)) token.click();
        const inside = element.querySelectorAll("script, img, iframe, object, embed, a[href^=javascript]").length;
        found.push([thrown.join("; "), inside, performance.now() - began]);
    }
    element.remove();
    return found;
}"""


def test_any_trace_that_reads_is_shown_as_text(server, open_page):
    """The corpus and mutations of it, as far as the reader takes them: nothing throws, nothing becomes an element."""
    files = sorted((CORPUS / "traces").glob("good_*.jsonl"))
    raws = [path.read_bytes() for path in files]
    rng = random.Random(SEED)
    tried = [*raws, *(mutated_lines(rng.choice(raws), rng, raws) for _ in range(budget(120)))]
    texts = []
    for raw in tried:
        try:
            texts.append(wire_text(parse_trace(raw)))
        except LoraDropError:
            continue
    TRIED["traces on the page"] += len(texts)
    assert len(texts) > len(files)
    page = open_page(server.url)
    found = page.evaluate(SHOW_RUNS, [(TEMPLATES / "live.html").read_text(encoding="utf-8"), texts])
    for text, (thrown, inside, took) in zip(texts, found, strict=True):
        assert (thrown, inside) == ("", 0), text
        assert took < 10_000, text


def test_a_file_of_markup_is_opened_as_text(server, open_page, tmp_path):
    """Also the file's own name."""
    page = open_page(server.url)
    path = tmp_path / "<img src=x onerror=alert(3)>${alert(4)}.jsonl"
    raw = (CORPUS / "traces" / "good_markup_everywhere.jsonl").read_bytes()
    path.write_bytes(raw)
    page.set_input_files("input[type=file]", path)
    wait_done(page)
    expect(page.locator(".ld-status")).to_contain_text("Opened")
    assert pane_text(page, 0) == parse_trace(raw).text("lora_drop")
    assert page.locator("#ld-page :is(script, img)").count() == 0


def test_bad_input_in_any_field_is_one_line_and_the_next_run_is_right(server, open_page):
    page = open_page(server.url)
    prepare(page, tokens=6)
    height = page.locator("#ld-ask").bounding_box()["height"]
    # Each line quotes its word, so the error of the word before does not pass for it. 400 nines are infinite.
    free = {"${alert(1)}<img src=x onerror=alert(2)>": "got '${alert(1)}", "9" * 400: "got inf", "NaN": "got nan"}
    listed = {word: f"got '{word[:20]}" for word in (*free, "1,,2")} | {"2,99": "this model's layers are 0-5"}
    fields = {"ld-drop-layers": listed, "ld-refresh-entropy": free | {"1,,2": "got '1,,2'"}}
    fields |= {"ld-prompt": {"   ": "the prompt is empty", "x" * 5000: "context"}}
    fields |= {"ld-max-new-tokens": {"0": "max_new_tokens"}, "ld-temperature": {"-1": "temperature"}}
    for field, bad in fields.items():
        entry = page.locator(f"#{field} :is(textarea, input)").first
        before = entry.input_value()
        for word, line in bad.items():
            TRIED["fields"] += 1
            entry.fill(word)
            entry.press("Tab")
            wait_still(page)  # a press in the same moment, on a busy machine, goes without the word
            page.click("#ld-run")
            expect(page.locator(".ld-status")).to_contain_text(line)
            expect(page.locator(".ld-status")).to_have_attribute("data-kind", "error")
        entry.fill(before)
        entry.press("Tab")
    assert page.locator("#ld-ask").bounding_box()["height"] == height, "the page jumped"
    wait_still(page)
    run_to_end(page)
