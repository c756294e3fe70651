"""The records of a trace: what each holds, and how a line of a file becomes one.

The types are the check: pydantic validates a line of a file by them. Records that a run makes are not checked.
"""

from __future__ import annotations

import dataclasses
import json
import math
from dataclasses import dataclass, field
from functools import cache
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Final, Literal, NotRequired, cast, get_args

from pydantic import ConfigDict, Field, InstanceOf, TypeAdapter, ValidationError, WithJsonSchema, with_config
from typing_extensions import TypedDict  # pydantic takes the one in `typing` from Python 3.12 on

from lora_drop.errors import LoraDropError
from lora_drop.method.fields import RUN, SCHEDULE, Setting
from lora_drop.method.kinds import Choice
from lora_drop.method.schedule import StepKind
from lora_drop.method.settings import settings_of

FORMAT: Final = "lora-drop-trace"
VERSION: Final = 4
BASELINE, LORA_DROP, THIRD = "baseline", "lora_drop", "third"  # ids of the lanes of a run
MAX_LANES = 16  # the reader and the page go through all lanes at every step
MAX_LAYERS = 1000  # of a model, and the length of a list of layers
MAX_VALUES, MAX_TEXT = 10**4, 10**7  # of an object or a list in a header or a summary; characters of its texts
MAX_DEPTH = 8  # of objects and lists in a header: deeper than any run's, and far from the limit of recursion
TOGETHER = ("speedup", "bound", "kv_saved", "first_divergence", "top1_agreement")  # of a lane beside the baseline
FREE = ("accepted", "tokens_per_refresh", "speedup_interval", "quality")  # further figures of a lane, None where none
# Keys of `run`'s JSON object: no lane has such an id.
TAKEN = (*TOGETHER, *FREE, "config", "device", "verdict", "lanes")

KINDS = get_args(StepKind)

LARGEST = 1e300  # of a number: sums of such numbers stay finite
MORE = ConfigDict(extra="allow")  # further keys are allowed
Text = InstanceOf[str]  # a token's may be half a character, which pydantic's `str` refuses
LaneId = Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]{0,31}$")]  # a key of `run`'s JSON object
Number = Annotated[float, Field(strict=True, ge=-LARGEST, le=LARGEST)]  # or a whole one
StepNumber = Annotated[int, Field(strict=True, ge=0, le=10**7)]
Size = Annotated[int, Field(strict=True, ge=0, le=2**31)]
Bytes = Annotated[int, Field(strict=True, ge=0, le=2**53)]
Layers = Annotated[list[Annotated[int, Field(strict=True, ge=0, lt=MAX_LAYERS)]], Field(max_length=MAX_LAYERS)]
Label = Annotated[Text, Field(max_length=1000)]  # it is repeated at each step
TokenText = Annotated[Text, Field(max_length=10**4)]  # of a step, which may end a character that others began
Factor = Annotated[float, Field(strict=True, ge=0, le=64)]  # bytes of a stored weight over those of an activation
TOP = 5  # likeliest tokens of a step that are recorded
Top = Annotated[list[tuple[TokenText, Annotated[float, Field(strict=True, ge=0, le=1)]]], Field(max_length=TOP)]


def _of_table(owner: str) -> dict[str, Any]:
    """The table's settings as types. A choice may be any text: another version may have written the run."""

    def type_of(setting: Setting) -> Any:
        if isinstance(setting.kind, Choice):
            return Text | None if setting.kind.off else Text
        return Annotated[setting.kind.annotation, WithJsonSchema(setting.schema)]

    return {setting.name: type_of(setting) for setting in settings_of(owner)}


@with_config(ConfigDict(extra="forbid"))
class ExtrasHeader(TypedDict, total=False):
    """What LoRA steps read beside the corrections: `lora_drop.method.cost.Corrections`."""

    head_rank: Size
    head_best: Size
    code_size: Factor


if TYPE_CHECKING:  # a type checker does not read the table; what reads a setting by its name takes it from `Schedule`

    class _ScheduleSettings(TypedDict):
        pass

    class _RunSettings(TypedDict):
        pass
