"""The files of results, one kind a command: their names, and what must be in them for the code that reads them."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import Field, create_model

from lora_drop.method.fields import SCHEDULE, Setting
from lora_drop.method.kinds import LayerList, Layers
from lora_drop.method.methods import METHODS
from lora_drop.method.settings import settings_of
from lora_drop.paths import PRESETS_NAME
from lora_drop.run.results.store import Kind, Number, Shape

REPEATS = ("free_repeated_4grams", "free_repeated_4grams_baseline")
MISSING = (Number | None, None)  # a figure that an old file may lack
CSV_NAME, TABLE_NAME, RECORDS_NAME = "sweep.csv", "benchmark.md", "records.jsonl"


def _shape(_base: type[Shape] = Shape, /, **parts: Any) -> type[Shape]:
    """A shape by its parts: a type each, or (type, default) for what may be missing."""
    return create_model("File", __base__=_base, **parts)


def _many(row: type[Shape]) -> Any:
    return list[row]  # type: ignore[valid-type]


# ---- a sweep: a row holds a whole setting and the point's figures ----


class _Figures(Shape):
    __pydantic_extra__: dict[str, Number | None] = Field(init=False)  # all that is not named otherwise


def _type_of(setting: Setting) -> Any:
    if isinstance(setting.kind, (Layers, LayerList)):
        return list[int] | None
    return setting.kind.python | None if setting.kind.python in (str, bool) else Number | None


_Point = _shape(
    _Figures,
    # A row may be older than a setting.
    **{setting.name: (_type_of(setting), None) for setting in settings_of(SCHEDULE)},
    **{name: (str | None, None) for name in ("adapters_fingerprint", "decoder", "own_answers_sha256", "sample")},
)
_SweepRow = _shape(_Point, reuse=str, part=str, drop_ratio=Number, period=Number)
_ABOUT: dict[str, Any] = dict.fromkeys(("model", "device", "data", "settings"), dict[str, Any])
SWEEP = Kind(
    *("sweep.json", "sweep", "a sweep", "lora-drop-sweep", 1),
    _shape(**{name: (dict[str, Any], {}) for name in (*_ABOUT, "sample")}, rows=_many(_SweepRow)),
    keeps=("notes", "sample"),
)

# ---- presets of a model, and what was measured of them; a config holds its differences from the defaults ----

_Name = Annotated[str, Field(max_length=80)]


class _Drafts(Shape):  # of a group of answers
    accepted: Number | None


class _Preset(Shape):
    note: Annotated[str, Field(max_length=300)]
    config: dict[str, Any]


PRESETS_FILE = Kind(
    *(PRESETS_NAME, "presets", "presets", "lora-drop-presets", 2),
    _shape(
        model=_shape(id=_Name, revision=_Name, dtype=str),
        order=(Annotated[list[int], Field(max_length=1000)], []),
        presets=(dict[_Name, _Preset], {}),
        # Those that nobody measured yet have no rows, and lack the circumstances.
        device=(_shape(name=str), None),
        data=(_shape(file=str, own=_shape(prompts=Number)), None),
        date=(str, None),
        rows=_many(
            _shape(
                preset=str,
                config=_shape(accept=(Number, 0.0)),  # decides which loss counts
                adapters=str,
                adapters_fingerprint=str | None,
                speedup=Number | None,
                bound=Number,
                kv_saved=Number | None,
                accepted=MISSING,
                baseline_tokens_per_second=MISSING,
                by_repeats=(dict[str, _Drafts], {}),
                # An old row without adapters has no free text.
                **dict.fromkeys(
                    (*REPEATS, "own_all_steps_kl", "free_regret", "free_texts", "free_collapsed"), MISSING
                ),
            )
        ),
    ),
)

# ---- a calibration: the presets' speeds on this machine; a row holds a setting as those of presets do ----

CALIBRATION_SECONDS = 30.0  # of decoding
CALIBRATION = Kind(
    *("calibration.json", "calibrate", "a calibration", "lora-drop-calibration", 1),
    _shape(
        **dict.fromkeys(("model", "device", "software", "data"), dict[str, Any]),
        decoder=str,
        kernels=str | None,
        date=str,
        rows=_many(
            _shape(
                lane=str,
                config=dict[str, Any],
                adapters_fingerprint=str | None,
                speedup=Number | None,
                speedup_interval=list[Number] | None,
                bound=Number,
                accepted=Number | None,
                row_cost=MISSING,
                outside=MISSING,
            )
        ),
    ),
)

# ---- methods beside the full model; a row is a lane's name with its values ----


class _Group(Shape):  # of prompts
    speedup: Number | None
    speedup_low: Number | None
    speedup_high: Number | None


class _Tried(Shape):  # by counts
    method: str
    speedup: Number
    accepted: Number | None


COMPARE = Kind(
    *("compare.json", "compare", "a comparison of methods", "lora-drop-compare", 1),
    _shape(
        model=_shape(id=str, revision=str),
        device=_shape(name=str),
        data=_shape(prompts=Number, sha256=str),
        settings=_shape(tokens=Number),
        date=str,
        rows=_many(
            _shape(
                method=(str, Field(pattern=f"^({'|'.join(METHODS)})(:[0-9]+)*$")),
                is_search=bool,
                **dict.fromkeys(("regret", "same_texts", "texts"), Number),
                **dict.fromkeys(("speedup", "speedup_low", "speedup_high", "accepted"), Number | None),
                baseline_tokens_per_second=Number | None,
                **dict.fromkeys(("layer_runs", "bytes", "kv_saved"), Number),
                **dict.fromkeys(("regret_low", "regret_high", "layer_rows"), MISSING),
                **dict.fromkeys(("by_repeats", "by_kind"), (dict[str, _Group], {})),
            )
        ),
        # By method, what its search tried; a file may be older.
        searches=(dict[str, list[_Tried]], {}),
    ),
    keeps=("searches",),
)

# ---- speeds of models on a device, most with random weights; `row_cost` is None where it was not measured ----

SHAPES = Kind(
    *("shapes.json", "paper_shapes", "speeds of shapes", "lora-drop-shapes", 1),
    _shape(
        source=str,
        device=_shape(type=str, name=str, threads=Number | None),
        date=str,
        read_gb_per_second=Number | None,
        rows=_many(
            _shape(
                model=str,
                dtype=str,
                **dict.fromkeys(("drop_ratio", "period", "speedup", "bound"), Number),
                speedup_interval=list[Number] | None,
                row_cost=Number | None,
            )
        ),
    ),
)

# ---- texts that the presets write; without a config a sample is the full model's ----

SAMPLES = Kind(
    *("samples.json", "samples", "samples", "lora-drop-samples", 1),
    _shape(
        model=_shape(revision=str),
        samples=_many(
            _shape(prompt=str, lane=str, text=str, config=dict[str, Any] | None, adapters_fingerprint=str | None)
        ),
    ),
    rows="samples",
)

# ---- the paper's tasks: the table, made anew each time from records that are appended ----

BENCHMARK = Kind("benchmark.json", "benchmark", "a benchmark", "lora-drop-benchmark", 1, Shape)
TASK_RECORD = _shape(task=str, id=str, example=str)  # `example` is its fingerprint
