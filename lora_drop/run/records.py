"""The records of a trace, how each is checked, and how it is written in the file and on the wire to the page."""

from __future__ import annotations

import dataclasses
import json
import math
import re
from dataclasses import dataclass, field
from typing import Any

from lora_drop.errors import LoraDropError
from lora_drop.method.schedule import TRIGGERS
from lora_drop.method.settings import RUN, SCHEDULE, settings_of

FORMAT = "lora-drop-trace"
VERSION = 1
KINDS = ("prefill", "refresh", "lora")
MAX_LANES = 16  # reading a trace, and the page, look through the lanes at every step
MAX_DEPTH = 8  # of objects and lists in a header: more than any has, and far less than what copying them can take
LARGEST = 1e300  # of a number: what is computed from those that a run can write stays finite
TOGETHER = ("speedup", "bound", "kv_saved", "first_divergence", "top1_agreement")  # of a lane beside the baseline
TAKEN = (*TOGETHER, "config", "device")  # no lane is called so: `run`'s JSON object has these words beside its lanes


@dataclass(frozen=True)
class Header:
    """The first line: what ran, on what, from which prompt.

    `lanes` holds `{"id", "label", "config"}` objects, `config` being the lane's settings with the resolved `dropped`
    layers, the adapters' `rank` and the `corrected` layers. `model` holds id, revision, layers, hidden_size, dtype,
    params and `kv_bytes_per_token` (bytes that one layer stores for one token). `sampling` holds the rest of what was
    asked for.
    """

    lanes: list[dict[str, Any]]
    model: dict[str, Any]
    device: dict[str, Any]
    prompt: str
    prompt_tokens: int
    seed: int
    software: dict[str, str]
    sampling: dict[str, Any] = field(default_factory=dict)
    type: str = "header"
    format: str = FORMAT
    version: int = VERSION


@dataclass(frozen=True)
class StepRecord:
    """One step of a lane. `ms` is the lane's own clock for this step; `kv_bytes` is what its caches hold after it;
    `entropy` is that of the step's logits, unscaled, in nats; `active` has a 1 for each layer that ran whole;
    `trigger`, of `TRIGGERS`, is what made the step a refresh before its time: a line has it only then."""

    lane: str
    step: int
    token_id: int
    text: str
    kind: str
    active: list[int]
    ms: float
    kv_bytes: int
    entropy: float | None
    trigger: str | None = None
    type: str = "step"


@dataclass(frozen=True)
class AuditRecord:
    """What the full model says of a step, given the lane's own tokens.

    `drift` = ||x_hat - x|| / ||x|| and `cosine` have an entry for each dropped layer (its output); `kl` is
    KL(full || lane) of the unscaled logits in nats; `agrees` tells whether both have the same argmax, which for the
    full model is `argmax_text`.
    """

    lane: str
    step: int
    drift: list[float | None]
    cosine: list[float | None]
    kl: float | None
    agrees: bool
    argmax_text: str
    type: str = "audit"


@dataclass(frozen=True)
class Summary:
    """The last line. `lanes` maps a lane's id to its tokens, tokens_per_second, decode_ms, prefill_ms, kv_bytes,
    kv_allocated_bytes, text_sha256, `refreshes` (decode steps that were full), `average_period` (decode steps for one
    of them, None without any) and `ended` (`stop`, `length` or `stopped`); a third lane has its own comparison with
    the baseline there too. The fields below compare the LoRA-Drop lane with the baseline."""

    lanes: dict[str, dict[str, Any]]
    speedup: float | None
    bound: float | None
    kv_saved: float | None
    first_divergence: int | None
    top1_agreement: float | None
    type: str = "summary"


Record = Header | StepRecord | AuditRecord | Summary
_TYPES: dict[str, type] = {"header": Header, "step": StepRecord, "audit": AuditRecord, "summary": Summary}


def number(value: float, digits: int) -> float | None:
    """A number as it is written: rounded, and None where JSON has no word for it (NaN, infinity)."""
    return round(value, digits) if math.isfinite(value) else None


def write_line(record: Record) -> str:
    """The record as a line of the file, newline included."""
    values = dataclasses.asdict(record)
    if isinstance(record, StepRecord) and record.trigger is None:
        del values["trigger"]
    return json.dumps(values, ensure_ascii=True, allow_nan=False) + "\n"


