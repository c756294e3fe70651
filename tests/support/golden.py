"""Golden files: the sentences of one surface, one file each in `tests/golden`; `make golden` rewrites them.

A test of behaviour compares facts and kinds. What a reader sees, sentence by sentence, is compared here only.
"""

import json
import os
from collections.abc import Mapping

from tests.support import ROOT

FOLDER = ROOT / "tests" / "golden"
REWRITE = "LORA_DROP_GOLDEN"  # set: the files are rewritten in place of compared


def check_golden(surface: str, sentences: Mapping[str, object]) -> None:
    """Compare what each case says with the surface's file; a case is a short name, a sentence any JSON value."""
    path = FOLDER / f"{surface}.json"
    if os.environ.get(REWRITE):
        path.write_text(json.dumps(sentences, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    assert sentences == json.loads(path.read_text(encoding="utf-8")), f"{surface}: `make golden`, then `git diff`"


def check_golden_text(name: str, text: str) -> None:
    """Compare a text with the golden file of this name."""
    if os.environ.get(REWRITE):
        (FOLDER / name).write_text(text, encoding="utf-8")
    assert text == (FOLDER / name).read_text(encoding="utf-8"), f"{name}: `make golden`, then look at the picture"
