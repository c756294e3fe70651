"""A request for a run, and its check against a model before anything runs."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from pydantic import SkipValidation

from lora_drop.adapters.bank import AdapterBank
from lora_drop.adapters.find import find_bank
from lora_drop.errors import LoraDropError
from lora_drop.method.config import LoraDropConfig
from lora_drop.method.cost import Corrections, ModelShape, kv_bytes
from lora_drop.method.fields import RUN, checked
from lora_drop.method.methods import CONFIGURED, FULL, LISTS, lanes_of, method_lane, method_of
from lora_drop.method.presets import COMPARISONS, PRESETS
from lora_drop.method.schedule import Schedule, baseline_schedule
from lora_drop.method.settings import RunSettings
from lora_drop.models.load import LoadedModel, ModelInfo
from lora_drop.models.place import free_memory, screens_heads
from lora_drop.models.tokens import ByteTokenizer, encode_prompt
from lora_drop.run.results.bank_presets import presets_of
from lora_drop.run.trace.records import BASELINE, LORA_DROP, THIRD


@checked(RUN)
class _Question:
    prompt: SkipValidation[str]  # pydantic refuses half of a character
    config: LoraDropConfig = dataclasses.field(default_factory=LoraDropConfig)


@checked(RUN)
class Request(RunSettings, _Question):  # the fields of the last base come first: prompt, config
    """A run's prompt, its schedule's config and its settings, named as on the command line.

    Raises:
        LoraDropError: a value is not allowed on any model.
    """

    def __post_init__(self) -> None:
        if not isinstance(self.prompt, str) or not self.prompt.strip():
            raise LoraDropError("the prompt is empty: write a question or an instruction.")
        lanes_of(self.lanes, self.compare)
        if self.plain and (self.system is not None or self.thinking != "auto"):
            raise LoraDropError("plain has no chat template, which system and thinking need: unset them.")


@dataclass(frozen=True)
class LanePlan:
    """One lane of a run; `method` is its name in a list of lanes, empty where none was named."""

    label: str
    config: LoraDropConfig
    schedule: Schedule
    bank: AdapterBank | None = None
    method: str = ""

    def corrections(self, shape: ModelShape) -> Corrections:
        """Sizes of what its LoRA steps read beside the model's weights."""
        if self.bank is None:
            return Corrections(layers=())
        head = self.bank.head if self.schedule.head == "screened" else None
        preview = (head.rank, head.best) if head else (0, 0)
        return Corrections(self.bank.rank, self.bank.layers, *preview, shape.code_size)


@dataclass(frozen=True)
class Plan:
    """A request checked against a model: an error after this is not the user's."""

    lanes: dict[str, LanePlan]
    prompt_ids: list[int]
    notes: list[str]


def baseline_lane(num_layers: int) -> LanePlan:
    """The full model's lane."""
    config = LoraDropConfig(period=1, drop_layers=(), adapters="none")
    return LanePlan("Baseline: every layer, every token", config, baseline_schedule(num_layers))


def lane_plan(
    loaded: LoadedModel | ModelInfo, config: LoraDropConfig, label: str = "LoRA-Drop", bank: AdapterBank | None = None
) -> tuple[LanePlan, list[str]]:
    """A lane with the adapters that its config names, and notes for the user.

    Args:
        bank: in place of the adapters that the config names.

    Raises:
        LoraDropError: the range or the adapters do not fit the model.
    """
    schedule = config.schedule_for(loaded.num_layers)
    bank, notes = find_bank(loaded, config, schedule, bank)
    if config.head == "screened" and not screens_heads(loaded.device):
        config = config.replace(head="full")
        schedule = config.schedule_for(loaded.num_layers)
    return LanePlan(label, config, schedule, bank), notes


