"""The presets' table and the comparison buttons in a real Chromium: every figure is the file's."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator

import pytest
import torch
from playwright.sync_api import Page, expect

from lora_drop.adapters import find
from lora_drop.adapters.bank import AdapterBank
from lora_drop.method.cost import Corrections, accepted_share, chance_of, speed_bound
from lora_drop.method.presets import COMPARISONS, PRESETS, UNTRAINED
from lora_drop.method.quality import CRITERION, READS_WELL_LOSS, SLIPS_LOSS
from lora_drop.models.pool import ModelPool
from lora_drop.paths import SHIPPED_SWEEPS
from lora_drop.run.results import calibration
from lora_drop.run.results.files import PRESETS_FILE, SWEEP
from lora_drop.run.results.forecast import forecast_facts
from lora_drop.run.results.preset_results import Measured
from lora_drop.run.trace.trace import gather
from tests.support.page import (
    HOSTILE,
    choose,
    figure,
    open_advanced,
    pane_text,
    prepare,
    press_run,
    set_number,
    set_text,
    wait_done,
    wait_ended,
    wait_still,
)
from tests.support.server import Server, deep_model, serve

pytestmark = [pytest.mark.browser, pytest.mark.full]

BANK_LAYERS, RANK = [4, 7, 10, 13, 16, 18], 32  # some of those that `balanced` skips
# loss, speedup, bound, kv_saved; memory was not measured.
FIGURES = {
    "balanced": (0.15, 1.171, 1.22, 0.006),
    "fast": (0.414, 1.29, 1.333, 0.008),
    "lossless": (0.0, 0.97, 1.09, 0.003),
    "copying": (0.031, 1.06, 1.08, 0.094),
    "paper": (3.2, 1.31, 1.34, 0.279),
}


@pytest.fixture(scope="module")
def shipped(tmp_path_factory) -> Iterator[Server]:
    """The deep model with a shipped bank for residual, block and a file of made-up measurements, its names hostile."""
    folder = tmp_path_factory.mktemp("assets")
    loaded = dataclasses.replace(deep_model(), revision="1" * 16)
    torch.manual_seed(1)
    bank = AdapterBank.new(BANK_LAYERS, loaded.shape.hidden_size, rank=RANK)
    bank.b = {i: torch.randn_like(b) for i, b in bank.b.items()}
    bank.revision, bank.num_layers, bank.meta = loaded.revision, loaded.num_layers, {"tokens": 1_234_567}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(find, "SHIPPED_ADAPTERS", folder / "banks")
        bank.save(folder / "banks" / "ours")
        rows = []
        for name, (loss, speedup, bound, saved) in FIGURES.items():
            config = PRESETS[name].config
            row = {
                **config.to_dict(),
                "preset": name,
                "config": config.to_dict(),
                "adapters": HOSTILE,
                "adapters_fingerprint": find.config_fingerprint(loaded, config),
                "own_all_steps_kl": 9.0,
                "free_regret": loss,
                "free_repeated_4grams": 0.1,
                "free_repeated_4grams_baseline": 0.1,
                "speedup": speedup,
                "bound": bound,
                "kv_saved": saved,
            }
            rows.append(row)
            if row["adapters_fingerprint"]:
                rows.append(row | {"corrections": False, "free_regret": 3 * loss})
        content = {
            "format": PRESETS_FILE.format,
            "version": PRESETS_FILE.version,
            "model": {"id": loaded.id, "revision": loaded.revision, "dtype": "bfloat16"},
            "device": {"name": HOSTILE},
            "data": {"file": f"{HOSTILE}.jsonl", "own": {"prompts": 4321}},
            "date": "2026-01-02T03:04:05+00:00",
            "rows": rows,
        }
        (folder / "banks" / "ours" / PRESETS_FILE.name).write_text(json.dumps(content))
        yield from serve(ModelPool(loaded))


def cells(page: Page, name: str) -> list[str]:
    return page.eval_on_selector_all(f".ld-presets tr[data-preset='{name}'] td", "tds => tds.map(t => t.textContent)")


def checked(page: Page) -> str:
    return page.input_value("#ld-preset input:checked")


def test_the_table_shows_the_files_figures_and_opens_on_the_computed_preset(shipped, open_page):
    page = open_page(shipped.url)
    for name, (loss, _, _, saved) in FIGURES.items():
        verdict = "well" if loss <= READS_WELL_LOSS else "slips" if loss <= SLIPS_LOSS else "badly"
        assert cells(page, name) == [verdict, f"{loss:.2f}", "–", f"{saved:.0%}"], "another processor's speed is none"
    assert cells(page, "memory") == [PRESETS["memory"].note]
    named = page.locator(".ld-presets-list input").evaluate_all("radios => radios.map(radio => radio.value)")
    assert named == [*PRESETS, "custom"]
    expect(page.locator(".ld-presets table")).to_be_hidden()
    page.click(".ld-presets-more summary")
    assert checked(page) == "balanced", "the fastest that reads well"
    expect(page.locator(".ld-whatif [data-figure='refreshes']")).to_have_text("at least 1 in 3")
    about = page.inner_text(".ld-presets-about")
    for words in ("4,321 prompts", f"{HOSTILE}, bfloat16", "2026-01-02", CRITERION, "Speed was not"):
        assert words in about
    assert page.evaluate("!document.querySelector('img[src=x]')")
    open_advanced(page)
    words = page.inner_text(".ld-compare-note")
    for told in ("Corrections ours, rank 32, trained on 1,234,567 tokens.", "0.15 with them, 0.45 without"):
        assert told in words
    for width in (1600, 390):
        page.set_viewport_size({"width": width, "height": 900})
        wait_still(page)
        table, room = (page.locator(where).bounding_box() for where in (".ld-presets table", "#ld-preset"))
        assert table["x"] + table["width"] <= room["x"] + room["width"], "nothing is cut off"


def test_speeds_come_from_this_machine_once_they_were_measured(shipped, open_page, monkeypatch, tmp_path):
    monkeypatch.setattr(calibration, "calibrations", lambda: tmp_path / "kept")
    monkeypatch.setenv("LORA_DROP_CALIBRATE", "1")
    info, rows = shipped.loaded.info(), []
    speeds = {"balanced": (1.21, 1.4), "fast": (0.98, 1.4), calibration.HEAD: (1.08, 1.2)}
    for name, (speedup, bound) in speeds.items():
        config = calibration.settings_here(info)[name][-1]
        fingerprint = find.config_fingerprint(info, config)
        row = {"lane": name, "config": config.differences(), "adapters_fingerprint": fingerprint, "accepted": None}
        rows.append(row | {"speedup": speedup, "speedup_interval": [speedup - 0.01, speedup + 0.01], "bound": bound})
    for server in serve(ModelPool(dataclasses.replace(shipped.loaded))):  # servers are told apart by their model
        page = open_page(server.url)
        expect(page.locator(".ld-presets-about")).to_contain_text("the app does so while nobody runs")
        calibration.write_calibration(info, rows)
        page = open_page(server.url)
        expect(page.locator(".ld-presets-about")).to_contain_text("Speed measured on this machine.")
        short = {name: page.locator(f".ld-presets-list li:has(input[value='{name}'])") for name in FIGURES}
        expect(short["balanced"].locator("small")).to_have_text("reads well, 1.2x")
        expect(short["fast"].locator("small")).to_have_text("slips, no gain here")
        note = f"{PRESETS['fast'].note} {calibration.no_gain_words(rows[1])}"
        expect(short["fast"]).to_have_attribute("title", note)
        expect(short["copying"].locator("small")).to_have_text("reads well, 9% less K/V")
        assert [cells(page, name)[2] for name in ("balanced", "fast", "paper")] == ["1.21×", "0.98×", "–"]
        assert cells(page, calibration.HEAD) == ["well", "–", "1.08×", "–"]
        assert checked(page) == "balanced", "nothing else changes"
        page.click(".ld-presets-more summary")
        table, room = (page.locator(where).bounding_box() for where in (".ld-presets table", "#ld-preset"))
        assert table["x"] + table["width"] <= room["x"] + room["width"], "nothing is cut off"


def test_a_preset_sets_the_controls_and_a_control_makes_it_custom(shipped, open_page):
    page = open_page(shipped.url)
    page.click(".ld-presets-list li:has(input[value='fast'])")  # anywhere on the row
    expect(page.locator("#ld-period input[type=number]")).to_have_value("4")
    expect(page.locator("#ld-drop-ratio input[type=number]")).to_have_value("0.33")
    assert checked(page) == "fast"
    set_number(page, "ld-period", 5)
    expect(page.locator("#ld-preset input[value=custom]")).to_be_checked()
    note = page.locator(".ld-whatif-note")
    expect(note).to_contain_text("Nearest measured setting: Fast (regret 0.41 nats per token).")
    set_number(page, "ld-drop-ratio", 1)
    expect(note).to_contain_text("How these settings read was not measured, nor any near them.")
    page.focus("#ld-preset input[value=custom]")
    page.keyboard.press("ArrowUp")
    open_advanced(page)
    expect(page.locator("#ld-reuse input")).to_have_value("state: last token's output (paper)")
    assert checked(page) == "paper"


def test_the_strips_bound_is_that_of_the_bank_for_the_rule(shipped, open_page):
    page = open_page(shipped.url)
    bound = page.locator(".ld-whatif [data-figure='bound']")
    note = page.locator(".ld-compare-note")
    shape, schedule = shipped.loaded.shape, PRESETS["balanced"].config.schedule_for(30)
    open_advanced(page)
    prompt = int(page.inner_text(".ld-whatif-note").split()[1])

    def expected(rank, corrected, of=schedule):
        return f"{speed_bound(shape, of, 127, prompt, Corrections(rank, corrected)):.2f}×"

    assert expected(RANK, BANK_LAYERS) != expected(0, None), "the difference shows"
    assert expected(RANK, BANK_LAYERS) != expected(RANK, None)
    expect(bound).to_have_text(expected(RANK, BANK_LAYERS))
    choose(page, "ld-adapters", "none")
    expect(bound).to_have_text(expected(0, None))
    expect(note).to_contain_text("The adapters are off")
    assert checked(page) == "custom", "its figures are those with adapters"
    choose(page, "ld-adapters", "auto")
    expect(page.locator("#ld-preset input[value=balanced]")).to_be_checked()
    page.check("#ld-preset input[value=paper]")  # another rule, which has no bank
    expect(bound).to_have_text(expected(0, None, PRESETS["paper"].config.schedule_for(30)))
    expect(note).to_contain_text("no trained corrections for these settings")


def test_the_forecast_is_that_of_the_nearest_measured_setting(shipped, open_page):
    rows = SWEEP.read(SHIPPED_SWEEPS / "sweep.json")["rows"]
    facts = forecast_facts(Measured(), rows, 30)
    page = open_page(shipped.url)
    open_advanced(page)
    prompt = int(page.inner_text(".ld-whatif-note").split()[1])
    page.evaluate(
        """facts => { const { store } = window.LoraDrop;
        store.update({ presets: { ...store.state.presets, forecast: facts } }) }""",
        facts,
    )
    line, note = page.locator(".ld-whatif-line"), page.locator(".ld-whatif-note")
    names = ("reads", "expected", "bound")
    text, expected, bound = (page.locator(f".ld-whatif [data-figure={name}]") for name in names)
    label = "drop ratio 0.54, period 3, chosen layers, accept 0.15"
    row = next(row for row in facts["rows"] if row["label"] == label)
    layers = row["layers"]
    set_text(page, "ld-drop-layers", ",".join(map(str, layers)))
    expect(note).to_contain_text(f"Measured: {row['label']} (regret {row['regret']:.2f} nats per token).")
    expect(text).to_have_text(row["reads"])
    expect(expected).to_have_text(f"{100 * accepted_share(row['chance'], 2):.0f} of 100")
    set_number(page, "ld-period", 16)
    nearest = [r for r in rows if r["drop_layers"] == layers and r["accept"] == 0.15][-1]
    share = accepted_share(chance_of(nearest["accepted"], nearest["period"] - 1), 15)
    config = PRESETS["balanced"].config.replace(drop_layers=tuple(layers), period=16)
    corrections = Corrections(RANK, BANK_LAYERS)
    whole = speed_bound(shipped.loaded.shape, config.schedule_for(30), 127, prompt, corrections)
    expect(expected).to_have_text(f"{100 * share:.0f} of 100")
    expect(bound).to_have_text(f"{whole * (1 + 15 * share) / 16:.2f}×")
    expect(line).to_contain_text("Forecast: slower, as most guesses are rejected; ")
    expect(note).to_contain_text(f"Nearest measured setting: drop ratio 0.54, period {nearest['period']}")
    choose(page, "ld-adapters", "none")
    expect(text).to_have_text("not measured")
    expect(note).to_contain_text("How these settings read was not measured, nor any near them.")
    set_number(page, "ld-accept", 1)
    expect(text).to_have_text("the full model's own")


def test_a_third_lane_changes_exactly_one_setting_and_says_which(shipped, open_page):
    page = open_page(shipped.url)
    open_advanced(page)
    set_number(page, "ld-max-new-tokens", 10)
    page.check("#ld-ignore-eos input")
    button = {name: page.locator(f"[data-compare='{name}']") for name in ("", *COMPARISONS)}
    expect(button["corrections-off"]).to_have_attribute("aria-pressed", "true")  # what the page opens on
    expect(button["residual"]).to_be_hidden()  # the rule is ours already
    shipped.runs.clear()
    traces = {}
    expect(button["screened-head"]).to_be_disabled()  # this bank has no such head
    lanes = ("", "corrections-off", "skip", "state", "bare")
    for count, name in enumerate(lanes, start=1):
        button[name].click()
        press_run(page)
        wait_ended(shipped, count, page)
        wait_done(page)
        traces[name] = gather(shipped.runs[-1])
        expect(page.locator(".ld-pane")).to_have_count(3 if name else 2)
        for other in button:
            expect(button[other]).to_have_attribute("aria-pressed", str(other == name).lower())
        if name:
            assert traces[name].header.lanes[2]["label"] == COMPARISONS[name].lane
            expect(page.locator(".ld-pane[data-lane='2'] h2")).to_have_text(COMPARISONS[name].lane)
            assert pane_text(page, 2) == traces[name].text("third")
        assert figure(page, "agreement") == f"{100 * traces[name].summary.top1_agreement:.1f}%"
    follows = {"dropped", "rank", "corrected", "extras", "bank"}  # from the settings
    for name, trace in traces.items():
        assert trace.token_ids("lora_drop") == traces[""].token_ids("lora_drop"), "the other lanes are as they were"
        if name:
            one, two = (trace.header.lanes[lane]["config"] for lane in (1, 2))
            changed = {key: two[key] for key in one if key not in follows and one[key] != two[key]}
            changes = json.loads(json.dumps(COMPARISONS[name].changes))
            assert changed == {k: v for k, v in changes.items() if one[k] != v}
            assert two["rank"] == 0
    assert checked(page) == "balanced", "the controls are as they were"


def test_where_there_is_nothing_to_compare_the_page_says_why(server, open_page):
    page = open_page(server.url)
    open_advanced(page)
    expect(page.locator(".ld-presets-about")).to_contain_text(
        "Quality: not measured on this model. Speed was not measured"
    )
    assert checked(page) == "balanced"
    assert [cells(page, name) for name in PRESETS] == [[f"{preset.note} {UNTRAINED}"] for preset in PRESETS.values()]
    note = page.locator(".ld-compare-note")
    off, skip = page.locator("[data-compare='corrections-off']"), page.locator("[data-compare='skip']")
    set_number(page, "ld-period", 1)
    expect(note).to_contain_text("Nothing is skipped")
    expect(off).to_be_disabled()
    expect(skip).to_be_disabled()
    prepare(page, tokens=8)
    expect(note).to_contain_text("no trained corrections")
    expect(off).to_be_disabled()
    expect(skip).to_be_enabled()
    choose(page, "ld-reuse", "skip: nothing")
    expect(skip).to_be_disabled()
    expect(page.locator("[data-compare='state']")).to_be_enabled()
