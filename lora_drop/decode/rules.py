"""The reuse rule: what a LoRA step passes on in place of a skipped layer's output.

A full step leaves an anchor for each layer that LoRA steps skip. Let h be the layer's input, f(h) its output (with
`part="attention"` the stream after its attention, on which the MLP then runs), `a` the last full step, d the bank's
correction and g its gate:

    rule      anchor              output at a LoRA step
    state     the last output     anchor + d(h), which is the next anchor
    anchor    f(h[a])             anchor + d(h)
    residual  f(h[a]) - h[a]      h + g * anchor + d(h)
    skip      none                h + d(h)

The reference decoder, the static decoder and training call these functions. `native/layer.c` computes the same in C;
the tests compare the two.

Shapes: `...` leading dimensions (batch, tokens), D hidden size.
"""

from __future__ import annotations

from torch import Tensor


def replaced(part: str, u: Tensor, output: Tensor) -> Tensor:
    """f(h), (..., D), which the rule replaces: a layer's output, or the stream u after its attention."""
    return output if part == "block" else u


def anchor_of(reuse: str, h: Tensor, f: Tensor) -> Tensor | None:
    """Anchor (..., D) that a full step leaves, from the layer's input h and f(h), (..., D); None with `skip`."""
    if reuse == "skip":
        return None
    return f - h if reuse == "residual" else f


def reused(
    reuse: str, h: Tensor, anchor: Tensor | None, gate: Tensor | float | None = None, d: Tensor | None = None
) -> Tensor:
    """Output (..., D) of a skipped layer with input h (..., D).

    Args:
        anchor: (..., D); None with `skip`.
        gate: g, (D,), for `residual`; None is 1.
        d: the correction of h, (..., D); None is 0.
    """
    if reuse == "skip":
        base = h
    else:
        assert anchor is not None  # a full step comes first
        base = anchor
        if reuse == "residual":
            base = h + (anchor if gate is None else gate * anchor)
    return base if d is None else base + d
