"""Pictures, files, links and opened traces: what leaves the page and what comes into it, in a real Chromium."""

import json
from urllib.parse import parse_qs, urlencode, urlsplit
from xml.etree import ElementTree

import pytest
from PIL import Image
from playwright.sync_api import expect

from lora_drop.run.report.speed import speedup_words
from lora_drop.run.request import Request
from lora_drop.run.run import run
from lora_drop.run.trace.records import write_line
from lora_drop.run.trace.trace import gather, parse_trace
from tests.support.page import (
    CONFIG,
    HOSTILE,
    figure,
    link_of,
    open_advanced,
    open_menu,
    pane_text,
    prepare,
    prepare_and_run,
    run_to_end,
    save,
    set_number,
    set_text,
    wait_done,
)

pytestmark = [pytest.mark.browser, pytest.mark.full]

NAMES = {
    "png": "lora-drop-whole.png",
    "svg": "lora-drop-whole.svg",
    "html": "lora-drop-run.html",
    "trace": "lora-drop-run.jsonl",
    "chrome": "lora-drop-run.chrome.json",
}


def test_every_file_is_the_run(server, open_page, open_replay, tmp_path):
    page = open_page(server.url)
    prepare_and_run(page, 24)
    records = server.runs[-1]
    files = {kind: save(page, kind, tmp_path) for kind in NAMES}
    assert {kind: path.name for kind, path in files.items()} == NAMES
    assert files["trace"].read_text() == "".join(map(write_line, records)), "to the letter what the run wrote"
    events = json.loads(files["chrome"].read_text())["traceEvents"]
    assert sum(event["ph"] == "X" for event in events) == 48
    assert Image.open(files["png"]).size == (3200, 1800)
    ElementTree.parse(files["svg"])
    open_menu(page)
    page.select_option(".ld-picture", "kl")  # a chart below the first screen, which nobody has seen yet
    chart = ElementTree.parse(save(page, "svg", tmp_path))
    assert "KL and agreement" in "".join(chart.getroot().itertext())

    assert pane_text(open_replay(files["html"]), 1) == gather(records).text("lora_drop")


def test_before_a_run_and_without_the_server_there_is_one_clear_line(server, open_page, tmp_path):
    page = open_page(server.url, leaves=True)
    note = page.locator(".ld-menu-note")
    for kind in (*NAMES, "link", "film"):
        open_menu(page)
        page.click(f"[data-save={kind}]")
        expect(note).to_contain_text("start one first")
    prepare_and_run(page, 12)
    page.evaluate("document.querySelector('.ld-live').loraDropRun.id = 'f'.repeat(32)")  # 64 other runs came since
    open_menu(page)
    page.click("[data-save=trace]")
    expect(note).to_contain_text("no longer keeps this run")
    assert save(page, "png", tmp_path).stat().st_size > 10_000, "pictures need no server"


def test_a_link_restores_every_setting_and_says_whether_it_reproduces(server, open_page):
    page = open_page(server.url)
    prepare(page, tokens=20, period=3)
    page.fill("#ld-prompt textarea", "Why? & how = #1 <b>")
    page.click("[data-compare=skip]")
    set_text(page, "ld-refresh-entropy", 9.5)
    page.uncheck("#ld-audit input")
    run_to_end(page)
    link = link_of(page)
    query = parse_qs(urlsplit(link).query, keep_blank_values=True)
    assert query["prompt"] == ["Why? & how = #1 <b>"] and query["compare"] == ["skip"] and query["period"] == ["3"]

    other = open_page(link)
    expect(other.locator("#ld-prompt textarea")).to_have_value("Why? & how = #1 <b>")
    expect(other.locator(".ld-status")).to_contain_text("Settings restored from the link")
    expect(other.locator("#ld-period input[type=number]")).to_have_value("3")
    expect(other.locator(".ld-range-value")).to_have_text("1 – 4")
    other.click("#ld-run")
    wait_done(other)
    expect(other.locator(".ld-link-note")).to_have_attribute("data-state", "reproduced")
    one, two = server.runs[-2][0], server.runs[-1][0]
    assert one.sampling == two.sampling and one.lanes == two.lanes and one.prompt == two.prompt
    assert link_of(other) == link

    # Another period is another run; another text of the same settings differs.
    set_number(other, "ld-period", 2)
    other.click("#ld-run")
    expect(other.locator(".ld-link-note[data-state=other]")).to_contain_text("period", timeout=20_000)
    wrong = link.replace(query["texts"][0].split("lora_drop%3A")[-1].split(":")[-1], "0" * 12)
    assert wrong != link
    third = open_page(wrong)
    third.click("#ld-run")
    expect(third.locator(".ld-link-note[data-state=differs]")).to_contain_text("third", timeout=20_000)


