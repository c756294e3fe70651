"""Files of results that a command writes row by row, and takes up again where it ended.

A file is whole after each row, and taken up only in the circumstances that it was begun in: the same model, device,
data and settings. It stores a setting by its differences from the defaults (`LoraDropConfig.differences`), so that a
setting added later leaves its rows in force; whole settings are read too.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, Field
from pydantic_core import from_json

from lora_drop.errors import LoraDropError, one_line
from lora_drop.method.config import LoraDropConfig
from lora_drop.paths import only_writer, write_files

Row = dict[str, Any]
Content = dict[str, Any]

MAX_BYTES = 2**26  # of a file that is read; a row takes about a thousand
# What must be equal for a file to be taken up.
SAME = ("format", "version", "model", "device", "decoder", "data", "settings", "software")

# A finite number as JSON has it: 1 stays an int.
Number = Annotated[int, Field(ge=-(2**53), le=2**53)] | Annotated[float, Field(allow_inf_nan=False)]


class Shape(BaseModel, extra="allow", strict=True):
    """What must be in a file for the code that reads it; further names may be there."""


@dataclass(frozen=True)
class Kind:
    """A kind of file of results.

    Args:
        name: of the file.
        command: that writes it.
        holds: what it holds, for messages: `a sweep`.
        format: as the file names it.
        version: the same.
        shape: what must be in it.
        rows: the name of its list of rows.
        keeps: what is taken over from the file beside the rows.
    """

    name: str
    command: str
    holds: str
    format: str
    version: int
    shape: type[Shape]
    rows: str = "rows"
    keeps: tuple[str, ...] = ()

    def read(self, path: Path) -> Content:
        """The content of a file.

        Raises:
            LoraDropError: it cannot be read, or is not what the command writes.
        """
        with one_line(f"cannot read {path.name}"), path.open("rb") as file:
            text = file.read(MAX_BYTES + 1)  # a device or a pipe may have no end
        try:
            if len(text) > MAX_BYTES:
                raise ValueError
            content: Content = from_json(text, allow_inf_nan=False)
            self.shape.model_validate(content)
            if any(content.get(name, value) != value for name, value in self._form.items()):
                raise ValueError
        except ValueError:
            raise LoraDropError(f"{path.name} is not a {self.name} of the {self.command} command.") from None
        return content

    def rows_of(self, revision: str, path: Path) -> list[Row]:
        """The rows of a file that these weights gave; none of other weights, or if the file cannot be read."""
        try:
            content = self.read(path)
        except LoraDropError:
            return []
        rows: list[Row] = content[self.rows] if content.get("model", {}).get("revision") == revision else []
        return rows

    def begin(self, circumstances: Content, **parts: Any) -> Content:
        """The content of a file without rows.

        Args:
            circumstances: model, device, software and date of the measurement.
            parts: the rest of what it holds.
        """
        return {**self._form, **circumstances, **parts, self.rows: []}

    def write(self, folder: Path, content: Content, beside: Mapping[str, str] | None = None) -> None:
        """Write a file's content, and further files by name: all of them or none.

        Raises:
            LoraDropError: the folder cannot be written.
        """
        # The JSON file last: the command goes on from it, so the others must have its rows already.
        texts = {**(beside or {}), self.name: json.dumps(content, indent=1, allow_nan=False)}
        try:
            folder.mkdir(parents=True, exist_ok=True)
            write_files({folder / name: text.rstrip("\n") + "\n" for name, text in texts.items()})
        except OSError as error:
            raise LoraDropError(
                f"cannot write {self.holds} to {folder.name}: {error.strerror or error}; "
                "the files there are as they were."
            ) from None

    def writing(self, folder: Path) -> AbstractContextManager[None]:
        """Hold a folder that the command writes to. Raises LoraDropError: see `only_writer`."""
        return only_writer(folder, self.holds)

    @property
    def _form(self) -> dict[str, Any]:
        return {"format": self.format, "version": self.version}


class Store:
    """The results of a command in a folder: rows that were there, and rows that are added.

    Args:
        content: of a file without rows, see `Kind.begin`.
        beside: makes further files from the content: text by name.

    Raises:
        LoraDropError: the folder's file cannot be read, or was begun in other circumstances.
    """

    def __init__(
        self, kind: Kind, folder: Path, content: Content, beside: Callable[[Content], dict[str, str]] = lambda _: {}
    ):
        self.kind, self.folder, self.content, self._beside = kind, folder, content, beside
        if (folder / kind.name).exists():
            before = kind.read(folder / kind.name)
            self._check_same(before)
            self.content |= {name: before[name] for name in (kind.rows, *kind.keeps) if name in before}

    @property
    def rows(self) -> list[Row]:
        """The rows so far."""
        rows: list[Row] = self.content[self.kind.rows]
        return rows

    def first(self, fits: Callable[[Row], bool]) -> Row | None:
        """The first row that fits; None if there is none."""
        return next(filter(fits, self.rows), None)

    def write(self, rows: Iterable[Row] | None = None) -> None:
        """Write the files, with `rows` in place of those so far. Raises LoraDropError: see `Kind.write`."""
        if rows is not None:
            self.content[self.kind.rows] = list(rows)
        self.kind.write(self.folder, self.content, self._beside(self.content))

    def _check_same(self, before: Content) -> None:
        def part(content: Content, name: str) -> Any:
            value = content.get(name)
            return whole_setting(value) if name == "settings" and isinstance(value, dict) else value

        differing = [name for name in SAME if part(before, name) != part(self.content, name)]
        if differing and "device" in before:  # else nothing was measured yet
            raise LoraDropError(
                f"{self.folder.resolve().name} already holds {self.kind.holds} of another {' and '.join(differing)}: "
                "name another --out, or delete it."
            )


class Lines:
    """Records in a file of JSON Lines, appended one by one: for more records than a file could be rewritten with.

    A last line that a killed command has cut short is removed.

    Args:
        shape: of a record.

    Raises:
        LoraDropError: the file cannot be read, or a line is no such record.
    """

    def __init__(self, path: Path, shape: type[Shape]):
        self._path, self._name = path, f"{path.parent.name}/{path.name}"
        self.records: list[Row] = []
        try:
            if not path.exists():
                return
            data = path.read_bytes()
            whole = data[: data.rfind(b"\n") + 1]
            if whole != data:
                os.truncate(path, len(whole))
            self.records = [from_json(line) for line in whole.splitlines()]
            for record in self.records:
                shape.model_validate(record)
        except OSError as error:
            raise LoraDropError(f"cannot read {self._name}: {error.strerror or error}.") from None
        except ValueError:
            raise LoraDropError(f"{self._name} is broken: name another --out, or delete it.") from None

    def append(self, record: Row) -> None:
        """Write a record after the others. Raises LoraDropError: the file cannot be written."""
        try:
            with self._path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(record, allow_nan=False) + "\n")
        except (OSError, ValueError) as error:  # ValueError: NaN, which JSON has no word for
            raise LoraDropError(f"cannot write {self._name}: {error}.") from None
        self.records.append(record)


def whole_setting(stored: dict[str, Any]) -> dict[str, Any]:
    """A stored setting, with the defaults of what it does not name."""
    return LoraDropConfig().to_dict() | stored


def is_setting(stored: dict[str, Any], config: LoraDropConfig) -> bool:
    """True if a stored setting is this one."""
    return whole_setting(stored) == config.to_dict()
