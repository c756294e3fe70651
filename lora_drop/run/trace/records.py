"""The records of a trace: what each holds, and how it is checked.

The types are the check: pydantic holds a line of a file against them (`lines.py`). A run makes its records itself, and
they are not checked again.
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Final, Literal, cast, get_args

from pydantic import AfterValidator, ConfigDict, Field, InstanceOf, WithJsonSchema, with_config
from typing_extensions import TypedDict  # pydantic takes Python's own from 3.12 on

from lora_drop.method.fields import RUN, SCHEDULE, Setting
from lora_drop.method.kinds import Choice
from lora_drop.method.schedule import TRIGGERS, StepKind
from lora_drop.method.settings import settings_of

FORMAT: Final = "lora-drop-trace"
VERSIONS: Final = (1, 2)  # 2 where tokens may be taken back, or quality is audited
BASELINE, LORA_DROP, THIRD = "baseline", "lora_drop", "third"  # the lanes that a run has
MAX_LANES = 16  # reading a trace, and the page, look through the lanes at every step
MAX_DEPTH = 8  # of objects and lists in a header: more than any has, and far less than what copying them can take
TOGETHER = ("speedup", "bound", "kv_saved", "first_divergence", "top1_agreement")  # of a lane beside the baseline
FREE = ("accepted", "tokens_per_refresh", "speedup_interval", "quality")  # further figures of a lane, None where none
TAKEN = (
    *TOGETHER,
    *FREE,
    "config",
    "device",
    "verdict",
)  # words of `run`'s JSON object: no lane is called so

KINDS = get_args(StepKind)

LARGEST = 1e300  # of a number: what is computed from those that a run can write stays finite
MORE = ConfigDict(extra="allow")  # objects may have further keys
Text = InstanceOf[str]  # of a token: it may be half of a character, which pydantic's own strings refuse
LaneId = Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]{0,31}$")]  # a word that `run`'s JSON object has as a key
Number = Annotated[float, Field(strict=True, ge=-LARGEST, le=LARGEST)]  # whole ones too
StepNumber = Annotated[int, Field(strict=True, ge=0, le=10**7)]
Size = Annotated[int, Field(strict=True, ge=0, le=2**31)]
Bytes = Annotated[int, Field(strict=True, ge=0, le=2**53)]
Layers = list[Annotated[int, Field(strict=True, ge=0, lt=10_000)]]
TOP = 5  # likeliest tokens that are told of a step
Top = Annotated[list[tuple[Text, Annotated[float, Field(strict=True, ge=0, le=1)]]], Field(max_length=TOP)]


def _of_table(owner: str) -> dict[str, Any]:
    """The table's settings as types; a choice may be any text, as the run may be another version's."""

    def type_of(one: Setting) -> Any:
        if isinstance(one.kind, Choice):
            return Text | None if one.kind.off else Text

        def check(value: Any) -> Any:
            if not one.fits(value):
                raise ValueError(one.name)
            return value

        return Annotated[Any, AfterValidator(check), WithJsonSchema(one.schema)]

    return {one.name: type_of(one) for one in settings_of(owner)}


@with_config(ConfigDict(extra="forbid"))
class ExtrasHeader(TypedDict, total=False):
    """What LoRA steps read beside the paper's correction: `lora_drop.method.cost.Extras`."""

    mlp: Size
    kept: Size
    head_rank: Size
    head_best: Size
    code_size: Annotated[float, Field(strict=True, ge=0, le=8)]


if TYPE_CHECKING:  # a type checker does not read the table
    LaneConfig = dict[str, Any]
    Sampling = dict[str, Any]
else:
    # A lane's settings, as far as it says them; without `dropped` (resolved) it skips nothing.
    LaneConfig = TypedDict(
        "LaneConfig",
        {
            **_of_table(SCHEDULE),
            "dropped": Layers,
            "corrected": Layers | None,
            "rank": Size,
            "extras": ExtrasHeader,
        },
        total=False,
    )
    with_config(MORE)(LaneConfig)

    # The rest of what was asked for.
    Sampling = TypedDict("Sampling", {**_of_table(RUN), "notes": list[Any]}, total=False)
    with_config(MORE)(Sampling)


@with_config(MORE)
class LaneHeader(TypedDict):
    """A lane of a run."""

    id: LaneId
    label: Text
    config: LaneConfig


@with_config(MORE)
class _ModelNames(TypedDict):
    id: Text
    dtype: Text
    layers: Annotated[int, Field(strict=True, ge=1, le=10_000)]