def _check(record: Record) -> None:
    """Refuse values that a report, a figure or the page could not show; a missing key raises KeyError."""
    if isinstance(record, Header):
        ok = _is_plain(vars(record)) and _fits_header(record)
    elif isinstance(record, StepRecord):
        ok = record.kind in KINDS and _all(str, record.lane, record.text) and _is_count(record.step, 0, 10**7)
        ok = ok and _is_count(record.token_id, 0, 2**31) and _is_count(record.kv_bytes, 0, 2**53)
        ok = ok and all(value in (0, 1) for value in record.active)
        ok = ok and _is_number(record.ms) and _is_number_or_none(record.entropy)
        ok = ok and (record.trigger is None or (record.kind == "refresh" and record.trigger in TRIGGERS))
    elif isinstance(record, AuditRecord):
        ok = _all(str, record.lane, record.argmax_text) and isinstance(record.agrees, bool)
        ok = ok and _is_count(record.step, 0, 10**7) and _is_number_or_none(record.kl)
        ok = ok and all(map(_is_number_or_none, [*record.drift, *record.cosine]))
    else:
        if not (_all(dict, record.lanes) and _all(dict, *record.lanes.values())):
            raise LoraDropError("the lanes of this summary are not lanes.")
        numbers = [getattr(record, name) for name in TOGETHER]
        for lane in record.lanes.values():
            numbers += [lane.get(name) for name in TOGETHER]
            numbers.append(lane.get("tokens_per_second"))
            numbers.append(lane.get("kv_allocated_bytes"))
            numbers.append(lane.get("average_period"))
        ok = all(map(_is_number_or_none, numbers))
        for key, most in (("kv_bytes", 2**53), ("refreshes", 10**7)):
            ok = ok and all(_is_count(lane.get(key, 0), 0, most) for lane in record.lanes.values())
        ok = ok and _all(str, *(lane.get("text_sha256", "") for lane in record.lanes.values()))
        ok = ok and _is_plain(record.lanes)
    if not ok:
        raise LoraDropError(f"a value of this {record.type} is not one that a run writes.")


def _fits_header(record: Header) -> bool:
    lanes, model, sampling = record.lanes, record.model, record.sampling
    ids = [lane["id"] for lane in lanes]
    ok = _all(str, *ids, *(lane["label"] for lane in lanes)) and len(set(ids)) == len(ids) <= MAX_LANES
    # A lane is a word that `run`'s JSON object has beside its own words.
    ok = ok and ids and all(re.fullmatch(r"[a-z][a-z0-9_]{0,31}", lane) and lane not in TAKEN for lane in ids)
    ok = ok and _all(str, record.prompt, model["id"], model["dtype"], record.device["name"])
    ok = ok and _all(dict, sampling, record.software) and _all(list, sampling.get("notes", []))
    ok = ok and _is_count(model["layers"], 1, 10_000) and _is_count(record.prompt_tokens, 0, 10**8)
    ok = ok and _is_count(record.seed, 0, 2**63 - 1) and _is_count(model.get("kv_bytes_per_token", 0), 0, 2**53)
    ok = ok and all(one.fits(sampling[one.name]) for one in settings_of(RUN) if one.name in sampling)
    shape = model.get("shape") or {}
    ok = ok and isinstance(shape, dict) and all(isinstance(n, bool) or _is_number(n) for n in shape.values())
    return ok and all(_fits_config(lane["config"], model["layers"]) for lane in lanes)


def _fits_config(config: dict[str, Any], layers: int) -> bool:
    """A lane's settings, as far as it says them; without `dropped` it drops nothing."""

    def are_layers(name: str) -> bool:
        named = config.get(name) or []
        return isinstance(named, list) and all(_is_count(layer, 0, layers - 1) for layer in named)

    config.setdefault("dropped", [])
    ok = isinstance(config["dropped"], list)
    ok = ok and all(map(are_layers, ("dropped", "corrected", "layers", "drop_layers")))
    ok = ok and _is_count(config.get("rank", 0), 0, 2**31)
    return ok and all(one.fits(config[one.name]) for one in settings_of(SCHEDULE) if one.name in config)


def _is_plain(value: Any, depth: int = MAX_DEPTH) -> bool:
    """True if lists and objects are nested no deeper than that, and no number in them is too large to write."""
    if isinstance(value, (dict, list)):
        inner = value.values() if isinstance(value, dict) else value
        return depth > 0 and all(_is_plain(one, depth - 1) for one in inner)
    return value is None or isinstance(value, (str, bool)) or _is_number(value)


def _all(kind: type, *values: Any) -> bool:
    return all(isinstance(value, kind) for value in values)


def _is_count(value: Any, low: int, high: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and low <= value <= high


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) <= LARGEST  # no NaN either


def _is_number_or_none(value: Any) -> bool:
    return value is None or _is_number(value)


def wire_line(record: Record, lane_ids: list[str]) -> str:
    """The record as a line for the page, newline included: arrays instead of names, to keep an update small.

    - header and summary: the object, as in the file;
    - step: `[lane, step, token_id, text, kind, ms, kv_bytes, entropy]`, `lane` and `kind` as indices, and at an early
      refresh its trigger's index. The active layers follow from the kind and the lane's `dropped` list in the header;
    - audit: `[100 + lane, step, [10000 * drift, ...], kl, agrees, argmax_text]`, `argmax_text` 0 where both agree.
    """
    if isinstance(record, StepRecord):
        values: Any = [
            lane_ids.index(record.lane),
            record.step,
            record.token_id,
            record.text,
            KINDS.index(record.kind),
            round(record.ms, 2),
            record.kv_bytes,
            record.entropy if record.entropy is None else round(record.entropy, 3),
        ]
        if record.trigger is not None:
            values.append(TRIGGERS.index(record.trigger))
    elif isinstance(record, AuditRecord):
        values = [
            100 + lane_ids.index(record.lane),
            record.step,
            [value if value is None else round(10_000 * value) for value in record.drift],
            record.kl if record.kl is None else round(record.kl, 4),
            int(record.agrees),
            0 if record.agrees else record.argmax_text,
        ]
    else:
        values = dataclasses.asdict(record)
    return json.dumps(values, ensure_ascii=True, allow_nan=False, separators=(",", ":")) + "\n"
