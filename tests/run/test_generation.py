"""The library's calls: the drop-in for `model.generate`, and `stream`."""

import gc
import weakref
from functools import partial
from types import SimpleNamespace

import pytest
import torch
from transformers import AutoModelForCausalLM, EosTokenCriteria, StoppingCriteriaList

import lora_drop
from lora_drop import LoraDropConfig, LoraDropError
from lora_drop.models import bundled
from lora_drop.models.external import _PREPARED, prepare
from lora_drop.models.load import load_model
from lora_drop.models.tokens import encode_prompt
from lora_drop.run.request import BASELINE, LORA_DROP
from lora_drop.run.trace.trace import gather
from tests.support import ROOT
from tests.support.decoding import random_bank

PROMPT = "Hello there."
HUB = ROOT / "assets" / "hub"


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


def test_greedy_generate_is_the_command_lines_run():
    """On the bundled model, as a caller loads it: the same decoder over the same blocks, and the shipped bank."""
    loaded = load_model("bundled", device="cpu")
    model = AutoModelForCausalLM.from_pretrained(str(bundled.ensure()), dtype=loaded.dtype, attn_implementation="sdpa")
    ids = torch.tensor([encode_prompt(loaded.tokenizer, "What is the capital of France?")])
    for settings in ({}, {"refresh": "repair", "kv": "write", "accept": 0.3}):
        config = LoraDropConfig(**settings)
        trace = gather(lora_drop.stream(loaded, "What is the capital of France?", config, max_new_tokens=40))
        out = model.generate(ids, custom_generate=lora_drop.generate, lora_drop=config, max_new_tokens=40)
        assert out[0, ids.shape[1] :].tolist() == trace.token_ids(LORA_DROP)
    info, decoder = prepare(model)
    assert (info.id, decoder.name) == (loaded.id, loaded.decoder_name) and info.shape == loaded.shape


def test_what_is_known_of_a_model_goes_with_it_and_follows_its_changes():
    held = [load_model("random:tiny-llama", device="cpu", dtype="float32").model]
    ids, options = torch.tensor([[5, 99, 17]]), {"max_new_tokens": 6, "eos_token_id": None}
    config = LoraDropConfig(period=1)

    def text(custom):
        given = {"custom_generate": lora_drop.generate, "lora_drop": config} if custom else {"do_sample": False}
        return held[0].generate(ids, attention_mask=torch.ones_like(ids), pad_token_id=0, **given, **options).tolist()

    assert text(True) == text(False)
    held[0].requires_grad_(True)
    held[0](ids, labels=ids).loss.backward()  # the fast decoders' fused weights can still learn
    held[0].zero_grad()
    known = weakref.ref(_PREPARED[held[0]])
    text(True)
    assert known() is _PREPARED[held[0]]  # laid out once
    with torch.no_grad():
        for weight in held[0].parameters():  # as a training step does, and as loading does
            weight.add_(0.02 * torch.randn(weight.shape, generator=torch.Generator().manual_seed(3)))
    changed = text(True)
    assert changed == text(False)
    held[0].model.layers[1].mlp.up_proj.weight = torch.nn.Parameter(torch.randn(128, 64))
    assert text(True) == text(False) != changed
    held[0].model.layers[2].register_forward_hook(lambda module, args, output: output * 1.5)
    assert prepare(held[0])[1].name == "reference"
    held.clear()
    gc.collect()
    assert known() is None


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


@pytest.mark.parametrize("hub", [False, True], ids=["callable", "hub folder"])
def test_streamers_processors_and_criteria_work(tiny, hub):
    """At period 1 it is transformers' own decoding, with a processor and a criterion; the streamer gets each token."""
    ids = torch.tensor([encode_prompt(tiny.tokenizer, PROMPT)])
    options = {"max_new_tokens": 24, "repetition_penalty": 1.7, "eos_token_id": None, "pad_token_id": 0}
    plain = tiny.model.generate(ids, attention_mask=torch.ones_like(ids), do_sample=False, **options)
    stop_at = plain[0, ids.shape[1] + 9].item()
    options["stopping_criteria"] = StoppingCriteriaList([EosTokenCriteria(stop_at)])
    plain = tiny.model.generate(ids, attention_mask=torch.ones_like(ids), do_sample=False, **options)
    parts, config = [], LoraDropConfig(period=1)
    streamer = SimpleNamespace(put=lambda ids: parts.append(ids.flatten().tolist()), end=lambda: parts.append("end"))
    if hub:
        how = {"custom_generate": str(HUB), "trust_remote_code": True, "streamer": streamer, "lora_drop": config}
    else:
        how = {"custom_generate": partial(lora_drop.generate, streamer=streamer), "lora_drop": config}
    out = tiny.model.generate(ids, **how, **options)
    assert out.tolist() == plain.tolist() and out.shape[1] < ids.shape[1] + 24
    assert parts == [ids[0].tolist(), *([token] for token in out[0, ids.shape[1] :].tolist()), "end"]


def test_the_hub_folder_takes_a_dict_and_a_path(tiny, tmp_path):
    config = {"period": 3, "drop_ratio": 1.0}
    bank = random_bank(tiny, "residual")
    bank.base_model, bank.revision, bank.num_layers = tiny.id, tiny.revision, tiny.num_layers
    bank.save(tmp_path / "bank")
    ids = torch.tensor([[5, 99, 17]])
    options = {"max_new_tokens": 12, "eos_token_id": None}
    one = tiny.model.generate(
        ids, custom_generate=lora_drop.generate, lora_drop=LoraDropConfig(**config), adapters=bank, **options
    )
    two = tiny.model.generate(
        ids,
        custom_generate=str(HUB),
        trust_remote_code=True,
        lora_drop=config,
        adapters=str(tmp_path / "bank"),
        **options,
    )
    bare = tiny.model.generate(ids, custom_generate=lora_drop.generate, lora_drop=LoraDropConfig(**config), **options)
    assert one.tolist() == two.tolist() != bare.tolist()


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
    assert lora_drop.AdapterBank.__module__ == "lora_drop.adapters.bank"
    with pytest.raises(AttributeError, match="no attribute 'teleport'"):
        lora_drop.teleport  # noqa: B018
