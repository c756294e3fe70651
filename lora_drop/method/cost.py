"""What a step costs: bytes that it reads, KV bytes that it holds, the most that fewer bytes can gain. No tensors.

`assets/js/schedule.js` computes the same for the page; a test compares the two. P: prompt tokens, G: decode steps.

"""

from __future__ import annotations

import math
from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

from lora_drop.method.schedule import Schedule, baseline_schedule


@dataclass(frozen=True)
class ModelShape:
    """The sizes that decide what a decode step reads; counts of weights, without any tensor.

    `qkv_bias` and `qk_norm` are Qwen2's biases and Qwen3's per-head norms. `matrix_size` and `head_size` are the
    bytes that a weight of a layer's matrices, or of the head, takes in memory, over those of an activation: 1 unless
    they are packed; `part_size` is that of the corrections' parts `linear` and `mlp`, `code_size` that of a code of a
    screened head, with its share of a scale. Norms, biases, the part `kept` and K/V have the activations' size. Where
    matrices are packed in several ways, `layer_sizes` stands for `matrix_size`: of each layer the size of k and v, of
    the attention, of the MLP.
    """

    num_layers: int
    hidden_size: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    intermediate_size: int
    vocab_size: int
    tied: bool
    qkv_bias: bool = False
    qk_norm: bool = False
    matrix_size: float = 1.0
    head_size: float = 1.0
    part_size: float = 1.0
    code_size: float = 1.0
    layer_sizes: tuple[tuple[float, float, float], ...] = ()

    def __post_init__(self) -> None:
        if self.layer_sizes and [len(sizes) for sizes in self.layer_sizes] != [3] * self.num_layers:
            raise ValueError("layer_sizes must be three numbers of each layer")

    @classmethod
    def from_config(cls, config: Any) -> ModelShape:
        """Read off a transformers config of a supported architecture (Llama, Qwen2, Qwen3, Mistral)."""
        heads = config.num_attention_heads
        return cls(
            num_layers=config.num_hidden_layers,
            hidden_size=config.hidden_size,
            num_heads=heads,
            num_kv_heads=getattr(config, "num_key_value_heads", None) or heads,
            head_dim=getattr(config, "head_dim", None) or config.hidden_size // heads,
            intermediate_size=config.intermediate_size,
            vocab_size=config.vocab_size,
            tied=bool(config.tie_word_embeddings),
            qkv_bias=config.model_type == "qwen2" or bool(getattr(config, "attention_bias", False)),
            qk_norm=config.model_type == "qwen3",
        )

    @property
    def kv_weights(self) -> int:
        """Weights of k_proj and v_proj of one layer (with Qwen3's key norm)."""
        out = 2 * self.num_kv_heads * self.head_dim
        return out * (self.hidden_size + self.qkv_bias) + self.head_dim * self.qk_norm

    @property
    def attention_weights(self) -> int:
        """Weights of one layer's attention, its norm included."""
        inner = self.num_heads * self.head_dim
        q = inner * (self.hidden_size + self.qkv_bias) + self.head_dim * self.qk_norm
        return self.hidden_size + q + self.kv_weights + inner * self.hidden_size

    @property
    def mlp_weights(self) -> int:
        """Weights of one layer's MLP, its norm included."""
        return self.hidden_size + 3 * self.hidden_size * self.intermediate_size

    @property
    def vectors(self) -> tuple[int, int, int]:
        """How many of `kv_weights`, `attention_weights` and `mlp_weights` are in norms and biases: never packed."""
        kv = 2 * self.num_kv_heads * self.head_dim * self.qkv_bias + self.head_dim * self.qk_norm
        q = self.num_heads * self.head_dim * self.qkv_bias + self.head_dim * self.qk_norm
        return kv, self.hidden_size + q + kv, self.hidden_size

    def layer_costs(self) -> list[tuple[float, ...]]:
        """What each layer's k and v, its attention and its MLP have to read, in units of an activation's size."""
        counts = (self.kv_weights, self.attention_weights, self.mlp_weights)
        sizes = self.layer_sizes or (3 * (self.matrix_size,),)
        costs = [
            tuple(own + (count - own) * size for count, own, size in zip(counts, self.vectors, layer, strict=True))
            for layer in sizes
        ]
        return costs if self.layer_sizes else costs * self.num_layers

    @property
    def params(self) -> int:
        """All weights of the model; a tied head counts once."""
        embeddings = self.vocab_size * self.hidden_size * (1 if self.tied else 2)
        return embeddings + self.hidden_size + self.num_layers * (self.attention_weights + self.mlp_weights)

    @property
    def kv_per_token(self) -> int:
        """K and V numbers that one layer stores for one token."""
        return 2 * self.num_kv_heads * self.head_dim


