"""The adapter folder: what is saved comes back, what does not fit is refused, `auto` takes the nearest bank."""

import copy
import dataclasses
import json
import math
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

import lora_drop
from lora_drop.adapters import find
from lora_drop.adapters.bank import AdapterBank
from lora_drop.adapters.find import find_bank
from lora_drop.adapters.hub import CONFIG_NAME, WEIGHTS_NAME
from lora_drop.adapters.preview import with_codes
from lora_drop.decode.correction import correct
from lora_drop.errors import LoraDropError
from lora_drop.evaluation.measure.bench import head_only
from lora_drop.method.config import LoraDropConfig
from lora_drop.models import bundled, external, place
from lora_drop.models.download import GGUF
from lora_drop.models.load import distance, fingerprint, load_model, sketch
from lora_drop.run import request as asked
from lora_drop.run.request import Request, plan
from lora_drop.run.run import run
from lora_drop.run.trace.trace import gather
from tests.support.decoding import random_bank
from tests.support.parts import full_bank
from tests.support.presets import BUNDLED_PRESETS

EXACT = {"refresh": "repair", "kv": "write"}


def tensors_of(bank):
    corrections = [*bank.a.values(), *bank.b.values(), *bank.gate.values()]
    return [*corrections, bank.head.project, bank.head.codes, bank.head.scale]


@pytest.fixture
def bank(tiny):
    made = full_bank(tiny, "residual")
    made.revision, made.num_layers, made.kv, made.refresh = tiny.revision, tiny.num_layers, "write", "repair"
    return made


@pytest.mark.parametrize("holds_codes", [False, True])
def test_what_is_saved_comes_back(tiny, bank, tmp_path, holds_codes):
    if holds_codes:
        bank.head = dataclasses.replace(bank.head, lift=None)
    bank.base_model, bank.meta = "tiny", {"tokens": 1000}
    bank.save(tmp_path / "bank")
    back = AdapterBank.load(tmp_path / "bank")
    assert bool(len(back.head.codes)) == holds_codes
    back.head = with_codes(back.head, tiny)
    assert all(torch.equal(*pair) for pair in zip(tensors_of(back), tensors_of(bank), strict=True))
    assert back.head.best == bank.head.best
    others = vars(bank).keys() - {"a", "b", "gate", "head"}
    assert all(getattr(back, name) == getattr(bank, name) for name in others)


def test_the_correction_is_the_formula(bank):
    h = torch.randn(3, 64)
    expected = torch.stack([8.0 / 4 * (bank.b[2] @ (bank.a[2] @ x)) for x in h])
    torch.testing.assert_close(correct(bank, 2, h)[0], expected)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"num_layers": 5}, "another model: it has 6 layers, this one 5"),
        ({"hidden_size": 32}, "hidden size 32"),
        ({"vocab_size": 99}, "vocabulary of 99"),
        ({"reuse": "state"}, "trained for reuse residual"),
        ({"part": "attention"}, "part block"),
        ({"revision": "other"}, None),
    ],
)
def test_a_bank_of_another_model_or_rule_is_refused(tiny, bank, changes, says):
    """One of other weights only warns."""
    facts = {"num_layers": 6, "hidden_size": 64, "vocab_size": 258, "revision": tiny.revision, "sketch": ""}
    facts |= {"reuse": "residual", "part": "block"} | changes
    model = SimpleNamespace(**facts, shape=SimpleNamespace(**facts))
    if says:
        with pytest.raises(LoraDropError, match=says):
            bank.check(model, "bank", model.reuse, model.part)
    else:
        assert "trained on other weights" in bank.check(model, "bank", model.reuse, model.part)
        assert bank.check(tiny, "bank", "residual", "block") is None


def on(tiny, folder, **settings):
    config = LoraDropConfig(period=3, layers=(1, 4), adapters=str(folder), **{**EXACT, **settings})
    return find_bank(tiny, config, config.schedule_for(tiny.num_layers))


@pytest.mark.parametrize(
    ("settings", "corrects", "screens"),
    [
        ({}, True, False),
        ({"head": "screened"}, True, True),
        ({"corrections": False, "head": "screened"}, False, True),
    ],
)
def test_a_run_takes_corrections_and_head_as_it_says(tiny, bank, tmp_path, settings, corrects, screens):
    bank.save(tmp_path / "bank")
    bank, notes = on(tiny, tmp_path / "bank", **settings)
    assert (bool(bank.a), bank.head is not None) == (corrects, screens) and not notes


def test_without_corrections_only_the_head_is_left(tiny, bank, tmp_path):
    bank.save(tmp_path / "bank")
    reduced, notes = on(tiny, tmp_path / "bank", corrections=False, head="screened")
    assert (reduced.rank, reduced.layers, reduced.gate, notes) == (0, [], {}, [])
    assert on(tiny, tmp_path / "bank", corrections=False) == (None, [])
    assert on(tiny, "none", corrections=False) == (None, [])


