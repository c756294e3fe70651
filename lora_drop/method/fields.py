"""A setting as a field of a dataclass: `period: int = setting(4, "...", low=1, high=16)`.

The field has the name, the type and the default; `setting` adds what the command line, the page, the API and the docs
need. `checked` makes the class.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar, dataclass_transform, get_type_hints

import pydantic
from pydantic import TypeAdapter, ValidationError

from lora_drop.errors import LoraDropError
from lora_drop.method.kinds import Kind, LayerList, kind_of

T = TypeVar("T")

# The owners of settings: CALL has what a call names before any other.
CALL, SCHEDULE, RUN, TRAINING = "call", "schedule", "run", "training"


@dataclass(frozen=True)
class Setting:
    """All that is made from a setting, in one entry.

    Args:
        name: in Python, JSON, links, the trace and the API; the flag is the same with dashes.
        of: its owner: `CALL`, `SCHEDULE`, `RUN` or `TRAINING`.
        kind: the values that it can have.
        default: its value if none is set.
        help: what it does, in one sentence.
        label: of its control on the page; empty: the page has none.
        info: one sentence beside the control: what will change on the screen.
        span: of a slider, (low, high, step).
        row: name that controls of one row of the page share.
        main: the control is in view; the others are folded.
        metavar: of the flag's value.
        words: how `setting_words` names a value, `{}`, that is not the default; empty: it leaves the setting out.
    """

    name: str
    of: str
    kind: Kind
    default: Any
    help: str
    label: str = ""
    info: str = ""
    span: tuple[float, float, float] | None = None
    row: str = ""
    main: bool = False
    metavar: str | None = None
    words: str = ""

    @property
    def flag(self) -> str:
        """On the command line."""
        return f"--{self.name.replace('_', '-')}"

    def read(self, value: Any) -> Any:
        """Turn a flag, a form's field, a link's text or an argument into a value; the config checks it.

        Raises:
            LoraDropError: a text that cannot be read.
        """
        try:
            return self.kind.read(value)
        except (ValueError, KeyError):
            raise LoraDropError(f"{self.name} must be {self.kind.text_must_be}; got {value[:80]!r}.") from None

    def fits(self, value: Any) -> bool:
        """Whether the setting can have this value, as JSON has it."""
        try:
            TypeAdapter(self.kind.annotation).validate_python(value)
        except (ValidationError, OverflowError):
            return False
        return True

    @property
    def schema(self) -> dict[str, Any]:
        """The JSON Schema of its values."""
        return TypeAdapter(self.kind.annotation).json_schema() | {"description": self.help, "default": self.default}

    @property
    def facts(self) -> dict[str, Any]:
        """The setting as the page's scripts get it."""
        written = self.kind.write(self.default)
        return {"name": self.name, "of": self.of, "default": written, **self.kind.facts}


def read_layer_order(text: str | None) -> tuple[int, ...]:
    """Layers with commas, in the order of the text; none for an empty one.

    Raises:
        LoraDropError: it is not such a list.
    """
    order: tuple[int, ...] = Setting("drop_order", TRAINING, LayerList(), (), "").read(text or "")
    return order


_FIELDS = {field.name for field in dataclasses.fields(Setting)}


def setting(default: T, help: str, **more: Any) -> T:
    """A field of a `checked` class that is a setting.

    Args:
        default: as in `Setting`.
        help: the same.
        more: further fields of `Setting`, and arguments of its kind: `low` and `high` of a number, `labels` of a
            choice.
    """
    return dataclasses.field(default=default, metadata={"help": help, **more})  # to a type checker it is the default


@dataclass_transform(frozen_default=True)
def checked(owner: str) -> Callable[[type[T]], type[T]]:
    """Make a frozen dataclass, checked by pydantic, from a class with fields made by `setting` (others may be there).

    A bad value, a name that is no field and too many positions raise a LoraDropError of one line. Rules between
    settings belong in `__post_init__`. A class has the settings of its bases too.

    Args:
        owner: of its settings.
    """

    def decorate(cls: Any) -> Any:
        table = dict(getattr(cls, "__settings__", {}))
        for name, annotation in get_type_hints(cls).items():
            field = cls.__dict__.get(name)
            if not isinstance(field, dataclasses.Field) or "help" not in field.metadata:
                continue
            fields = {key: value for key, value in field.metadata.items() if key in _FIELDS}
            limits = {key: value for key, value in field.metadata.items() if key not in _FIELDS}
            table[name] = Setting(name, owner, kind_of(annotation, **limits), field.default, **fields)
            cls.__annotations__[name] = table[name].kind.annotation
            setattr(cls, name, field.default)
        cls.__settings__ = table
        made: Any = pydantic.dataclasses.dataclass(frozen=True)(cls)
        validate = made.__init__

        @functools.wraps(validate)
        def init(self: Any, *args: Any, **values: Any) -> None:
            names = [field.name for field in dataclasses.fields(self)]
            if unknown := sorted(values.keys() - set(names)):
                raise LoraDropError(f"unknown setting {unknown[0]!r}; the settings are {', '.join(sorted(names))}.")
            if len(args) > len(names):
                raise LoraDropError(f"{len(args)} values, but the settings are {len(names)}: {', '.join(names)}.")
            try:
                validate(self, *args, **values)
            except ValidationError as error:
                first: Any = error.errors()[0]
                if not first["loc"]:  # from `__post_init__`
                    raise first["ctx"]["error"] from None
                at = first["loc"][0]  # a name, or the position of an argument
                raise LoraDropError(_line(at if isinstance(at, str) else names[at], first, table)) from None

        made.__init__ = init
        return made

    return decorate


def settings_in(cls: Any) -> tuple[Setting, ...]:
    """The settings among the fields of a `checked` class, in their order."""
    return tuple(cls.__settings__.values())


def _line(name: str, error: Any, table: dict[str, Setting]) -> str:
    value = error["input"]
    if error["type"] == "layers":
        return f"{name} {error['ctx']['message']}."
    if name not in table:
        return f"{name}: {error['msg']}."
    kind = table[name].kind
    # NaN is a number outside every range; a text or a flag is no number.
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    outside = kind.out_of_range() if is_number else None
    return f"{name} {outside}, got {value!r}." if outside else f"{name} must be {kind.must_be}; got {value!r}."
