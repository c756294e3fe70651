"""Presets of a model that is not loaded, and files of presets that a test makes up."""

import json
from types import SimpleNamespace

from lora_drop.models.load import BUNDLED_ID, BUNDLED_REVISION
from lora_drop.paths import PRESETS_NAME, SHIPPED_ADAPTERS

BUNDLED = SimpleNamespace(id=BUNDLED_ID, revision=BUNDLED_REVISION, sketch="", num_layers=30)
BUNDLED_PRESETS = SHIPPED_ADAPTERS / "smollm2-135m-residual-block-repair" / PRESETS_NAME


def lay_presets(folder, content, revision):
    """Write `presets.json` beside the config of a bank of these weights; `content` is JSON's or a text."""
    folder.mkdir(parents=True, exist_ok=True)
    rules = {"reuse": "residual", "part": "block", "kv": "skip", "layers": [], "r": 1, "lora_alpha": 1}
    config = rules | {"base_model_name_or_path": "m", "revision": revision}
    (folder / "lora_drop_config.json").write_text(json.dumps(config))
    (folder / PRESETS_NAME).write_text(content if isinstance(content, str) else json.dumps(content))
