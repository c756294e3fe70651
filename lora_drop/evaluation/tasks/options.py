"""The options of the benchmark command. Without torch, so that the command line's help is quick."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from lora_drop.errors import LoraDropError


@dataclass(frozen=True)
class Options:
    """A benchmark's options, beside model and schedule.

    Args:
        names: of `TASKS`; None takes those that the data folder has.
        limit: records a task; None takes all.
        run_code: run generated programs in a sandbox; without it code tasks have no score.
        max_new_tokens: of a generated answer.
        context_tokens: most tokens of a prompt, a longer one loses its middle; None is the model's context.

    Raises:
        LoraDropError: a number is too small.
    """

    data_dir: Path
    out: Path
    names: tuple[str, ...] | None = None
    limit: int | None = None
    run_code: bool = False
    max_new_tokens: int = 256
    context_tokens: int | None = None

    def __post_init__(self):
        for name, least in (("limit", 1), ("max_new_tokens", 1), ("context_tokens", 16)):
            value = getattr(self, name)
            if value is not None and value < least:
                raise LoraDropError(f"--{name.replace('_', '-')} must be at least {least}, got {value}.")
