"""What a training run is asked to do; apart from `train`, so that `--help` needs no torch."""

from __future__ import annotations

from lora_drop.errors import LoraDropError
from lora_drop.method.settings import TRAINING, fields, settings_of
from lora_drop.method.values import LayerList, unreadable


class TrainSettings(fields("TrainSettings", settings_of(TRAINING))):
    """The settings of a training run, by the names of the command line; a checkpoint goes on only with the same.

    `period` and `drop_ratio` fix the schedule; None draws it for each batch. With a `drop_order` (layers with commas,
    the cheapest to skip first; see `lora_drop.evaluation.order`) half of the batches skip a drawn number of its first.

    Raises:
        LoraDropError: a value is outside what it may be.
    """

    def check(self) -> None:
        if self.drop_order is not None:
            if self.drop_ratio is not None:
                raise LoraDropError("drop_order and drop_ratio exclude each other: name one of them.")
            if not self.order or not 0 < min(self.order) or len(set(self.order)) < len(self.order):
                raise LoraDropError("drop_order must list different layers from 1 upwards, such as 14,9,12.")

    @property
    def order(self) -> tuple[int, ...]:
        """`drop_order` as layer numbers, in its order."""
        try:
            return LayerList().from_text(self.drop_order or "")
        except ValueError as error:
            raise unreadable("drop_order", LayerList(), self.drop_order, error) from None
