"""GGUF files of each kind of blocks: decoded in their own where the C steps read those, else as numbers."""

from types import SimpleNamespace

import gguf
import huggingface_hub
import pytest
import torch
from gguf import GGMLQuantizationType as Kind
from huggingface_hub import constants

from lora_drop.decode.native import weights
from lora_drop.decode.native.loader import library
from lora_drop.decode.reference import ReferenceDecoder
from lora_drop.errors import LoraDropError
from lora_drop.method.config import LoraDropConfig
from lora_drop.method.cost import step_bytes
from lora_drop.method.schedule import Schedule
from lora_drop.models import hub
from lora_drop.models.load import fetch, load_model
from lora_drop.run.generate import generate
from lora_drop.run.inspect import inspect, read_again
from lora_drop.run.request import Request
from lora_drop.run.run import run
from lora_drop.run.trace.trace import gather
from tests.support.allocated import Allocated
from tests.support.gguf_files import write
from tests.support.loading import the_line
from tests.support.runs import about_step

IDS = torch.tensor([[5, 99, 17, 42, 200]])
needs_compiler = pytest.mark.skipif(library() is None, reason="there is no C compiler here")


def logits(decoder, steps=6):
    state = decoder.new_state(LoraDropConfig(period=1).schedule_for(decoder.num_layers))
    outputs = [decoder.prefill(IDS, state).logits]
    outputs += [decoder.step(torch.tensor([[token]]), state).logits for token in range(steps)]
    return torch.cat(outputs)


@pytest.fixture(autouse=True)
def in_float32(monkeypatch, tmp_path):
    """Else the numbers of a file would be rounded, and its blocks not. What is made of the files goes with them."""
    monkeypatch.setattr("lora_drop.models.place._cpu_has_bfloat16", lambda: False)
    monkeypatch.setattr("lora_drop.models.gguf.cache_dir", lambda: tmp_path / "cache")


def assert_near(ours, right):
    assert (ours - right).norm() < 5e-4 * right.norm()  # activations are cut into bytes


def assert_reads_its_numbers(loaded, path):
    """Prompt and steps, then a repair of several rows, as the reference has them with transformers' own weights."""
    dense = load_model(str(path), device="cpu", with_numbers=True)
    assert (loaded.revision, loaded.sketch, loaded.shape) == (dense.revision, dense.sketch, dense.shape)
    assert not any(weight.is_meta for weight in dense.model.parameters())
    right = logits(ReferenceDecoder(dense.model))
    for model in (loaded, dense):
        assert_near(logits(model.new_decoder()), right)
    request = Request("Hello", LoraDropConfig(drop_layers=(1,)), max_new_tokens=6, ignore_eos=True)
    traces = [gather(run(model, request)) for model in (loaded, dense)]
    for lane in ("baseline", "lora_drop"):
        ours, theirs = (trace.token_ids(lane) for trace in traces)
        assert len(ours) == 6 and ours == theirs


SIZES = {Kind.Q4_0: 18, Kind.Q4_1: 20, Kind.Q8_0: 34, Kind.Q4_K: 18, Kind.Q6_K: 26.25}  # bytes of 32 weights


@needs_compiler
@pytest.mark.parametrize("architecture", ["llama", "qwen2"])
@pytest.mark.parametrize("kind", SIZES)
def test_each_kind_is_decoded_in_its_own_blocks(kind, architecture, tmp_path, capsys):
    """The same logits as the numbers that transformers makes of them; query and key rows in order, biases too."""
    path = write(tmp_path / "model.gguf", {"": kind}, architecture)
    loaded = load_model(str(path), device="cpu")
    assert loaded.id == "model.gguf" and loaded.decoder_name.endswith(" blocks)") and not capsys.readouterr().err
    assert set(loaded.weights.layer_bytes) == {3 * (SIZES[kind] / 32,)} and loaded.weights.head_bytes == 34 / 32
    assert loaded.shape.matrix_size == SIZES[kind] / 128 and not loaded.shape.layer_sizes
    assert_reads_its_numbers(loaded, path)


# As llama.cpp's tool writes Q4_K_M; three kinds in one matrix; parts with and without blocks in one; other heads.
MIXED = [
    ({"": Kind.Q4_K, "attn_v": Kind.Q6_K, "ffn_down": Kind.Q6_K}, Kind.Q6_K, "q4_k/q6_k blocks"),
    (
        {"": Kind.Q4_K, "attn_k": Kind.Q8_0, "attn_v": Kind.Q6_K, "ffn_up": Kind.Q4_1},
        None,
        "q4_1/q8_0/q4_k/q6_k blocks",
    ),
    ({"": Kind.Q4_0, "attn_k": Kind.F16, "ffn_gate": Kind.F16}, Kind.Q4_K, "q4_0/q4_k blocks and float32"),
]


