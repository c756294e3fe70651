"""The schedule that a batch is trained for, drawn at random so that one bank serves every slider position."""

from __future__ import annotations

import random
from dataclasses import dataclass

from lora_drop.errors import LoraDropError
from lora_drop.method.config import LoraDropConfig
from lora_drop.method.schedule import Schedule
from lora_drop.training.settings import TrainSettings

PERIODS = (2, 3, 4, 6, 8)
NEAR_PERIODS = (2, 2, 3, 3, 3, 4, 4, 4, 6, 8)  # with exact refreshes or `drop_count`: those of the presets most often
# Half of the batches take a ratio of the presets, half any ratio: the slider stops anywhere.
RATIOS, ANY_RATIO = (0.25, 0.5), (0.15, 0.8)
# Tokens of the shortest prompt. A text's first token has a state of its own kind, in some models a hundred times as
# large as others: as an anchor it would outweigh all else in the regression, and no decode step of a chat has it.
SHORTEST = 4


@dataclass(frozen=True)
class Draw:
    """Windows that one step trains on, the length of their prompts, and the schedule."""

    windows: list[int]
    prompt_tokens: int
    schedule: Schedule


def draw(settings: TrainSettings, step: int, windows: int, num_layers: int) -> Draw:
    """Draw the batch of a step, from the seed and the step alone, so that a resumed run draws the same.

    Args:
        windows: how many there are.

    Raises:
        LoraDropError: the drop ratio skips no layer of this model.
    """
    rng = random.Random(f"{settings.seed} {step}")
    places = [divmod(step * settings.batch_size + k, windows) for k in range(settings.batch_size)]
    orders = {
        epoch: random.Random(f"{settings.seed} epoch {epoch}").sample(range(windows), windows) for epoch, _ in places
    }
    chosen = [orders[epoch][place] for epoch, place in places]
    ratio = settings.drop_ratio
    if ratio is None:
        ratio = rng.choice((rng.choice(RATIOS), rng.uniform(*ANY_RATIO)))
    exact = settings.exact
    config = LoraDropConfig(
        period=settings.period or rng.choice(NEAR_PERIODS if exact or settings.drop_count else PERIODS),
        drop_ratio=ratio,
        drop_layers=_first_of(settings, rng),
        **settings.rules,
    )
    schedule = config.schedule_for(num_layers)
    if not schedule.dropped and settings.drop_ratio is None:  # a small model may have too few layers for a low ratio
        schedule = config.replace(drop_ratio=1.0).schedule_for(num_layers)
    if not schedule.dropped:
        raise LoraDropError(f"drop_ratio {ratio} skips no layer of this model's {num_layers}: raise it.")
    # An exact refresh forgets all before it, so a window needs no longer prompt than up to its first anchor.
    most = SHORTEST + config.period - 1 if exact else settings.length // 2
    return Draw(chosen, min(rng.randint(SHORTEST, most), settings.length // 2), schedule)


def _first_of(settings: TrainSettings, rng: random.Random) -> tuple[int, ...] | None:
    """Draw how many of the first layers of the order to skip; None leaves it to the ratio.

    With `drop_count` two batches in three skip that many and the others at least half as many. Without it every other
    batch skips any number.
    """
    order, count = settings.order, settings.drop_count
    if count:
        return order[: count if rng.random() < 0.65 else rng.randint(-(-count // 2), len(order))]
    return order[: rng.randint(1, len(order))] if order and rng.random() < 0.5 else None