def test_a_method_without_corrections_may_draft_with_the_screened_head(tiny, bank, tmp_path, monkeypatch):
    monkeypatch.setattr(find, "SHIPPED_ADAPTERS", tmp_path)
    bank.save(tmp_path / "bank")
    lanes = "full,layerskip:2:3,layerskip:2:3:1,draft-verify:2:2:1"
    trace = gather(run(tiny, Request("a b a b", LoraDropConfig(), 16, lanes=lanes, ignore_eos=True)))
    ranks = {lane["id"]: lane["config"]["extras"]["head_rank"] for lane in trace.header.lanes[1:]}
    assert ranks == {"layerskip_2_3": 0, "layerskip_2_3_1": bank.head.rank, "draft_verify_2_2_1": bank.head.rank}
    assert all(trace.token_ids(lane) == trace.token_ids("baseline") for lane in ranks)
    assert trace.header.lanes[2]["label"] == "LayerSkip: exit 2, draft length 3, screened head"


def test_on_a_gpu_and_without_kernels_no_head_is_screened(tiny, bank, tmp_path, monkeypatch):
    """Named or under a preset: a note; and no figure has such a head."""
    assert [place.screens_heads(torch.device(name)) for name in ("cpu", "cuda")] == [True, False]
    with monkeypatch.context() as patch:
        patch.setattr(place, "library", lambda: None)
        assert not place.screens_heads(torch.device("cpu")), "torch would unpack all of it at each LoRA step"
    monkeypatch.setattr(find, "SHIPPED_ADAPTERS", tmp_path)
    bank.save(tmp_path / "bank")
    config = LoraDropConfig(period=3, layers=(1, 4), head="screened", **EXACT)
    request = Request("Why?", config, 8, compare="screened-head")

    def looked():
        checked = plan(tiny, request)
        main = checked.lanes["lora_drop"]
        head = main.config.head, main.schedule.head, main.corrections(tiny.shape).head_rank > 0
        facts = next(iter(find.bank_facts(tiny).values()))["head_rank"] > 0
        return head, "third" in checked.lanes, head_only(tiny, config) is not None, facts, checked.notes

    assert looked() == (("screened", "screened", True), True, True, True, [])
    for module in (find, asked):
        monkeypatch.setattr(module, "screens_heads", lambda device: False)
    *figures, notes = looked()
    assert figures == [("full", "full", False), False, False, False] and find.NO_SCREEN in notes
    reduced, _ = on(tiny, tmp_path / "bank", head="screened")
    assert reduced.a and reduced.head is None


def test_a_missing_head_is_a_note(tiny, bank, tmp_path, monkeypatch):
    monkeypatch.setattr(find, "SHIPPED_ADAPTERS", tmp_path)
    bank.only(corrections=True, head=False).save(tmp_path / "bare")
    for name in ("auto", tmp_path / "bare"):
        bank, notes = on(tiny, name, head="screened")
        assert bank.a and notes == ["adapters bare have no screened head: the whole head is read."]
    assert on(tiny, "none", head="screened") == (None, ["without adapters there is no screened head."])


def test_auto_takes_the_bank_of_the_same_refresh(tiny, bank, tmp_path, monkeypatch):
    monkeypatch.setattr(find, "SHIPPED_ADAPTERS", tmp_path)
    bank.save(tmp_path / "b-exact")
    plain = random_bank(tiny, "residual")
    plain.revision = tiny.revision
    plain.save(tmp_path / "a-single")
    assert on(tiny, "auto")[0].refresh == "repair" and not on(tiny, "auto")[1]
    assert on(tiny, "auto", refresh="single", kv="skip")[0].refresh == "single"
    (tmp_path / "b-exact" / CONFIG_NAME).unlink()
    bank, notes = on(tiny, "auto")
    assert bank.refresh == "single"
    assert [note.partition("trained for ")[2] for note in notes] == [
        "kv skip, this run has kv write.",
        "refresh single, this run has refresh repair.",
    ]


@pytest.mark.parametrize(
    ("name", "value", "says"),
    [
        ("head.codes", torch.zeros(9, 2, dtype=torch.int8), "screened head"),
        ("head.codes", torch.zeros(258, 8, dtype=torch.int8), "screened head"),
        ("head.codes", torch.zeros(258, 9, dtype=torch.uint8), "screened head"),
        ("head.lift", torch.zeros(64, 29), "screened head"),
        ("head.lift", torch.zeros(64, 30, dtype=torch.int8), "screened head"),
        ("head.lift", torch.full((64, 30), torch.nan), "screened head"),
        ("head.project", torch.tensor(1.0), "screened head"),
        ("head.scale", torch.full((258,), torch.nan), "screened head"),
        ("head.scale", torch.full((258, 1), torch.nan), "screened head"),
        ("layers.2.lora_B.weight", torch.full((64, 4), torch.inf), "NaN or infinity"),
    ],
)
def test_broken_parts_are_one_line(bank, tmp_path, name, value, says):
    if name in ("head.codes", "head.scale"):
        bank.head = dataclasses.replace(bank.head, lift=None)
    bank.save(tmp_path / "bank")
    tensors = load_file(tmp_path / "bank" / WEIGHTS_NAME)
    assert name in tensors
    save_file({**tensors, name: value}, tmp_path / "bank" / WEIGHTS_NAME)
    with pytest.raises(LoraDropError, match=rf"the adapters in bank are broken: .*{says}"):
        AdapterBank.load(tmp_path / "bank")


