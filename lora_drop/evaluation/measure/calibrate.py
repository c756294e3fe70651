"""Calibrate this machine: every preset, and the screened head alone, against the full model.

All lanes run as `protocol.py` has it, on as many of its prompts as the time allows. The work can be interrupted after
any step and goes on later: what ran so far counts.
"""

from __future__ import annotations

import time
from collections.abc import Callable

from lora_drop.adapters.find import config_fingerprint, find_bank
from lora_drop.decode.reference import ReferenceDecoder
from lora_drop.errors import LoraDropError
from lora_drop.evaluation.measure.bench import beside, outside_share, rotated, row_cost, time_lanes
from lora_drop.evaluation.measure.pairs import read_prompt_set
from lora_drop.evaluation.measure.protocol import WARM_UP_TOKENS
from lora_drop.evaluation.measure.texts import ANSWER_TOKENS
from lora_drop.method.config import LoraDropConfig
from lora_drop.models.load import LoadedModel, ModelInfo
from lora_drop.models.tokens import encode_prompt
from lora_drop.run.report.report import Report
from lora_drop.run.request import LanePlan, baseline_lane
from lora_drop.run.results.calibration import HEAD, settings_here
from lora_drop.run.results.files import CALIBRATION_SECONDS
from lora_drop.run.results.store import Row
from lora_drop.run.trace.records import BASELINE

LEAST_TOKENS = 48  # of the full model's lane, however slow the machine is


class Calibration:
    """A calibration under way.

    Args:
        seconds: how long it takes; longer where `LEAST_TOKENS` do.

    Raises:
        LoraDropError: a preset or its adapters do not fit the model, or the reference decoder would run it, whose
            speed says nothing.
    """

    def __init__(self, loaded: LoadedModel | ModelInfo, seconds: float = CALIBRATION_SECONDS):
        if loaded.decoder_name == ReferenceDecoder.name:
            raise LoraDropError(f"{loaded.id} runs on the reference decoder here, which makes no claim of speed.")
        self.lanes = {BASELINE: baseline_lane(loaded.num_layers)}
        self._rows: dict[str, tuple[str, Row]] = {}  # by lane: the name of its row, and what identifies it
        for name, configs in settings_here(loaded).items():
            for config in configs:
                self._add(loaded, name, config)
        self._prompts = [encode_prompt(loaded.tokenizer, prompt) for prompt in read_prompt_set().texts]
        self._reports: list[Report] = []
        self._begun = 0  # prompts
        self._seconds, self._spent = seconds, 0.0

    def _add(self, loaded: LoadedModel | ModelInfo, name: str, config: LoraDropConfig) -> None:
        schedule = config.schedule_for(loaded.num_layers)
        bank, _ = find_bank(loaded, config, schedule)
        if name == HEAD and (bank is None or bank.head is None):
            return
        lane = f"lane_{len(self.lanes)}"
        self.lanes[lane] = LanePlan(name, config, schedule, bank)
        row = {"config": config.differences(), "adapters_fingerprint": config_fingerprint(loaded, config)}
        self._rows[lane] = (name, row)

    @property
    def is_done(self) -> bool:
        """Whether it ran long enough."""
        return self._is_enough(self._spent) or (self._begun >= len(self._prompts) and self._spent >= self._seconds)

    def go_on(
        self,
        loaded: LoadedModel,
        should_stop: Callable[[], bool] = lambda: False,
        progress: Callable[[float], None] = lambda share: None,
    ) -> None:
        """Measure until it is done, or until `should_stop`, which is asked after each step, is true.

        Args:
            progress: called after each prompt with the share of the time that is over.

        Raises:
            LoraDropError: there is no memory for the lanes.
        """
        time_lanes(loaded, self.lanes, self._prompts[0], WARM_UP_TOKENS, should_stop=lambda _: should_stop())
        while not (self.is_done or should_stop()):
            start = time.monotonic() - self._spent

            def is_over(report: Report, start: float = start) -> bool:
                return should_stop() or self._is_enough(time.monotonic() - start, report)

            ids = self._prompts[self._begun % len(self._prompts)]
            report = time_lanes(loaded, rotated(self.lanes, self._begun), ids, ANSWER_TOKENS, False, is_over)
            self._begun, self._spent = self._begun + 1, time.monotonic() - start
            if all(lane.standing for lane in report.lanes.values()):
                self._reports.append(report)
            progress(min(1.0, self._spent / self._seconds))

    def _is_enough(self, spent: float, *running: Report) -> bool:
        """Whether the time is over and enough tokens ran, with those of a prompt that runs."""
        tokens = sum(report.lanes[BASELINE].standing for report in (*self._reports, *running))
        return spent >= self._seconds and tokens >= LEAST_TOKENS

    def rows(self) -> list[Row]:
        """A row for each preset and for the screened head alone, the faster of its periods.

        Raises:
            LoraDropError: nothing was measured.
        """
        if not self._reports:
            raise LoraDropError("nothing was measured.")
        rows: dict[str, Row] = {}
        for lane, (name, key) in self._rows.items():
            figures = beside(self._reports, lane) | {
                "row_cost": row_cost(self._reports, lane),
                "outside": outside_share(self._reports),
            }
            if name not in rows or (rows[name]["speedup"] or 0) < (figures["speedup"] or 0):
                rows[name] = {"lane": name, **key, **figures}
        return list(rows.values())