@needs_compiler
@pytest.mark.parametrize("architecture", ["llama", "qwen2"])
@pytest.mark.parametrize(("kinds", "head", "name"), MIXED)
def test_each_part_has_its_own_kind(kinds, head, name, architecture, tmp_path, capsys):
    path = write(tmp_path / "model.gguf", kinds, architecture, head)
    loaded = load_model(str(path), device="cpu")
    assert loaded.decoder_name == f"native ({name})"
    assert capsys.readouterr().err.count("\n") == ("float32" in name)
    assert_reads_its_numbers(loaded, path)


@needs_compiler
def test_the_bound_counts_the_bytes_of_each_part(tmp_path):
    """All that a full step reads has the sizes of the file's tensors; and so has what a skipped layer still reads."""
    kinds = {"": Kind.Q4_K, "attn_v": Kind.Q6_K, "ffn_down": Kind.Q6_K}
    path = write(tmp_path / "model.gguf", kinds, head=Kind.Q6_K)
    shape = load_model(str(path), device="cpu").shape
    tensors = {tensor.name: int(tensor.n_bytes) for tensor in gguf.GGUFReader(str(path)).tensors}
    of_step = (
        sum(size for name, size in tensors.items() if "embd" not in name) + 4 * shape.hidden_size
    )  # of it one row
    full = Schedule(1, shape.num_layers, ())
    assert step_bytes(shape, full, 1, 0, 4, kv=False) == of_step
    for rules, read in (
        ({"kv": "write"}, ("attn_norm", "attn_k", "attn_v")),
        ({"part": "attention"}, ("ffn_norm", "ffn_gate", "ffn_up", "ffn_down")),
    ):
        skipped = sum(
            tensors[name] for name in tensors if name.startswith("blk.2.") and name.split(".")[2] not in read
        )
        schedule = Schedule(4, shape.num_layers, (2,), reuse="skip", **rules)
        assert step_bytes(shape, schedule, 1, 0, 4, kv=False) == of_step - skipped


@needs_compiler
def test_what_has_no_such_blocks_is_decoded_as_numbers_and_it_says_so(tmp_path, capsys):
    path = write(tmp_path / "model.gguf", {"": Kind.Q4_1, "ffn_down": Kind.Q5_0})
    loaded = load_model(str(path), device="cpu")
    (line,) = capsys.readouterr().err.splitlines()
    assert "its Q5_0 matrices" in line and loaded.decoder_name == "native (q4_1/q8_0 blocks and float32)"
    assert_reads_its_numbers(loaded, path)


def numbers_in_memory(loaded):
    """Bytes of the model's parameters and of what is laid out for the C steps."""
    tensors = [*loaded.model.parameters(), *(part for part in loaded.weights.memory if isinstance(part, torch.Tensor))]
    stores = {tensor.untyped_storage()._cdata: tensor.untyped_storage() for tensor in tensors if not tensor.is_meta}
    return sum(store.nbytes() for store in stores.values())


@needs_compiler
def test_a_file_is_in_memory_once_and_in_its_blocks(tmp_path, monkeypatch):
    """So it is while a run is audited and while a step is looked into: no matrix becomes numbers."""
    monkeypatch.setattr(weights, "CHUNK", 1)
    monkeypatch.setattr(weights, "LARGE_PAGE", weights.ALIGNED)
    path = write(tmp_path / "model.gguf", {"": Kind.Q4_K, "ffn_down": Kind.Q6_K}, head=Kind.Q6_K)
    request = Request("Hello " * 9, LoraDropConfig(drop_layers=(1, 2), refresh="repair"), 20, ignore_eos=True)
    peaks, drifts = [], []
    for with_numbers in (False, True):
        loaded = load_model(str(path), device="cpu", with_numbers=with_numbers)
        size = numbers_in_memory(loaded) / path.stat().st_size
        assert size > 4 if with_numbers else size < 1.05
        with Allocated() as seen:
            trace = gather(run(loaded, request))
            about = about_step(trace, "lora_drop", 0)
            inspected = inspect(loaded, trace.header, about, read_again(loaded, trace, "lora_drop", 0))
        peaks.append(seen.peak)
        drifts.append(inspected["layers"])
    assert peaks[0] < 1.1 * peaks[1]  # one matrix of numbers would be a fifth
    for ours, theirs in zip(*drifts, strict=True):
        assert ours["drift"] == pytest.approx(theirs["drift"], abs=1e-3)
        for (_, chance), (_, expected) in zip(ours["lens"], theirs["lens"], strict=True):
            assert chance == pytest.approx(expected, abs=1e-3)


@needs_compiler
@pytest.mark.parametrize("architecture", ["llama", "qwen2"])
def test_a_prompt_is_read_as_the_steps_would(architecture, tmp_path):
    """To the bit, whatever the chunks; and so is a text that is audited."""
    path = write(tmp_path / "model.gguf", {"": Kind.Q4_1, "attn_k": Kind.F16}, architecture)
    decoder = load_model(str(path), device="cpu").new_decoder()
    ids = torch.arange(3, 78)[None]
    state = decoder.new_state(LoraDropConfig(period=1).schedule_for(decoder.num_layers))
    decoder.prefill(ids[:, :1], state)
    steps = torch.cat([decoder.step(ids[:, at : at + 1], state).logits for at in range(1, 75)])
    prompt = decoder.read_prompt(ids)
    assert torch.equal(prompt.logits, steps[-1:])
    for ours, theirs in zip(prompt.kv.stores, state.kv.stores, strict=True):
        assert torch.equal(ours[:, :, :, :75], theirs[:, :, :, :75])
    prompt = decoder.read_prompt(ids[:, :30])
    for kv, start in ((prompt.kv, 30), (type(prompt.kv)(decoder.num_layers), 0)):
        output = decoder.read(ids[:, start:], kv, start, (1,), 40 - start)
        assert torch.equal(output.logits[0], steps[39:]) and output.watched.shape[2] == 75 - start