def plan(loaded: LoadedModel | ModelInfo, request: Request) -> Plan:
    """Check a request against the model, before anything runs.

    Raises:
        LoraDropError: the range, the adapters or the prompt's length do not fit the model, or the caches its memory.
    """
    lanes: dict[str, LanePlan] = {}
    notes: list[str] = []
    request.config.schedule_for(loaded.num_layers)  # reports its mistakes even if its lane does not run
    for name, label, config, more, method in _wanted(loaded, request):
        if name in lanes:
            raise LoraDropError(f"lanes names {method} twice.")
        if name == BASELINE:
            lanes[name] = dataclasses.replace(baseline_lane(loaded.num_layers), method=method)
            continue
        lane, bank_notes = lane_plan(loaded, config, label)
        lane = dataclasses.replace(lane, method=method, schedule=dataclasses.replace(lane.schedule, **more))
        if method == "screened-head" and lane.bank is None:
            raise LoraDropError("screened-head needs adapters with a screened head, and this model has none.")
        main, schedule = lanes.get(LORA_DROP), lane.schedule
        if main and (schedule.is_baseline or (schedule, _reads(lane.bank)) == (main.schedule, _reads(main.bank))):
            notes.append(f"no third lane: with these settings {label!r} would be LoRA-Drop's lane again.")
            continue
        lanes[name] = lane
        notes += bank_notes if name == LORA_DROP else [f"{label}: {note}" for note in bank_notes]
    prompt_ids = prompt_ids_of(loaded, request.prompt, vars(request))
    if not (request.plain or loaded.tokenizer.chat_template or isinstance(loaded.tokenizer, ByteTokenizer)):
        notes.append(f"{loaded.id} has no chat template: it continues the prompt as plain text.")
    if len(prompt_ids) + request.max_new_tokens > loaded.context:
        room = loaded.context - len(prompt_ids)
        advice = f"ask for at most {room} new tokens" if room > 0 else "shorten the prompt"
        raise LoraDropError(
            f"the prompt has {len(prompt_ids)} tokens and {request.max_new_tokens} more were asked for, but "
            f"{loaded.id} has a context of {loaded.context}: {advice}."
        )
    _check_memory(loaded, request, lanes, len(prompt_ids))
    return Plan(lanes, prompt_ids, notes)


def prompt_ids_of(loaded: LoadedModel | ModelInfo, prompt: str, settings: Mapping[str, Any]) -> list[int]:
    """Token ids of a prompt, by a run's settings `system`, `thinking` and `plain`.

    Raises:
        LoraDropError: see `encode_prompt`.
    """
    system, thinking = settings.get("system"), settings.get("thinking") or "auto"
    return encode_prompt(loaded.tokenizer, prompt, not settings.get("plain"), system, thinking)


def _wanted(
    loaded: LoadedModel | ModelInfo, request: Request
) -> Iterator[tuple[str, str, LoraDropConfig, dict[str, Any], str]]:
    """Id, label, config, further fields of the schedule, and method of each lane. A third lane follows LoRA-Drop's."""
    names = lanes_of(request.lanes, request.compare)
    main = CONFIGURED if CONFIGURED in names else next((name for name in names if name in PRESETS), None)
    presets = presets_of(loaded, request.config.adapters)
    for name in names:
        lane = method_lane(name, loaded.num_layers, presets, request.config)
        plan_id = {FULL: BASELINE, main: LORA_DROP}.get(name, re.sub(r"\W", "_", lane.name))
        yield plan_id, method_of(lane.name)[1], lane.config, lane.more, "" if request.lanes in LISTS else name
        if plan_id == LORA_DROP and request.compare is not None:
            comparison = COMPARISONS[request.compare]
            yield THIRD, comparison.lane, comparison.applied_to(request.config), {}, ""


def _reads(bank: AdapterBank | None) -> tuple[bool, bool]:
    """Whether a lane reads corrections, and a screened head."""
    return bank is not None and bool(bank.a), bank is not None and bank.head is not None


def _check_memory(
    loaded: LoadedModel | ModelInfo, request: Request, lanes: dict[str, LanePlan], prompt_tokens: int
) -> None:
    """Raise LoraDropError if the KV caches alone need more memory than is free."""

    def size(schedule: Schedule, steps: int = request.max_new_tokens - 1) -> int:
        return kv_bytes(loaded.shape, schedule, prompt_tokens, steps, loaded.dtype.itemsize)

    needed = size(baseline_schedule(loaded.num_layers), 0)  # the prefill's
    needed += sum(size(lane.schedule) for lane in lanes.values())
    if request.audit:
        # Each lane's drift, and its quality on the baseline's tokens, have separate caches.
        needed += len(lanes.keys() - {BASELINE}) * size(baseline_schedule(loaded.num_layers))
        if BASELINE in lanes:
            needed += sum(size(lane.schedule) for name, lane in lanes.items() if name != BASELINE)
    free = free_memory(loaded.device)
    if free is not None and needed > free:
        raise LoraDropError(
            f"{prompt_tokens} + {request.max_new_tokens} tokens need {needed / 1e9:.1f} GB for the KV caches, and "
            f"{loaded.device} has {free / 1e9:.1f} GB free: ask for fewer tokens, fewer lanes, or no audit."
        )