@pytest.mark.parametrize("part", ["mlp", "kept"])
def test_a_part_that_is_gone_is_one_line_that_names_it(bank, tmp_path, part):
    bank.save(tmp_path / "bank")
    path = tmp_path / "bank" / CONFIG_NAME
    path.write_text(json.dumps(json.loads(path.read_text()) | {f"{part}_layers": [2]}))
    with pytest.raises(LoraDropError, match=f"hold the part {part}, which is no longer supported: train them again"):
        AdapterBank.load(tmp_path / "bank")


def test_a_config_without_its_tensors_is_one_line(bank, tmp_path):
    bank.only(corrections=True, head=False).save(tmp_path / "bank")
    path = tmp_path / "bank" / CONFIG_NAME
    path.write_text(json.dumps(json.loads(path.read_text()) | {"head": {"rank": 8, "best": 40}}))
    with pytest.raises(LoraDropError, match="the adapters in bank are broken: .*no tensor head"):
        AdapterBank.load(tmp_path / "bank")


def near(tiny, share, seed=0):
    """The model with noise on its matrices, relative to their size."""
    model = copy.deepcopy(tiny.model)
    generator = torch.Generator().manual_seed(seed)
    for weight in model.parameters():
        if weight.dim() == 2:
            weight += torch.randn(weight.shape, generator=generator) * weight.std() * share
    return dataclasses.replace(tiny, model=model, id="mine", revision=fingerprint(model), sketch=sketch(model))


@pytest.mark.parametrize(("share", "fits"), [(0.01, True), (0.02, True), (0.05, True), (0.2, False), (1.4, False)])
def test_a_bank_fits_weights_within_rounding_and_so_do_its_presets(tiny, bank, tmp_path, monkeypatch, share, fits):
    monkeypatch.setattr(find, "SHIPPED_ADAPTERS", tmp_path)
    bank.base_model, bank.sketch = "bundled:tiny", tiny.sketch
    bank.save(tmp_path / "bank")
    (tmp_path / "bank" / "presets.json").touch()
    model = near(tiny, share)
    taken, notes = on(model, "auto")
    assert (taken is not None) == fits and find.presets_folder(model, None) == (tmp_path / "bank" if fits else None)
    assert ("trained on the weights of bundled:tiny" if fits else "no trained adapters are shipped") in notes[0]
    assert find.presets_folder(tiny, None) == tmp_path / "bank" and on(tiny, "auto")[1] == []


@pytest.mark.parametrize("broken", ["", "llama", "llama 3 !", "llama 3 AAAA", "qwen2 9 "])
def test_a_broken_sketch_fits_nothing(tiny, broken):
    assert distance(broken, tiny.sketch) == distance(tiny.sketch, broken) == math.inf
    assert distance(broken, broken) == math.inf and distance(tiny.sketch, tiny.sketch) == 0


def test_save_pretrained_is_save(bank, tmp_path):
    bank.save_pretrained(tmp_path / "bank")
    assert torch.equal(AdapterBank.from_pretrained(tmp_path / "bank").a[2], bank.a[2])


@pytest.mark.full
def test_the_same_weights_write_the_same_text_from_anywhere():
    texts, prompt = {}, "The sky is blue because"
    for name in ("bundled", str(bundled.ensure()), str(bundled.ensure() / GGUF.name)):
        loaded = load_model(name)
        # Plain: the GGUF has no chat template.
        trace = lora_drop.show(prompt, model=loaded, max_new_tokens=32, plain=True)
        texts[name] = loaded.decoder_name, trace.header.main["config"], trace.token_ids("lora_drop")
    network = AutoModelForCausalLM.from_pretrained(bundled.ensure(), dtype=load_model("bundled").dtype)
    info, _ = external.prepare(network)
    assert find.presets_folder(info, None) == BUNDLED_PRESETS.parent
    first, *others = texts.values()
    assert others == [first, first]
    ids = loaded.tokenizer(prompt, return_tensors="pt").input_ids
    called = network.generate(ids, custom_generate=lora_drop.generate, lora_drop="balanced", max_new_tokens=32)
    assert called[0, ids.shape[1] :].tolist() == first[-1]