else:
    _ScheduleSettings = TypedDict("_ScheduleSettings", _of_table(SCHEDULE), total=False)
    _RunSettings = TypedDict("_RunSettings", _of_table(RUN), total=False)


@with_config(MORE)
class LaneConfig(_ScheduleSettings, total=False):
    """A lane's settings, and what they come to on its model. Without `dropped`, its layers, it skips nothing."""

    dropped: Layers
    corrected: Layers | None
    rank: Size
    extras: ExtrasHeader
    bank: Text
    prunes: bool


@with_config(MORE)
class Sampling(_RunSettings, total=False):
    """The settings of the run, and its notes for the user."""

    notes: list[Any]


@with_config(MORE)
class LaneHeader(TypedDict):
    """A lane of a run. `method` is its name in a list of lanes; a run without such a list has none."""

    id: LaneId
    label: Label
    config: LaneConfig
    method: NotRequired[Label]


@with_config(MORE)
class ShapeHeader(TypedDict, total=False):
    """The sizes of the formulas: `lora_drop.method.cost.ModelShape`. The layers are the model's."""

    num_layers: int
    hidden_size: Size
    num_heads: Size
    num_kv_heads: Size
    head_dim: Size
    intermediate_size: Size
    vocab_size: Size
    tied: bool
    qkv_bias: bool
    qk_norm: bool
    matrix_size: Factor
    head_size: Factor
    part_size: Factor
    code_size: Factor
    layer_sizes: Annotated[
        list[Annotated[list[Factor], Field(min_length=3, max_length=3)]], Field(max_length=MAX_LAYERS)
    ]


@with_config(MORE)
class ModelHeader(TypedDict):
    """The model: `kv_bytes_per_token` is what one layer stores for one token. Also its revision."""

    id: Text
    dtype: Text
    layers: Annotated[int, Field(strict=True, ge=1, le=MAX_LAYERS)]
    hidden_size: NotRequired[Size]
    params: NotRequired[Bytes]
    kv_bytes_per_token: NotRequired[Bytes]
    shape: NotRequired[ShapeHeader | None]


@with_config(MORE)
class DeviceHeader(TypedDict):
    """The device; also its type, the decoder, and the instructions that the kernels use, or why there are none."""

    name: Text


@with_config(MORE)
class PresetFigures(TypedDict):
    """What was measured of a preset before the run: its speedup when this machine was quiet, that of the full model
    with the screened head alone, and the machine's name; and the share of its drafts that the full model accepts
    without corrections, and with them in answers of each group of `REPETITION`."""

    preset: Text
    speedup: NotRequired[Number]
    head_speedup: NotRequired[Number]
    device: NotRequired[Text]
    accepted_without: NotRequired[Number]
    accepted_by_repeats: NotRequired[dict[Text, Number]]


@with_config(MORE)
class Verdict(TypedDict):
    """The verdict of a run: its kind, its text, every figure in the text (`report/verdict.py`); three figures and a
    line to read at one glance (`report/headline.py`)."""

    kind: Text
    text: Text
    facts: dict[str, Any]
    figures: NotRequired[list[dict[str, Text]]]
    line: NotRequired[Text]


class DraftCounts(TypedDict):
    """Drafts that the full model has verified, and those that it accepted."""

    made: StepNumber
    accepted: StepNumber


@with_config(MORE)
class LaneSummary(TypedDict, total=False):
    """A lane's figures: `thoughts` are the tokens of its thoughts, where it has any; `refreshes` are the decode steps
    that were full, `drafts` how many prompt lookup and LoRA steps drafted and the full model accepted of each,
    `average_period` is decode steps per refresh (None without any); `collapsed` is the step where the
    loop begins that the text ends in (None without a loop). A third lane has a comparison with the baseline here
    too."""

    tokens_per_second: Number | None
    kv_bytes: Bytes
    kv_allocated_bytes: Number | None
    thoughts: StepNumber
    refreshes: StepNumber
    average_period: Number | None
    drafts: dict[Literal["lora_drop", "lookup"], DraftCounts]
    text_sha256: Text
    ended: Text  # `stop`, `length` or `stopped`
    speedup: Number | None
    bound: Number | None
    kv_saved: Number | None
    first_divergence: Number | None
    top1_agreement: Number | None
    accepted: Number | None
    tokens_per_refresh: Number | None
    speedup_interval: list[Number] | None
    quality: dict[str, Any] | None
    collapsed: Number | None


