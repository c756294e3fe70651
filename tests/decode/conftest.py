"""A static decoder that captures on a CPU: see `tests/support/graphs.py`."""

import pytest

from tests.support import graphs
from tests.support.decoding import decoder_of


@pytest.fixture
def machine(monkeypatch):
    return graphs.install(monkeypatch)


@pytest.fixture
def recorded(tiny, machine):
    decoder = decoder_of(tiny.model, "static")
    decoder.weights.captures = True
    return decoder
