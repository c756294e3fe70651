"""The regression that training starts from, against least squares written out."""

import torch

from lora_drop.adapters.bank import AdapterBank
from lora_drop.training.fit import RIDGE, fit
from lora_drop.training.student import Layout


@torch.no_grad()
def test_at_full_rank_it_is_least_squares(tiny):
    torch.manual_seed(0)
    size, tokens, layout = tiny.shape.hidden_size, torch.randint(0, 256, (8, 40)), Layout.of(4, 40, 3, tiny.device)
    bank = AdapterBank.new([3], size, size, 8.0, reuse="skip")
    scales = fit(tiny.model, bank, [(tokens, layout)])
    h = tiny.model.model(tokens, output_hidden_states=True).hidden_states
    at = [t for t in range(4, 40) if (t - 3) % 3]  # the LoRA positions
    x, y = (rows.flatten(0, 1).double() for rows in (h[3][:, at], (h[4] - h[3])[:, at]))
    moment = x.T @ x / len(x)
    wanted = torch.linalg.solve(moment + torch.diag(RIDGE * moment.diagonal()), x.T @ y / len(x)).T
    ours = bank.b[3] @ bank.a[3] * (bank.alpha / bank.rank)
    torch.testing.assert_close(ours, wanted.float(), rtol=2e-3, atol=2e-4)
    whitened = x.float() @ scales[3].white
    torch.testing.assert_close(whitened.T @ whitened / len(x), torch.eye(size), rtol=0, atol=0.05)
    torch.testing.assert_close(scales[3].reach, y.pow(2).mean(0).sqrt().float(), rtol=1e-4, atol=1e-6)