@dataclass(frozen=True)
class Extras:
    """What a LoRA step reads beside the paper's correction, in sizes; 0 where that part is off.

    Args:
        mlp: width of the bottleneck of a corrected layer that is skipped.
        kept: rank of the change to each layer that runs after the first skipped one.
        head_rank, head_best: of the screened head, its preview's rank and how many tokens get exact logits.
        code_size: see `ModelShape`.
    """

    mlp: int = 0
    kept: int = 0
    head_rank: int = 0
    head_best: int = 0
    code_size: float = 1.0

    def layer_weights(self, shape: ModelShape) -> int:
        """Weights of the change to one layer that runs."""
        inner = shape.num_heads * shape.head_dim
        sizes = (
            (shape.hidden_size, inner + 2 * shape.num_kv_heads * shape.head_dim),
            (inner, shape.hidden_size),
            (shape.hidden_size, 2 * shape.intermediate_size),
            (shape.intermediate_size, shape.hidden_size),
        )
        return self.kept * sum(a + b for a, b in sizes)

    def head_cost(self, shape: ModelShape) -> float:
        """What the screened head reads, in units of an activation's size."""
        codes = shape.vocab_size * self.head_rank * self.code_size
        return codes + self.head_rank * shape.hidden_size + self.head_best * shape.hidden_size * shape.head_size


NO_EXTRAS = Extras()


def kv_bytes(
    shape: ModelShape,
    schedule: Schedule,
    prompt_tokens: int,
    steps: int,
    itemsize: int,
    refreshes: int | None = None,
    last_refresh: int | None = None,
) -> int:
    """The exact KV formula: bytes held after `steps` decode steps on a prompt of `prompt_tokens` tokens.

    Drawn beside the counted bytes, never instead of them. `refreshes`, `last_refresh` are as in `Schedule.kv_length`.
    """
    past = prompt_tokens, steps, refreshes, last_refresh
    tokens = sum(schedule.kv_length(i, *past) for i in range(shape.num_layers))
    return shape.kv_per_token * itemsize * tokens


def step_bytes(
    shape: ModelShape,
    schedule: Schedule,
    step: int,
    prompt_tokens: int,
    itemsize: int,
    rank: int = 0,
    corrected: Collection[int] | None = None,
    kv: bool = True,
    lora: bool | None = None,
    refreshes: int | None = None,
    last_refresh: int | None = None,
    extras: Extras = NO_EXTRAS,
) -> float:
    """Bytes that decode step `step` has to read: the weights it uses and the K/V that each attention run reads.

    Args:
        rank: rank of the adapters, 0 without; a skipped layer then reads A, B and, for `residual`, the gate.
        corrected: the layers that have adapters; None is all.
        kv: count the K/V reads too; without them the figure does not depend on the text's length.
        lora, refreshes, last_refresh: whether it was a LoRA step, how many decode steps up to it were not, and which
            was the last of these; None is what the fixed schedule says. A repair reads what a single full step does.
        extras: the parts of the correction beside the paper's.
    """
    if lora is None:
        lora = schedule.kind(step) == "lora"
    dropped = schedule.dropped_set if lora else frozenset()
    # The head, the last norm, one row of the embedding.
    if lora and schedule.head == "screened" and extras.head_rank:
        total = extras.head_cost(shape) + 2 * shape.hidden_size
    else:
        total = shape.vocab_size * shape.hidden_size * shape.head_size + 2 * shape.hidden_size
    first = min(dropped, default=shape.num_layers)
    for i, (kv_cost, attention_cost, mlp_cost) in enumerate(shape.layer_costs()):
        if i not in dropped:
            total += attention_cost + mlp_cost
            if i > first:
                total += extras.layer_weights(shape)
            if kv:
                total += shape.kv_per_token * schedule.kv_length(i, prompt_tokens, step, refreshes, last_refresh)
            continue
        if rank and (corrected is None or i in corrected):
            vectors = (schedule.reuse == "residual") + (extras.mlp > 0)  # the gate, and the bottleneck's norm
            total += ((2 * rank + 3 * extras.mlp) * shape.part_size + vectors) * shape.hidden_size
        if schedule.part == "attention":
            total += mlp_cost
        if schedule.kv == "write" and not schedule.repairs:  # a repair writes them
            total += shape.hidden_size + kv_cost
    return total * itemsize


