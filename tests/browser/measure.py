"""Does the page slow the decode? `python tests/browser/measure.py`: the app with a browser beside the bare engine.

The same prompt and settings on the bundled model: on the command line, through the app into a client that draws
nothing, and in the page, streaming into a real Chromium with its charts live. Prints each lane's tokens a second by
its own clock, the wall time of the page's run, the time from the click to the first token on the screen, and the
page's long tasks. For reading; no test asserts a time.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from gradio_client import Client  # noqa: E402
from playwright.sync_api import sync_playwright  # noqa: E402

from scripts.space_check import free_port  # noqa: E402
from tests.browser.conftest import FLAGS, chromium  # noqa: E402

PROMPT = "Explain why the sky is blue."
WATCH = """() => {
    window.measured = { longTasks: [], first: null };
    new PerformanceObserver((list) => {
        for (const entry of list.getEntries()) window.measured.longTasks.push(Math.round(entry.duration));
    }).observe({ type: "longtask" });
    const clicked = () => (window.measured.clicked = performance.now());
    document.querySelector("#ld-run").addEventListener("click", clicked, true);
    new MutationObserver(() => {
        if (window.measured.clicked && window.measured.first === null && document.querySelector(".ld-token"))
            window.measured.first = performance.now() - window.measured.clicked;
    }).observe(document.querySelector(".ld-panes"), { childList: true, subtree: true });
}"""


def engine(tokens: int, audit: bool) -> dict[str, float]:
    """Tokens a second of each lane on the command line."""
    command = [sys.executable, "-m", "lora_drop", "run", "--prompt", PROMPT, "--max-new-tokens", str(tokens)]
    command += ["--period", "4", "--ignore-eos", "--json", *([] if audit else ["--no-audit"])]
    result = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    return {lane: result[lane]["tokens_per_second"] for lane in ("baseline", "lora_drop")}


def client_runs(tokens: int, audits: list[bool]) -> list[dict[str, float]]:
    """The same through the app's `/generate`, read by a client that draws nothing; a short run first, to warm up."""
    port, results = free_port(), []
    app = subprocess.Popen([sys.executable, "app.py", "--port", str(port)], stdout=subprocess.PIPE, text=True)
    try:
        app.stdout.readline()  # "ready"
        client = Client(f"http://127.0.0.1:{port}", verbose=False)
        settings = {"prompt": PROMPT, "period": 4, "drop_ratio": 0.5, "ignore_eos": True, "api_name": "/generate"}
        for count, audit in [(32, True), *((tokens, audit) for audit in audits)]:
            trace = list(client.submit(max_new_tokens=count, audit=audit, **settings))[-1]
            lanes = json.loads(trace.strip().splitlines()[-1])["lanes"]
            results.append({name: lane["tokens_per_second"] for name, lane in lanes.items()})
    finally:
        app.terminate()
        app.wait()
    return results[1:]


def page_runs(tokens: int, audits: list[bool]) -> list[dict]:
    """One run in the page for each choice of audit, after a short one to warm up."""
    port, results = free_port(), []
    app = subprocess.Popen([sys.executable, "app.py", "--port", str(port)], stdout=subprocess.PIPE, text=True)
    try:
        app.stdout.readline()  # "ready"
        with sync_playwright() as driver:
            browser = driver.chromium.launch(executable_path=chromium(), headless=True, args=FLAGS)
            page = browser.new_page(viewport={"width": 1600, "height": 900})
            page.goto(f"http://127.0.0.1:{port}")
            page.wait_for_selector(".ld-whatif[data-state]", timeout=30_000)
            page.click("#ld-advanced button")
            page.wait_for_selector("#ld-seed input", state="visible")
            page.wait_for_timeout(1000)
            page.check("#ld-ignore-eos input")
            for name, value in (("period", 4), ("ratio", 0.5)):
                page.fill(f"#ld-{name} input[type=number]", str(value))
                page.press(f"#ld-{name} input[type=number]", "Tab")
            for count, audit in [(32, True), *((tokens, audit) for audit in audits)]:
                page.fill("#ld-max-new-tokens input", str(count))
                page.press("#ld-max-new-tokens input", "Tab")
                page.set_checked("#ld-audit input", audit)
                page.wait_for_timeout(1500)
                page.evaluate(WATCH)
                page.evaluate("document.querySelectorAll('.ld-token').forEach((token) => token.remove())")
                started = time.monotonic()
                page.click("#ld-run")
                page.wait_for_selector(".ld-live[data-state='running']", timeout=30_000)
                page.wait_for_selector(".ld-live:is([data-state='playing'], [data-state='done'])", timeout=300_000)
                wall = time.monotonic() - started
                measured = page.evaluate("window.measured")
                speeds = page.eval_on_selector_all(
                    "[data-figure='speed']", "all => all.map(e => Number(e.textContent))"
                )
                results.append(
                    {
                        "tokens": count,
                        "audit": audit,
                        **dict(zip(("baseline", "lora_drop"), speeds, strict=True)),
                        "wall_s": round(wall, 2),
                        "click_to_first_token_ms": measured["first"] and round(measured["first"]),
                        "long_tasks_ms": sorted(measured["longTasks"], reverse=True),
                    }
                )
            browser.close()
    finally:
        app.terminate()
        app.wait()
    return results[1:]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tokens", type=int, default=400)
    tokens = parser.parse_args().tokens
    audits = [True, False]
    for audit, run, read in zip(audits, page_runs(tokens, audits), client_runs(tokens, audits), strict=True):
        print(json.dumps({"where": "page", **run}))
        print(json.dumps({"where": "client that draws nothing", "tokens": tokens, "audit": audit, **read}))
        print(json.dumps({"where": "engine", "tokens": tokens, "audit": audit, **engine(tokens, audit)}))


if __name__ == "__main__":
    main()
