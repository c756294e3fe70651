"""What the page costs its reader: `python tests/browser/measure_page.py`, the table of docs/page.md.

The real app on the bundled model and a real Chromium, both on this machine. First a visit on a desktop and on a phone:
bytes until the page is idle and when a tab is opened, layout shift, blocked time, axe's findings (`--visit` stops
there). Then long tasks, bytes on the wire, frames a second while 400 and 3,000 steps stream, click to first token, a
drag of a slider to the redrawn strip, a scrub, and the tab's memory after ten runs. For reading: no test asserts a
time.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from playwright.sync_api import Browser, CDPSession, Page, sync_playwright  # noqa: E402

from scripts.space_check import free_port  # noqa: E402
from tests.browser.conftest import FLAGS, chromium  # noqa: E402
from tests.browser.test_accessible import findings  # noqa: E402
from tests.browser.visit import Visit  # noqa: E402
from tests.support.page import wait_still  # noqa: E402

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


def set_number(page: Page, name: str, value: object) -> None:
    page.fill(f"#{name} input[type=number]", str(value))
    page.press(f"#{name} input[type=number]", "Tab")


def run(page: Page, received: list[int], steps: int, audit: bool = True) -> dict:
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
    return {
        "steps": f"{steps:,}{'' if audit else ', no audit'}",
        "wall, s": f"{wall:.1f}",
        "click to first token, ms": f"{measured['first']:.0f}",
        "long tasks": f"{len(tasks)} (longest {max(tasks, default=0)} ms)",
        "frames a second": f"{measured['frames'] / wall:.0f}",
        "bytes a step": f"{sum(received) / steps:.0f}",
        "updates": str(len(received)),
        "bytes an update": f"{statistics.median(received):.0f}",
    }


def visit(browser: Browser, address: str, width: int, height: int) -> dict:
    """A first visit: the page loads, a run is pressed for, the other tabs are opened."""
    page = browser.new_page(viewport={"width": width, "height": height})
    seen = Visit(page)
    page.goto(address)
    page.wait_for_selector(".ld-pane", timeout=60_000)
    seen.wait_idle()
    row = {"window": f"{width} x {height}"}
    for name in ("gradio", "plotly", "ours"):
        row[f"{name}, kB"] = f"{seen.bytes[name] / 1000:,.0f}"
    row["blocked while it loads, ms"] = f"{seen.blocked:.0f}"
    row["layout shift"] = f"{seen.shift:.3f}"
    page.click("#ld-run")
    page.wait_for_selector(".ld-live[data-state='done']", timeout=120_000)
    wait_still(page)
    row["with a run"] = f"{seen.shift:.3f}"
    found = findings(page)
    seen.wait_idle()  # the run's own stream is closed and counted
    for name in ("Safe zone", "Method"):
        before = sum(seen.bytes.values())
        page.get_by_role("tab", name=name).click()
        seen.wait_idle()
        row[f"{name} opened, kB"] = f"{(sum(seen.bytes.values()) - before) / 1000:,.1f}"
        found += findings(page)
    row["axe"] = str(len(found))
    page.close()
    return row


def memory(cdp: CDPSession) -> float:
    """MB of JavaScript that is still held after a collection."""
    cdp.send("HeapProfiler.collectGarbage")
    return cdp.send("Runtime.getHeapUsage")["usedSize"] / 1e6


def table(rows: list[dict]) -> str:
    lines = ["| " + " | ".join(rows[0]) + " |", "|" + "---|" * len(rows[0])]
    return "\n".join(lines + ["| " + " | ".join(row.values()) + " |" for row in rows])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", default="400,3000", help="lengths of the runs, with commas")
    parser.add_argument("--repeats", type=int, default=10, help="short runs between the two looks at the memory")
    parser.add_argument("--visit", action="store_true", help="the visits alone")
    args = parser.parse_args()
    port = free_port()
    app = subprocess.Popen([sys.executable, "app.py", "--port", str(port)], stdout=subprocess.PIPE, text=True)
    try:
        app.stdout.readline()  # "ready"
        with sync_playwright() as driver:
            browser = driver.chromium.launch(executable_path=chromium(), headless=True, args=FLAGS)
            print(table([visit(browser, f"http://127.0.0.1:{port}", *size) for size in WINDOWS]), flush=True)
            if args.visit:
                return
            page = browser.new_page(viewport={"width": 1600, "height": 900})
            cdp = page.context.new_cdp_session(page)
            cdp.send("Network.enable")
            streams: set[str] = set()
            received: list[int] = []
            cdp.on(
                "Network.requestWillBeSent",
                lambda e: streams.add(e["requestId"]) if "queue/data" in e["request"]["url"] else None,
            )
            cdp.on(
                "Network.dataReceived",
                lambda e: received.append(e["dataLength"]) if e["requestId"] in streams else None,
            )
            page.goto(f"http://127.0.0.1:{port}")
            page.wait_for_selector(".ld-whatif[data-state]", timeout=30_000)
            page.click("#ld-advanced button")
            page.wait_for_selector("#ld-seed input", state="visible")
            page.wait_for_timeout(1000)
            page.check("#ld-ignore-eos input")
            set_number(page, "ld-period", 4)
            set_number(page, "ld-drop-ratio", 0.5)
            run(page, received, 32)  # warm-up
            kinds = [(int(steps), audit) for steps in args.steps.split(",") for audit in (True, False)]
            rows = [run(page, received, *kind) for kind in kinds]
            print(table(rows), flush=True)
            for name, script in (("slider drag to redrawn strip", DRAG), ("scrub after the last run", SCRUB)):
                times = page.evaluate(script, 20)
                print(f"{name}: median {statistics.median(times):.0f} ms, longest {max(times):.0f} ms", flush=True)
            page.select_option(".ld-rate", "1")
            run(page, received, 128)
            before = memory(cdp)
            for _ in range(args.repeats):
                run(page, received, 128)
            print(f"heap after one run of 128 steps {before:.1f} MB, after {args.repeats} more {memory(cdp):.1f} MB")
            browser.close()
    finally:
        app.terminate()
        app.wait()


if __name__ == "__main__":
    main()
