"""A speedup from records: with no claim where there is none to make."""

import dataclasses

from lora_drop.method.config import LoraDropConfig
from lora_drop.run.report.speed import speedup_interval
from lora_drop.run.request import Request
from lora_drop.run.run import run
from lora_drop.run.trace.trace import gather


def test_the_reference_decoder_makes_no_claim(tiny):
    request = Request("Why?", LoraDropConfig(period=3, drop_ratio=1.0), max_new_tokens=24, ignore_eos=True)
    slow = gather(run(dataclasses.replace(tiny, weights=None), request)).summary
    assert slow.speedup is None and slow.speedup_interval is None and slow.bound > 1
    assert gather(run(tiny, request)).summary.speedup > 0


def test_the_interval_of_a_speedup_needs_four_cycles_of_either_lane():
    four = [(3, 30.0)] * 4
    assert speedup_interval(four, [(3, 20.0)] * 4) == [1.5, 1.5]
    assert speedup_interval(four[:3], four) is None and speedup_interval(four, four[:3]) is None
