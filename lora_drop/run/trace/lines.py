"""A record as a line of a trace file, and back.

Pydantic checks a line by the records' types; `trace_schema` has the same types as JSON Schema.
"""

from __future__ import annotations

import json
from functools import cache
from typing import Annotated, Any, get_args

from pydantic import Field, TypeAdapter, ValidationError

from lora_drop.errors import LoraDropError
from lora_drop.run.trace.records import FORMAT, VERSIONS, Record


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
        if values["version"] not in VERSIONS:
            versions = " and ".join(map(str, VERSIONS))
            raise LoraDropError(f"this is version {values['version']!r} of the format; this program reads {versions}.")
    cls, types = _readers()[kind]
    try:
        types.validate_python(values)
    except ValidationError as error:
        if any(fault["type"] == "missing" for fault in error.errors(include_url=False, include_input=False)):
            raise ValueError("a key is missing") from None
        raise _wrong(kind) from None
    # From the line's own values, not pydantic's copies: what is read is written again to the letter.
    record = cls(**{name: value for name, value in values.items() if name in cls.__dataclass_fields__})
    if not record.is_right():
        raise _wrong(kind)
    return record


def _wrong(kind: str) -> LoraDropError:
    return LoraDropError(f"a value of this {kind} is not one that a run writes.")


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is no JSON")  # NaN and infinities, which Python's reader accepts


@cache
def _readers() -> dict[str, tuple[type[Record], TypeAdapter]]:
    """By the line's `type`: the record's class and its validator."""
    return {cls.__dataclass_fields__["type"].default: (cls, TypeAdapter(cls)) for cls in get_args(Record)}


def trace_schema() -> dict[str, Any]:
    """JSON Schema of one line of a trace."""
    schema = TypeAdapter(Annotated[Record, Field(discriminator="type")]).json_schema()
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", "title": FORMAT, **schema}
