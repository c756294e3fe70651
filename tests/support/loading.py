"""What the door to the models says of a mistake."""

import pytest

from lora_drop.errors import LoraDropError
from lora_drop.models.load import load_model


def the_line(name: str, **options) -> str:
    """The message of the error that loading gives; one line, and no path of a traceback."""
    with pytest.raises(LoraDropError) as caught:
        load_model(str(name), **options)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 400
    return str(caught.value)
