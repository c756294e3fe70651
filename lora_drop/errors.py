"""The one exception a user can cause: its message is one line that says what is wrong and what to do."""


class LoraDropError(ValueError):
    """A mistake in the input (a setting, a file, a model name), told in one line.

    The command line prints the message on stderr and exits with code 2; the page shows it beside the controls.
    """

    def __init__(self, message: str):
        super().__init__(" ".join(message.split()))


def is_out_of_memory(error: BaseException) -> bool:
    """Whether memory ran out: torch has an exception of its own for CUDA's allocator alone, and words for the rest."""
    words = ("out of memory", "can't allocate memory", "ALLOC_FAILED")
    return (
        isinstance(error, MemoryError)
        or type(error).__name__ == "OutOfMemoryError"
        or (isinstance(error, RuntimeError) and any(word in str(error) for word in words))
    )
