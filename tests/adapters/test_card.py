"""The card of an adapter folder, by the Hub's rules, which are checked here: no test asks the Hub."""

import pytest
from huggingface_hub import ModelCard

from lora_drop.adapters.bank import AdapterBank, read_card
from lora_drop.adapters.card import card, check_card
from lora_drop.errors import LoraDropError
from lora_drop.paths import SHIPPED_ADAPTERS
from tests.support.decoding import random_bank

SHIPPED = sorted(SHIPPED_ADAPTERS.iterdir())


@pytest.mark.parametrize("folder", SHIPPED, ids=lambda folder: folder.name)
def test_a_shipped_card_is_what_the_code_writes_and_the_hub_takes(folder):
    bank, text = AdapterBank.load(folder), read_card(folder)  # `load` checks the sums
    assert text == card(bank)
    check_card(text, folder.name)
    data = ModelCard(text).data
    assert (data.license, data.base_model) == ("apache-2.0", "HuggingFaceTB/SmolLM2-135M-Instruct")
    assert "openai/gsm8k" in data.datasets and all("/" in one for one in data.datasets)
    rows = bank.meta["quality"]["schedules"]
    losses = [one.metric_value for one in data.eval_results if one.metric_type == "kl_divergence"]
    assert losses == [round(row["kl"], 4) for row in rows]
    assert len(data.eval_results) == 2 * len(rows)
    assert "adapter_config.json" in text and not list(folder.glob("adapter_config*"))


def test_any_bank_has_a_card_and_one_that_is_there_stays(tiny, tmp_path):
    bank = random_bank(tiny)
    bank.save(tmp_path)
    assert read_card(tmp_path) == card(bank) and "## Make it again" not in card(bank)
    (tmp_path / "README.md").write_text("mine")
    bank.save(tmp_path)
    assert read_card(tmp_path) == "mine"


@pytest.mark.parametrize(
    ("metadata", "says"),
    [
        ("", "names no base model"),
        ("license: mit", "names no base model"),
        ("license: mit\nbase_model: bundled:SmolLM2-135M-Instruct", "names no base model"),
        ("license: mit\nbase_model: [a/b, 3]", "names no base model"),
        ("base_model: a/b", "names no licence"),
        ("license: mit\nbase_model: a/b\ndatasets: [gsm8k train.jsonl]", "no ids of the Hub"),
        ("license: mit\nbase_model: a/b\nmodel-index: [3]", "cannot be read"),
        ("license: [", "cannot be read"),
        ("3", "cannot be read"),
    ],
)
def test_a_card_that_the_hub_would_refuse_is_one_line(metadata, says):
    with pytest.raises(LoraDropError, match=says):
        check_card(f"---\n{metadata}\n---\n# Words", "bank")
    with pytest.raises(LoraDropError, match="has no metadata"):
        check_card("# Words", "bank")
    check_card("---\nlicense: mit\nbase_model: a/b\n---\n# Words", "bank")
