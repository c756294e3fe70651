"""Estimate of a training run before it starts: memory by formulas, and both in words.

The memory is that of all tensors beside the model that exist at the same time, for the longest graph that a batch can
have. A test holds it between the bytes that are really allocated and twice as many.

Shapes: D hidden size, M intermediate size, V vocabulary, L layers, T tokens of a window.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from lora_drop.errors import LoraDropError
from lora_drop.method.cost import ModelShape
from lora_drop.training.settings import TrainJob, TrainSettings

FLOAT = 4  # bytes: of parameters, log-probabilities and what norms save, whatever the model's number type
COPIES = 6  # of the adapters: starting values, parameters, gradients, two moments of AdamW, a step's tensors
VOCABULARY = 6  # numbers a position and vocabulary entry: both log-probabilities, the divergence, its gradient
MOMENTS, MOMENTS_OF_START = 7, 2  # of a layer, (D, D) in float64: for the regression, for the scales alone


@dataclass(frozen=True)
class Memory:
    """Bytes that a run needs beside the model's weights; `adapters` includes their optimizer."""

    adapters: int
    batch: int
    regression: int

    @property
    def needed(self) -> int:
        """Bytes at the peak."""
        return self.adapters + self.batch + self.regression


def memory(shape: ModelShape, itemsize: int, settings: TrainSettings, job: TrainJob) -> Memory:
    """Estimate the memory of a run; `itemsize` is the bytes of a number of the model's type."""
    layers, size = settings.corrected(shape.num_layers), shape.hidden_size
    fits = settings.fit_batches > 0
    white = FLOAT * len(layers) * size**2 * fits
    moments = 8 * len(layers) * size**2 * (MOMENTS_OF_START if job.start else MOMENTS) * (fits and not job.resume)
    # The regression's graph begins at the embeddings, a step's after the first skipped layer.
    step, fit = (
        _graph(shape, itemsize, settings, depth) for depth in (shape.num_layers - layers[0] - 1, shape.num_layers)
    )
    return Memory(
        adapters=COPIES * FLOAT * len(layers) * size * (2 * settings.rank + 1) + white,
        batch=max(step, fit) if fits else step,
        regression=moments,
    )


def _graph(shape: ModelShape, itemsize: int, settings: TrainSettings, layers: int) -> int:
    """Bytes that a batch keeps for its gradients in `layers` layers, and for its loss."""
    rows, size = settings.batch_size * settings.length, shape.hidden_size
    # A layer keeps the stream twice, its norms, queries, keys, values and their mix, gate, up and their product.
    row = itemsize * (6 * size + 3 * shape.intermediate_size) + (2 * FLOAT * size if itemsize < FLOAT else 0)
    row += FLOAT * settings.rank
    mask = itemsize * settings.length**2 * (2 if settings.refresh == "repair" else 1)
    return layers * (rows * row + mask) + rows * shape.vocab_size * FLOAT * VOCABULARY


def check_room(needs: Memory, settings: TrainSettings, free: int | None, device: Any) -> None:
    """Check that the free memory of a device holds a run; `free` None skips the check.

    Raises:
        LoraDropError: it does not.
    """
    if free is not None and needs.needed > free:
        raise LoraDropError(
            f"training needs about {memory_words(needs, settings)}, and {device} has {_gb(free)} free: lower "
            "--batch-size (--accumulate makes up for it) or --length, take --fit-batches 0, or another device."
        )


def memory_words(needs: Memory, settings: TrainSettings) -> str:
    """`3.1 GB beside the model: adapters and optimizer 0.1 GB, a batch of 8 x 256 tokens 3.0 GB`."""
    parts = [
        f"adapters and optimizer {_gb(needs.adapters)}",
        f"a batch of {settings.batch_size} x {settings.length} tokens {_gb(needs.batch)}",
    ]
    parts += [f"regression {_gb(needs.regression)}"] if needs.regression else []
    return f"{_gb(needs.needed)} beside the model ({', '.join(parts)})"


def _gb(size: int) -> str:
    return f"{size / 1e9:.1f} GB" if size >= 5e7 else f"{size / 1e6:.1f} MB"


def time_words(seconds: float) -> str:
    """`2 h 05 min`, `12 min`, `40 s`."""
    minutes = round(seconds / 60)
    if minutes >= 60:
        return f"{minutes // 60} h {minutes % 60:02d} min"
    return f"{minutes} min" if minutes else f"{seconds:.0f} s"
