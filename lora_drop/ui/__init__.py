"""The page: layout, callbacks and the colours that Python, CSS and JavaScript share. `main` starts it."""

from lora_drop.ui.start import main

__all__ = ["main"]
