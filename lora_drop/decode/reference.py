"""The reference decoder: the layers of a transformers model, one after the other. Slow, clear, any architecture.

It runs the model's modules. The faster decoders inherit its prefill and are tested against it.

Shapes: B batch, P prompt tokens, T tokens of a call, D hidden size, V vocabulary, L layers, n skipped layers.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from lora_drop.decode import rules
from lora_drop.decode.cache import KVCache
from lora_drop.decode.clock import Clock
from lora_drop.decode.correction import Correction, correct
from lora_drop.decode.layer import Rope, attend, causal_mask, feed, keys_values
from lora_drop.decode.logits import entropy
from lora_drop.decode.step import DecoderOutput, DecodeState, Prefilled, Stopped
from lora_drop.errors import LoraDropError
from lora_drop.method.schedule import Schedule

PART = 512, 8192  # tokens of a prompt that are read at once, on a CPU and elsewhere; Stop waits for one part


class ReferenceDecoder:
    """Prefill and decode steps over the layers of a Llama, Qwen2, Qwen3 or Mistral model.

    The docstrings here say what every decoder does: `StaticDecoder` (static buffers, CUDA graphs) and `NativeDecoder`
    (C, on a CPU) inherit from this class and do the same faster. A decoder holds nothing of a request: each lane has a
    `DecodeState`.

    Attributes:
        name: for the trace and the page, such as `native (bfloat16)`.
        device: of the tokens that it takes.
        dtype: of its activations and K/V.
        num_layers: L.
        kernels: instruction set of its kernels, such as `avx2`; None if it has none.
        runs_ahead: whether a step only launches its work, so that the next step can be launched before it is done.
        kernel_ms: milliseconds spent in its kernels so far; None if it does not count them.
    """

    name = "reference"
    kernels: str | None = None
    runs_ahead = False

    @property
    def kernel_ms(self) -> float | None:
        """See the class."""
        return None

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
        self, schedule: Schedule, bank: Correction | None = None, tokens: int = 0, watch: bool = False, prompt: int = 0
    ) -> DecodeState:
        """Make the state of a new lane.

        Args:
            bank: on the model's device and in its dtype (`Correction.to`).
            tokens: most tokens that the caches will hold, to reserve static buffers once; 0 is unknown. Caches that
                grow ignore it.
            watch: have each step return the outputs of the skipped layers.
            prompt: how many of these tokens are the prompt's, so that a decoder can set itself up before the lane's
                clock starts; 0 is unknown.
        """
        return DecodeState(schedule, bank, watch)

    def ready_for(self, lanes: Sequence[tuple[Schedule, Correction | None]]) -> ReferenceDecoder:
        """The decoder for lanes that run side by side: this one, unless it is not prepared for one of them."""
        return self

    def prefill(self, input_ids: Tensor, state: DecodeState) -> DecoderOutput:
        """`read_prompt` and `start`, for one lane alone."""
        return self.start(self.read_prompt(input_ids), state)

    @torch.inference_mode()
    def read_prompt(
        self, input_ids: Tensor, should_stop: Callable[[], bool] = lambda: False, pruned: Collection[int] = ()
    ) -> Prefilled:
        """Read a prompt (B, P) with every layer, in parts, for any number of lanes.

        Args:
            should_stop: asked between two parts.
            pruned: layers left out, of lanes in which they never run.

        Raises:
            Stopped: `should_stop` returned True.
        """
        clock = Clock(self.device)
        clock.start()
        kv, position = KVCache(self.num_layers), 0
        states: list[Tensor] = []
        attended: list[Tensor] = []
        for part in input_ids.split(PART[self.device.type != "cpu"], 1):
            if position and should_stop():
                raise Stopped
            h, rope = self._embed(part, position)
            position += part.shape[1]
            states, attended = [h[:, -1].clone()], []  # copies: a view would keep the whole part alive
            for i in range(self.num_layers):
                u, h = (h, h) if i in pruned else self._layer(i, h, rope, kv)
                attended.append(u[:, -1].clone())
                states.append(h[:, -1].clone())
                if position < input_ids.shape[1] and i not in pruned:
                    kv.reserve(kv.store(i)[0], i, input_ids.shape[1])  # once, and not part by part
        logits = self._prefill_logits(states[-1])
        return Prefilled(input_ids, kv, torch.stack(states), torch.stack(attended), logits, clock.stop())

    @torch.inference_mode()
    def start(self, prompt: Prefilled, state: DecodeState) -> DecoderOutput:
        """Make step 0 of a new state, which is full: copy the prompt's K/V and keep its anchors.

        Returns:
            Logits of the token after the prompt.
        """
        schedule = state.schedule
        for i in schedule.dropped:
            f = rules.replaced(schedule.part, prompt.attended[i], prompt.states[i + 1])
            anchor = rules.anchor_of(schedule.reuse, prompt.states[i], f)
            state.anchors[i] = None if anchor is None else anchor.clone()  # a view would keep all layers' states alive
        state.kv, state.position = prompt.kv.clone(), prompt.tokens.shape[1]
        state.refresher.prompt_tokens = state.position
        logits = prompt.logits.clone()
        state.refresher.end(logits)
        return DecoderOutput(logits, entropy=state.refresher.entropy)

    @torch.inference_mode()
    def step(self, token: Tensor, state: DecodeState) -> DecoderOutput:
        """Decode one token (B, 1), full or with the schedule's layers skipped, as `state.refresher` decides.

        With `refresh="repair"` a full step is a `repair` that ends with this token.
        """
        lora, schedule = not state.refresher.begin(), state.schedule
        if not lora and schedule.repairs:
            return self.repair(token, state)
        h, rope = self._embed(token, state.position)
        for i in range(schedule.first_skipped):
            h = self.run_full(i, h, rope, state)
        if schedule.repairs:
            state.pending.append(h)
        run, watched = self.run_lora if lora else self.run_full, []
        for i in range(schedule.first_skipped, self.num_layers):
            h = run(i, h, rope, state)
            if i in schedule.dropped_set:
                watched.append(h[:, 0])
        state.position += 1
        h = h[:, -1]
        normed = self.norm(h)
        screen = state.screened_head if lora else None
        logits = self.head(normed) if screen is None else screen.logits(normed, self.head.weight)
        state.refresher.end(logits)
        return DecoderOutput(logits, stacked(watched, h) if state.watch else None, state.refresher.entropy)

    @torch.inference_mode()
    def draft(self, token: Tensor, state: DecodeState) -> None:
        """Take a token (1, 1) whose follower was drafted without a pass: it is pending, with its embedding."""
        state.refresher.draft()
        state.drafted += 1
        state.pending.append(self._pending(self.embed(token), state))
        state.position += 1

    def _pending(self, h: Tensor, state: DecodeState) -> Tensor:
        """An input (1, 1, D) of the first skipped layer as `state.pending` keeps it."""
        return h

    @torch.inference_mode()
    def repair(self, token: Tensor | None, state: DecodeState) -> DecoderOutput:
        """Run one full pass over the pending tokens, those since the last full step, and over `token` (1, 1).

        With `kv="write"` caches and anchors then equal the full model's on the same tokens. Each row's numbers equal
        those of a full step, bit for bit (`StaticDecoder`: up to rounding). So here the rows run one by one.

        Args:
            token: None verifies the pending tokens alone; no step begins.

        Returns:
            Logits of the last token, or of each token if the schedule verifies.
        """
        schedule, first, pending = state.schedule, state.schedule.first_skipped, len(state.pending)
        rows, state.pending = state.pending, []
        written, state.drafted = pending - state.drafted, 0
        if token is not None:
            h, rope = self._embed(token, state.position)
            for i in range(first):
                h = self.run_full(i, h, rope, state)
            rows = [*rows, h]
            state.position += 1
        start = state.position - len(rows)
        ropes = [self._rope(h, start + row) for row, h in enumerate(rows)]
        wanted = slice(None) if schedule.verifies else slice(-1, None)
        watched, state.row_anchors = [], {}
        for i in range(first, self.num_layers):
            skipped = i in schedule.dropped_set
            if not skipped:
                state.kv.cut(i, written)  # by the LoRA steps
            outputs, anchors = [], []
            for h, rope in zip(rows, ropes, strict=True):
                outputs.append(self.run_full(i, h, rope, state))
                anchors.append(state.anchors[i])
            rows = outputs
            if skipped:
                watched.append(torch.cat([h[:, 0] for h in rows[wanted]]))
                state.row_anchors[i] = anchors
                if schedule.kv == "skip":
                    state.kv.keep_last(i, len(rows))
        last = [h[:, -1] for h in rows[wanted]]
        logits = torch.cat([self.head(self.norm(h)) for h in last])
        state.refresher.end(logits[-1:])
        seen = stacked(watched, torch.cat(last)) if state.watch else None
        return DecoderOutput(logits, seen, state.refresher.entropy, len(rows))

    @torch.inference_mode()
    def rewind(self, output: DecoderOutput, rows: int, state: DecodeState) -> DecoderOutput:
        """Take back all but the first `rows` tokens of the last pass, in a schedule that verifies.

        The last token that stays is the last refresh then.

        Args:
            output: of that pass.

        Returns:
            What the pass would have returned had it ended there: logits (1, V).
        """
        rejected = output.rows - rows
        for i in range(self.num_layers):
            state.kv.cut(i, rejected)
        for i, anchors in state.row_anchors.items():
            state.anchors[i] = anchors[rows - 1]
        state.position -= rejected
        refresher = state.refresher
        refresher.back_to(refresher.step - rejected)
        last = slice(rows - 1, rows)
        logits = output.logits[last]
        refresher.end(logits)
        watched = None if output.watched is None else output.watched[:, last]
        return DecoderOutput(logits, watched, refresher.entropy, output.rows)

    def entropy(self, logits: Tensor) -> float:
        """Entropy in nats of a step's logits (1, V)."""
        return entropy(logits)

    @torch.inference_mode()
    def read(
        self, tokens: Tensor, kv: KVCache, position: int, layers: tuple[int, ...], logits_from: int = 0
    ) -> DecoderOutput:
        """Run the full model on a chunk of tokens (B, T) at `position`, after those in `kv`: the audit's pass.

        Args:
            layers: whose outputs to return, ascending.
            logits_from: first token of the chunk whose logits to return, T - logits_from in all.
        """
        h, rope = self._embed(tokens, position)
        outputs = []
        for i in range(self.num_layers):
            _, h = self._layer(i, h, rope, kv)
            if i in layers:
                outputs.append(h)
        return DecoderOutput(self._prefill_logits(h[:, logits_from:]), stacked(outputs, h))

    def _prefill_logits(self, h: Tensor) -> Tensor:
        """Logits (..., V) of the last layer's output (..., D)."""
        logits: Tensor = self.head(self.norm(h.to(self.dtype)))
        return logits

    def _embed(self, tokens: Tensor, position: int) -> tuple[Tensor, Rope]:
        """Embeddings (B, T, D) of the tokens from `position` on, and their rotary cosines and sines."""
        h = self.embed(tokens)
        return h, self._rope(h, position)

    def _rope(self, h: Tensor, position: int) -> Rope:
        """Cosines and sines (1, T, hs) of the tokens h (B, T, D) from `position` on."""
        positions = torch.arange(position, position + h.shape[1], device=h.device)[None]
        rope: Rope = self.rotary(h, position_ids=positions)
        return rope

    def run_lora(self, i: int, h: Tensor, rope: Rope, state: DecodeState) -> Tensor:
        """Layer i at a LoRA step, (B, 1, D): skipped, or run."""
        run = self.run_dropped if i in state.schedule.dropped_set else self.run_full
        return run(i, h, rope, state)

    def run_full(self, i: int, h: Tensor, rope: Rope, state: DecodeState) -> Tensor:
        """h[t][i] -> h[t][i+1] = f_i(h[t][i]), (B, 1, D). Writes K/V; a layer of the schedule leaves its anchor."""
        u, output = self._layer(i, h, rope, state.kv)
        schedule = state.schedule
        if i in schedule.dropped_set:
            f = rules.replaced(schedule.part, u, output)
            state.anchors[i] = rules.anchor_of(schedule.reuse, h[:, -1], f[:, -1])
        return output

    def _layer(self, i: int, h: Tensor, rope: Rope, kv: KVCache) -> tuple[Tensor, Tensor]:
        """Run layer i on (B, T, D) and write its K/V; return the stream after attention and the layer's output."""
        layer = self.layers[i]
        mask = causal_mask(h.shape[1], kv.lengths[i], h.device)
        u = attend(layer, h, rope, mask, kv)
        return u, feed(layer, u)

    def run_dropped(self, i: int, h: Tensor, rope: Rope, state: DecodeState) -> Tensor:
        """A skipped layer at a LoRA step, (B, 1, D): no attention, and with `part="block"` no MLP either."""
        layer, schedule, anchor = self.layers[i], state.schedule, state.anchors[i]
        if schedule.kv == "write" and not schedule.repairs:  # a repair writes them; nothing reads them before
            state.kv.update(*keys_values(layer, h, rope), i)
        anchor = None if anchor is None else anchor[:, None]
        d, gate = correct(state.bank, i, h)
        u = rules.reused(schedule.reuse, h, anchor, gate, d)
        if schedule.reuse == "state":
            state.anchors[i] = u[:, -1]
        return u if schedule.part == "block" else feed(layer, u)


Decoder = ReferenceDecoder  # the name for any of them: the others inherit from it


def stacked(outputs: list[Tensor], like: Tensor) -> Tensor:
    """Outputs of n layers as one tensor, (n, *like.shape), for n = 0 too."""
    return torch.stack(outputs) if outputs else like.new_empty(0, *like.shape)
