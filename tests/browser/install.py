"""Find a Chromium for the browser tests, or install one: `make browser`.

A browser that is on the machine is used. Otherwise the system's package manager installs one (as root), and at last
Playwright's own download, which needs the open internet.
"""

import os
import shutil
import subprocess
import sys

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")


def find() -> str | None:
    """The path of a Chromium: the CHROMIUM variable, or the first of the usual names that is on the PATH."""
    return os.environ.get("CHROMIUM") or next((path for path in map(shutil.which, NAMES) if path), None)


def _attempts() -> list[list[str]]:
    attempts = []
    if shutil.which("apt-get"):
        sudo = [] if os.geteuid() == 0 else ["sudo", "-n"]
        apt = [*sudo, "env", "DEBIAN_FRONTEND=noninteractive", "apt-get", "-qq"]
        attempts.append([*apt, "update"])
        attempts.append([*apt, "install", "-y", "--no-install-recommends", "chromium", "fonts-dejavu-core"])
    attempts.append([sys.executable, "-m", "playwright", "install", "--with-deps", "chromium"])
    return attempts


def playwright_has_one() -> bool:
    """True if Playwright downloaded a Chromium of its own."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        return os.path.exists(playwright.chromium.executable_path)


def main() -> int:
    for attempt in [None, *_attempts()]:
        if attempt is not None:
            print("browser:", " ".join(attempt), flush=True)
            subprocess.run(attempt, check=False)
        if path := find():
            print("browser:", path)
            return 0
    if playwright_has_one():
        print("browser: Playwright's own Chromium")
        return 0
    print("No Chromium could be installed. Install one, or name it: CHROMIUM=/path/to/chromium", file=sys.stderr)
    return 1


if __name__ == "__main__":
    sys.exit(main())
