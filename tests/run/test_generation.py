"""The library's calls: the drop-in for `model.generate`, and `stream`."""

import gc
import shutil
import sys
import weakref
from types import SimpleNamespace
from unittest.mock import Mock

import pytest
import torch
from transformers import AutoModelForCausalLM, DynamicCache

import lora_drop
from lora_drop import LoraDropConfig, LoraDropError
from lora_drop.method.presets import READABLE
from lora_drop.models import bundled
from lora_drop.models.external import _PREPARED, prepare
from lora_drop.models.load import load_model
from lora_drop.models.tokens import encode_prompt
from lora_drop.run.results.bank_presets import presets_of
from lora_drop.run.trace.records import BASELINE, LORA_DROP
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
    for lora_drop_is in (
        LoraDropConfig(),
        {"refresh": "repair", "kv": "write", "accept": 0.3},
        "fast",
        LoraDropConfig(period=8, drop_layers=(5, 6, 12, 17), refresh_entropy=0.7),
        None,
    ):
        named = isinstance(lora_drop_is, str) or lora_drop_is is None
        config = presets_of(loaded)[lora_drop_is or READABLE].config if named else lora_drop_is
        config = LoraDropConfig(**config) if isinstance(config, dict) else config
        trace = gather(lora_drop.stream(loaded, "What is the capital of France?", config, max_new_tokens=20))
        out = model.generate(ids, custom_generate=lora_drop.generate, lora_drop=lora_drop_is, max_new_tokens=20)
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
                torch.tensor([[5, 6]]), custom_generate=lora_drop.generate, lora_drop={}, max_new_tokens=20,
                do_sample=True, temperature=1.0, eos_token_id=None,
            ).tolist()
        )  # fmt: skip
    assert outs[0] == outs[1] != outs[2]


@pytest.mark.parametrize("hub", [False, True], ids=["callable", "hub folder"])
def test_at_period_1_it_is_transformers_own_decoding(bundled, hub):
    """With a processor, stop strings, scores, logits, an object as the answer, and a streamer that gets each token."""
    tokenizer, parts = bundled.tokenizer, []
    ids = torch.tensor([encode_prompt(tokenizer, PROMPT)])
    options = {"max_new_tokens": 12, "repetition_penalty": 1.2, "attention_mask": torch.ones_like(ids)}
    options |= {"return_dict_in_generate": True, "output_scores": True, "output_logits": True, "do_sample": False}
    words = tokenizer.decode(bundled.model.generate(ids, **options).sequences[0, ids.shape[1] :]).split()
    options["stop_strings"] = [words[3]]
    plain = bundled.model.generate(ids, tokenizer=tokenizer, **options)
    streamer = SimpleNamespace(put=lambda ids: parts.append(ids.flatten().tolist()), end=lambda: parts.append("end"))
    if hub:
        how = {"custom_generate": str(HUB), "trust_remote_code": True, "streamer": streamer, "tokenizer": tokenizer}
    else:
        how = {"custom_generate": lora_drop.with_(streamer=streamer, tokenizer=tokenizer)}
    out = bundled.model.generate(ids, **how, lora_drop=LoraDropConfig(period=1), **options)
    assert out.sequences.tolist() == plain.sequences.tolist() and 1 < len(out.scores) < 12
    for name in ("scores", "logits"):
        for ours, theirs in zip(out[name], plain[name], strict=True):
            assert torch.allclose(ours, theirs, atol=2e-3)
    assert parts == [ids[0].tolist(), *([token] for token in out.sequences[0, ids.shape[1] :].tolist()), "end"]


@pytest.mark.filterwarnings("error:.* has no effect")
@pytest.mark.parametrize("settings", [{"period": 3}, {"refresh": "repair", "kv": "write", "accept": 0.5}])
def test_a_padded_batch_is_its_prompts_alone(tiny, settings):
    def write(prompts, **options):
        ids = torch.tensor(prompts)
        return tiny.model.generate(
            ids, custom_generate=lora_drop.generate, lora_drop=settings, adapters=random_bank(tiny), pad_token_id=257,
            max_new_tokens=9, return_dict_in_generate=True, output_scores=True, **options,
        )  # fmt: skip

    one, other = write([[5, 99, 17]]), write([[6]])
    stop = one.sequences[0, 6].item()
    mask = torch.tensor([[1, 1, 1], [0, 0, 1]])
    both = write([[5, 99, 17], [257, 257, 6]], attention_mask=mask, eos_token_id=stop)
    written = one.sequences[0, : one.sequences[0].tolist().index(stop, 3) + 1].tolist()
    assert both.sequences[0].tolist() == written + [257] * (12 - len(written))
    assert both.sequences[1, 2:].tolist() == other.sequences[0].tolist()
    assert torch.equal(both.scores[1][1], other.scores[1][0]) and len(both.scores) == 9
    with pytest.raises(LoraDropError, match="padded on the left"):
        write([[5, 99, 257]], attention_mask=torch.tensor([[1, 1, 0]]))


