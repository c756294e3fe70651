"""Measure the frontier of methods on the bundled model, and put it into assets/methods and README.md.

    python -m scripts.methods_frontier --data report.jsonl

It runs `lora-drop compare` (other options go there), from the start unless `--go-on` takes an interrupted measurement
up again. `report.jsonl` is of `scripts/prompt_sets.py`; the first 32 prompts are reported, and parameters are searched
on the prompts that settings are chosen on. Leave the machine idle.
"""

from __future__ import annotations

import re
import sys
import textwrap
from typing import Any

from lora_drop.cli.main import main as lora_drop
from lora_drop.paths import CHECKOUT, SHIPPED_METHODS
from lora_drop.run.exports.figures.methods import PICTURE
from lora_drop.run.results.compared import winner_words
from lora_drop.run.results.files import COMPARE

BETWEEN = re.compile(r"(<!-- methods -->\n).*?(<!-- /methods -->)", re.DOTALL)


def lines(content: dict[str, Any]) -> str:
    """What README.md says of it."""
    address = SHIPPED_METHODS.relative_to(SHIPPED_METHODS.parents[1]) / PICTURE
    words = f"**{winner_words(content)}** ([All methods]({address.as_posix()}).)"
    return textwrap.fill(words, 119, break_long_words=False, break_on_hyphens=False) + "\n"


def main(argv: list[str]) -> int:
    """Measure, and write the files."""
    assert CHECKOUT is not None, "this writes README.md: run it in a checkout"
    if "--go-on" not in argv:
        (SHIPPED_METHODS / COMPARE.name).unlink(missing_ok=True)
    code = lora_drop(["compare", "--out", str(SHIPPED_METHODS), *(word for word in argv if word != "--go-on")])
    if code == 0:
        readme = CHECKOUT / "README.md"
        words = lines(COMPARE.read(SHIPPED_METHODS / COMPARE.name))
        readme.write_text(BETWEEN.sub(lambda at: at[1] + words + at[2], readme.read_text("utf-8")), "utf-8")
    return code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
