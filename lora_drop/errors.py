"""The one exception a user can cause: its message is one line that says what is wrong and what to do."""

MOST = 600  # characters of a message


class LoraDropError(ValueError):
    """A mistake in the input (a setting, a file, a model name), said in one line.

    The command line prints the message on stderr and exits with code 2; the page shows it beside the controls.
    """

    def __init__(self, message: str):
        # A message repeats what was given: of any length, with signs that move a terminal's cursor or are no UTF-8.
        line = " ".join(message.split())
        if len(line) > MOST:
            line = f"{line[: MOST // 2]} [...] {line[-MOST // 2 :]}"
        super().__init__("".join(sign if sign.isprintable() else "\ufffd" for sign in line))


def is_out_of_memory(error: BaseException) -> bool:
    """Whether memory ran out: torch has an exception of its own for CUDA's allocator alone, and words for the rest."""
    words = ("out of memory", "can't allocate memory", "ALLOC_FAILED")
    return (
        isinstance(error, MemoryError)
        or type(error).__name__ == "OutOfMemoryError"
        or (isinstance(error, RuntimeError) and any(word in str(error) for word in words))
    )


def missing_extra(error: ModuleNotFoundError) -> str | None:
    """The line about a package of the wheel's extra `page` that is not installed; None if it is another package."""
    if error.name not in ("gradio", "plotly"):
        return None
    return f"this needs the package {error.name}: pip install 'lora-drop[page]'"
