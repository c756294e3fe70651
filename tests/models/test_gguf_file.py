"""GGUF files of each kind of blocks: decoded in their own blocks where those are exact, else as numbers."""

import gguf
import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType as Kind

from lora_drop.decode import ReferenceDecoder, library
from lora_drop.method.config import LoraDropConfig
from lora_drop.models.gguf_file import with_minimum
from lora_drop.models.load import load_model
from lora_drop.run.request import Request
from lora_drop.run.run import run
from lora_drop.run.trace import gather
from tests.support.gguf_files import write
from tests.support.loading import the_line

IDS = torch.tensor([[5, 99, 17, 42, 200]])
needs_compiler = pytest.mark.skipif(library() is None, reason="there is no C compiler here")


def logits(decoder, steps=6):
    state = decoder.new_state(LoraDropConfig(period=1).schedule_for(decoder.num_layers))
    found = [decoder.prefill(IDS, state).logits]
    found += [decoder.step(torch.tensor([[token]]), state).logits for token in range(steps)]
    return torch.cat(found)


@needs_compiler
@pytest.mark.parametrize("architecture", ["llama", "qwen2"])
@pytest.mark.parametrize("kind", [Kind.Q4_0, Kind.Q4_1, Kind.Q8_0])
def test_exact_kinds_are_decoded_in_blocks(kind, architecture, tmp_path, monkeypatch, capsys):
    """The same logits as the numbers that transformers makes of them; query and key rows in order, biases too."""
    monkeypatch.setattr("lora_drop.models.place._cpu_has_bfloat16", lambda: False)  # no rounding between the two
    path = write(tmp_path / "model.gguf", {"": kind}, architecture)
    loaded = load_model(str(path), device="cpu")
    assert loaded.id == "model.gguf" and loaded.decoder_name.endswith(" blocks)") and not capsys.readouterr().err
    per_weight = {Kind.Q4_0: 20 / 32, Kind.Q4_1: 20 / 32, Kind.Q8_0: 34 / 32}[kind]
    assert loaded.weights.layer_bytes == per_weight and loaded.weights.head_bytes == 34 / 32
    ours, right = logits(loaded.new_decoder()), logits(ReferenceDecoder(loaded.model))
    assert (ours - right).norm() < 5e-4 * right.norm()  # activations are cut into bytes
    trace = gather(run(loaded, Request("Hello", LoraDropConfig(drop_layers=(1,)), max_new_tokens=6, ignore_eos=True)))
    assert len(trace.steps["lora_drop"]) == 6


@needs_compiler
@pytest.mark.parametrize(
    ("kinds", "head", "says", "name"),
    [
        ({"": Kind.Q4_K}, None, "its Q4_K matrices", "native (q8_0 blocks and float32)"),
        ({"": Kind.Q6_K}, Kind.Q6_K, "its Q6_K matrices", "native (float32)"),
        ({"": Kind.Q4_0, "attn_v": Kind.Q6_K}, Kind.Q6_K, "its Q6_K matrices", "native (q4_1 blocks and float32)"),
    ],
)
def test_other_kinds_are_decoded_as_numbers_and_it_says_so(kinds, head, says, name, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("lora_drop.models.place._cpu_has_bfloat16", lambda: False)
    path = write(tmp_path / "model.gguf", kinds, head=head)
    loaded = load_model(str(path), device="cpu")
    (line,) = capsys.readouterr().err.splitlines()
    assert says in line and loaded.decoder_name == name
    ours, right = logits(loaded.new_decoder()), logits(ReferenceDecoder(loaded.model))
    assert (ours - right).norm() < 5e-4 * right.norm()  # activations are cut into bytes


def test_a_number_type_that_is_asked_for_is_that_of_the_weights(tmp_path):
    path = write(tmp_path / "model.gguf", {"": Kind.Q4_0})
    assert "blocks" not in load_model(str(path), device="cpu", dtype="float32").decoder_name


def test_q4_0_is_q4_1_to_the_bit():
    weights = np.random.default_rng(0).standard_normal((48, 256)).astype(np.float32) * 3
    rows = gguf.quants.quantize(weights, Kind.Q4_0)
    assert np.array_equal(gguf.dequantize(with_minimum(rows), Kind.Q4_1), gguf.dequantize(rows, Kind.Q4_0))


@pytest.mark.parametrize("damage", ["missing", "text", "cut"])
def test_a_bad_file_is_one_line(damage, tmp_path):
    path = tmp_path / "model.gguf"
    if damage == "text":
        path.write_text("no model")
    if damage == "cut":
        path.write_bytes(write(tmp_path / "whole.gguf", {"": Kind.Q4_0}).read_bytes()[:3000])
    assert "model.gguf" in the_line(str(path))
