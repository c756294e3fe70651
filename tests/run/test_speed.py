"""A speedup from records: with no claim where there is none to make."""

import dataclasses

from lora_drop.method.config import LoraDropConfig
from lora_drop.run.report.speed import at_the_same_time, speedup_interval
from lora_drop.run.request import Request
from lora_drop.run.run import run
from lora_drop.run.trace.trace import gather


def test_the_reference_decoder_makes_no_claim(tiny):
    request = Request("Why?", LoraDropConfig(period=3, drop_ratio=1.0), max_new_tokens=24, ignore_eos=True)
    slow = gather(run(dataclasses.replace(tiny, weights=None), request)).summary
    assert slow.speedup is None and slow.speedup_interval is None and slow.bound > 1
    assert gather(run(tiny, request)).summary.speedup > 0


def test_the_interval_of_a_speedup_needs_four_pairs_of_cycles():
    four = [((3, 20.0), (3, 30.0))] * 4
    assert speedup_interval(four) == [1.5, 1.5]
    assert speedup_interval(four[:3]) is speedup_interval([]) is None


def test_cycles_are_paired_with_what_ran_at_the_same_time():
    own = [(3, 30.0), (1, 10.0), (3, 60.0), (3, 30.0)]
    base = [(1, 10.0)] * 5 + [(1, 25.0)] * 2
    assert at_the_same_time(base, own, "race") == [
        ((3, 30.0), (3, 30.0)),
        ((1, 10.0), (1, 10.0)),
        ((3, 60.0), (3, 60.0)),  # the baseline has ended: the last cycle has no pair
    ]
    assert at_the_same_time(base, own, "lock-step") == [
        ((3, 30.0), (3, 30.0)),
        ((1, 10.0), (1, 10.0)),
        ((3, 60.0), (3, 60.0)),
    ]
    assert at_the_same_time([(1, 10.0)] * 9, [(3, 30.0)], "race") == [((3, 30.0), (3, 30.0))]
    assert at_the_same_time([], own, "race") == at_the_same_time(base, [], "race") == []


def test_load_that_meets_both_lanes_widens_no_interval():
    pairs = [((3, 20.0 * load), (3, 30.0 * load)) for load in (1, 1, 4, 1, 9, 1, 1, 2)]
    assert speedup_interval(pairs) == [1.5, 1.5]
