"""What is said in place of a number that would mislead."""

import pytest

from lora_drop.run.report.words import lane_words, speedup_words
from lora_drop.run.trace.records import Summary
from lora_drop.run.wire import page_values


@pytest.mark.parametrize(
    ("speedup", "interval", "words"),
    [
        (1.2, [1.16, 1.24], None),
        (1.2, [1.1, 1.3], "1.1x to 1.3x"),  # noisy, and surely faster all the same
        (1.1, [1.0, 1.2], "too noisy here to tell"),
        (1.0, [0.98, 1.02], "gains no time here"),
        (0.8, [0.5, 1.02], "gains no time here"),  # noisy, and sure all the same
        (1.02, [1.0, 1.04], None),
        (1.2, None, None),  # too short to have an interval
        (None, None, None),
    ],
)
def test_a_speedup_is_a_number_only_where_it_is_known(speedup, interval, words):
    assert speedup_words(speedup, interval) == words


def test_lanes_that_loop_are_named_for_the_page():
    lanes = {"baseline": {"collapsed": None}, "lora_drop": {"collapsed": 40}, "third": {}}
    assert lane_words(lanes) == {"lora_drop": "Goes in circles from token 41 on."}
    summary = Summary(lanes, 1.2, 1.3, 0.0, None, 0.5, speedup_interval=[1.0, 1.4])
    assert page_values(summary, [])["words"] == {"speedup": "too noisy here to tell", "lanes": lane_words(lanes)}
    assert "words" not in summary.to_file()
