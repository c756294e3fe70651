"""LoRA-Drop written down a second time, as plainly as the formulas: no cache, no batching, token by token.

For each layer it keeps the inputs of the tokens whose keys exist, and recomputes all keys and values from them at
every step; a repair reads the tokens since the last refresh again, one by one. The decoder is compared with this.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn.functional import silu


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


def change(pairs, name: str, x: Tensor) -> Tensor | float:
    """What the `kept` part adds to a projection of x (K,); `pairs` is None where it has no say."""
    if not pairs or name not in pairs:
        return 0.0
    a, b = pairs[name]
    return b @ (a @ x)


def projections(layer, x: Tensor, pairs) -> tuple[Tensor, Tensor, Tensor]:
    """Queries, keys and values of a layer's input (D,), before their rotation."""
    attention, x = layer.self_attn, layer.input_layernorm(x)
    parts = [proj(x) for proj in (attention.q_proj, attention.k_proj, attention.v_proj)]
    q, k, v = (torch.cat(parts) + change(pairs, "qkv", x)).split([len(part) for part in parts])
    size = attention.head_dim
    q, k = heads(q, size, getattr(attention, "q_norm", None)), heads(k, size, getattr(attention, "k_norm", None))
    return q, k, heads(v, size)


def attend(layer, rotary, h: Tensor, position: int, inputs: list[tuple[int, Tensor, dict | None]], pairs) -> Tensor:
    """Attention output (D,) of one token over those in `inputs` (itself included), each with its `kept` part."""
    q = rotate(projections(layer, h, pairs)[0], position, rotary)
    keys, values = [], []
    for where, x, theirs in inputs:
        _, key, value = projections(layer, x, theirs)
        keys.append(rotate(key, where, rotary))
        values.append(value)
    k, v = torch.stack(keys, 1), torch.stack(values, 1)  # (n_kv, T, hs)
    share = q.shape[0] // k.shape[0]
    out = []
    for head in range(q.shape[0]):
        scores = (k[head // share] @ q[head]) / math.sqrt(q.shape[1])
        out.append(scores.softmax(-1) @ v[head // share])
    mixed = torch.cat(out)
    return layer.self_attn.o_proj(mixed) + change(pairs, "out", mixed)


def feed(layer, u: Tensor, pairs=None) -> Tensor:
    """The MLP of the stream after attention (D,)."""
    mlp, x = layer.mlp, layer.post_attention_layernorm(u)
    both = torch.cat((mlp.gate_proj(x), mlp.up_proj(x))) + change(pairs, "gate_up", x)
    gate, up = both.chunk(2)
    inner = silu(gate) * up
    return mlp.down_proj(inner) + change(pairs, "down", inner)


def correction(bank, i: int, layer, h: Tensor) -> Tensor:
    """d of a skipped layer's input (D,)."""
    d = bank.alpha / bank.rank * (bank.b[i] @ (bank.a[i] @ h))
    if i in bank.mlp:
        gate_up, down = bank.mlp[i]
        gate, up = (gate_up @ layer.post_attention_layernorm(h)).chunk(2)
        d = d + down @ (silu(gate) * up)
    return d


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
    """A text that is read token by token: the inputs of each layer whose keys exist, and what the rules reuse."""

    def __init__(self, model, schedule, bank):
        self.model, self.schedule, self.bank = model, schedule, bank
        self.inputs: list[list[tuple[int, Tensor, dict | None]]] = [[] for _ in model.model.layers]
        self.previous: dict[int, Tensor] = {}  # h[t-1][i+1] (or u)
        self.anchor_in: dict[int, Tensor] = {}
        self.anchor_out: dict[int, Tensor] = {}
        self.ratios: list[float] = []  # ||d|| / ||what the rule reuses|| of the last LoRA step, by corrected layer

    def read(self, token: int, position: int, lora: bool) -> Tensor:
        """Logits (V,) after a token at a full or a LoRA step."""
        schedule, bank, body = self.schedule, self.bank, self.model.model
        h, self.ratios = body.embed_tokens.weight[token], []
        for i, layer in enumerate(body.layers):
            dropped = i in schedule.dropped
            adapts = lora and bank and schedule.dropped and schedule.dropped[0] < i and not dropped
            pairs = bank.kept.get(i) if adapts else None
            if not (lora and dropped) or (schedule.kv == "write" and not schedule.repairs):
                self.inputs[i].append((position, h, pairs))
            if lora and dropped:
                u = self.skip(i, h)
            else:
                u = h + attend(layer, body.rotary_emb, h, position, self.inputs[i], pairs)
                if schedule.part == "block" or not dropped:
                    u = u + feed(layer, u, pairs)
                self.anchor_in[i], self.anchor_out[i] = h, u
            self.previous[i] = u
            h = u + feed(layer, u) if dropped and schedule.part == "attention" else u
        return head_logits(self.model, h, bank.head if lora and schedule.head == "screened" else None)

    def skip(self, i: int, h: Tensor) -> Tensor:
        """The output (or u) of a skipped layer of input h (D,)."""
        schedule, bank = self.schedule, self.bank if self.bank and i in self.bank.a else None
        d = correction(bank, i, self.model.model.layers[i], h) if bank else torch.zeros_like(h)
        added = self.anchor_out[i] - self.anchor_in[i]
        reused = {"state": self.previous[i], "anchor": self.anchor_out[i], "residual": added, "skip": h}[
            schedule.reuse
        ]
        if bank:
            self.ratios.append(float(d.norm() / reused.norm()))
        if schedule.reuse == "residual":
            return h + (bank.gate[i] if bank else 1) * added + d
        return reused + d

    def repair(self, tokens: list[int], last: int) -> Tensor:
        """Read all after position `last` again, in full; logits (V,) after the last of the tokens."""
        for i in range(len(self.inputs)):
            self.inputs[i] = [one for one in self.inputs[i] if one[0] <= last]
        for position in range(last + 1, len(tokens)):
            logits = self.read(tokens[position], position, lora=False)
        for i in self.schedule.dropped if self.schedule.kv == "skip" else ():
            self.inputs[i] = [one for one in self.inputs[i] if one[0] <= last or one[0] == len(tokens) - 1]
        return logits


@torch.no_grad()
def naive_logits(
    model, tokens: list[int], prompt_tokens: int, schedule, bank=None, refreshes=None, norms: dict | None = None
) -> Tensor:
    """Logits after each token from the prompt's last on: (1 + G, V).

    `refreshes` are the full decode steps, every `period`-th unless given. `norms` receives, by step, the mean over the
    corrected layers of ||d|| / ||what the rule reuses||.
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
        if naive.ratios and norms is not None:
            norms[step] = sum(naive.ratios) / len(naive.ratios)
        if step > 0 or position == prompt_tokens - 1:
            logits.append(found)
    return torch.stack(logits)


def both_log_probs(model, prompt: list[int], target: list[int], schedule) -> tuple[Tensor, Tensor]:
    """Log-probabilities (T, V) that a target is scored by: the full model's, in one pass, and the schedule's."""
    tokens = prompt + target[:-1]
    with torch.inference_mode():
        full = model(torch.tensor([tokens])).logits[0, len(prompt) - 1 :].log_softmax(-1)
    return full, naive_logits(model, tokens, len(prompt), schedule).log_softmax(-1)
