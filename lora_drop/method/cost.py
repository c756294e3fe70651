"""Cost of a step: bytes read, KV bytes held, and the bound on the speedup from reading fewer bytes. No tensors.

`assets/js/schedule.js` computes the same for the page; a test compares the two. P: prompt tokens, G: decode steps.
"""

from __future__ import annotations

import math
from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

from lora_drop.method.schedule import Schedule, StepKind, baseline_schedule


@dataclass(frozen=True)
class ModelShape:
    """The sizes that decide how many bytes a decode step reads.

    Args:
        qkv_bias: Qwen2's biases.
        qk_norm: Qwen3's per-head norms.
        matrix_size: bytes of a weight in the layers' matrices, divided by bytes of an activation; 1 unless packed.
            Norms, biases and K/V have the activations' size.
        head_size: the same of the head.
        part_size: the same of the corrections.
        code_size: the same of a code of the screened head, with its share of a scale.
        layer_sizes: in place of `matrix_size` if layers are packed differently: for each layer the sizes of k and v,
            of the attention and of the MLP.
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

    @classmethod
    def from_config(cls, config: Any) -> ModelShape:
        """The shape of a transformers config (Llama, Qwen2, Qwen3, Mistral)."""
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
    def layer_weights(self) -> tuple[tuple[int, int], ...]:
        """Weights of a layer's k and v, its attention and its MLP: of norms and biases, and of matrices."""
        q, kv = self.num_heads * self.head_dim, self.kv_per_token
        norm = self.head_dim * self.qk_norm  # of the queries, and of the keys
        kv_vectors = kv * self.qkv_bias + norm
        return (
            (kv_vectors, kv * self.hidden_size),
            (self.hidden_size + q * self.qkv_bias + norm + kv_vectors, (2 * q + kv) * self.hidden_size),
            (self.hidden_size, 3 * self.intermediate_size * self.hidden_size),
        )

    def layer_costs(self) -> list[tuple[float, ...]]:
        """Cost of reading each layer's k and v, attention and MLP, in units of an activation's size."""
        return [
            tuple(
                vectors + matrices * size for (vectors, matrices), size in zip(self.layer_weights, sizes, strict=True)
            )
            for sizes in self.layer_sizes or self.num_layers * (3 * (self.matrix_size,),)
        ]

    @property
    def params(self) -> int:
        """All weights of the model; a tied head counts once."""
        embeddings = self.vocab_size * self.hidden_size * (1 if self.tied else 2)
        _, attention, mlp = self.layer_weights
        return embeddings + self.hidden_size + self.num_layers * sum(attention + mlp)

    @property
    def kv_per_token(self) -> int:
        """K and V numbers that one layer stores for one token."""
        return 2 * self.num_kv_heads * self.head_dim


@dataclass(frozen=True)
class Corrections:
    """Sizes of what a LoRA step reads beside the model's weights; 0 if it is off.

    Args:
        rank: of the adapters. A skipped layer then reads A, B and, for `residual`, the gate.
        layers: the layers that have adapters; None: all.
        head_rank: rank of the screened head's preview.
        head_best: tokens that get exact logits.
        code_size: see `ModelShape`.
    """

    rank: int = 0
    layers: Collection[int] | None = None
    head_rank: int = 0
    head_best: int = 0
    code_size: float = 1.0

    def head_cost(self, shape: ModelShape) -> float:
        """Cost of reading the screened head, in units of an activation's size."""
        codes = shape.vocab_size * self.head_rank * self.code_size
        return codes + self.head_rank * shape.hidden_size + self.head_best * shape.hidden_size * shape.head_size


