"""A lane of a recorded run, made ready to be read again on a model: only where nothing has changed since."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from lora_drop.adapters.bank import AdapterBank
from lora_drop.adapters.find import config_fingerprint, find_bank
from lora_drop.errors import LoraDropError
from lora_drop.method.config import LoraDropConfig
from lora_drop.method.fields import SCHEDULE
from lora_drop.method.schedule import Schedule
from lora_drop.method.settings import settings_of
from lora_drop.models.load import LoadedModel
from lora_drop.models.tokens import encode_prompt
from lora_drop.paths import SHIPPED_ADAPTERS
from lora_drop.run.trace.records import StepRecord
from lora_drop.run.trace.trace import Trace


@dataclass(frozen=True)
class RecordedLane:
    """What a lane of a trace ran with."""

    schedule: Schedule
    bank: AdapterBank | None
    prompt_ids: list[int]


def recorded_lane(loaded: LoadedModel, trace: Trace, lane: str) -> RecordedLane:
    """The lane's schedule, corrections and prompt, on the model of its run.

    Raises:
        LoraDropError: the model, its weights, the adapters or the prompt's tokens are not those of the run.
    """
    header = trace.header
    check_weights(loaded, trace)
    told = next(one["config"] for one in header.lanes if one["id"] == lane)
    config = _config(told)
    schedule = config.schedule_for(loaded.num_layers)
    if list(schedule.dropped) != list(told["dropped"]):
        raise LoraDropError(f"lane {lane} skips other layers than its settings say: it cannot be read again.")
    bank = None
    if config.adapters != "none":
        found = config_fingerprint(loaded, config)
        if found is None or found != told.get("bank", found):
            raise LoraDropError("this run's adapters have changed since, or are gone: run it again to look inside.")
        bank, _ = find_bank(loaded, config, schedule)
    ids = encode_prompt(loaded.tokenizer, header.prompt)
    if len(ids) != header.prompt_tokens:
        raise LoraDropError(f"the prompt has {len(ids)} tokens here and had {header.prompt_tokens} in this run.")
    _check_steps(loaded, schedule, trace.steps[lane], len(ids))
    return RecordedLane(schedule, bank, ids)


def _check_steps(loaded: LoadedModel, schedule: Schedule, steps: list[StepRecord], prompt_tokens: int) -> None:
    """Raise LoraDropError where steps are not such as the schedule has on this model: a decoder may rely on that."""
    if prompt_tokens + len(steps) > loaded.context + 1:
        raise LoraDropError(f"this run is longer than the context of {loaded.id}: it cannot be read again.")
    gap = 0
    for one in steps[1:]:
        gap = gap + 1 if one.kind == "lora" else 0
        is_free = schedule.is_adaptive or schedule.verifies  # its full steps come where the text has them
        fits = one.kind == "refresh" or gap if is_free else one.kind == schedule.kind(one.step)
        if not fits or gap >= schedule.period:
            raise LoraDropError(f"step {one.step} is not what this lane's schedule says: it cannot be read again.")
    if any(one.token_id >= loaded.shape.vocab_size for one in steps):
        raise LoraDropError(f"this run has tokens that {loaded.id} does not know: it cannot be read again.")


def check_weights(loaded: LoadedModel, trace: Trace) -> None:
    """Raise LoraDropError if the model is not the one that the run was made with."""
    model: dict[str, Any] = {**trace.header.model}
    if model.get("revision") != loaded.revision or model["layers"] != loaded.num_layers:
        raise LoraDropError(
            f"this run's weights ({model['id'][:80]}, {str(model.get('revision', 'unknown'))[:40]}) are not those of "
            f"the model here ({loaded.id}, {loaded.revision}): run it again to look inside."
        )


def _config(told: dict[str, Any]) -> LoraDropConfig:
    """A lane's settings, as its header tells them; adapters are `none` where none were used.

    Raises:
        LoraDropError: a setting has a value that this version does not know, or adapters come from elsewhere.
    """
    names = [one.name for one in settings_of(SCHEDULE)]
    settings = {name: told[name] for name in names if name in told}
    extras = told.get("extras", {})
    if not (told.get("rank") or told.get("corrected") or extras.get("head_rank")):
        settings["adapters"] = "none"
    elif (name := settings.get("adapters", "auto")) != "auto":
        # A header has the folder's name alone. Of those that ship, the fingerprint says whether it is the one.
        shipped = {folder.name: folder for folder in SHIPPED_ADAPTERS.iterdir()}
        if "bank" not in told or name not in shipped:
            raise LoraDropError(f"this run's adapters {str(name)[:80]} are not here: it cannot be read again.")
        settings["adapters"] = str(shipped[name])
    return LoraDropConfig(**settings)
