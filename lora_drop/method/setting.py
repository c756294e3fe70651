"""What an entry of the table of settings is (`settings.py` has the table)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from pydantic import TypeAdapter, ValidationError

from lora_drop.method.values import Kind, unreadable

# Whose a setting is.
CALL, SCHEDULE, RUN, TRAINING = "call", "schedule", "run", "training"


@dataclass(frozen=True)
class Setting:
    """One entry of the table.

    Args:
        name: in Python, JSON, links, the trace and the API; the flag is the same with dashes.
        of: `CALL` (what a call names before any other), `SCHEDULE`, `RUN` or `TRAINING`.
        kind: what values there are.
        default: its value where nothing is said.
        help: what it does, in one sentence.
        label: of its control on the page; empty: the page has none.
        info: one sentence beside the control: what will change on the screen.
        span: of a slider, (low, high, step).
        row: controls of one row of the page share its name.
        main: the control is in view; the others are folded.
        metavar: of the flag's value.
        words: how `setting_words` names a value, `{}`, that is not the default; empty: it does not.
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

    def read(self, given: Any) -> Any:
        """What a flag, a form, a link or a call holds, as a value; the config checks it.

        Raises:
            LoraDropError: a text that cannot be read.
        """
        try:
            return self.kind.read(given)
        except (ValueError, KeyError) as error:
            raise unreadable(self.name, self.kind, given, error) from None

    def fits(self, value: Any) -> bool:
        """Whether a value, as JSON has it, is one that this setting can have."""
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
        """What the page's scripts know of it."""
        written = self.kind.write(self.default)
        return {"name": self.name, "of": self.of, "default": written, **self.kind.facts}