NO_CORRECTIONS = Corrections()


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

    Figures draw it beside the counted bytes, never instead of them.

    Args:
        refreshes: as in `Schedule.kv_length`.
        last_refresh: the same.
    """
    layers = range(shape.num_layers)
    tokens = sum(schedule.kv_length(i, prompt_tokens, steps, refreshes, last_refresh) for i in layers)
    return shape.kv_per_token * itemsize * tokens


def step_bytes(
    shape: ModelShape,
    schedule: Schedule,
    step: int,
    prompt_tokens: int,
    itemsize: int,
    corrections: Corrections = NO_CORRECTIONS,
    kv: bool = True,
    lora: bool | None = None,
    refreshes: int | None = None,
    last_refresh: int | None = None,
) -> float:
    """Bytes that decode step `step` has to read: the weights it uses, and the K/V of each attention that runs.

    Args:
        itemsize: bytes of an activation.
        kv: count the K/V reads too. Without them the text's length does not matter.
        lora: whether it was a LoRA step; None: as in the fixed schedule. A repair reads the same as a full step.
        refreshes: how many decode steps up to it were full; None: as in the fixed schedule.
        last_refresh: the last of these; None: as in the fixed schedule.
    """
    if lora is None:
        lora = schedule.kind(step, prompt_tokens) == "lora"
    read = weight_cost(shape, schedule, lora, corrections)
    if kv:
        read += _kv_cost(shape, schedule, lora, prompt_tokens, step, refreshes, last_refresh)
    return read * itemsize


def weight_cost(shape: ModelShape, schedule: Schedule, lora: bool, corrections: Corrections = NO_CORRECTIONS) -> float:
    """Cost of the weights that a LoRA step, or a full one, reads, in units of an activation's size."""
    dropped = schedule.dropped_set if lora else frozenset()
    # The head, the last norm, one row of the embedding.
    if lora and schedule.head == "screened" and corrections.head_rank:
        total = corrections.head_cost(shape) + 2 * shape.hidden_size
    else:
        total = shape.vocab_size * shape.hidden_size * shape.head_size + 2 * shape.hidden_size
    for i, (kv_cost, attention_cost, mlp_cost) in enumerate(shape.layer_costs()):
        if i not in dropped:
            total += attention_cost + mlp_cost
            continue
        if corrections.rank and (corrections.layers is None or i in corrections.layers):
            gate = schedule.reuse == "residual"
            total += (2 * corrections.rank * shape.part_size + gate) * shape.hidden_size
        if schedule.part == "attention":
            total += mlp_cost
        if schedule.kv == "write" and not schedule.repairs:  # a repair writes them later
            total += shape.hidden_size + kv_cost
    return total


def _kv_cost(
    shape: ModelShape,
    schedule: Schedule,
    lora: bool,
    prompt_tokens: int,
    step: int,
    refreshes: int | None = None,
    last_refresh: int | None = None,
) -> int:
    """Numbers of K/V that a step's attention reads. All skipped layers hold as many tokens, and all others do."""
    skipped = len(schedule.dropped)
    tokens = (shape.num_layers - skipped) * (prompt_tokens + step)
    if skipped and not lora:
        tokens += skipped * schedule.kv_length(schedule.dropped[0], prompt_tokens, step, refreshes, last_refresh)
    return shape.kv_per_token * tokens


def speed_bound(
    shape: ModelShape,
    schedule: Schedule,
    steps: int | None = None,
    prompt_tokens: int = 0,
    corrections: Corrections = NO_CORRECTIONS,
) -> float:
    """Bound on the speedup at batch 1: bytes of the baseline's steps over bytes of the schedule's steps.

    Args:
        steps: decode steps of the run; None: one whole period, weights only.
        prompt_tokens: P, the K/V entries before the first step; a `refresh_position` counts from them.

    Returns:
        A ratio of at least about 1; exactly 1 for the baseline or a run without decode steps. No run of an adaptive
        schedule can gain more: it counts with the longest gaps.
    """
    if steps is None:
        whole = step_bytes(shape, baseline_schedule(shape.num_layers), 1, 0, 1, kv=False)
        lora = step_bytes(shape, schedule, 1, 0, 1, corrections, kv=False, lora=True)
        full = schedule.refreshes(prompt_tokens, schedule.period)
        return schedule.period * whole / ((schedule.period - full) * lora + full * whole)
    read = BytesRead(shape, schedule, prompt_tokens, corrections)
    for step in range(1, steps + 1):
        read.step(step, schedule.kind(step, prompt_tokens))
    return read.bound or 1.0


def expected_speedup(bound: float, cycle: tuple[float, float], row_cost: float = 0.0, outside: float = 0.0) -> float:
    """Speedup to expect: the bound, less what reading fewer bytes does not save.

    Skipping saves reading and computing alike, so a step shrinks with its bytes. Two things do not: the time outside
    the kernels of each pass, and the rows that a repair computes again, which are free only where a step waits for
    weights. A screened head saves less than its bytes; that is left out.

    Args:
        bound: of the run, the passes for rejected drafts included.
        cycle: passes, and rows that a repair computes again, for each token that stands: see `cycle_of`.
        row_cost: time of one more row in the same pass, in full steps.
        outside: share of a full step that is spent outside the kernels.
    """
    passes, extra_rows = cycle
    return 1 / (outside * passes + (1 - outside) / bound + row_cost * extra_rows)