@needs_compiler
def test_what_needs_numbers_says_so(tmp_path):
    model = load_model(str(write(tmp_path / "model.gguf", {"": Kind.Q4_0})), device="cpu").model
    for how in ({}, {"custom_generate": generate}):
        with pytest.raises(LoraDropError, match="with_numbers=True"):
            model.generate(IDS, max_new_tokens=2, **how)


@needs_compiler
@pytest.mark.parametrize("architecture", ["llama", "qwen2"])
def test_a_file_is_parsed_once(architecture, tmp_path, monkeypatch):
    """Where the cache cannot be written it is parsed again, and all else goes on."""
    path = write(tmp_path / "model.gguf", {"": Kind.Q4_0}, architecture)
    reader, parsed = gguf.GGUFReader, []
    monkeypatch.setattr(gguf, "GGUFReader", lambda name: parsed.append(name) or reader(name))
    first = load_model(str(path), device="cpu")
    assert parsed == [str(path)]
    monkeypatch.setattr(gguf, "GGUFReader", None)
    again = load_model(str(path), device="cpu")
    assert again.revision == first.revision and again.stop_ids == first.stop_ids
    monkeypatch.setattr(gguf, "GGUFReader", reader)
    monkeypatch.setattr("lora_drop.models.gguf.cache_dir", lambda: path)  # a file
    other = load_model(str(path), device="cpu").tokenizer
    for text in ("Hello  12 worlds\n", "ab <|end|><|3|> é"):
        assert first.tokenizer.encode(text) == again.tokenizer.encode(text) == other.encode(text)


def test_a_number_type_that_is_asked_for_is_that_of_the_weights(tmp_path):
    path = write(tmp_path / "model.gguf", {"": Kind.Q4_0})
    assert "blocks" not in load_model(str(path), device="cpu", dtype="float32").decoder_name


@pytest.mark.parametrize("damage", ["missing", "text", "cut"])
def test_a_bad_file_is_one_line(damage, tmp_path):
    path = tmp_path / "model.gguf"
    if damage == "text":
        path.write_text("no model")
    if damage == "cut":
        path.write_bytes(write(tmp_path / "whole.gguf", {"": Kind.Q4_0}).read_bytes()[:3000])
    assert "model.gguf" in the_line(str(path))


def test_a_file_of_the_hub_is_read_from_the_cache_where_the_hub_cannot_be_reached(tmp_path, monkeypatch):
    snapshot = tmp_path / "models--OWNER--NAME" / "snapshots" / ("0" * 40)
    for folder in (snapshot, tmp_path / "models--OWNER--NAME" / "refs"):
        folder.mkdir(parents=True)
    (folder / "main").write_text("0" * 40)
    path = write(snapshot / "model-q4_0.gguf", {"": Kind.Q4_0})
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(hub, "_hub_answers", lambda name, file: False)
    loaded = load_model("OWNER/NAME/model-q4_0.gguf", device="cpu", dtype="float32")
    assert loaded.id == "OWNER/NAME/model-q4_0.gguf"  # what repeats the run elsewhere
    assert loaded.revision == load_model(str(path), device="cpu", dtype="float32").revision
    assert list(fetch("OWNER/NAME/model-q4_0.gguf")) == []
    assert "OWNER/NAME/other.gguf is not on this machine" in the_line("OWNER/NAME/other.gguf")


def test_of_a_repository_the_named_file_alone_is_fetched(monkeypatch):
    listed = [SimpleNamespace(rfilename=name, size=7) for name in ("a.gguf", "sub/b.gguf", "config.json")]
    api = SimpleNamespace(model_info=lambda repository, **options: SimpleNamespace(siblings=listed))
    monkeypatch.setattr(huggingface_hub, "HfApi", lambda: api)
    monkeypatch.setattr(hub, "_hub_answers", lambda name, file: True)
    assert hub.hub_files("OWNER/NAME/sub/b.gguf") == {"sub/b.gguf": 7}


def test_another_architecture_says_which_are_read(tmp_path):
    path = write(tmp_path / "model.gguf", {"": Kind.Q4_0}, architecture="gptj")
    (tmp_path / "config.json").write_text('{"model_type": "neverland"}')
    read = "supported architectures are llama, qwen2, qwen3, mistral."
    assert the_line(str(path)) == f"model.gguf is a 'gptj' model; {read}"
    assert the_line(str(tmp_path)) == f"{tmp_path.name} is a 'neverland' model; {read}"