class _Line:
    """A record as a line of the file: an optional field is left out at its default."""

    _optional: ClassVar[tuple[str, ...]] = ()

    def is_right(self) -> bool:
        """Checks that the types cannot make."""
        return True

    def to_file(self) -> dict[str, Any]:
        """The object that a line of the file holds."""
        fields: Any = type(self)  # Any: each of them is a dataclass
        defaults = {field.name: field.default for field in dataclasses.fields(fields)}
        values = dataclasses.asdict(cast(Any, self))
        return {k: v for k, v in values.items() if k not in self._optional or v != defaults[k]}


@dataclass(frozen=True)
class Header(_Line):
    """The first line: lanes, model, device, prompt and settings.

    `preset_figures` is what was measured of the preset that was run; a line has it only for a preset.
    """

    lanes: Annotated[list[LaneHeader], Field(min_length=1, max_length=MAX_LANES)]
    model: ModelHeader
    device: DeviceHeader
    prompt: Text
    prompt_tokens: Annotated[int, Field(strict=True, ge=0, le=10**8)]
    seed: Annotated[int, Field(strict=True, ge=0, le=2**63 - 1)]
    software: dict[str, Any]
    sampling: Sampling = field(default_factory=Sampling)
    type: Literal["header"] = "header"
    format: Literal["lora-drop-trace"] = FORMAT
    version: Literal[4] = VERSION
    preset_figures: PresetFigures | None = None

    _optional = ("preset_figures",)

    def is_right(self) -> bool:
        """Checks that the types cannot make. A lane without `dropped` gets an empty one."""
        ids = [lane["id"] for lane in self.lanes]
        layers, shape = self.model["layers"], self.model.get("shape") or {}
        if shape.get("num_layers", layers) != layers or len(shape.get("layer_sizes") or range(layers)) != layers:
            return False
        for lane in self.lanes:
            lane["config"].setdefault("dropped", [])
            config: dict[str, Any] = dict(lane["config"])
            named = [config.get(name) or [] for name in ("dropped", "corrected", "drop_layers")]
            if any(len(set(some)) != len(some) for some in named):
                return False
            if max((layer for some in (*named, config.get("layers") or ()) for layer in some), default=0) >= layers:
                return False
        return len(set(ids)) == len(ids) and not set(ids) & set(TAKEN) and is_plain(vars(self))

    def config_of(self, lane: str) -> LaneConfig:
        """A lane's settings."""
        return next(entry["config"] for entry in self.lanes if entry["id"] == lane)

    @property
    def main(self) -> LaneHeader:
        """The lane that the run is about: LoRA-Drop's, else the first that skips something, else the last."""
        named = [lane for lane in self.lanes if lane["id"] == LORA_DROP]
        dropping = [lane for lane in self.lanes if lane["config"].get("dropped") and lane["config"].get("period") != 1]
        return [*named, *dropping, self.lanes[-1]][0]


@dataclass(frozen=True)
class StepRecord(_Line):
    """One step of a lane. A line has each of the last five only where it differs from its default.

    Attributes:
        active: 1 for each layer that ran whole.
        ms: time of the step on the lane's clock.
        kv_bytes: of the lane's caches after it.
        entropy: of its unscaled logits, in nats; None of a `draft`, which takes no pass.
        trigger: why a refresh came early.
        rows: tokens that the pass ran through the skipped layers.
        top: the likeliest next tokens by its unscaled logits, with their probabilities, the likeliest first.
        outside: the part of `ms` outside the decoder's kernels, where the decoder counts them.
        thought: the token belongs to what the model thinks before it answers.
    """

    lane: str
    step: StepNumber
    token_id: Annotated[int, Field(strict=True, ge=0, le=2**31)]
    text: TokenText
    kind: StepKind
    active: Annotated[list[Literal[0, 1]], Field(max_length=MAX_LAYERS)]
    ms: Number
    kv_bytes: Bytes
    entropy: Number | None
    trigger: Literal["entropy"] | None = None
    rows: Annotated[int, Field(strict=True, ge=1, le=10**4)] = 1
    top: Top | None = None
    outside: Number | None = None
    thought: Annotated[bool, Field(strict=True)] = False
    type: Literal["step"] = "step"

    _optional = ("trigger", "rows", "top", "outside", "thought")

    def is_right(self) -> bool:
        return self.kind == "refresh" or (self.trigger is None and self.rows == 1)


