"""The one exception that a user can cause, and lines for what other libraries raise."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pydantic import ValidationError

MAX_CHARACTERS = 600  # of a message
# The packages themselves, as in pyproject.toml: this program is not on the package index under a name of its own.
GET_PAGE = "pip install 'gradio>=6.24,<7' 'plotly>=7.0,<8'"


class LoraDropError(ValueError):
    """A mistake in the input (a setting, a file, a model name): one line that says what is wrong, then what to do.

    The command line prints the message on stderr and exits with code 2; the page shows it beside the controls.
    """

    def __init__(self, message: str):
        # A message repeats input: of any length, with characters that move a terminal's cursor or are not UTF-8.
        line = " ".join(message.split())
        if len(line) > MAX_CHARACTERS:
            line = f"{line[: MAX_CHARACTERS // 2]} [...] {line[-MAX_CHARACTERS // 2 :]}"
        super().__init__("".join(char if char.isprintable() else "\ufffd" for char in line))


def first_mistake(error: ValidationError) -> str:
    """The first mistake in a pydantic error, as `field: reason`."""
    first = error.errors(include_url=False, include_input=False)[0]
    reason = first["msg"].removeprefix("Value error, ")
    return ": ".join(filter(None, (".".join(map(str, first["loc"])), reason)))


def first_line(error: object, most: int = 200) -> str:
    """The first line of another library's error or warning, cut; its type's name if it has no words."""
    return (str(error).strip() or type(error).__name__).splitlines()[0][:most]


def is_out_of_memory(error: BaseException) -> bool:
    """Whether memory ran out: torch has its own exception for CUDA's allocator alone, and only words elsewhere."""
    words = ("out of memory", "can't allocate memory", "ALLOC_FAILED")
    return (
        isinstance(error, MemoryError)
        or type(error).__name__ == "OutOfMemoryError"
        or (isinstance(error, RuntimeError) and any(word in str(error) for word in words))
    )


def missing_extra(error: ModuleNotFoundError) -> str | None:
    """The line for a package of the wheel's extra `page` that is not installed; None for another package."""
    if error.name not in ("gradio", "plotly"):
        return None
    return f"this needs the package {error.name}: {GET_PAGE}"
