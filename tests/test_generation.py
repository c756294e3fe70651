"""The library's calls: the drop-in for `model.generate`, and `stream`."""

import pytest
import torch

import lora_drop
from lora_drop import LoraDropConfig, LoraDropError
from lora_drop.models import encode_prompt
from lora_drop.session import BASELINE, LORA_DROP
from lora_drop.trace import gather

PROMPT = "Hello there."


def test_generate_is_the_engine_token_for_token(any_tiny):
    config = LoraDropConfig(period=3, drop_ratio=1.0)
    trace = gather(lora_drop.stream(any_tiny, PROMPT, config, max_new_tokens=15, ignore_eos=True, audit=False))
    ids = torch.tensor([encode_prompt(any_tiny.tokenizer, PROMPT)])
    out = any_tiny.model.generate(
        ids, custom_generate=lora_drop.generate, lora_drop=config, max_new_tokens=15, eos_token_id=None
    )
    assert out[0, ids.shape[1] :].tolist() == trace.token_ids(LORA_DROP)
    plain = any_tiny.model.generate(
        ids, attention_mask=torch.ones_like(ids), max_new_tokens=15, eos_token_id=None, pad_token_id=0, do_sample=False
    )
    assert plain[0, ids.shape[1] :].tolist() == trace.token_ids(BASELINE)


def test_sampling_repeats_with_torchs_seed(tiny):
    outs = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        outs.append(
            tiny.model.generate(
                torch.tensor([[5, 6]]), custom_generate=lora_drop.generate, max_new_tokens=20, do_sample=True,
                temperature=1.0, eos_token_id=None,
            ).tolist()
        )  # fmt: skip
    assert outs[0] == outs[1] != outs[2]


def test_generate_refuses_what_it_cannot_do(tiny):
    def run(ids, **options):
        tiny.model.generate(torch.tensor(ids), custom_generate=lora_drop.generate, max_new_tokens=2, **options)

    with pytest.raises(LoraDropError, match="one prompt at a time; this is a batch of 2"):
        run([[1, 2], [3, 4]])
    with pytest.raises(LoraDropError, match="padded"):
        run([[1, 2]], attention_mask=torch.tensor([[0, 1]]))
    with pytest.raises(LoraDropError, match="context is 4096"):
        tiny.model.generate(torch.tensor([[1]]), custom_generate=lora_drop.generate, max_new_tokens=5000)
    with pytest.raises(LoraDropError, match="return_dict"):
        run([[1, 2]], return_dict_in_generate=True)
    bank = lora_drop.AdapterBank.new([2], 32)
    with pytest.raises(LoraDropError, match="another model"):
        run([[1, 2]], adapters=bank)
    with pytest.raises(LoraDropError, match="0-5 and 1-5"):
        run([[1, 2]], lora_drop=LoraDropConfig(drop_layers=(9,)))


def test_names_are_imported_when_used():
    assert lora_drop.AdapterBank.__module__ == "lora_drop.adapters"
    with pytest.raises(AttributeError, match="no attribute 'teleport'"):
        lora_drop.teleport  # noqa: B018
