"""What the page costs its reader and the decode: `python tests/browser/measure.py`, the tables of docs/page.md.

The real app on the bundled model and a real Chromium, both on this machine. First a visit on a desktop and on a phone:
bytes until the page is idle and when a tab is opened, layout shift, blocked time, axe's findings (`--visit` stops
there). Then runs of 400 and 3,000 steps: tokens a second by each lane's clock, wall time, click to first token, long
tasks, frames a second, bytes on the wire. Then a drag of a slider to the redrawn strip, a scrub, and the tab's memory
after ten runs. With `--engine` the runs of 400 steps also on the command line and through the app into a client that
draws nothing (docs/performance.md). For reading: no test asserts a time.
"""

import argparse
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from gradio_client import Client
from playwright.sync_api import Browser, CDPSession, Page, sync_playwright

from scripts.space_check import free_port
from tests.browser.conftest import FLAGS, chromium
from tests.browser.test_accessible import findings
from tests.browser.visit import Visit, streamed_bytes
from tests.support.page import open_advanced, set_number, wait_still

PROMPT = "Explain why the sky is blue."
LANES = ("baseline", "lora_drop")
WINDOWS = ((1600, 900), (375, 800))

WATCH = """() => {
    const seen = (window.measured = { longTasks: [], frames: 0, first: null, clicked: performance.now() });
    if (!window.watching) {
        new PerformanceObserver((list) => {
            for (const entry of list.getEntries()) window.measured.longTasks.push(Math.round(entry.duration));
        }).observe({ type: "longtask" });
        const count = () => { window.measured.frames += 1; requestAnimationFrame(count); };
        requestAnimationFrame(count);
        document.querySelector("#ld-run").addEventListener("click", () => {
            window.measured.clicked = performance.now();
        }, true);
        new MutationObserver(() => {
            const { measured } = window;
            if (measured.first === null && document.querySelector(".ld-live[data-state=running] .ld-token"))
                measured.first = performance.now() - measured.clicked;
        }).observe(document.querySelector(".ld-panes"), { childList: true, subtree: true });
        window.watching = true;
    }
}"""
DRAG = """async (count) => {
    const slider = document.querySelector("#ld-period input[type=range]");
    const shown = document.querySelector(".ld-whatif [data-figure=refreshes]");
    const times = [];
    for (let i = 0; i < count; i++) {
        const before = shown.textContent, started = performance.now();
        slider.value = 3 + (i % 9);
        slider.dispatchEvent(new Event("input", { bubbles: true }));
        while (shown.textContent === before && performance.now() - started < 1000)
            await new Promise((done) => setTimeout(done, 0));
        times.push(performance.now() - started);
    }
    return times;
}"""
SCRUB = """async (count) => {
    const scrub = document.querySelector(".ld-scrub"), times = [];
    for (let i = 0; i < count; i++) {
        const started = performance.now();
        scrub.value = Math.floor((Number(scrub.max) * ((i * 7) % count)) / count);
        scrub.dispatchEvent(new Event("input"));
        await new Promise((done) => requestAnimationFrame(() => setTimeout(done, 0)));
        times.push(performance.now() - started);
    }
    return times;
}"""


@contextmanager
def app() -> Iterator[str]:
    """The app in a process of its own; yields its address."""
    port = free_port()
    process = subprocess.Popen([sys.executable, "app.py", "--port", str(port)], stdout=subprocess.PIPE, text=True)
    try:
        process.stdout.readline()  # "ready"
        yield f"http://127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait()


def row(where: str, steps: int, audit: bool, speeds: dict[str, float]) -> dict[str, str]:
    head = {"where": where, "steps": f"{steps:,}{'' if audit else ', no audit'}"}
    return head | {f"{lane}, tokens/s": f"{speeds[lane]:.1f}" for lane in LANES}


def engine(steps: int, audit: bool) -> dict[str, str]:
    """A run on the command line."""
    command = [sys.executable, "-m", "lora_drop", "run", "--prompt", PROMPT, "--max-new-tokens", str(steps + 1)]
    command += ["--period", "4", "--ignore-eos", "--json", *([] if audit else ["--no-audit"])]
    result = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    return row("engine", steps, audit, {lane: result[lane]["tokens_per_second"] for lane in LANES})


def client(address: str, steps: int, audit: bool) -> dict[str, str]:
    """The same run through the app's `/generate`, read by a client that draws nothing."""
    settings = {"prompt": PROMPT, "period": 4, "drop_ratio": 0.5, "ignore_eos": True, "api_name": "/generate"}
    reader = Client(address, verbose=False)
    *_, trace = reader.submit(max_new_tokens=steps + 1, audit=audit, **settings)
    lanes = json.loads(trace.strip().splitlines()[-1])["lanes"]
    return row("client that draws nothing", steps, audit, {lane: lanes[lane]["tokens_per_second"] for lane in LANES})