@dataclass(frozen=True)
class RewindRecord(_Line):
    """The full model rejects all drafts after step `to`, which needs a schedule with `accept`. The step after `to`
    follows once more, as a refresh."""

    lane: str
    to: StepNumber
    type: Literal["rewind"] = "rewind"


@dataclass(frozen=True)
class JudgeRecord(_Line):
    """The pass that verifies a lane's last drafts: `rows` of them, `kept` accepted; its `ms` count in the lane's
    time; `outside` as in a step."""

    lane: str
    rows: Annotated[int, Field(strict=True, ge=1, le=10**4)]
    ms: Number
    kept: Annotated[int, Field(strict=True, ge=0, le=10**4)]
    outside: Number | None = None
    type: Literal["judge"] = "judge"

    _optional = ("outside",)

    def is_right(self) -> bool:
        return self.kept <= self.rows


@dataclass(frozen=True)
class AuditRecord(_Line):
    """A step compared with the full model: on the lane's own tokens (`drift`), or on the baseline's (`quality`).

    `drift` = ||x_hat - x|| / ||x|| and `cosine` have an entry for the output of each skipped layer; `kl` is
    KL(full || lane) of the unscaled logits in nats; `agrees` is true if both have the same argmax, which for the full
    model is `argmax_text`; `regret` is the full model's ln(p_favourite / p_token) of the token that the lane wrote: 0
    for the full model's own favourite.

    An audit of quality feeds the lane the baseline's tokens, by the lane's schedule: `kind` is that of the step
    there, and `nll_gap` the baseline's log-probability of its next token less the lane's, in nats. Its steps may go on
    past the lane's. It has no drift and no regret.
    """

    lane: str
    step: StepNumber
    drift: Annotated[list[Number | None], Field(max_length=MAX_LAYERS)]
    cosine: Annotated[list[Number | None], Field(max_length=MAX_LAYERS)]
    kl: Number | None
    agrees: Annotated[bool, Field(strict=True)]
    argmax_text: TokenText
    audit: Literal["drift", "quality"] = "drift"
    kind: StepKind | None = None
    nll_gap: Number | None = None
    regret: Number | None = None
    type: Literal["audit"] = "audit"

    _optional = ("audit", "kind", "nll_gap", "regret")

    @property
    def mean_drift(self) -> float | None:
        """Of the skipped layers; None without one."""
        drifts = [value for value in self.drift if value is not None]
        return sum(drifts) / len(drifts) if drifts else None

    def is_right(self) -> bool:
        return (self.audit == "quality") == (self.kind is not None)


@dataclass(frozen=True)
class Summary(_Line):
    """The last line: the figures of each lane, by its id; the other fields are LoRA-Drop's beside the baseline.

    `accepted` is the share of drafts that the full model accepted, None where `accept` is 0; `speedup_interval` is the
    speedup's 95% interval; `quality` has `lora_steps`, `full_steps` and `all_steps` of the audit on the baseline's
    text; `prefill_cached` is true if the prompt's K/V came from an earlier run. `verdict`, `why` (a sentence for each
    chart), `parts` (where the time goes) and `table` (a row for each lane of a run of methods) are made from the trace
    by `report/verdict.py`, anew each time it is opened.
    """

    lanes: dict[str, LaneSummary]
    speedup: Number | None
    bound: Number | None
    kv_saved: Number | None
    first_divergence: Number | None
    top1_agreement: Number | None
    accepted: Number | None = None
    tokens_per_refresh: Number | None = None
    speedup_interval: list[Number] | None = None
    quality: dict[str, Any] | None = None
    prefill_cached: Annotated[bool, Field(strict=True)] = False
    verdict: Verdict | None = None
    why: dict[str, Text | None] | None = None
    parts: dict[str, Any] | None = None
    table: Annotated[list[dict[str, Any]], Field(max_length=MAX_LANES)] | None = None
    type: Literal["summary"] = "summary"

    _optional = ("verdict", "why", "parts", "table")

    def is_right(self) -> bool:
        return all(map(is_plain, (self.lanes, self.quality, self.verdict, self.why, self.parts, self.table)))


