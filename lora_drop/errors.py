"""The one exception a user can cause: its message is one line that says what is wrong and what to do."""

MOST = 600  # characters of a message


class LoraDropError(ValueError):
    """A mistake in the input (a setting, a file, a model name), told in one line.

    The command line prints the message on stderr and exits with code 2; the page shows it beside the controls.
    """

    def __init__(self, message: str):
        # A message repeats what was given: of any length, with signs that move a terminal's cursor or are no UTF-8.
        line = " ".join(message.split())
        if len(line) > MOST:
            line = f"{line[: MOST // 2]} [...] {line[-MOST // 2 :]}"
        super().__init__("".join(sign if sign.isprintable() else "\ufffd" for sign in line))
