"""What the tests in a browser do on the page: set, press, wait, read."""

import time
from collections.abc import Callable
from pathlib import Path

from playwright.sync_api import Page, expect

from lora_drop.method.config import LoraDropConfig
from lora_drop.run.trace.records import Summary

HOSTILE = "`${alert(1)}<img src=x onerror=alert(2)>{{7*7}}\\u0041"
CONFIG = LoraDropConfig(period=4, layers=(1, 4), drop_ratio=1.0)  # what `prepare` sets


def set_number(page: Page, name: str, value: object) -> None:
    field = page.locator(f"#{name} input[type=number]")
    field.fill(str(value))
    field.press("Tab")


def set_text(page: Page, name: str, value: object) -> None:
    page.fill(f"#{name} textarea, #{name} input", str(value))


def choose(page: Page, name: str, label: str) -> None:
    """An entry of a menu."""
    page.click(f"#{name} input")
    page.get_by_role("option", name=label, exact=True).click()


def set_range(page: Page, low: int, high: int) -> None:
    """Both handles, as a pointer would: `input`, then `change`."""
    for name, value in (("hi", high), ("lo", low)):
        page.locator(f".ld-range-{name}").evaluate(
            "(e, v) => { e.value = v; e.dispatchEvent(new Event('input')); e.dispatchEvent(new Event('change')); }",
            value,
        )


def open_advanced(page: Page) -> None:
    """Unfold the further settings; nothing if they are."""
    if page.is_visible("#ld-seed input"):
        return
    page.click("#ld-advanced button")
    page.wait_for_selector("#ld-seed input", state="visible")
    wait_still(page)  # Gradio mounts what is inside only now


def verify_nothing(page: Page) -> None:
    """The preset whose tokens all stand and whose skipped layers save K/V, but with the default rule."""
    page.check("#ld-preset input[value=paper]")
    open_advanced(page)
    choose(page, "ld-reuse", "residual: what the layer added at the last refresh")


def prepare(page: Page, tokens: int, period: int = 4, layers: tuple[int, int] = (1, 4), ratio: float = 1) -> None:
    """Settings that drop something on the model, and an end that the model does not choose."""
    verify_nothing(page)
    set_number(page, "ld-max-new-tokens", tokens)
    set_number(page, "ld-period", period)
    set_range(page, *layers)
    set_number(page, "ld-drop-ratio", ratio)
    page.check("#ld-ignore-eos input")
    expect(page.locator(".ld-whatif-note")).to_contain_text(f"{tokens:,} new tokens")


def figure(page: Page, name: str, lane: int | None = None) -> str:
    """A figure's text; those of the whole run are folded."""
    where = ".ld-summary" if lane is None else f".ld-pane[data-lane='{lane}']"
    return page.text_content(f"{where} [data-figure='{name}']")


def scrub(page: Page, step: int) -> None:
    page.locator(".ld-scrub").evaluate("(e, v) => { e.value = v; e.dispatchEvent(new Event('input')) }", step)


def open_rest(page: Page) -> None:
    """Unfold the charts and figures that are not in view at first."""
    page.evaluate("document.querySelector('.ld-rest').open = true")


def wait_done(page: Page, timeout: float = 60_000) -> None:
    """Until the run has ended; what is still to be played is skipped."""
    page.wait_for_selector(".ld-live[data-state='playing'], .ld-live[data-state='done']", timeout=timeout)
    page.evaluate("document.querySelector('.ld-live[data-state=playing] [data-act=skip]')?.click()")
    page.wait_for_selector(".ld-live[data-state='done']", timeout=timeout)
    expect(page.locator(".ld-status")).to_have_attribute("data-kind", "done", timeout=timeout)


# Frames are drawn when the page has time for them, so this waits longer on a busy machine and hardly on an idle one.
STILL = """() => new Promise(done => {
    const drawn = t => [t.y && t.y.length, t.z && t.z.map(row => row.length), t.line];
    const state = () => JSON.stringify([
        document.querySelectorAll('*').length,
        [...document.querySelectorAll('.ld-plot')].map(plot => (plot.data || []).map(drawn)),
    ]);
    const ends = a => a.playState === 'running' && a.effect.getComputedTiming().endTime !== Infinity;
    let before = null, same = 0;
    const look = () => {
        const now = state();
        same = now === before && !document.getAnimations().some(ends) ? same + 1 : 0;
        before = now;
        if (same >= 15) done();
        else requestAnimationFrame(look);
    };
    look();
})"""


def wait_still(page: Page) -> None:
    """Until nothing has been added, drawn into a chart or faded for 15 frames: the charts follow the text."""
    page.evaluate(STILL)


def requests_of(page: Page) -> list[str]:
    """Addresses that the page requests from now on."""
    urls: list[str] = []
    page.on("request", lambda request: urls.append(request.url))
    return urls


def pane_text(page: Page, lane: int) -> str:
    return page.eval_on_selector_all(
        f".ld-pane[data-lane='{lane}'] .ld-token", "spans => spans.map(s => s.textContent).join('')"
    )


def press_run(page: Page) -> None:
    """Press the one button, and wait until its run is what is shown: the one before may be there for a while."""
    shown = "document.querySelector('.ld-live').dataset.run"
    before = page.evaluate(shown)
    page.click("#ld-run")
    page.wait_for_function(f"before => {shown} !== before", arg=before, timeout=60_000)


def run_to_end(page: Page) -> None:
    """Press the one button, and wait until the run has ended and its charts are drawn."""
    press_run(page)
    wait_done(page)
    wait_still(page)


def prepare_and_run(page: Page, tokens: int) -> None:
    prepare(page, tokens)
    run_to_end(page)


def open_menu(page: Page) -> None:
    """Unfold the Export menu."""
    page.evaluate("document.querySelector('.ld-menu').open = true")


def save(page: Page, kind: str, folder: Path) -> Path:
    """Click a button of the Export menu and keep what the browser downloads."""
    open_menu(page)
    with page.expect_download(timeout=60_000) as download:
        page.click(f"[data-save={kind}]")
    target = folder / download.value.suggested_filename
    download.value.save_as(target)
    return target


def link_of(page: Page) -> str:
    """The link to the run on the page."""
    return page.evaluate("window.LoraDrop.linkOf(document.querySelector('.ld-live').loraDropRun)")


def wait_until(condition: Callable[[], bool], what: str, seconds: float = 60, page: Page | None = None) -> None:
    """Poll a condition of this process. `page`: one whose requests have to be let through meanwhile."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, f"not within {seconds} s: {what}"
        page.wait_for_timeout(50) if page else time.sleep(0.05)


def wait_ended(server, runs: int, page: Page | None = None) -> None:
    """Until so many runs have begun and the last one has its summary."""

    def ended() -> bool:
        return len(server.runs) == runs and bool(server.runs[-1]) and isinstance(server.runs[-1][-1], Summary)

    wait_until(ended, f"run {runs} ended", page=page)
