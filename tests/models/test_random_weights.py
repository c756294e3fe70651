"""The random models: their shapes, and the same weights each time."""

import pytest
import torch
from transformers import LlamaConfig

from lora_drop.method.cost import ModelShape
from lora_drop.models import place, random_weights
from lora_drop.models.load import load_model
from lora_drop.models.tokens import encode_prompt
from tests.support.loading import the_line


def test_tiny_models(any_tiny):
    model, shape = any_tiny.model, any_tiny.shape
    assert (any_tiny.num_layers, shape.hidden_size, shape.num_heads, shape.num_kv_heads) == (6, 64, 4, 2)
    assert shape.params == sum(weight.numel() for weight in model.parameters())
    assert any_tiny.id == f"random:tiny-{model.config.model_type}" and any_tiny.stop_ids == {257}
    assert any_tiny.context == (4096 if any_tiny.id == "random:tiny-llama" else 2048)
    assert not model.training and not any(weight.requires_grad for weight in model.parameters())
    assert model.config._attn_implementation == "sdpa"
    rotary = model.model.rotary_emb
    assert rotary.inv_freq.dtype == torch.float32
    theta = model.config.rope_parameters["rope_theta"]
    assert torch.allclose(rotary.inv_freq, theta ** -(torch.arange(0, 16, 2) / 16))


def test_tiny_models_say_something(any_tiny):
    """Greedy text neither stands still nor ends by itself, and depends on the prompt."""
    texts = []
    for prompt in ("hello", "The quick"):
        ids = torch.tensor([encode_prompt(any_tiny.tokenizer, prompt)])
        out = any_tiny.model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=40, do_sample=False)
        texts.append(out[0, ids.shape[1] :].tolist())
    assert all(len(text) == 40 and len(set(text)) >= 12 for text in texts) and texts[0] != texts[1]


def test_random_weights_are_the_same_each_time_and_in_each_dtype(any_tiny):
    again = load_model(any_tiny.id, device="cpu", dtype="bfloat16")
    assert again.revision == any_tiny.revision and again.dtype == again.model.dtype == torch.bfloat16
    assert again.model.model.rotary_emb.inv_freq.dtype == torch.float32
    weights = dict(any_tiny.model.named_parameters())
    assert all(torch.equal(weight.float(), weights[name]) for name, weight in again.model.named_parameters())


def test_tiny_models_have_revisions_of_their_own():
    assert len({load_model(f"random:{shape}", "cpu", "float32").revision for shape in random_weights.TINY_SHAPES}) == 4


@pytest.mark.parametrize(
    ("name", "billions"), [("llama2-7b", 6.738), ("llama3-8b", 8.030), ("qwen2.5-7b", 7.616), ("qwen2.5-14b", 14.770)]
)
def test_large_shapes_have_the_published_sizes(name, billions):
    assert ModelShape.from_config(random_weights.LARGE_SHAPES[name]).params / 1e9 == pytest.approx(billions, abs=0.001)


def test_large_shapes_are_filled_and_reproducible(monkeypatch):
    """The path of the large shapes, on a shape that is a little larger than the block that fills it."""
    small = LlamaConfig(
        vocab_size=9000, hidden_size=128, intermediate_size=200, num_hidden_layers=2, num_attention_heads=2
    )
    monkeypatch.setitem(random_weights.LARGE_SHAPES, "small", small)
    monkeypatch.setitem(random_weights.SHAPES, "small", small)
    one, two = load_model("random:small", "cpu", "float32"), load_model("random:small", "cpu", "bfloat16")
    assert one.revision == two.revision
    for name, weight in one.model.named_parameters():
        assert weight.unique().tolist() == [1.0] if "norm" in name else 0.018 < weight.std() < 0.022
    embedding = one.model.model.embed_tokens.weight
    assert len(embedding.unique(dim=0)) == 9000
    assert torch.isfinite(one.model(torch.tensor([[1, 2, 3]])).logits).all()


def test_too_large_a_model_is_refused(monkeypatch):
    monkeypatch.setattr(place, "free_memory", lambda device: 8 * 10**9)
    says = the_line("random:qwen2.5-14b", device="cpu", dtype="bfloat16")
    assert "29.5 GB" in says and "8.0 GB free" in says