@with_config(MORE)
class ModelHeader(_ModelNames, total=False):
    """The model: `kv_bytes_per_token` is what one layer stores for one token; `shape` has the sizes of the formulas.

    Also revision, hidden_size and params.
    """

    kv_bytes_per_token: Bytes
    shape: dict[str, bool | Number | list[list[Number]]] | None


@with_config(MORE)
class DeviceHeader(TypedDict):
    """What it ran on: also the type, the decoder, and the instructions that its kernels use."""

    name: Text


@with_config(MORE)
class Idle(TypedDict):
    """What a preset was measured to gain on an idle machine, and which machine that was."""

    preset: Text
    speedup: Number
    device: Text


@with_config(MORE)
class Verdict(TypedDict):
    """What a run says, in a sentence: its kind, the text, and every figure in it (`verdict.py`)."""

    kind: Text
    text: Text
    facts: dict[str, Any]


@with_config(MORE)
class LaneSummary(TypedDict, total=False):
    """A lane's figures: `refreshes` are the decode steps that were full, `average_period` the decode steps for one of
    them (None without any); `collapsed` is the step where the loop begins that its text ends in, None where it does
    not. A third lane has its own comparison with the baseline here too."""

    tokens_per_second: Number | None
    kv_bytes: Bytes
    kv_allocated_bytes: Number | None
    refreshes: StepNumber
    average_period: Number | None
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
    """A record as a line of the file holds it: an optional field only where it says something."""

    _optional: ClassVar[tuple[str, ...]] = ()

    def is_right(self) -> bool:
        """What the types cannot say: nothing."""
        return True

    def to_file(self) -> dict[str, Any]:
        """The object that a line of the file holds."""
        fields: Any = type(self)  # Any: each of them is a dataclass
        defaults = {one.name: one.default for one in dataclasses.fields(fields)}
        values = dataclasses.asdict(cast(Any, self))
        return {k: v for k, v in values.items() if k not in self._optional or v != defaults[k]}


@dataclass(frozen=True)
class Header(_Line):
    """The first line: what ran, on what, from which prompt.

    `idle`: what the setting was measured to gain, where it is a preset's; a line has it only then.
    """

    lanes: Annotated[list[LaneHeader], Field(min_length=1, max_length=MAX_LANES)]
    model: ModelHeader
    device: DeviceHeader
    prompt: Text
    prompt_tokens: Annotated[int, Field(strict=True, ge=0, le=10**8)]
    seed: Annotated[int, Field(strict=True, ge=0, le=2**63 - 1)]
    software: dict[str, Any]
    sampling: Sampling = field(default_factory=dict)
    type: Literal["header"] = "header"
    format: Literal["lora-drop-trace"] = FORMAT
    version: Literal[1, 2] = 1
    idle: Idle | None = None

    _optional = ("idle",)

    def is_right(self) -> bool:
        """What the types cannot say. Puts the empty `dropped` of a lane that has none in its place."""
        ids = [lane["id"] for lane in self.lanes]
        layers = self.model["layers"]
        for lane in self.lanes:
            config = lane["config"]
            config.setdefault("dropped", [])
            named = [config.get(name) or [] for name in ("dropped", "corrected", "layers", "drop_layers")]
            if max((layer for some in named for layer in some), default=0) >= layers:
                return False
        return len(set(ids)) == len(ids) and not set(ids) & set(TAKEN) and is_plain(vars(self))

    def config_of(self, lane: str) -> LaneConfig:
        """A lane's settings."""
        return next(one["config"] for one in self.lanes if one["id"] == lane)

    @property
    def main(self) -> LaneHeader:
        """The lane that the run is about: LoRA-Drop's; without one the first that skips something, or the last."""
        named = [lane for lane in self.lanes if lane["id"] == LORA_DROP]
        dropping = [lane for lane in self.lanes if lane["config"].get("dropped") and lane["config"].get("period") != 1]
        return [*named, *dropping, self.lanes[-1]][0]


