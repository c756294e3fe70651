"""LoRA-Drop written down a second time, as plainly as the formulas: no batching, token by token.

Each layer has a list of the tokens whose keys exist: position, key and value. A repair reads the tokens since the last
refresh again, one by one. The decoder is compared with this.
"""

import math

import torch
from torch import Tensor
from torch.nn.functional import silu

Entry = tuple[int, Tensor, Tensor]  # position, key and value (n_kv, hs)


def rotate(x: Tensor, position: int, rotary) -> Tensor:
    """Rotary embedding of (n, hs) at one position, by the pairs (j, j + hs/2)."""
    half = x.shape[-1] // 2
    angle = position * rotary.inv_freq
    cos, sin = angle.cos() * rotary.attention_scaling, angle.sin() * rotary.attention_scaling
    one, two = x[:, :half], x[:, half:]
    return torch.cat((one * cos - two * sin, two * cos + one * sin), dim=-1)


def heads(x: Tensor, size: int, norm=None) -> Tensor:
    x = x.view(-1, size)
    return norm(x) if norm is not None else x


def projections(layer, rotary, x: Tensor, position: int) -> tuple[Tensor, Tensor, Tensor]:
    """Queries, keys and values of a layer's input (D,), the first two rotated."""
    attention, x = layer.self_attn, layer.input_layernorm(x)
    q, k, v = (proj(x) for proj in (attention.q_proj, attention.k_proj, attention.v_proj))
    size = attention.head_dim
    q, k = heads(q, size, getattr(attention, "q_norm", None)), heads(k, size, getattr(attention, "k_norm", None))
    return rotate(q, position, rotary), rotate(k, position, rotary), heads(v, size)


def attend(layer, q: Tensor, entries: list[Entry]) -> Tensor:
    """Attention output (D,) of a token's queries (n, hs) over the tokens of a layer, itself included."""
    k, v = (torch.stack([entry[at] for entry in entries], 1) for at in (1, 2))  # (n_kv, T, hs)
    share = q.shape[0] // k.shape[0]
    out = []
    for head in range(q.shape[0]):
        scores = (k[head // share] @ q[head]) / math.sqrt(q.shape[1])
        out.append(scores.softmax(-1) @ v[head // share])
    return layer.self_attn.o_proj(torch.cat(out))


def feed(layer, u: Tensor) -> Tensor:
    """The MLP of the stream after attention (D,)."""
    mlp, x = layer.mlp, layer.post_attention_layernorm(u)
    return mlp.down_proj(silu(mlp.gate_proj(x)) * mlp.up_proj(x))


def correction(bank, i: int, h: Tensor) -> Tensor:
    """d of a skipped layer's input (D,)."""
    return bank.alpha / bank.rank * (bank.b[i] @ (bank.a[i] @ h))


def head_logits(model, h: Tensor, screen=None) -> Tensor:
    """Logits (V,) of the last hidden state (D,), with a screened head those of its best exactly."""
    x, weight = model.model.norm(h), model.get_output_embeddings().weight
    exact = weight @ x
    if screen is None:
        return exact
    low = screen.project @ x
    preview = sum(
        screen.scale[:, at // 32] * (screen.codes[:, at : at + 32].float() @ low[at : at + 32])
        for at in range(0, len(low), 32)
    )
    best = preview.sort(descending=True).indices[: screen.best]
    preview[best] = exact[best]
    return preview


class Naive:
    """A text that is read token by token: the keys and values of each layer, and what the rules reuse."""

    def __init__(self, model, schedule, bank):
        self.model, self.schedule, self.bank = model, schedule, bank
        self.entries: list[list[Entry]] = [[] for _ in model.model.layers]
        self.previous: dict[int, Tensor] = {}  # h[t-1][i+1] (or u)
        self.anchor_in: dict[int, Tensor] = {}
        self.anchor_out: dict[int, Tensor] = {}

    def read(self, token: int, position: int, lora: bool) -> Tensor:
        """Logits (V,) after a token at a full or a LoRA step."""
        schedule, bank, body = self.schedule, self.bank, self.model.model
        h = body.embed_tokens.weight[token]
        for i, layer in enumerate(body.layers):
            dropped = i in schedule.dropped
            q, k, v = projections(layer, body.rotary_emb, h, position)
            if not (lora and dropped) or (schedule.kv == "write" and not schedule.repairs):
                self.entries[i].append((position, k, v))
            if lora and dropped:
                u = self.skip(i, h)
            else:
                u = h + attend(layer, q, self.entries[i])
                if schedule.part == "block" or not dropped:
                    u = u + feed(layer, u)
                self.anchor_in[i], self.anchor_out[i] = h, u
            self.previous[i] = u
            h = u + feed(layer, u) if dropped and schedule.part == "attention" else u
        return head_logits(self.model, h, bank.head if lora and schedule.head == "screened" else None)

    def skip(self, i: int, h: Tensor) -> Tensor:
        """The output (or u) of a skipped layer of input h (D,)."""
        schedule, bank = self.schedule, self.bank if self.bank and i in self.bank.a else None
        d = correction(bank, i, h) if bank else torch.zeros_like(h)
        added = self.anchor_out[i] - self.anchor_in[i]
        reused = {"state": self.previous[i], "anchor": self.anchor_out[i], "residual": added, "skip": h}[
            schedule.reuse
        ]
        if schedule.reuse == "residual":
            return h + (bank.gate[i] if bank else 1) * added + d
        return reused + d

    def repair(self, tokens: list[int], last: int) -> Tensor:
        """Read all after position `last` again, in full; logits (V,) after the last of the tokens."""
        self.forget(last)
        for position in range(last + 1, len(tokens)):
            logits = self.read(tokens[position], position, lora=False)
        for i in self.schedule.dropped if self.schedule.kv == "skip" else ():
            self.entries[i] = [entry for entry in self.entries[i] if entry[0] <= last or entry[0] == len(tokens) - 1]
        return logits

    def forget(self, last: int) -> None:
        """Forget the keys and values after position `last`."""
        self.entries = [[entry for entry in layer if entry[0] <= last] for layer in self.entries]


@torch.no_grad()
def naive_logits(model, tokens: list[int], prompt_tokens: int, schedule, bank=None, refreshes=None) -> Tensor:
    """Logits after each token from the prompt's last on: (1 + G, V).

    `refreshes` are the full decode steps, every `period`-th unless given.
    """
    naive, logits, last = Naive(model, schedule, bank), [], -1
    for position, token in enumerate(tokens):
        step = max(0, position - prompt_tokens + 1)
        lora = step > 0 and schedule.period > 1 and step % schedule.period != 0
        if refreshes is not None:
            lora = step > 0 and step not in refreshes
        if schedule.repairs and not lora:
            found = naive.repair(tokens[: position + 1], last)
        else:
            found = naive.read(token, position, lora)
        if not lora:
            last = position
        if step > 0 or position == prompt_tokens - 1:
            logits.append(found)
    return torch.stack(logits)


def both_log_probs(model, prompt: list[int], target: list[int], schedule) -> tuple[Tensor, Tensor]:
    """Log-probabilities (T, V) that a target is scored by: the full model's, in one pass, and the schedule's."""
    tokens = prompt + target[:-1]
    with torch.inference_mode():
        full = model(torch.tensor([tokens])).logits[0, len(prompt) - 1 :].log_softmax(-1)
    return full, naive_logits(model, tokens, len(prompt), schedule).log_softmax(-1)
