"""The arithmetic of the static decoder's passes, as functions of tensors that read and write no cache.

They run as they are or compiled (`compiled`). Compiled, the norm, product, rotation and residual of a layer are a few
kernels, and a product with one row becomes a sum, meant to read its weights as fast as a copy (not
measured: docs/performance.md, "The first card").

Shapes: R rows, D hidden size, nh heads, nkv K/V heads, hs head size, r rank, V vocabulary.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable
from functools import cache
from inspect import signature
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from lora_drop.decode import rules
from lora_drop.decode.correction import low_rank
from lora_drop.errors import first_line

Pair = tuple[Tensor, Tensor]
Projection = tuple[Tensor, Tensor | None]  # weight (N, K), bias (N,)
Norm = tuple[Tensor | None, float]  # weight (D,), epsilon
VARIANTS = 128  # most shapes and kinds of one function that are compiled; torch's limit is 8
OLDEST = (8, 0)  # compute capability that Triton's kernels need


def norm(x: Tensor, weight: Tensor | None, eps: float) -> Tensor:
    """RMSNorm over the last dimension."""
    return F.rms_norm(x, x.shape[-1:], weight, eps)


def project(
    h: Tensor, attention_norm: Norm, qkv: Projection, qk_norm: Tensor | None, rope: Pair, heads: int
) -> Tensor:
    """Queries, keys and values (R, nh + 2 nkv, hs) of h (R, D), the first `heads` = nh + nkv of them rotated.

    Args:
        attention_norm: the norm before attention.
        rope: cosines and signed sines (R, 1, hs).
    """
    cos, sin = rope
    size = cos.shape[-1]
    qkv_heads = F.linear(norm(h, *attention_norm), *qkv).view(h.shape[0], -1, size)
    turned = qkv_heads[:, :heads]
    if qk_norm is not None:
        turned.copy_(norm(turned, None, attention_norm[1]) * qk_norm)
    rolled = turned.roll(size // 2, -1)
    turned.mul_(cos).addcmul_(rolled, sin)
    return qkv_heads


def close(mixed: Tensor, h: Tensor, out: Projection) -> Tensor:
    """u = h + attention, (R, D), from the heads' outputs (R, nh hs)."""
    return F.linear(mixed, *out).add_(h)


def feed(u: Tensor, mlp_norm: Norm, gate_up: Projection, down: Projection) -> Tensor:
    """u + MLP of the normed u, (R, D)."""
    gate, up = F.linear(norm(u, *mlp_norm), *gate_up).chunk(2, 1)
    return F.linear(F.silu(gate).mul_(up), *down).add_(u)


def skip(
    h: Tensor,
    anchor: Tensor | None,
    reuse: str,
    gate: Tensor | None = None,
    correction: tuple[Tensor, Tensor, float] | None = None,
) -> Tensor:
    """A skipped layer: its output (R, D).

    Args:
        anchor: as in `rules.reused`.
        gate: the same.
        correction: A (r, D), B (D, r) and their scale.
    """
    return rules.reused(reuse, h, anchor, gate, None if correction is None else low_rank(h, *correction))


def head(h: Tensor, last: Norm, matrix: Tensor) -> Tensor:
    """Logits (R, V) of the last layer's outputs (R, D), through the last norm."""
    return F.linear(norm(h, *last), matrix)


def choose(logits: Tensor) -> tuple[Tensor, Tensor]:
    """The most likely token (R, 1) and the entropy (R,) in nats of each row of logits (R, V)."""
    logs = logits.float().log_softmax(-1)
    return logits.argmax(-1, keepdim=True), -(logs.exp() * logs).sum(-1)


class Functions(NamedTuple):
    """The functions above, as they are or compiled."""

    project: Callable[..., Tensor] = project
    close: Callable[..., Tensor] = close
    feed: Callable[..., Tensor] = feed
    skip: Callable[..., Tensor] = skip
    head: Callable[..., Tensor] = head
    choose: Callable[..., tuple[Tensor, Tensor]] = choose


EAGER = Functions()


@cache
def compiled() -> Functions:
    """The functions through `torch.compile`; each is compiled when it is first called with a shape."""
    # Inductor turns a product with one row into a sum with this option only. What that gains is not measured.
    options: Any = {"coordinate_descent_tuning": True}
    settings: Any = {"fullgraph": True, "dynamic": False, "options": options}
    if "recompile_limit" in signature(torch.compile).parameters:
        settings["recompile_limit"] = VARIANTS
        return Functions(*(torch.compile(function, **settings) for function in EAGER))  # type: ignore[arg-type]
    return Functions(*(_limited(torch.compile(function, **settings)) for function in EAGER))


def _limited(function: Callable[..., Any]) -> Callable[..., Any]:
    """Raise torch's limit of variants in whichever thread calls and compiles: some versions keep it by thread."""

    def call(*args: Any) -> Any:
        with torch._dynamo.config.patch(recompile_limit=VARIANTS):
            return function(*args)

    return call


def has_kernels(device: torch.device) -> bool:
    """True if Triton's kernels, ours and the compiler's, run on this GPU."""
    return torch.cuda.get_device_capability(device) >= OLDEST


def best_for(device: torch.device) -> Functions:
    """Compiled functions if something can compile for this GPU, the plain ones if not or with LORA_DROP_COMPILE=0."""
    if os.environ.get("LORA_DROP_COMPILE") == "0" or not has_kernels(device):
        return EAGER
    try:
        torch.compile(norm, fullgraph=True)(torch.ones(1, 2, device=device), None, 1e-5)
    except Exception as error:  # a compiler that is missing or broken raises anything
        warn_of("nothing can be compiled for the GPU", error)
        return EAGER
    return compiled()


def warn_of(failure: str, error: Exception) -> None:
    """Warn that something does not work here, and that decoding goes on without it."""
    warnings.warn(f"{failure} ({first_line(error)}): decode steps run without it, slower.", stacklevel=2)