@dataclass(frozen=True)
class StepRecord(_Line):
    """One step of a lane. `ms` is the lane's own clock for this step; `kv_bytes` is what its caches hold after it;
    `entropy` is that of the step's logits, unscaled, in nats; `active` has a 1 for each layer that ran whole;
    `trigger`, of `TRIGGERS`, is what made the step a refresh before its time: a line has it only then; `rows` are the
    tokens that its pass ran through the skipped layers: a line has it only where they are more than one; `top` are the
    likeliest next tokens by the step's logits, unscaled, each with its probability, the likeliest first."""

    lane: str
    step: StepNumber
    token_id: Annotated[int, Field(strict=True, ge=0, le=2**31)]
    text: Text
    kind: StepKind
    active: list[Literal[0, 1]]
    ms: Number
    kv_bytes: Bytes
    entropy: Number | None
    trigger: Annotated[str, Field(pattern=f"^({'|'.join(TRIGGERS)})$")] | None = None
    rows: Annotated[int, Field(strict=True, ge=1, le=10**4)] = 1
    top: Top | None = None
    type: Literal["step"] = "step"

    _optional = ("trigger", "rows", "top")

    def is_right(self) -> bool:
        """What the types cannot say."""
        return self.kind == "refresh" or (self.trigger is None and self.rows == 1)


@dataclass(frozen=True)
class RewindRecord(_Line):
    """The full model takes back all that a lane wrote after step `to`, which it can only in a schedule with `accept`.
    The step after it follows once more, as a refresh."""

    lane: str
    to: StepNumber
    type: Literal["rewind"] = "rewind"


@dataclass(frozen=True)
class JudgeRecord(_Line):
    """The pass at a lane's end over its last drafts, `rows` of them, all `kept`; its `ms` count in the lane's time."""

    lane: str
    rows: Annotated[int, Field(strict=True, ge=1, le=10**4)]
    ms: Number
    kept: Annotated[int, Field(strict=True, ge=0, le=10**4)]
    type: Literal["judge"] = "judge"

    def is_right(self) -> bool:
        """What the types cannot say."""
        return self.kept <= self.rows


@dataclass(frozen=True)
class AuditRecord(_Line):
    """What the full model says of a step: of the lane's own tokens (`drift`), or of the baseline's (`quality`).

    `drift` = ||x_hat - x|| / ||x|| and `cosine` have an entry for each skipped layer (its output); `kl` is
    KL(full || lane) of the unscaled logits in nats; `agrees` says whether both have the same argmax, which for the
    full model is `argmax_text`; `regret` is ln(p_favourite / p_token), by the full model, of the token that the lane
    wrote: 0 for the full model's own favourite.

    An audit of quality feeds the lane the tokens that the baseline wrote, with the lane's own schedule: its `kind` is
    what the step was there, and `nll_gap` how much less likely the baseline's next token is to the lane, in nats. Its
    steps may go on past the lane's. It has no drift and no regret.
    """

    lane: str
    step: StepNumber
    drift: list[Number | None]
    cosine: list[Number | None]
    kl: Number | None
    agrees: Annotated[bool, Field(strict=True)]
    argmax_text: Text
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
        """What the types cannot say."""
        return (self.audit == "quality") == (self.kind is not None)


@dataclass(frozen=True)
class Summary(_Line):
    """The last line: the figures of each lane, by its id; the fields below are LoRA-Drop's beside the baseline.

    `accepted` is the share of drafts that the full model kept, None where `accept` is 0; `speedup_interval` holds the
    speedup's 95% interval; `quality` has `lora_steps`, `full_steps` and `all_steps` of the audit on the baseline's
    text; `prefill_cached` says that the prompt was read in an earlier run, whose time it took. `verdict`,
    `why` (a sentence for each chart) and `parts` (where the time goes) are made from the trace by `told.py`, and made
    anew for whoever opens it.
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
    type: Literal["summary"] = "summary"

    _optional = ("verdict", "why", "parts")

    def is_right(self) -> bool:
        """What the types cannot say."""
        return all(map(is_plain, (self.lanes, self.quality, self.verdict, self.parts)))


Record = Header | StepRecord | RewindRecord | JudgeRecord | AuditRecord | Summary


def number(value: float, digits: int) -> float | None:
    """A number as it is written: rounded, and None where JSON has no word for it (NaN, infinity)."""
    return round(value, digits) if math.isfinite(value) else None


def is_plain(value: Any, depth: int = MAX_DEPTH) -> bool:
    """True if lists and objects are nested no deeper than that, and no number in them is too large to write."""
    if isinstance(value, (dict, list)):
        inner = value.values() if isinstance(value, dict) else value
        return depth > 0 and all(is_plain(one, depth - 1) for one in inner)
    if value is None or isinstance(value, (str, bool)):
        return True
    return isinstance(value, (int, float)) and abs(value) <= LARGEST  # no NaN either
