"""The settings, the what-if strip, and what wrong ones show."""

import dataclasses
import random

import pytest
from playwright.sync_api import expect

from lora_drop.errors import LoraDropError
from lora_drop.method.config import LoraDropConfig
from lora_drop.method.cost import Corrections, ModelShape, accepted_share, kv_bytes, kv_saved, speed_bound
from lora_drop.method.schedule import Schedule, dropped_layers
from lora_drop.run.request import prompt_ids_of
from tests.support.page import open_advanced, requests_of, set_number, set_range, set_text, verify_nothing, wait_still

pytestmark = [pytest.mark.browser, pytest.mark.full]


def test_sliders_redraw_the_what_if_strip_with_no_request(server, open_page):
    page = open_page(server.url)
    verify_nothing(page)
    wait_still(page)
    requests = requests_of(page)
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
    expect(page.locator(".ld-whatif-note")).to_contain_text("nothing is skipped")
    set_text(page, "ld-drop-layers", "0,2")
    expect(page.locator(".ld-whatif-note")).to_contain_text("layer 0 always runs")
    set_text(page, "ld-drop-layers", "")

    page.check("#ld-preset input[value=paper]")
    expect(page.locator(".ld-whatif [data-figure='refreshes']")).to_have_text("1 in 4")
    expect(value).to_have_text("3 – 4")
    expect(page.locator("#ld-preset input[value=paper]")).to_be_checked()
    assert [url for url in requests if url.startswith("http")] == []


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
        part_size=rng.choice([1, 0.53125]),
        code_size=rng.choice([0.5625, 0.28125]),
        layer_sizes=rng.choice([(), tuple(tuple(rng.choices([0.28125, 0.53125], k=3)) for _ in range(layers))]),
    )
    lo = rng.randint(1, layers - 1)
    hi = rng.randint(lo, layers - 1)
    ratio = rng.choice([0, 0.25, 0.5, 0.75, 1, round(rng.random(), 2)])
    period, refresh = rng.randint(1, 16), rng.choice(["single", "repair"])
    divisors = [every for every in range(2, period + 1) if period % every == 0]
    schedule = Schedule(
        period,
        layers,
        dropped_layers(lo, hi, ratio),
        rng.choice(["state", "anchor", "residual", "skip"]),
        rng.choice(["block", "attention"]),
        rng.choice(["skip", "write"]),
        refresh_position=rng.choice([None, *divisors]) if refresh == "single" else None,
        refresh=refresh,
        head=rng.choice(["full", "screened"]),
        lookup=rng.choice([0, 0, 4]),
    )
    case = {
        "extras": {
            "head_rank": rng.choice([0, 32]),
            "head_best": rng.choice([1, 512]),
            "code_size": rng.choice([0.28125, 0.5625]),
        },
        "lo": lo,
        "hi": hi,
        "ratio": ratio,
        "prompt": rng.randint(0, 2000),
        "steps": rng.choice([None, 0, 1, rng.randint(2, 90)]),
        "chance": rng.random(),
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
            const schedule = { ...s, numLayers: s.num_layers, corrected: c.corrected, extras: c.extras };
            const steps = c.steps ?? 7;
            return {
                dropped: S.droppedLayers(c.lo, c.hi, c.ratio),
                bound: S.speedBound(shape, schedule, c.steps, c.prompt, c.rank),
                kv: S.kvBytes(shape, schedule, c.prompt, steps, 2),
                saved: S.kvSaved(shape, schedule, c.prompt, steps),
                verified: S.verifiedBound(1.5, s.period + 1, S.acceptedShare(c.chance, s.period)),
                kinds: Array.from({ length: 20 }, (_, i) => S.kind(schedule, i, c.prompt)),
                refreshes: Array.from({ length: 20 }, (_, i) => S.refreshesOf(schedule, c.prompt, i)),
                early: Array.from({ length: 39 }, (_, i) => {
                    const refreshes = c.happened.filter((step) => step <= i + 1).length;
                    const lastRefresh = c.happened.findLast((step) => step <= i + 1) ?? 0;
                    return S.kvTokens(schedule, c.prompt, i + 1, refreshes, lastRefresh);
                }),
            };
        })""",
        cases,
    )
    for (shape, schedule, case), got in zip(cases, results, strict=True):
        shape, schedule = ModelShape(**shape), Schedule(**schedule)
        corrections = Corrections(case["rank"], case["corrected"], **case["extras"])
        steps = 7 if case["steps"] is None else case["steps"]
        assert tuple(got["dropped"]) == schedule.dropped
        assert got["bound"] == pytest.approx(
            speed_bound(shape, schedule, case["steps"], case["prompt"], corrections), rel=1e-12
        )
        assert got["kv"] == kv_bytes(shape, schedule, case["prompt"], steps, 2)
        assert got["saved"] == pytest.approx(kv_saved(shape, schedule, case["prompt"], steps), rel=1e-12, abs=1e-12)
        accepted = accepted_share(case["chance"], schedule.period)
        assert got["verified"] == pytest.approx(
            1.5 * (1 + accepted * schedule.period) / (schedule.period + 1), rel=1e-12
        )
        assert got["kinds"] == [schedule.kind(step, case["prompt"]) for step in range(20)]
        assert got["refreshes"] == [schedule.refreshes(case["prompt"], step) for step in range(20)]
        happened = case["happened"]
        for step, held in enumerate(got["early"], start=1):
            now = {"refreshes": sum(s <= step for s in happened)}
            now["last_refresh"] = max((s for s in happened if s <= step), default=0)
            entries = shape.kv_per_token * held
            assert entries == kv_bytes(shape, schedule, case["prompt"], step, 1, **now)
    halves = {0.5: 0, 1.5: 2, 2.5: 2, 6.5: 6, 3.7: 4, -0.5: 0}
    assert page.evaluate("xs => xs.map(window.LoraDrop.schedule.roundHalfEven)", list(halves)) == list(halves.values())


def test_what_the_config_refuses_the_strip_says_in_its_words(server, open_page):
    page = open_page(server.url)
    open_advanced(page)
    note, bound = page.locator(".ld-whatif-note"), page.locator(".ld-whatif [data-figure='bound']")
    set_number(page, "ld-accept", 0.25)
    for name, value in (("refresh", "repair"), ("kv", "write")):  # what verifying needs is set too
        expect(page.locator(f"#ld-{name} input[value={value}]")).to_be_checked()
    rules = {"accept": 0.25, "kv": "write"}
    # No slider goes so far, a link does.
    store = "window.LoraDrop.store"
    far = f"{store}.update({{ settings: {{ ...{store}.state.settings, period: 65, accept: 0 }} }})"
    for change, act in (
        ({"refresh": "single"}, lambda: page.check("#ld-refresh input[value=single]")),
        ({"kv": "skip"}, lambda: page.check("#ld-kv input[value=skip]")),
        ({"refresh": "repair"}, lambda: page.check("#ld-refresh input[value=repair]")),
        ({"period": 65, "accept": 0}, lambda: page.evaluate(far)),
    ):
        act()
        rules |= change
        with pytest.raises(LoraDropError) as refused:
            LoraDropConfig(**rules)
        expect(note).to_have_text(str(refused.value))
        expect(bound).to_have_text("–")
    set_range(page, 1, 4)
    set_number(page, "ld-drop-ratio", 1)
    set_number(page, "ld-accept", 0)
    set_number(page, "ld-period", 3)
    page.check("#ld-kv input[value=write]")
    set_number(page, "ld-accept", 0.25)
    expect(note).to_contain_text("Rejected drafts")


def test_refreshes_by_position_follow_the_prompts_length(server, open_page):
    page = open_page(server.url)
    verify_nothing(page)
    set_range(page, 1, 4)
    set_number(page, "ld-drop-ratio", 1)
    set_number(page, "ld-period", 3)
    set_text(page, "ld-refresh-position", 2)
    with pytest.raises(LoraDropError) as refused:
        LoraDropConfig(period=3, refresh_position=2)
    expect(page.locator(".ld-whatif-note")).to_have_text(str(refused.value))
    set_number(page, "ld-period", 8)
    set_text(page, "ld-refresh-position", 4)
    refreshes = page.locator(".ld-whatif [data-figure='refreshes']")
    schedule, counts = LoraDropConfig(8, (1, 4), 1.0, refresh_position=4).schedule_for(6), set()
    for prompt in ("Hi", "Hi!", "Hi!!", "Hi!!!"):
        page.fill("#ld-prompt textarea", prompt)
        tokens = len(prompt_ids_of(server.loaded, prompt, {}))
        page.wait_for_function(f"window.LoraDrop.store.state.promptTokens === {tokens}")
        expect(refreshes).to_have_text(f"{schedule.refreshes(tokens, 8)} in 8")
        counts.add(refreshes.inner_text())
    assert counts == {"2 in 8", "3 in 8"}


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
