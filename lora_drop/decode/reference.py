"""The reference decoder: a thin reading of a transformers model, layer by layer. Slow, clear, any architecture.

It runs the model's own modules. The faster decoders share its prefill and its state, and are checked against it.

Shapes: B batch, T tokens of this call, D hidden size, V vocabulary, L layers, n skipped layers.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import PreTrainedModel

from lora_drop.decode.cache import HiddenCache, KVCache
from lora_drop.decode.clock import Clock
from lora_drop.decode.correction import Correction
from lora_drop.decode.logits import entropy
from lora_drop.decode.prompt import Prefilled, Stopped
from lora_drop.decode.step import DecoderOutput, DecodeState
from lora_drop.errors import LoraDropError
from lora_drop.method.schedule import Schedule

PART = 512, 8192  # tokens of a prompt that are read at once, on a CPU and elsewhere: a stop waits for so many


class ReferenceDecoder:
    """Prefill and decode steps over the layers of a Llama, Qwen2, Qwen3 or Mistral model. See `step.Decoder`."""

    name = "reference"
    kernels: str | None = None
    runs_ahead = False

    def __init__(self, model: PreTrainedModel):
        attention = model.config._attn_implementation
        if attention != "sdpa":  # the others read "no mask" differently
            raise LoraDropError(f"LoRA-Drop needs sdpa attention, this model has {attention}: load it with sdpa.")
        self.embed = cast(nn.Embedding, model.get_input_embeddings())
        self.head: nn.Linear = model.get_output_embeddings()
        self.layers = model.model.layers
        self.num_layers = len(self.layers)
        # Any: to a type checker each attribute of a transformers module is a tensor or a module.
        self.norm: Any = model.model.norm
        self.rotary: Any = model.model.rotary_emb
        self.device, self.dtype = self.embed.weight.device, self.embed.weight.dtype

    def new_state(
        self,
        schedule: Schedule,
        bank: Correction | None = None,
        tokens: int = 0,
        watch: bool = False,
        prompt: int = 0,
    ) -> DecodeState:
        """See `step.Decoder`. The caches grow by blocks, so `tokens` is of no use here."""
        return DecodeState(schedule, bank, KVCache(self.num_layers), HiddenCache(self.num_layers), watch)

    def prefill(self, input_ids: Tensor, state: DecodeState) -> DecoderOutput:
        """See `step.Decoder`."""
        return self.start(self.read_prompt(input_ids), state)

    @torch.inference_mode()
    def read_prompt(self, input_ids: Tensor, should_stop: Callable[[], bool] = lambda: False) -> Prefilled:
        """See `step.Decoder`."""
        clock = Clock(self.device)
        clock.start()
        kv, position = KVCache(self.num_layers), 0
        states: list[Tensor] = []
        attended: list[Tensor] = []
        for part in input_ids.split(PART[self.device.type != "cpu"], 1):
            if position and should_stop():
                raise Stopped
            h, position = self.embed(part), position + part.shape[1]
            rope = self._rotation(h, position - part.shape[1])
            states, attended = [h[:, -1].clone()], []  # copies: a view would keep the whole part alive
            for i in range(self.num_layers):
                u, h = self._layer(i, h, rope, kv)
                attended.append(u[:, -1].clone())
                states.append(h[:, -1].clone())
                if position < input_ids.shape[1]:
                    kv.reserve(kv.store(i)[0], i, input_ids.shape[1])  # once, and not part by part
        logits = self.head(self.norm(states[-1]))
        return Prefilled(input_ids, kv, torch.stack(states), torch.stack(attended), logits, clock.stop())

    @torch.inference_mode()
    def start(self, prompt: Prefilled, state: DecodeState) -> DecoderOutput:
        """See `step.Decoder`."""
        schedule = state.schedule
        reached = prompt.states[1:] if schedule.part == "block" else prompt.attended
        for i in schedule.dropped:
            state.hidden[i] = self._remember(schedule.reuse, prompt.states[i], reached[i])
        state.kv, state.position = prompt.kv.clone(), prompt.tokens.shape[1]
        logits = prompt.logits.clone()
        state.refresher.end(logits)
        return DecoderOutput(logits, entropy=state.refresher.entropy)

    @torch.inference_mode()
    def step(self, token: Tensor, state: DecodeState) -> DecoderOutput:
        """See `step.Decoder`."""
        lora, schedule = not state.refresher.begin(), state.schedule
        if not lora and schedule.repairs:
            return self.repair(token, state)
        first, watched = first_skipped(schedule), []
        h, rope = self._enter(token, state)
        for i in range(self.num_layers):
            if i == first and schedule.repairs:
                state.pending.append(h)
            if lora:
                h = self.run_lora(i, h, rope, state)
            else:
                h = self.run_full(i, h, rope, state)
            if i in schedule.dropped_set:
                watched.append(h[:, 0])
        if first == self.num_layers and schedule.repairs:
            state.pending.append(h)
        state.position += 1
        h = h[:, -1]
        normed = self.norm(h)
        logits = self._lora_logits(normed, state) if lora else self.head(normed)
        state.refresher.end(logits)
        return DecoderOutput(logits, stacked(watched, h) if state.watch else None, state.refresher.entropy)

    @torch.inference_mode()
    def repair(self, token: Tensor | None, state: DecodeState) -> DecoderOutput:
        """See `step.Decoder`. Row by row within a layer, so that each is what a full step computes."""
        schedule, pending = state.schedule, len(state.pending)
        first, rows, state.pending = first_skipped(schedule), state.pending, []
        if token is not None:
            h, rope = self._enter(token, state)
            for i in range(first):
                h = self.run_full(i, h, rope, state)
            rows = [*rows, h]
            state.position += 1
        start = state.position - len(rows)
        ropes = [self._rotation(h, start + row) for row, h in enumerate(rows)]
        watched, state.row_anchors = [], {}
        for i in range(first, self.num_layers):
            skipped = i in schedule.dropped_set
            if not skipped:
                state.kv.cut(i, pending)  # what the LoRA steps wrote
            reached, remembered = [], []
            for h, rope in zip(rows, ropes, strict=True):
                reached.append(self.run_full(i, h, rope, state))
                remembered.append(state.hidden.vectors[i])
            rows = reached
            if skipped:
                watched.append(torch.cat([h[:, 0] for h in rows if schedule.verifies or h is rows[-1]]))
                state.row_anchors[i] = remembered
                if schedule.kv == "skip":
                    state.kv.keep_last(i, len(rows))
        wanted = [h[:, -1] for h in rows if schedule.verifies or h is rows[-1]]
        logits = torch.cat([self.head(self.norm(h)) for h in wanted])
        state.refresher.end(logits[-1:])
        seen = stacked(watched, torch.cat(wanted)) if state.watch else None
        return DecoderOutput(logits, seen, state.refresher.entropy, len(rows))

    @torch.inference_mode()
    def rewind(self, found: DecoderOutput, rows: int, state: DecodeState) -> DecoderOutput:
        """See `step.Decoder`."""
        back = found.rows - rows
        for i in range(self.num_layers):
            state.kv.cut(i, back)
        for i, remembered in state.row_anchors.items():
            state.hidden[i] = remembered[rows - 1]
        state.position -= back
        refresher = state.refresher
        refresher.back_to(refresher.step - back)
        logits = found.logits[rows - 1 : rows]
        refresher.end(logits)
        watched = None if found.watched is None else found.watched[:, rows - 1 : rows]
        return DecoderOutput(logits, watched, refresher.entropy, found.rows)

    def entropy(self, logits: Tensor) -> float:
        """See `step.Decoder`."""
        return entropy(logits)

    @torch.inference_mode()
    def read(
        self, tokens: Tensor, kv: KVCache, position: int, layers: tuple[int, ...], logits_from: int = 0
    ) -> DecoderOutput:
        """See `step.Decoder`."""
        state = DecodeState(Schedule(1, self.num_layers, ()), None, kv, HiddenCache(0), position=position)
        h, rope = self._enter(tokens, state)
        outputs = []
        for i in range(self.num_layers):
            h = self.run_full(i, h, rope, state)
            if i in layers:
                outputs.append(h)
        return DecoderOutput(self.head(self.norm(h[:, logits_from:])), stacked(outputs, h))

    def _enter(self, tokens: Tensor, state: DecodeState) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        """Embeddings (B, T, D) of tokens and the rotary cosines and sines (1, T, hs) of their true positions."""
        h = self.embed(tokens)
        return h, self._rotation(h, state.position)

    def _rotation(self, h: Tensor, position: int) -> tuple[Tensor, Tensor]:
        """Cosines and sines (1, T, hs) of the tokens h (B, T, D) from a position on."""
        positions = torch.arange(position, position + h.shape[1], device=h.device)[None]
        return self.rotary(h, position_ids=positions)

    def _lora_logits(self, h: Tensor, state: DecodeState) -> Tensor:
        """Logits (B, V) of the last hidden state, normed (B, D), of a LoRA step."""
        bank = state.bank
        if state.schedule.head == "screened" and bank is not None and bank.head is not None:
            return bank.head.logits(h, self.head.weight)
        return self.head(h)

    def run_lora(self, i: int, h: Tensor, rope: tuple[Tensor, Tensor], state: DecodeState) -> Tensor:
        """A layer at a LoRA step, (B, 1, D): skipped, or run, with its change where the bank has one."""
        if i in state.schedule.dropped_set:
            return self.run_dropped(i, h, rope, state)
        if state.bank is not None and i in state.bank.kept and i > first_skipped(state.schedule):
            return self.run_adapted(i, h, rope, state)
        return self.run_full(i, h, rope, state)

    def run_full(self, i: int, h: Tensor, rope: tuple[Tensor, Tensor], state: DecodeState) -> Tensor:
        """h[t][i] -> h[t][i+1] = f_i(h[t][i]) for (B, T, D). Writes K/V; a layer to be skipped leaves its anchor."""
        u, out = self._layer(i, h, rope, state.kv)
        if i in state.schedule.dropped:
            # What the reuse rule speaks of: the whole layer's output, or the stream after attention.
            reached = out if state.schedule.part == "block" else u
            state.hidden[i] = self._remember(state.schedule.reuse, h[:, -1], reached[:, -1])
        return out

    def _layer(self, i: int, h: Tensor, rope: tuple[Tensor, Tensor], kv: KVCache) -> tuple[Tensor, Tensor]:
        """A layer on (B, T, D): the stream after attention, and the layer's output. Writes K/V."""
        layer = self.layers[i]
        past, tokens = kv.lengths[i], h.shape[1]
        attention, _ = layer.self_attn(
            hidden_states=layer.input_layernorm(h),
            position_embeddings=rope,
            attention_mask=_causal_mask(tokens, past, h.device) if past and tokens > 1 else None,
            cache=kv,
        )
        u = h + attention
        return u, u + layer.mlp(layer.post_attention_layernorm(u))

    @staticmethod
    def _remember(reuse: str, entered: Tensor, reached: Tensor) -> Tensor | None:
        """The one vector (B, D) that the rule needs of a full step."""
        if reuse == "skip":
            return None
        # A copy: a view would keep the whole prompt's (B, P, D) alive for one vector of it.
        return reached - entered if reuse == "residual" else reached.clone()

    def run_dropped(self, i: int, h: Tensor, rope: tuple[Tensor, Tensor], state: DecodeState) -> Tensor:
        """A skipped layer at a LoRA step, (B, 1, D): no attention, and with `part="block"` no MLP either."""
        layer, schedule, bank = self.layers[i], state.schedule, state.bank
        if schedule.kv == "write" and not schedule.repairs:  # a repair writes them, and until then nothing reads them
            self._write_kv(i, h, rope, state)
        own = bank if bank is not None and i in bank.a else None
        d: Tensor | float = 0.0
        if own is not None:
            d = own.correction(i, h)
            if i in own.mlp:
                d = d + own.bottleneck(i, layer.post_attention_layernorm(h))
            state.refresher.measure(d, h if schedule.reuse == "skip" else state.hidden[i])
        if schedule.reuse == "skip":
            u = h + d
        elif schedule.reuse == "residual":
            gate = own.gate[i] if own is not None else 1.0
            u = h + gate * state.hidden[i][:, None] + d
        else:  # state, anchor
            u = state.hidden[i][:, None] + d
            if schedule.reuse == "state":
                state.hidden[i] = u[:, -1]
        return u if schedule.part == "block" else u + layer.mlp(layer.post_attention_layernorm(u))

    def run_adapted(self, i: int, h: Tensor, rope: tuple[Tensor, Tensor], state: DecodeState) -> Tensor:
        """A layer that runs at a LoRA step with the bank's `kept` part, (B, 1, D). Writes K/V."""
        assert state.bank is not None
        layer, adapted = self.layers[i], partial(state.bank.adapted, i)
        attention, mlp = layer.self_attn, layer.mlp
        query, key, value = self._heads(i, layer.input_layernorm(h), rope, adapted)
        keys, values = state.kv.update(key, value, i)
        mixed = F.scaled_dot_product_attention(query, keys, values, enable_gqa=True)
        mixed = mixed.transpose(1, 2).flatten(2)
        u = h + adapted("out", mixed, attention.o_proj(mixed))
        x = layer.post_attention_layernorm(u)
        gate, up = adapted("gate_up", x, torch.cat((mlp.gate_proj(x), mlp.up_proj(x)), -1)).chunk(2, -1)
        inner = mlp.act_fn(gate) * up
        return u + adapted("down", inner, mlp.down_proj(inner))

    def _heads(
        self,
        i: int,
        x: Tensor,
        rope: tuple[Tensor, Tensor],
        adapted: Callable[[str, Tensor, Tensor], Tensor] = lambda name, x, y: y,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values (B, heads, T, hs) of normed inputs (B, T, D), rotated; `adapted` changes them."""
        attention = self.layers[i].self_attn
        qkv = torch.cat([proj(x) for proj in (attention.q_proj, attention.k_proj, attention.v_proj)], -1)
        heads = adapted("qkv", x, qkv).unflatten(-1, (-1, attention.head_dim))  # (B, T, nh + 2 nkv, hs)
        kv_heads = attention.k_proj.out_features // attention.head_dim
        query, key, value = heads.split((heads.shape[2] - 2 * kv_heads, kv_heads, kv_heads), 2)
        if hasattr(attention, "q_norm"):  # Qwen3
            query, key = attention.q_norm(query), attention.k_norm(key)
        query, key, value = (part.transpose(1, 2) for part in (query, key, value))
        return _rotate(query, *rope), _rotate(key, *rope), value

    def _write_kv(self, i: int, h: Tensor, rope: tuple[Tensor, Tensor], state: DecodeState) -> None:
        """K and V of a skipped layer, without its attention: `kv="write"`."""
        layer = self.layers[i]
        attention = layer.self_attn
        x = layer.input_layernorm(h)
        shape = (*x.shape[:-1], -1, attention.head_dim)
        key = attention.k_proj(x).view(shape)
        if hasattr(attention, "k_norm"):  # Qwen3
            key = attention.k_norm(key)
        key, value = key.transpose(1, 2), attention.v_proj(x).view(shape).transpose(1, 2)  # (B, n_kv, 1, hs)
        state.kv.update(_rotate(key, *rope), value, i)


def first_skipped(schedule: Schedule) -> int:
    """The first layer that LoRA steps compute otherwise; the number of layers where it is the head alone."""
    return schedule.dropped[0] if schedule.dropped else schedule.num_layers


def stacked(outputs: list[Tensor], like: Tensor) -> Tensor:
    """Outputs of n layers as one tensor, (n, *like.shape), for n = 0 too."""
    return torch.stack(outputs) if outputs else like.new_empty(0, *like.shape)


def _rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary position for (B, n, T, hs) with cosines and sines (1, T, hs), transformers' half-split order."""
    cos, sin = cos[:, None], sin[:, None]
    one, two = x.chunk(2, dim=-1)
    return x * cos + torch.cat((-two, one), dim=-1) * sin


def _causal_mask(tokens: int, past: int, device: torch.device) -> Tensor:
    """(1, 1, T, past + T), True where a token may look: all of the past, itself and what is before it."""
    rows = torch.arange(past, past + tokens, device=device)[:, None]
    return (torch.arange(past + tokens, device=device) <= rows)[None, None]
