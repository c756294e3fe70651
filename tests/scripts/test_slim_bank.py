"""A bank without the parts that no preset runs writes what it wrote with them."""

import pytest
import torch

from lora_drop.adapters.bank import AdapterBank
from lora_drop.adapters.find import find_bank
from lora_drop.decode.lane import Lane
from lora_drop.decode.sampling import Sampling
from lora_drop.errors import LoraDropError
from lora_drop.method.presets import presets_for
from lora_drop.models.tokens import encode_prompt
from lora_drop.paths import SHIPPED_ADAPTERS
from scripts.slim_bank import slim

FOLDER = SHIPPED_ADAPTERS / "smollm2-135m-residual-block-repair"


def test_the_presets_text_is_the_same_without_the_other_parts(bundled, tmp_path):
    out = tmp_path / "slim"
    before, after = slim(FOLDER, out, frozenset({"linear", "head"}))
    assert before - after > 7e6 and AdapterBank.load(out).parts == {"linear", "head"}
    card = (out / "README.md").read_text()
    assert "- Parts: head, linear (kept and mlp, trained with them, left out)." in card
    texts = []
    for adapters in (str(FOLDER), str(out)):
        config = presets_for(bundled.id)["balanced"].config.replace(adapters=adapters)
        schedule = config.schedule_for(bundled.num_layers)
        bank, _ = find_bank(bundled, config, schedule)
        prompt = torch.tensor([encode_prompt(bundled.tokenizer, "How does a kite fly?")])
        lane = Lane(bundled.new_decoder(), prompt, schedule, bank, Sampling(), 24)
        for _ in lane:
            pass
        texts.append((lane.tokens, lane.drafts, lane.accepted))
    assert texts[0] == texts[1]


def test_what_cannot_be_left_out_or_kept_is_one_line(tmp_path):
    with pytest.raises(LoraDropError, match="another folder"):
        slim(FOLDER, FOLDER, frozenset({"linear"}))
    with pytest.raises(LoraDropError, match="no part nothing"):
        slim(FOLDER, tmp_path / "out", frozenset({"nothing"}))
    assert not (tmp_path / "out").exists()
