"""Settings in words, and what stands in place of a number that would mislead."""

import dataclasses

import pytest

from lora_drop.run.report.speed import GAIN, SLOWER, at_the_same_time, paired, speed_of, speedup_words
from lora_drop.run.report.words import loop_words, rule_words, setting_words
from lora_drop.run.trace.records import Header, Summary
from lora_drop.run.wire import page_values
from tests.support.golden import check_golden


@pytest.mark.parametrize(
    ("speedup", "interval", "words"),
    [
        (1.2, [1.16, 1.24], None),
        (1.2, [1.1, 1.3], "1.1x to 1.3x"),  # noisy, and surely faster all the same
        (1.1, [1.0, 1.2], "timing is noisy"),
        (1.0, [0.98, 1.02], "no gain here"),
        (0.8, [0.5, 1.02], "no gain here"),  # noisy, and sure all the same
        (1.02, [1.0, 1.04], None),
        (1.0, [0.98, GAIN], None),  # it may be a gain
        (2.0, [1.5, 1.7], None),  # a tenth wide is not noisy
        (0.5, [0.3, 1.2], "timing is noisy"),
        (4.0, [1.02, 1.4], None),
        (10.0, [9.5, 10.5], None),  # exactly a tenth wide
        (1.2, None, None),  # too short to have an interval
        (None, None, None),
    ],
)
def test_a_speedup_is_a_number_only_where_it_is_known(speedup, interval, words):
    assert speedup_words(speedup, interval) == words


def test_a_gain_and_a_loss_are_beyond_their_limits():
    for interval, speed in (
        *(([GAIN, 1.05], "same"), ([GAIN + 0.001, 1.05], "faster"), ([0.95, SLOWER], "same")),
        *(([0.95, SLOWER - 0.001], "slower"), ([0.9, 1.1], "noisy"), (None, None), ([1.0], None)),
    ):
        assert speed_of(1.0, interval) == speed, interval


def test_the_interval_of_a_speedup_needs_four_pairs_of_cycles():
    four = [((3, 20.0), (3, 30.0))] * 4
    assert paired([four]) == (1.5, [1.5, 1.5])
    assert paired([four[:3]]) == (pytest.approx(1.5), None)


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


def test_from_eight_prompts_on_whole_prompts_are_drawn():
    """The cycles of one prompt are alike, those of another not: of few prompts the cycles say too much."""
    fast, slow = [[((3, ms), (3, 30.0))] * 20 for ms in (20.0, 40.0)]
    (low, high), (few_low, few_high) = paired([fast, slow] * 4)[1], paired([fast, slow] * 3)[1]
    assert high - low > 2 * (few_high - few_low)
    speedup, (low, high) = paired([fast] * 8 + [[]])
    assert low == speedup == high == 1.5
    assert paired([]) == (None, None) and paired([[((3, 0.0), (3, 30.0))] * 9]) == (None, None)


def test_load_that_meets_both_lanes_widens_no_interval():
    pairs = [((3, 20.0 * load), (3, 30.0 * load)) for load in (1, 1, 4, 1, 9, 1, 1, 2)]
    assert paired([pairs])[1] == [1.5, 1.5]


def test_lanes_that_loop_are_named_for_the_page():
    lanes = {"baseline": {"collapsed": None}, "lora_drop": {"collapsed": 40}, "third": {}}
    assert loop_words(lanes) == {"lora_drop": "Goes in circles from token 41 on."}
    summary = Summary(lanes, 1.2, 1.3, 0.0, None, 0.5, speedup_interval=[1.0, 1.4])
    assert page_values(summary, [])["words"] == {"speedup": "timing is noisy", "lanes": loop_words(lanes)}
    assert "words" not in summary.to_file()


def _header(rule, sampling=None, seed=0):
    config = {"dropped": [2, 4], "period": 3, "reuse": "residual", "rank": 0} | rule
    lanes = [{"id": "baseline", "label": "", "config": {"dropped": [], "period": 1}}]
    lanes.append({"id": "lora_drop", "label": "", "config": config})
    model = {"id": "m", "dtype": "float32", "layers": 6}
    return Header(lanes, model, {"name": "d"}, "Why?", 3, seed, {}, {"max_new_tokens": 128} | (sampling or {}))


SETTINGS = {
    "defaults": _header({"temperature": 0.0, "kv": "skip", "drop_ratio": 0.5, "layers": None}),
    "baseline": _header({"period": 1}),
    "the head alone": _header({"dropped": [], "head": "screened"}),
    "a list of layers": _header({"drop_layers": [2, 4], "drop_ratio": 1.0, "layers": [1, 4]}),
    "a range": _header({"drop_ratio": 1.0, "layers": [1, 4]}),
    "corrections off": _header({"corrections": False, "head": "screened", "rank": 0}),
    "all else": _header(
        {
            **{"reuse": "state", "part": "attention", "kv": "write", "refresh": "repair", "accept": 0.15},
            **{"head": "screened", "refresh_entropy": 2.5, "rank": 64},
        },
        {"temperature": 0.7, "top_p": 0.9, "view": "lock-step", "max_new_tokens": 12},
        7,
    ),
}


def test_settings_in_words():
    check_golden("settings", {name: setting_words(header) for name, header in SETTINGS.items()})


def test_words_of_settings_are_the_same_everywhere():
    header = SETTINGS["all else"]
    words = page_values(header, ["baseline", "lora_drop"])["words"]
    assert [*words["lanes"]["lora_drop"], *words["run"]] == setting_words(header)
    assert words["lanes"]["baseline"] == ["no layer skipped"]
    assert set(rule_words(header.config_of("lora_drop"))) <= set(setting_words(header))
    unlisted = dataclasses.replace(header, sampling={})
    assert setting_words(unlisted)[-1] == "greedy", "as far as the header has settings"
