"""Reading a trace, and all that is made of it, costs time linear in its bytes: files that were made to cost more."""

import time

import pytest

from lora_drop.run.exports.chrome import chrome_trace
from lora_drop.run.exports.html import wire_text
from lora_drop.run.report.compare import side_of
from lora_drop.run.report.steps import inside
from lora_drop.run.trace.trace import parse_trace
from scripts.attack.traces import COSTLY

SMALL, TIMES = 400_000, 4  # bytes, and how much larger the large file is
MOST = 2  # times as long as a linear reader; a quadratic one takes 4


def seconds(raw: bytes) -> float:
    """Processor time of everything that is made of a file; the less of two."""
    taken = []
    for _ in range(2):
        start = time.process_time()
        trace = parse_trace(raw)
        wire_text(trace), inside(trace), chrome_trace(trace), side_of(trace)
        taken.append(time.process_time() - start)
    return min(taken)


@pytest.mark.full
@pytest.mark.parametrize("name", COSTLY)
def test_time_is_linear_in_the_bytes(name):
    small, large = (COSTLY[name](size).encode() for size in (SMALL, TIMES * SMALL))
    assert seconds(large) / seconds(small) < MOST * len(large) / len(small)
