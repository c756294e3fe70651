"""The documentation as a site: `python -m scripts.site` builds it in build/site, and fails at any warning.

The pages are copied to build/docs as they lie in the repository, so that a link leads to the same page in both.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
SOURCES = ROOT / "build" / "docs"
PAGES = ("Spaces.md", "SECURITY.md", "CHANGELOG.md", "assets/presets/samples.md", "docs/*.md")
BESIDE = ("assets/screenshots/page.png", "assets/trace.schema.json", "notebooks/*.ipynb")  # what they link to


def gather() -> None:
    """Copy the pages; README is the first one."""
    shutil.rmtree(SOURCES, ignore_errors=True)
    SOURCES.mkdir(parents=True)
    shutil.copyfile(ROOT / "README.md", SOURCES / "index.md")
    for path in (path for pattern in (*PAGES, *BESIDE) for path in ROOT.glob(pattern)):
        target = SOURCES / path.relative_to(ROOT)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, target)


def faults() -> list[str]:
    """Pages that no menu leads to, and links to files that the site does not have; Zensical checks those to pages."""
    menu = (ROOT / "zensical.toml").read_text(encoding="utf-8")
    names = [page.relative_to(SOURCES).as_posix() for page in SOURCES.rglob("*.md")]
    dead = [f"zensical.toml: {name} is not in nav" for name in names if f'"{name}"' not in menu]
    for page in SOURCES.rglob("*.md"):
        for link in re.findall(r"\]\(([^)#:]+)[)#]", page.read_text(encoding="utf-8")):
            if not (page.parent / link).is_file():
                dead.append(f"{page.relative_to(SOURCES)}: no file {link}")
    return dead


def main() -> int:
    """Build the site; returns the exit code."""
    gather()
    if found := faults():
        print(*found, sep="\n", file=sys.stderr)
        return 1
    command = [str(Path(sys.executable).parent / "zensical"), "build", "--strict"]
    build = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    # Docstrings that the reference cannot read are no warnings of Zensical's own.
    if build.returncode or "griffe: " in build.stdout + build.stderr:
        print(build.stdout, build.stderr, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
