"""A run's figures so far, from its records alone: of one that still runs, that has ended, or that was cut short.

The page gets them as lines of their own beside the records: its scripts draw them and compute none.
"""

from __future__ import annotations

import dataclasses
import json
from contextlib import suppress
from typing import Any

from lora_drop.method.cost import ModelShape, step_bytes
from lora_drop.method.schedule import Schedule, baseline_schedule
from lora_drop.run.records import TOGETHER, AuditRecord, Header, Record, StepRecord, Summary, number

# A measured speedup this far beyond the bound was met by chance: the lanes' steps met different loads.
BY_CHANCE = 1.03
FIGURES = 200  # what their line for the page begins with


class _Lane:
    """What is counted of a lane as its records come."""

    def __init__(self, config: dict[str, Any], header: Header):
        names = {field.name for field in dataclasses.fields(Schedule)} - {"dropped", "num_layers"}
        rules = {"period": 1} | {name: config[name] for name in names & config.keys()}
        dropped = tuple(sorted(config.get("dropped") or ()))
        self.schedule = Schedule(num_layers=header.model["layers"], dropped=dropped, **rules)
        self.rank, self.corrected = config.get("rank") or 0, config.get("corrected")
        self.tokens: list[int] = []
        self.kv_bytes: list[int] = []
        self.lora: list[bool] = []
        self.decode_ms = 0.0
        self.refreshes = self.audited = self.agreed = 0
        self.base = self.own = 0.0  # bytes that the full model's steps would have read, and that these did

    def add(self, record: StepRecord, shape: ModelShape | None, prompt_tokens: int) -> None:
        lora = record.kind == "lora"
        self.tokens.append(record.token_id)
        self.kv_bytes.append(record.kv_bytes)
        self.lora.append(lora)
        if record.step == 0:
            return
        self.decode_ms += record.ms
        self.refreshes += not lora
        if shape:
            full = baseline_schedule(self.schedule.num_layers)
            self.base += step_bytes(shape, full, record.step, prompt_tokens, 1)
            self.own += step_bytes(
                *(shape, self.schedule, record.step, prompt_tokens, 1, self.rank, self.corrected),
                lora=lora,
                refreshes=self.refreshes,
            )

    def audit(self, record: AuditRecord) -> None:
        if self.lora[record.step]:
            self.audited += 1
            self.agreed += record.agrees

    @property
    def tokens_per_second(self) -> float | None:
        steps = len(self.tokens) - 1
        return 1000 * steps / self.decode_ms if steps > 0 and self.decode_ms > 0 else None


class Figures:
    """The figures of a run, a record at a time.

    Args:
        header: the run's first record; one without a shape (an old trace) has no bound on the way.
    """

    def __init__(self, header: Header):
        self._main = header.main["id"]
        self._lanes = {lane["id"]: _Lane(lane["config"], header) for lane in header.lanes}
        self._prompt_tokens = header.prompt_tokens
        self._shape: ModelShape | None = None
        self._summary: Summary | None = None
        shape: dict[str, Any] = dict(header.model.get("shape") or {})
        with suppress(TypeError):  # a header may hold any object
            self._shape = ModelShape(**shape)
        self._differs: dict[str, int | None] = dict.fromkeys(self._lanes)
        self._compared = dict.fromkeys(self._lanes, 0)

    def add(self, record: Record) -> None:
        """Take a record after the header."""
        if isinstance(record, StepRecord):
            self._lanes[record.lane].add(record, self._shape, self._prompt_tokens)
        elif isinstance(record, AuditRecord):
            self._lanes[record.lane].audit(record)
        elif isinstance(record, Summary):
            self._summary = record

    def now(self) -> dict[str, Any]:
        """The figures: `main`, those of `TOGETHER` for it, `by_chance`, and each lane's speed and first difference.

        Once there is a summary they are the summary's.
        """
        first, main = next(iter(self._lanes.values())), self._lanes[self._main]
        self._compare(first.tokens)
        speeds = {name: lane.tokens_per_second for name, lane in self._lanes.items()}
        speedup = saved = None
        if main is not first:
            one, two = first.tokens_per_second, main.tokens_per_second
            speedup = two / one if one and two else None
            shorter = min(len(first.tokens), len(main.tokens)) - 1
            if shorter >= 0 and first.kv_bytes[shorter]:
                saved = 1 - main.kv_bytes[shorter] / first.kv_bytes[shorter]
        together = {
            "speedup": speedup,
            "bound": 1.0 if main.schedule.is_baseline else main.base / main.own if main.own else None,
            "kv_saved": saved,
            "first_divergence": self._differs[self._main],
            "top1_agreement": main.agreed / main.audited if main.audited else None,
        }
        by_chance = False
        if self._summary:
            speeds = {name: lane.get("tokens_per_second") for name, lane in self._summary.lanes.items()}
            told = {name: getattr(self._summary, name) for name in TOGETHER}
            together = told | {"bound": together["bound"] if main.schedule.is_baseline else told["bound"]}
            bound = together["bound"]
            by_chance = bool(together["speedup"] and bound and together["speedup"] > BY_CHANCE * bound)
        lanes = {name: {"tokens_per_second": speeds[name], "differs": self._differs[name]} for name in self._lanes}
        return {"main": self._main, **together, "by_chance": by_chance, "lanes": lanes}

    def line(self) -> str:
        """The figures as a line for the page, newline included, rounded to what it shows: `[200, *TOGETHER, by_chance,
        [[tokens_per_second, differs] a lane]]`."""
        found = self.now()
        together = [number(v, 4) if isinstance(v := found[name], float) else v for name in TOGETHER]
        lanes = [
            [number(lane["tokens_per_second"] or 0, 2) or None, lane["differs"]] for lane in found["lanes"].values()
        ]
        values = [FIGURES, *together, int(found["by_chance"]), lanes]
        return json.dumps(values, ensure_ascii=True, allow_nan=False, separators=(",", ":")) + "\n"

    def _compare(self, first: list[int]) -> None:
        """Each lane's first token that differs from the first lane's, looked for in what is new."""
        for name, lane in list(self._lanes.items())[1:]:
            both = min(len(first), len(lane.tokens))
            at = self._compared[name]
            while self._differs[name] is None and at < both:
                if first[at] != lane.tokens[at]:
                    self._differs[name] = at
                at += 1
            self._compared[name] = at
