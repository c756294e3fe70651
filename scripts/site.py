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


def links(page: Path) -> list[Path]:
    """The files that a page links to."""
    return [page.parent / link for link in re.findall(r"\]\(([^)#:]+)[)#]", page.read_text(encoding="utf-8"))]


def gather() -> None:
    """Copy the pages, README as the first one, and the files that they link to."""
    shutil.rmtree(SOURCES, ignore_errors=True)
    SOURCES.mkdir(parents=True)
    shutil.copyfile(ROOT / "README.md", SOURCES / "index.md")
    for path in (path for pattern in PAGES for path in ROOT.glob(pattern)):
        copy(path.relative_to(ROOT))
    for target in (link.resolve() for page in [*SOURCES.rglob("*.md")] for link in links(page)):
        if target.is_relative_to(SOURCES) and (ROOT / target.relative_to(SOURCES)).is_file():
            if target.suffix != ".md":
                copy(target.relative_to(SOURCES))


def copy(name: Path) -> None:
    """Copy a file of the repository to its place among the site's."""
    target = SOURCES / name
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(ROOT / name, target)


def faults() -> list[str]:
    """Pages that no menu leads to, and links to files that the site does not have; Zensical checks those to pages."""
    menu = (ROOT / "zensical.toml").read_text(encoding="utf-8")
    pages = {page: page.relative_to(SOURCES).as_posix() for page in SOURCES.rglob("*.md")}
    unlisted = [f"zensical.toml: {name} is not in nav" for name in pages.values() if f'"{name}"' not in menu]
    return unlisted + [
        f"{pages[page]}: no file {link}" for page in pages for link in links(page) if not link.is_file()
    ]


def main() -> int:
    """Build the site; returns the exit code."""
    gather()
    if messages := faults():
        print(*messages, sep="\n", file=sys.stderr)
        return 1
    command = [str(Path(sys.executable).parent / "zensical"), "build", "--strict"]
    build = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    # Docstrings that the reference cannot read raise no warning in Zensical.
    if build.returncode or "griffe: " in build.stdout + build.stderr:
        print(build.stdout, build.stderr, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
