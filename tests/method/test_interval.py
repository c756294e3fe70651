"""Intervals of ratios."""

import random

import pytest

from lora_drop.method.interval import HIGH, LOW, ratio_interval, ratio_quantiles


def test_units_that_are_alike_leave_no_doubt():
    assert ratio_interval([(3.0, 2.0)] * 2) == [1.5, 1.5]


def test_one_unit_says_nothing():
    assert ratio_interval([]) is None and ratio_interval([(1.0, 2.0)]) is None


def test_the_interval_is_the_same_each_time_and_narrows_with_more_units():
    rng = random.Random(1)
    units = [(rng.uniform(0, 2), 1.0) for _ in range(400)]
    few, many = ratio_interval(units[:20]), ratio_interval(units)
    assert many == ratio_interval(units)
    assert few[0] < many[0] < 1 < many[1] < few[1]
    # Of a mean of n uniform numbers: 1.96 standard errors each way.
    assert many[1] - many[0] == pytest.approx(2 * 1.96 * (4 / 12 / 400) ** 0.5, rel=0.1)


def test_a_unit_weighs_by_its_tokens():
    low, high = ratio_interval([(100.0, 1000.0), (5.0, 1.0), (100.0, 1000.0), (100.0, 1000.0)])
    assert 0.1 <= low <= high < 0.12


def test_a_speedup_has_a_lane_on_either_side():
    """Rates 2 (sure) over 1 (0.5 or 1.5 a unit) are about 2. Units are drawn together with their base."""
    sure, unsure = [(2.0, 1.0)] * 50, [(0.5, 1.0), (1.5, 1.0)] * 25
    low, median, high = ratio_quantiles(sure, unsure, at=(LOW, 0.5, HIGH))
    assert median == pytest.approx(2, rel=0.03)
    spread = 1.96 * 0.5 / 50**0.5
    assert [low, high] == pytest.approx([2 / (1 + spread), 2 / (1 - spread)], rel=0.03)
    assert ratio_quantiles(unsure, sure, at=(LOW, HIGH)) == pytest.approx([1 / high, 1 / low], rel=0.03)
    assert ratio_quantiles(unsure, unsure, at=(LOW, HIGH)) == [1.0, 1.0]
    no_time = ratio_quantiles(sure, [(1.0, 0.0)] * 50, at=(LOW, HIGH))
    assert no_time == pytest.approx([4e-11, 4e-11]), "no time is no division by zero"