Record = Header | StepRecord | RewindRecord | JudgeRecord | AuditRecord | Summary


def number(value: float | None, digits: int) -> float | None:
    """A number as it is written: rounded, and None where JSON has none (NaN, infinity)."""
    return None if value is None or not math.isfinite(value) else round(value, digits)


def is_plain(value: Any, depth: int = MAX_DEPTH) -> bool:
    """True if lists and objects have at most `MAX_VALUES` and nest no deeper than `depth`, texts have at most
    `MAX_TEXT` characters, and all numbers are finite and at most `LARGEST`."""
    if isinstance(value, (dict, list)):
        inner = value.values() if isinstance(value, dict) else value
        return depth > 0 and len(inner) <= MAX_VALUES and all(is_plain(item, depth - 1) for item in inner)
    if isinstance(value, str):
        return len(value) <= MAX_TEXT
    if value is None or isinstance(value, bool):
        return True
    return isinstance(value, (int, float)) and abs(value) <= LARGEST  # no NaN either


def write_line(record: Record) -> str:
    """The record as a line of the file, newline included."""
    return json.dumps(record.to_file(), ensure_ascii=True, allow_nan=False) + "\n"


def read_line(line: bytes) -> Record:
    """The record of a line of the file.

    Raises:
        LoraDropError: another format or version, or a value that no run writes. ValueError, KeyError, TypeError,
            AttributeError, RecursionError: the line is not a record's JSON at all.
    """
    values = json.loads(line, parse_constant=_refuse_constant)
    kind = values["type"]
    if kind == "header":
        if values["format"] != FORMAT:
            raise LoraDropError("this is another format.")
        if values["version"] != VERSION:
            raise LoraDropError(
                f"this is version {values['version']!r} of the format; this program reads only version {VERSION}: "
                "record the run again."
            )
    cls, types = _readers()[kind]
    try:
        types.validate_python(values)
    except OverflowError:  # an integer beyond any float
        raise _wrong(kind) from None
    except ValidationError as error:
        if any(fault["type"] == "missing" for fault in error.errors(include_url=False, include_input=False)):
            raise ValueError("a key is missing") from None
        raise _wrong(kind) from None
    # From the line's values, not pydantic's copies: what is read is written again to the letter.
    record = cls(**{name: value for name, value in values.items() if name in cls.__dataclass_fields__})
    if not record.is_right():
        raise _wrong(kind)
    return record


def _wrong(kind: str) -> LoraDropError:
    return LoraDropError(f"a value of this {kind} is not one that a run writes.")


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is no JSON")  # NaN and infinities, which Python's reader accepts


@cache
def _readers() -> dict[str, tuple[type[Record], TypeAdapter[Record]]]:
    """By the line's `type`: the record's class and its validator."""
    return {cls.__dataclass_fields__["type"].default: (cls, TypeAdapter(cls)) for cls in get_args(Record)}


def trace_schema() -> dict[str, Any]:
    """JSON Schema of one line of a trace, from the types that check a file; `assets/trace.schema.json` is its copy."""
    schema = TypeAdapter(Annotated[Record, Field(discriminator="type")]).json_schema()
    about = {"$id": f"urn:{FORMAT}:{VERSION}", "title": f"{FORMAT}, version {VERSION}: one line"}
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **about, **schema}