def test_a_trace_file_opens_as_the_run_that_it_was(server, open_page, tmp_path):
    # In lock-step, so that every lane has some of a cut trace's lines.
    wanted = Request("Hello", CONFIG, 40, ignore_eos=True, compare="skip", view="lock-step")
    lines = list(map(write_line, run(server.loaded, wanted)))
    whole, cut = tmp_path / "whole.jsonl", tmp_path / "cut.jsonl"
    whole.write_text("".join(lines))
    cut.write_text("".join(lines[:50]) + lines[50][:30])
    page = open_page(server.url)
    page.set_input_files("input[type=file]", whole)
    expect(page.locator(".ld-status")).to_contain_text("whole.jsonl: 40 tokens")
    trace = parse_trace(whole.read_bytes())
    assert [pane_text(page, lane) for lane in range(3)] == [trace.text(n) for n in ("baseline", "lora_drop", "third")]
    words = speedup_words(trace.summary.speedup, trace.summary.speedup_interval)
    assert figure(page, "speedup") == (words or f"{trace.summary.speedup:.2f}×")
    again = parse_trace(save(page, "trace", tmp_path).read_bytes())
    assert sorted(map(write_line, again.records())) == sorted(lines)
    page.set_input_files("input[type=file]", cut)
    expect(page.locator(".ld-status")).to_contain_text("It was cut short")
    assert pane_text(page, 1) == parse_trace(cut.read_bytes()).text("lora_drop")
    page.evaluate('document.querySelector(\'.ld-pane[data-lane="1"] .ld-token[data-step="5"]\').click()')
    expect(page.locator(".ld-scrub-words")).to_contain_text("step 5 of")


def test_a_file_that_is_no_trace_is_one_line_and_the_run_on_the_page_stays(server, open_page, tmp_path):
    page = open_page(server.url)
    prepare_and_run(page, 12)
    before = pane_text(page, 1)
    header = json.loads(write_line(server.runs[-1][0]))
    bad = {
        "markup": (f"<html>{HOSTILE}</html>\n" * 3, "not a line of a LoRA-Drop trace"),
        "version": (json.dumps(header | {"version": 7}) + "\n", "version 7 of the format"),
        "empty": ("", "holds no header"),
        "numbers": (json.dumps(header) + '\n{"type":"step","lane":"baseline","step":1000000000}\n{}\n', "line 2"),
    }
    for name, (text, words) in bad.items():
        path = tmp_path / f"{name}.jsonl"
        path.write_text(text)
        page.set_input_files("input[type=file]", path)
        expect(page.locator(".ld-status")).to_contain_text(words)
        expect(page.locator(".ld-status")).to_have_attribute("data-kind", "error")
        assert pane_text(page, 1) == before
    assert page.evaluate("!document.querySelector('img[src=x]')")


def test_going_offline_in_the_middle_keeps_what_came(slow_server, open_page, tmp_path):
    page = open_page(slow_server.url, leaves=True)
    prepare(page, tokens=2000)
    page.click("#ld-run")
    page.wait_for_function("document.querySelectorAll('.ld-pane[data-lane=\"1\"] .ld-token').length > 8")
    page.context.set_offline(True)
    assert save(page, "png", tmp_path).stat().st_size > 10_000
    assert page.locator(".ld-pane[data-lane='1'] .ld-token").count() > 8


def test_the_first_setting_of_a_link_survives_the_mount_of_advanced(server, open_page):
    page = open_page(f"{server.url}?{urlencode({'max_new_tokens': '17', 'temperature': '0.5', 'seed': '3'})}")
    open_advanced(page)
    expect(page.locator("#ld-max-new-tokens input")).to_have_value("17")
    page.check("#ld-ignore-eos input")
    run_to_end(page)
    header = server.runs[-1][0]
    assert (header.sampling["max_new_tokens"], header.sampling["temperature"], header.seed) == (17, 0.5, 3)


def test_a_file_too_large_to_be_a_trace_is_refused_in_words(server, open_page, tmp_path):
    with (tmp_path / "huge.jsonl").open("wb") as file:
        file.truncate(70 * 2**20)
    page = open_page(server.url)
    page.set_input_files("input[type=file]", tmp_path / "huge.jsonl")
    expect(page.locator(".toast-text, .toast-body").first).to_contain_text("maximum allowed size of 64.0 Mb")
    prepare_and_run(page, 8)
