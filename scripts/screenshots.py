"""Take the pictures of the README and of Spaces.md: `python -m scripts.screenshots [--out FOLDER]`.

Each is the real page in a real Chromium after a real run on the bundled model: most show the recorded run, since
Chromium takes the time of a small machine's cores from a run beside it. It needs what `make test` installs:
playwright, and a Chromium: playwright's, or that of CHROMIUM.
"""

from __future__ import annotations

import argparse
import os
import shutil
import socket
import subprocess
import sys
from contextlib import closing
from pathlib import Path
from typing import Any

from playwright.sync_api import Browser, Page, ViewportSize, sync_playwright

from lora_drop.paths import SHIPPED_RECORDED
from lora_drop.run.trace.records import BASELINE
from lora_drop.run.trace.trace import read_trace

ROOT = Path(__file__).resolve().parents[1]
DESKTOP, PHONE = ViewportSize(width=1600, height=900), ViewportSize(width=390, height=844)
READY_MS, RUN_MS, SETTLE_MS = 60_000, 120_000, 1200


def opened(browser: Browser, url: str, size: ViewportSize, theme: str = "light") -> Page:
    """Open the page in a theme, ready to run."""
    page = browser.new_page(viewport=size)
    tokens = len(read_trace(SHIPPED_RECORDED).steps[BASELINE])  # so that the recorded run has the page's settings
    page.goto(f"{url}?__theme={theme}&max_new_tokens={tokens}")
    page.wait_for_selector(".ld-whatif[data-state]", timeout=READY_MS)
    page.wait_for_timeout(SETTLE_MS)
    return page


def run(page: Page) -> None:
    """Press Run on the preset that the page opens on, without a third lane, and wait for the end."""
    page.click("#ld-advanced button")
    page.click("[data-compare='']")
    page.click("#ld-advanced button")
    page.wait_for_timeout(SETTLE_MS)
    page.click("#ld-run")
    page.wait_for_selector(".ld-live[data-state='running']", timeout=RUN_MS)
    page.wait_for_selector(".ld-live:is([data-state='playing'], [data-state='done'])", timeout=RUN_MS)
    page.evaluate("document.querySelector('.ld-live[data-state=playing] [data-act=skip]')?.click()")
    page.wait_for_selector(".ld-live[data-state='done']", timeout=RUN_MS)
    page.mouse.move(700, 4)
    page.wait_for_timeout(SETTLE_MS)


def open_recorded(page: Page) -> None:
    """Open the trace of the recorded run, and go to its end."""
    page.set_input_files("input[type=file]", SHIPPED_RECORDED)
    page.wait_for_selector(".ld-live[data-state='done']", timeout=RUN_MS)
    page.wait_for_timeout(SETTLE_MS)


def scrub(page: Page, step: int) -> None:
    """Move the scrubber to a step."""
    page.locator(".ld-scrub").evaluate("(e, v) => { e.value = v; e.dispatchEvent(new Event('input')) }", step)
    page.wait_for_timeout(SETTLE_MS)


def take(browser: Browser, url: str, out: Path) -> None:
    """Take all pictures, by name, into a folder."""

    def keep(page: Page, name: str, **options: Any) -> None:
        page.screenshot(path=out / f"{name}.png", **options)
        print(out / f"{name}.png", flush=True)

    page = opened(browser, url, DESKTOP)
    keep(page, "empty")
    open_recorded(page)
    keep(page, "page")
    scrub(page, 40)
    keep(page, "three-lanes")
    page.keyboard.press("Escape")
    page.evaluate("document.querySelector('.ld-charts').scrollIntoView()")
    page.wait_for_timeout(SETTLE_MS)
    keep(page, "charts")
    page.evaluate("window.scrollTo(0, 0)")
    page.keyboard.press("t")
    page.wait_for_timeout(SETTLE_MS)
    keep(page, "talk")
    page.keyboard.press("t")
    page.evaluate("document.querySelector('.ld-menu').open = true")
    with page.expect_download() as download:
        page.click("[data-save=png]")
    download.value.save_as(out / "figure.png")
    for tab, name in (("Safe zone", "safe-zone"), ("Method", "method")):
        page.get_by_role("tab", name=tab).click()
        page.wait_for_timeout(2 * SETTLE_MS)
        keep(page, name)
    page.close()
    page = opened(browser, url, DESKTOP, "dark")
    run(page)
    keep(page, "page-dark")
    page.close()
    page = opened(browser, url, PHONE)
    run(page)
    keep(page, "phone")
    page.close()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=ROOT / "assets" / "screenshots")
    out = parser.parse_args().out
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        sys.exit(f"screenshots: cannot make the folder {out}: {error.strerror or error}.")
    chromium = os.environ.get("CHROMIUM") or next(
        filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None
    )
    with closing(socket.socket()) as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
    app = subprocess.Popen(
        [sys.executable, "app.py", "--port", str(port)], cwd=ROOT, stdout=subprocess.PIPE, text=True
    )
    try:
        if not (app.stdout and app.stdout.readline()):
            sys.exit("screenshots: the app did not start; see its message above.")
        with sync_playwright() as driver:
            browser = driver.chromium.launch(
                executable_path=chromium, headless=True, args=["--no-sandbox", "--disable-gpu"]
            )
            take(browser, f"http://127.0.0.1:{port}", out)
            browser.close()
    except OSError as error:
        sys.exit(f"screenshots: cannot write to {out}: {error.strerror or error}.")
    finally:
        app.terminate()
        app.wait()


if __name__ == "__main__":
    main()
