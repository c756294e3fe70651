"""What the models menu says of models that were never fetched."""

import pytest

from lora_drop.models.pool import PRESET_MODELS, ModelPool
from lora_drop.ui import facts
from lora_drop.ui.facts import menu_choices, parameters


@pytest.mark.parametrize(
    ("name", "count"),
    [
        ("HuggingFaceTB/SmolLM2-360M-Instruct", 360e6),
        ("Qwen/Qwen2.5-0.5B-Instruct", 0.5e9),
        ("meta-llama/Llama-2-7b-chat-hf", 7e9),
        ("meta-llama/Meta-Llama-3-8B-Instruct", 8e9),
        ("random:tiny-llama", None),
        ("owner/v2beta", None),
    ],
)
def test_a_name_tells_the_size(name, count):
    assert parameters(name) == count


def test_every_model_on_offer_has_a_size_and_says_whether_it_fits(tiny, monkeypatch):
    monkeypatch.setattr(facts, "free_memory", lambda device: 10e9)
    entries = {label: text for text, label in menu_choices(ModelPool(tiny, PRESET_MODELS[1:]))}
    assert list(entries) == [tiny.id, *PRESET_MODELS[1:]]
    small, large = entries["Qwen/Qwen2.5-0.5B-Instruct"], entries["Qwen/Qwen2.5-14B-Instruct"]
    assert "about 2.0 GB, fits here (estimated)" in small and "runs the untrained rule" in small
    assert "about 56.0 GB, too large for this machine (estimated)" in large
    own = entries[tiny.id]
    assert "fits" not in own and own.startswith(f"{tiny.id} · about 0.0 GB; no corrections")
    monkeypatch.setattr(facts, "free_memory", lambda device: None)  # nobody can say
    assert "fits" not in menu_choices(ModelPool(tiny, PRESET_MODELS[3:4]))[1][0]


def test_the_bundled_model_has_corrections(bundled):
    assert menu_choices(ModelPool(bundled))[0][0].endswith("GB; trained corrections")