def speed_bound(
    shape: ModelShape,
    schedule: Schedule,
    steps: int | None = None,
    prompt_tokens: int = 0,
    rank: int = 0,
    corrected: Collection[int] | None = None,
    refreshes: Collection[int] | None = None,
    extras: Extras = NO_EXTRAS,
) -> float:
    """The most that LoRA-Drop can gain at batch 1: bytes of the baseline's steps over bytes of its own steps.

    Args:
        steps: decode steps of the run; `None` is one whole period, weights only.
        prompt_tokens: P, the K/V entries before the first step.
        rank, corrected, extras: the corrections, as in `step_bytes`.
        refreshes: the decode steps that were refreshes; `None` is the fixed schedule, and so of an adaptive one its
            longest gaps: the most that any run of it can gain.

    Returns:
        A ratio of at least about 1; exactly 1 for the baseline or a run without decode steps.
    """
    if steps is None:
        whole = step_bytes(shape, baseline_schedule(shape.num_layers), 1, 0, 1, kv=False)
        lora = step_bytes(shape, schedule, 1, 0, 1, rank, corrected, kv=False, extras=extras)
        return schedule.period * whole / ((schedule.period - 1) * lora + whole)
    if refreshes is None:
        refreshes = [step for step in range(1, steps + 1) if schedule.kind(step) == "refresh"]
    read, happened = BytesRead(shape, schedule, prompt_tokens, rank, corrected, extras), set(refreshes)
    for step in range(1, steps + 1):
        read.step(step, lora=step not in happened)
    return read.bound or 1.0


class BytesRead:
    """What a lane's passes have read so far, beside what the baseline would have read for the tokens that stand.

    Takes a lane's passes as they come, those for tokens that were taken back and the last judging included.

    Args:
        rank, corrected, extras: the corrections, as in `step_bytes`.
    """

    def __init__(
        self,
        shape: ModelShape,
        schedule: Schedule,
        prompt_tokens: int,
        rank: int = 0,
        corrected: Collection[int] | None = None,
        extras: Extras = NO_EXTRAS,
    ):
        self._shape, self._schedule, self._prompt_tokens = shape, schedule, prompt_tokens
        self._correction = rank, corrected
        self._extras = extras
        self._last_refresh = self._refreshes = 0
        self._own = 0.0
        self._base = [0.0]  # up to each step that stands

    def step(self, step: int, lora: bool) -> None:
        """A decode step."""
        if not lora:
            self._refreshes, self._last_refresh = self._refreshes + 1, step
        full = baseline_schedule(self._shape.num_layers)
        self._base.append(self._base[-1] + step_bytes(self._shape, full, step, self._prompt_tokens, 1))
        self._own += self._bytes(step, lora)

    def rewind(self, to: int) -> None:
        """All after step `to` is taken back."""
        del self._base[to + 1 :]

    def judge(self) -> None:
        """The last pass over drafts."""
        self._own += self._bytes(len(self._base) - 1, False)

    def _bytes(self, step: int, lora: bool) -> float:
        past: dict[str, Any] = {"refreshes": self._refreshes, "last_refresh": self._last_refresh}
        return step_bytes(
            *(self._shape, self._schedule, step, self._prompt_tokens, 1, *self._correction),
            lora=lora,
            extras=self._extras,
            **past,
        )

    @property
    def bound(self) -> float | None:
        """The baseline's bytes over the lane's, for the same tokens; None before the first step."""
        return self._base[-1] / self._own if self._own else None


def kv_saved(shape: ModelShape, schedule: Schedule, prompt_tokens: int, steps: int) -> float:
    """Share of the baseline's KV bytes that the schedule saves after `steps` decode steps, by the formula."""
    full = kv_bytes(shape, baseline_schedule(shape.num_layers), prompt_tokens, steps, 1)
    return 1 - kv_bytes(shape, schedule, prompt_tokens, steps, 1) / full if full else 0.0


def human_bytes(n: float) -> str:
    """Bytes in binary units, three significant digits: `1.25 MiB`."""
    power = min(3, int(math.log(n, 1024))) if n >= 1 else 0
    return f"{n / 1024**power:.{0 if power == 0 else 2}f} {('B', 'KiB', 'MiB', 'GiB')[power]}"
