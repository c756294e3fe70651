"""The one door to a model: folders, the Hub, fingerprints, and one clear line for every mistake."""

import json
import os
from pathlib import Path

import httpx
import huggingface_hub
import pytest
import torch
from huggingface_hub.errors import GatedRepoError, OfflineModeIsEnabled, RepositoryNotFoundError
from transformers import LlamaConfig, MistralConfig, Qwen2Config, Qwen3Config

from lora_drop.models import hub
from lora_drop.models.load import fingerprint, load_model, usable_context
from tests.support.loading import the_line
from tests.support.tokenizer import make_tokenizer


@pytest.fixture(scope="module")
def saved(tmp_path_factory, tiny) -> Path:
    """tiny-llama's weights as a local folder with a real tokenizer and a generation config of its own."""
    folder = tmp_path_factory.mktemp("models") / "my-model"
    tiny.model.save_pretrained(folder)
    make_tokenizer().save_pretrained(folder)
    settings = json.loads((folder / "generation_config.json").read_text())
    (folder / "generation_config.json").write_text(json.dumps(settings | {"eos_token_id": [7, 9]}))
    return folder


@pytest.mark.parametrize("name", ["norm", "embed_tokens"])
def test_fingerprint_sees_the_whole_of_a_tensor(tiny, name):
    """Samples reach to the end of a tensor whose size is no multiple of their number: 258 * 64 elements."""
    assert len(tiny.revision) == 16 and int(tiny.revision, 16) >= 0
    weight = getattr(tiny.model.model, name).weight
    saved = weight.clone()
    with torch.no_grad():
        weight[-1] += 1
        assert fingerprint(tiny.model) != tiny.revision
        weight.copy_(saved)
    assert fingerprint(tiny.model) == tiny.revision


@pytest.mark.parametrize(
    ("config", "context"),
    [
        (LlamaConfig(max_position_embeddings=100), 100),
        (MistralConfig(max_position_embeddings=100, sliding_window=40), 40),
        (MistralConfig(max_position_embeddings=100, sliding_window=None), 100),
        (MistralConfig(max_position_embeddings=30, sliding_window=40), 30),
        (Qwen2Config(max_position_embeddings=100, sliding_window=40, use_sliding_window=False), 100),
        (Qwen2Config(max_position_embeddings=100, sliding_window=40, use_sliding_window=True), 40),
        (
            Qwen2Config(max_position_embeddings=100, sliding_window=40, use_sliding_window=True, max_window_layers=32),
            100,  # every layer is below `max_window_layers`: none has a window
        ),
        (Qwen3Config(max_position_embeddings=100), 100),
    ],
)
def test_context_is_limited_by_a_sliding_window(config, context):
    assert usable_context(config) == context


def test_a_local_folder(saved, tiny, monkeypatch):
    loaded = load_model(str(saved), device="cpu", dtype="float32")
    assert loaded.id == "my-model"  # never the path of the machine
    assert loaded.revision == tiny.revision and loaded.context == tiny.context
    assert loaded.stop_ids == {7, 9, loaded.tokenizer.eos_token_id}
    assert loaded.model.config._attn_implementation == "sdpa"
    ids = torch.tensor([[1, 2, 3]])
    assert torch.equal(loaded.model(ids).logits, tiny.model(ids).logits)
    monkeypatch.chdir(saved)
    assert load_model(".", device="cpu", dtype="bfloat16").id == "my-model"
    assert load_model(".", device="cpu", dtype="bfloat16").revision == tiny.revision


@pytest.mark.parametrize(
    ("error", "says"),
    [
        (httpx.ConnectError("no route"), "the Hub cannot be reached: check the network"),
        (httpx.ReadTimeout("slow"), "the Hub cannot be reached: check the network"),
        (OfflineModeIsEnabled("offline"), "HF_HUB_OFFLINE"),
        (RepositoryNotFoundError, "check the spelling"),
        (GatedRepoError, "hf auth login"),
    ],
)
def test_hub_errors(monkeypatch, error, says):
    def ask(url: str):
        if isinstance(error, Exception):
            raise error
        raise error("says by the Hub\nat length", response=httpx.Response(401, request=httpx.Request("HEAD", url)))

    monkeypatch.setattr(huggingface_hub, "get_hf_file_metadata", ask)
    line = the_line("nobody/no-such-model")
    assert says in line and "nobody/no-such-model" in line


def test_pickled_weights_on_the_hub():
    """transformers' words for it, as `use_safetensors=True` gives them; and no service is asked to convert them."""
    error = OSError("a/b does not appear to have a file named model.safetensors or model.safetensors.index.json and")
    assert "no safetensors weights" in hub._explain(error, "a/b", "its weights cannot be loaded", local=False)
    assert os.environ["DISABLE_SAFETENSORS_CONVERSION"]


def test_bundled(bundled):
    assert bundled.id == "bundled:SmolLM2-135M-Instruct" and bundled.stop_ids == {2}
    assert (bundled.num_layers, bundled.context, bundled.shape.params) == (30, 8192, 134_515_008)
    assert bundled.model.lm_head.weight is bundled.model.model.embed_tokens.weight
    assert bundled.model.config._attn_implementation == "sdpa"


def test_bundled_is_the_same_in_bfloat16(bundled):
    """The id is a name too; the bfloat16 values are the weights in float32 runs as well."""
    half = load_model(bundled.id, device="cpu", dtype="bfloat16")
    assert (half.id, half.revision) == (bundled.id, bundled.revision)
    weights = dict(bundled.model.named_parameters())
    assert all(torch.equal(weight.float(), weights[name]) for name, weight in half.model.named_parameters())