def cycle_of(period: int, repairs: bool, accepted: float | None = None) -> tuple[float, float]:
    """Passes of a cycle, and rows that its repair computes again, for each token that stands.

    Args:
        accepted: share of the drafts that the full model accepts; None if it verifies none.
    """
    tokens = period if accepted is None else 1 + accepted * (period - 1)
    return period / tokens, (period - 1) / tokens if repairs else 0.0


def accepted_share(chance: float, drafts: int) -> float:
    """Share of a cycle's drafts that are accepted.

    Args:
        chance: that a draft is accepted if those before it were: a rejected one takes the later ones with it.
        drafts: LoRA steps of a cycle, at least 1.
    """
    return sum(chance**i for i in range(1, drafts + 1)) / drafts


def chance_of(accepted: float, drafts: int) -> float:
    """The chance with which `accepted_share` of so many drafts are accepted."""
    low, high = 0.0, 1.0
    for _ in range(40):
        middle = (low + high) / 2
        low, high = (middle, high) if accepted_share(middle, drafts) < accepted else (low, middle)
    return round(high, 4)


@dataclass
class BytesRead:
    """Bytes that a lane's passes have read so far, and the baseline for the same tokens.

    It takes the passes in order, those for rejected tokens and the last verification included.
    """

    shape: ModelShape
    schedule: Schedule
    prompt_tokens: int
    corrections: Corrections = NO_CORRECTIONS

    def __post_init__(self) -> None:
        self._full = baseline_schedule(self.shape.num_layers)
        self._refreshes = self._last_refresh = 0
        # A step costs the same time in a model of any depth.
        self._weights = [weight_cost(self.shape, self.schedule, lora, self.corrections) for lora in (False, True)]
        self._full_weights = weight_cost(self.shape, self._full, lora=False)
        self._cost = 0.0
        self._base = [0.0]  # up to each step that was not taken back

    def step(self, step: int, kind: StepKind) -> None:
        """Count a decode step. A draft that took no pass only adds its row of the embedding to the next pass."""
        if kind == "refresh":
            self._refreshes, self._last_refresh = self._refreshes + 1, step
        full = self._full_weights + _kv_cost(self.shape, self._full, False, self.prompt_tokens, step)
        self._base.append(self._base[-1] + full)
        if kind == "draft":
            self._cost += self.shape.hidden_size
        else:
            self._read(step, lora=kind == "lora")

    def rewind(self, to: int) -> None:
        """Take back all steps after step `to`."""
        del self._base[to + 1 :]

    def verify(self) -> None:
        """Count the last pass, which verifies drafts and adds no token."""
        self._read(len(self._base) - 1, lora=False)

    def _read(self, step: int, lora: bool) -> None:
        past = self.prompt_tokens, step, self._refreshes, self._last_refresh
        self._cost += self._weights[lora] + _kv_cost(self.shape, self.schedule, lora, *past)

    @property
    def activations(self) -> float:
        """What was read, in units of an activation's size."""
        return self._cost

    @property
    def bound(self) -> float | None:
        """The baseline's bytes over the lane's, for the same tokens; None before the first step."""
        return self._base[-1] / self._cost if self._cost else None


def kv_saved(shape: ModelShape, schedule: Schedule, prompt_tokens: int, steps: int) -> float:
    """Share of the baseline's KV bytes that the schedule saves after `steps` decode steps, by the formula."""
    full = kv_bytes(shape, baseline_schedule(shape.num_layers), prompt_tokens, steps, 1)
    return 1 - kv_bytes(shape, schedule, prompt_tokens, steps, 1) / full if full else 0.0


def human_bytes(n: float) -> str:
    """Bytes in binary units, three significant digits: `1.25 MiB`."""
    power = min(3, int(math.log(n, 1024))) if n >= 1 else 0
    return f"{n / 1024**power:.{0 if power == 0 else 2}f} {('B', 'KiB', 'MiB', 'GiB')[power]}"
