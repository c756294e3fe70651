"""Files of results that something has changed: read, or refused in one line."""

import json
import random
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from lora_drop.adapters.hub import CONFIG_NAME
from lora_drop.errors import LoraDropError
from lora_drop.paths import SHIPPED_PRESETS, SHIPPED_SWEEPS
from lora_drop.run.results.bank_presets import read_presets
from lora_drop.run.results.files import SAMPLES, SWEEP
from lora_drop.run.results.preset_results import in_words, reads_well
from lora_drop.run.results.safe_zone import answer_of, best_of
from tests.support.fuzzing import TRIED, budget, mutated_bytes, mutated_json, one_line
from tests.support.presets import BUNDLED, BUNDLED_PRESETS

pytestmark = pytest.mark.full


def shown_presets(path: Path) -> None:
    shutil.copy(BUNDLED_PRESETS.with_name(CONFIG_NAME), path.parent)
    _, content = read_presets(BUNDLED, str(path.parent))
    for row in content["rows"]:
        in_words(row, content)
        reads_well(row)


def shown_sweep(path: Path) -> None:
    rows = SWEEP.read(path)["rows"]
    answer_of(rows)
    best_of(rows)


READERS: dict[str, tuple[Path, Callable[[Path], object]]] = {
    "sweep": (SHIPPED_SWEEPS / "sweep.json", shown_sweep),
    "presets": (BUNDLED_PRESETS, shown_presets),
    "samples": (SHIPPED_PRESETS / "samples.json", SAMPLES.read),
}


@pytest.mark.parametrize("kind", READERS)
def test_a_thousand_mutations(tmp_path, kind):
    shipped, read = READERS[kind]
    raw, rng, path = shipped.read_bytes(), random.Random(0), tmp_path / shipped.name
    value, refused = json.loads(raw), 0
    for number in range(budget(1000)):
        text = mutated_bytes(raw, rng, [raw]) if number % 2 else json.dumps(mutated_json(value, rng)).encode()
        path.write_bytes(text)
        TRIED["results"] += 1
        try:
            read(path)
        except LoraDropError as error:
            one_line(error)
            refused += 1
    assert 0 < refused < budget(1000)