def run(page: Page, received: list[int], steps: int, audit: bool = True) -> dict[str, str]:
    """One run of `steps` decode steps in the page, and what it cost."""
    set_number(page, "ld-max-new-tokens", steps + 1)
    page.set_checked("#ld-audit input", audit)
    page.wait_for_timeout(1500)
    received.clear()
    page.evaluate(WATCH)
    started = time.monotonic()
    page.click("#ld-run")
    page.wait_for_selector(".ld-live[data-state='running']", timeout=60_000)
    page.wait_for_selector(".ld-live:is([data-state='playing'], [data-state='done'])", timeout=600_000)
    wall = time.monotonic() - started
    measured = page.evaluate("window.measured")
    tasks = measured["longTasks"]
    speeds = page.locator(".ld-pane [data-figure='speed']").all_text_contents()
    return {
        **row("page", steps, audit, {lane: float(text) for lane, text in zip(LANES, speeds, strict=False)}),
        "wall, s": f"{wall:.1f}",
        "click to first token, ms": f"{measured['first']:.0f}",
        "long tasks": f"{len(tasks)} (longest {max(tasks, default=0)} ms)",
        "frames a second": f"{measured['frames'] / wall:.0f}",
        "bytes a step": f"{sum(received) / steps:.0f}",
        "updates": str(len(received)),
        "bytes an update": f"{statistics.median(received):.0f}",
    }


def visit(browser: Browser, address: str, width: int, height: int) -> dict[str, str]:
    """A first visit: the page loads, a run is pressed for, the other tabs are opened."""
    page = browser.new_page(viewport={"width": width, "height": height})
    seen = Visit(page)
    page.goto(address)
    page.wait_for_selector(".ld-pane", timeout=60_000)
    seen.wait_idle()
    costs = {"window": f"{width} x {height}"}
    for name in ("gradio", "plotly", "ours"):
        costs[f"{name}, kB"] = f"{seen.bytes[name] / 1000:,.0f}"
    costs["blocked while it loads, ms"] = f"{seen.blocked:.0f}"
    costs["layout shift"] = f"{seen.shift:.3f}"
    page.click("#ld-run")
    page.wait_for_selector(".ld-live[data-state='done']", timeout=120_000)
    wait_still(page)
    costs["with a run"] = f"{seen.shift:.3f}"
    violations = findings(page)
    seen.wait_idle()  # the run's own stream is closed and counted
    for name in ("Safe zone", "Method"):
        before = sum(seen.bytes.values())
        page.get_by_role("tab", name=name).click()
        seen.wait_idle()
        costs[f"{name} opened, kB"] = f"{(sum(seen.bytes.values()) - before) / 1000:,.1f}"
        violations += findings(page)
    costs["axe"] = str(len(violations))
    page.close()
    return costs


def memory(cdp: CDPSession) -> float:
    """MB of JavaScript that is still held after a collection."""
    cdp.send("HeapProfiler.collectGarbage")
    return cdp.send("Runtime.getHeapUsage")["usedSize"] / 1e6


def print_table(rows: list[dict[str, str]]) -> None:
    lines = ["| " + " | ".join(rows[0]) + " |", "|" + "---|" * len(rows[0])]
    print("\n".join(lines + ["| " + " | ".join(one.values()) + " |" for one in rows]), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", default="400,3000", help="lengths of the runs, with commas")
    parser.add_argument("--repeats", type=int, default=10, help="short runs between the two looks at the memory")
    parser.add_argument("--visit", action="store_true", help="the visits alone")
    parser.add_argument("--engine", action="store_true", help="compare with the command line and a bare client")
    args = parser.parse_args()
    with app() as address, sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=chromium(), headless=True, args=FLAGS)
        print_table([visit(browser, address, *size) for size in WINDOWS])
        if args.visit:
            return
        page = browser.new_page(viewport={"width": 1600, "height": 900})
        received = streamed_bytes(page)
        page.goto(address)
        page.wait_for_selector(".ld-whatif[data-state]", timeout=30_000)
        open_advanced(page)
        page.check("#ld-ignore-eos input")
        set_number(page, "ld-period", 4)
        set_number(page, "ld-drop-ratio", 0.5)
        run(page, received, 32)  # warm-up
        kinds = [(int(steps), audit) for steps in args.steps.split(",") for audit in (True, False)]
        print_table([run(page, received, *kind) for kind in kinds])
        for name, script in (("slider drag to redrawn strip", DRAG), ("scrub after the last run", SCRUB)):
            times = page.evaluate(script, 20)
            print(f"{name}: median {statistics.median(times):.0f} ms, longest {max(times):.0f} ms", flush=True)
        page.select_option(".ld-rate", "1")
        run(page, received, 128)
        cdp = page.context.new_cdp_session(page)
        before = memory(cdp)
        for _ in range(args.repeats):
            run(page, received, 128)
        print(f"heap after one run of 128 steps {before:.1f} MB, after {args.repeats} more {memory(cdp):.1f} MB")
        browser.close()
        if args.engine:
            print_table([client(address, *kind) for kind in kinds[:2]])
    if args.engine:
        print_table([engine(*kind) for kind in kinds[:2]])


if __name__ == "__main__":
    main()