def test_a_lost_argument_is_a_warning(tiny):
    ids, cache = torch.tensor([[5, 99, 17]]), DynamicCache(config=tiny.model.config)
    options = {"custom_generate": lora_drop.generate, "max_new_tokens": 2}
    with pytest.warns(UserWarning, match="^cache has no effect"):
        tiny.model.generate(ids, cache=cache, lora_drop={"period": 1}, **options)
    with pytest.warns(UserWarning, match="^position_ids has no effect"):
        tiny.model.generate(ids, position_ids=torch.tensor([[4, 5, 6]]), lora_drop={"period": 1}, **options)
    with pytest.warns(UserWarning, match="every layer runs"):
        alone = tiny.model.generate(ids, **options)
    plain = tiny.model.generate(ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=2)
    assert alone.tolist() == plain.tolist()


def test_the_hub_folder_without_the_package_names_our_own_way(tiny, monkeypatch, tmp_path):
    """transformers would tell the user to install the package's name, which is not ours on the index."""
    shutil.copytree(HUB, tmp_path / "elsewhere")  # loaded anew
    monkeypatch.setitem(sys.modules, "lora_drop", None)
    with pytest.raises(ImportError, match="on no package index") as caught:
        tiny.model.generate(torch.tensor([[5]]), custom_generate=str(tmp_path / "elsewhere"), trust_remote_code=True)
    assert "pip install lora" not in str(caught.value)


def test_the_hub_folder_refuses_an_assistant_model(tiny):
    with pytest.raises(LoraDropError, match="assistant_model is not supported"):
        tiny.model.generate(
            torch.tensor([[5]]), custom_generate=str(HUB), trust_remote_code=True, assistant_model=tiny.model
        )


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


@pytest.mark.parametrize(
    ("options", "line"),
    [
        ({"num_beams": 4}, "num_beams=4 is not supported"),
        ({"do_sample": True, "num_return_sequences": 2}, "num_return_sequences=2 is not supported"),
        ({"prompt_lookup_num_tokens": 3}, "prompt_lookup_num_tokens=3 is not supported"),
        ({"return_dict_in_generate": True, "output_attentions": True}, "output_attentions=True is not supported"),
        ({"stop_strings": ["a"]}, r"needs the tokenizer.*with_\(tokenizer=tokenizer\)"),
        ({"max_new_tokens": 5000}, "context is 4096"),
        ({"lora_drop": "fastest"}, "no preset 'fastest'; the presets are balanced"),
        ({"lora_drop": {"perod": 2}}, "unknown setting 'perod'"),
        ({"lora_drop": 3}, "must be a LoraDropConfig, a dict or a preset's name"),
        ({"lora_drop": LoraDropConfig(drop_layers=(9,))}, "0-5 and 1-5"),
        ({"adapters": "/no/such/folder"}, "cannot read the adapters in folder"),
        ({"adapters": lora_drop.AdapterBank.new([2], 32)}, "another model"),
    ],
)
def test_generate_refuses_what_it_cannot_do(tiny, options, line):
    with pytest.raises(LoraDropError, match=line):
        tiny.model.generate(
            torch.tensor([[1, 2]]), custom_generate=lora_drop.generate, **{"max_new_tokens": 2} | options
        )
    with pytest.raises(LoraDropError, match="one prompt at a time; this is a batch of 2"):
        tiny.model.generate(torch.tensor([[1], [2]]), custom_generate=lora_drop.with_(streamer=Mock()))


def test_names_are_imported_when_used():
    assert lora_drop.AdapterBank.__module__ == "lora_drop.adapters.bank"
    with pytest.raises(AttributeError, match="no attribute 'teleport'"):
        lora_drop.teleport  # noqa: B018
