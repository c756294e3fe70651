"""The adapter folder: what is saved comes back, and what does not fit is refused in words."""

from types import SimpleNamespace

import pytest
import torch

from lora_drop.adapters.bank import AdapterBank
from lora_drop.errors import LoraDropError

MODEL = {"num_layers": 6, "hidden_size": 32, "revision": "abc", "reuse": "residual", "part": "block"}


def check(bank, **changes):
    """The warning of a bank on a model of these sizes."""
    sizes = SimpleNamespace(**MODEL | changes, vocab_size=10)
    sizes.shape = sizes
    return bank.check(sizes, "bank", sizes.reuse, sizes.part)


@pytest.fixture
def bank():
    torch.manual_seed(0)
    bank = AdapterBank.new([2, 4], 32, rank=4, alpha=8.0)
    bank.b[2] += 1
    bank.gate[4] *= 0.25
    bank.base_model, bank.revision, bank.num_layers = "bundled", "abc", 6
    return bank


def test_the_correction_is_the_formula(bank):
    h = torch.randn(3, 32)
    expected = torch.stack([8.0 / 4 * (bank.b[2] @ (bank.a[2] @ x)) for x in h])
    torch.testing.assert_close(bank.correction(2, h), expected)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"num_layers": 5}, "another model: it has 6 layers, this one 5"),
        ({"hidden_size": 64}, "hidden size 64"),
        ({"reuse": "state"}, "trained for reuse residual"),
        ({"part": "attention"}, "part block"),
    ],
)
def test_a_bank_of_another_model_or_rule_is_refused(bank, change, says):
    with pytest.raises(LoraDropError, match=says):
        check(bank, **change)


def test_a_bank_of_other_weights_warns(bank):
    assert check(bank) is None
    assert "trained on other weights" in check(bank, revision="other")
