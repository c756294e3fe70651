"""Names and files of others: pickled weights are never opened, and a name leads nowhere."""

import contextlib
import pickle
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lora_drop.adapters.bank import AdapterBank
from lora_drop.errors import LoraDropError
from lora_drop.models import bundled as bundled_model
from lora_drop.models import hub
from lora_drop.models.load import load_model
from lora_drop.run.trace.trace import read_trace
from tests.support.fuzzing import CORPUS, TRIED, one_line, profile, texts

pytestmark = pytest.mark.full


class Opened(Exception):
    """A pickle was opened."""


@pytest.fixture
def no_pickles(monkeypatch):
    """Fails the test if anything opens a pickle, by whatever way."""

    def opened(*args, **kwargs):
        raise Opened

    for module, name in ((torch, "load"), (pickle, "load"), (pickle, "loads"), (pickle, "Unpickler")):
        monkeypatch.setattr(module, name, opened)


PICKLES = ("pytorch_model.bin", "adapter_model.bin", "adapter_model.pt", "model.pt", "weights.pkl", "model.ckpt")


def kinds(error: BaseException | None) -> Iterator[type]:
    while error is not None:
        yield type(error)
        error = error.__cause__ or error.__context__


def test_pickled_weights_are_never_opened(tiny, tmp_path, no_pickles):
    """Instead of safetensors they are refused, beside them they are ignored: of models and of adapters."""
    model = tmp_path / "model"
    tiny.model.save_pretrained(model)
    evil = b"cposix\nsystem\n(S'touch hacked'\ntR."
    for name in PICKLES:
        (model / name).write_bytes(evil)
    (model / "pytorch_model.bin.index.json").write_text('{"weight_map": {"x": "pytorch_model.bin"}}')
    with pytest.raises(LoraDropError, match="its tokenizer cannot be loaded") as caught:  # it has none, but weights
        load_model(str(model))
    assert Opened not in kinds(caught.value)
    shutil.copytree(
        bundled_model.ensure(), tmp_path / "real", ignore=shutil.ignore_patterns("*.safetensors", "*.gguf")
    )
    for name in PICKLES:
        (tmp_path / "real" / name).write_bytes(evil)
    with pytest.raises(LoraDropError, match="no safetensors weights .pickled ones are refused.") as caught:
        load_model(str(tmp_path / "real"))
    assert Opened not in kinds(caught.value)
    for name in ("good_pickle_beside", "bad_pickle_instead", "bad_pickle_by_another_name"):
        folder = CORPUS / "adapters" / name
        with contextlib.nullcontext() if name.startswith("good") else pytest.raises(LoraDropError):
            AdapterBank.load(folder)


@profile(80)
@given(name=st.one_of(texts, st.sampled_from(["..", ".", "~", "~root", "/", "/etc", "/proc/self", "//", "a/../.."])))
def test_a_model_s_name_leads_nowhere(name, monkeypatch):
    """A name is bundled, random:, a folder of safetensors, or goes to the Hub; the Hub is asked for no path."""
    TRIED["names of models"] += 1
    asked = []

    def answers(hub_id, file="config.json"):
        asked.append(hub_id)
        raise LoraDropError("not asked in a test.")

    monkeypatch.setattr(hub, "_hub_answers", answers)
    with pytest.raises(LoraDropError) as caught:
        load_model(name, device="cpu")
    one_line(caught.value)
    for hub_id in asked:
        assert re.fullmatch(r"[\w.-]+(/[\w.-]+)?", hub_id) and not hub_id.startswith((".", "/"))


@profile(80)
@given(name=texts)
def test_a_trace_s_name_is_reported_and_not_followed(calls, name):
    """The error names the file, never its folder."""
    TRIED["names of traces"] += 1
    path = Path("/proc/no-such-folder") / name.replace("/", "_")
    with pytest.raises(LoraDropError) as caught:
        read_trace(path)
    assert "no-such-folder" not in one_line(caught.value) or path.name == "no-such-folder"
    _, status = calls.open_trace(str(path))
    assert status == {"kind": "error", "text": str(caught.value)}
