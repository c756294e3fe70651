"""The types that a trace's records are made of: sizes, texts, and the settings of a lane and of a run."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

from pydantic import AfterValidator, ConfigDict, Field, InstanceOf, WithJsonSchema, with_config
from typing_extensions import TypedDict  # pydantic takes Python's own from 3.12 on

from lora_drop.method.settings import RUN, SCHEDULE, Setting, settings_of
from lora_drop.method.values import Choice

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
