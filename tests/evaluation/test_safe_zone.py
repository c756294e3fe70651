"""The cell to choose of a map, recomputed from the rows; its sentences; the stops of the dial."""

from __future__ import annotations

import re

import pytest

from lora_drop.method.config import LoraDropConfig
from lora_drop.method.presets import PRESETS
from lora_drop.models.place import describe_device
from lora_drop.paths import SHIPPED_SWEEPS
from lora_drop.run.results.calibration import HEAD, SPEEDS, head_config, timed_here, with_speed
from lora_drop.run.results.files import SAMPLES, SWEEP
from lora_drop.run.results.preset_results import Measured, reads_well
from lora_drop.run.results.safe_zone import (
    PROMPT,
    answer_of,
    best_of,
    head_words,
    measures_of,
    setting_of,
    stops_of,
)
from tests.support.golden import check_golden


def row(ratio, period, own=0.1, speed=1.2, free=None, repeats=0.1, **more):
    return {
        **LoraDropConfig(drop_ratio=ratio, period=period).to_dict(), "adapters": "bank", "layers_dropped": 4,
        "own_all_steps_kl": own, "all_steps_kl": own, "free_repeated_4grams": repeats,
        "free_regret": own if free is None else free,
        "free_repeated_4grams_baseline": 0.1, "speedup": speed, "speedup_low": speed and speed - 0.01,
        "speedup_high": speed and speed + 0.01, "bound": 1.5, "kv_saved": 0.25, **more,
    }  # fmt: skip


EXACT = {"refresh": "repair", "kv": "write", "accept": 0.1}


def test_the_fastest_that_reads_well_is_chosen():
    rows = [
        row(0.25, 2, 0.05, 1.1),
        row(0.25, 4, 0.14, 1.3),
        row(0.5, 4, 0.4, 1.6),
        row(0.25, 8, 0.14, 1.5, repeats=0.5),
    ]
    for order in (rows, rows[::-1]):
        answer = answer_of(order)
        assert answer.is_safe and answer.row is rows[1]


def test_a_setting_with_accept_is_chosen_by_its_own_text():
    rows = [row(0.25, 2, own=0.6, free=0.09, **EXACT), row(0.5, 2, own=0.01, free=0.4, **EXACT)]
    assert answer_of(rows).row is rows[0]


@pytest.mark.parametrize(
    ("rows", "at"),
    [
        ([row(0.25, 2, 0.3), row(0.5, 2, 0.2)], 1),
        ([row(0.25, 2, 0.1, repeats=0.35), row(0.5, 2, 0.2)], 0),
        ([row(0.25, 2, 0.1, repeats=None)], 0),
    ],
)
def test_where_none_is_safe_the_nearest_is_named(rows, at):
    answer = answer_of(rows)
    assert not answer.is_safe and answer.row is rows[at]


OLD = {"own_all_steps_kl": None, "free_regret": None, "free_repeated_4grams": None}


def test_a_file_without_own_answers_calls_nothing_safe():
    rows = [row(0.5, 2, 0.3) | OLD, row(0.25, 2, 0.01) | OLD]
    answer = answer_of(rows)
    assert not answer.is_safe and answer.row is rows[1]
    assert answer_of([rows[0] | {"all_steps_kl": None}]).row is None and answer_of([]).row is None


def test_sentences():
    """Of each kind of answer, and of each kind of speed."""
    slow = {"speedup": 0.9, "speedup_low": 0.88, "speedup_high": 0.95}
    noisy = {"speedup": 1.1, "speedup_low": 0.9, "speedup_high": 1.3}
    fast = {"speedup": 1.4, "speedup_low": 1.1, "speedup_high": 1.7}
    none = {"speedup": None, "speedup_low": None, "speedup_high": None}
    cells = {
        "safe": row(0.25, 4, 0.14, 1.3),
        "safe, accept": row(0.25, 2, own=0.6, free=0.09, **EXACT),
        "a loss too large": row(0.5, 2, 0.2),
        "in circles": row(0.25, 2, 0.1, repeats=0.35),
        "own text not measured": row(0.25, 2, 0.1, repeats=None),
        "given texts only": row(0.25, 2, 0.01) | OLD,
        "no quality": row(0.5, 2) | OLD | {"all_steps_kl": None},
        "slower": row(0.25, 2) | slow,
        "noisy": row(0.25, 2) | noisy,
        "noisy, but faster": row(0.25, 2) | fast,
        "no speed": row(0.25, 2) | none,
        "no bound, no memory": row(0.25, 2) | {"bound": None, "kv_saved": None},
    }
    check_golden("safe_zone", {name: answer_of([cell]).text for name, cell in cells.items()})


def test_the_shipped_sweep_gets_a_sentence_whose_numbers_are_its_rows():
    rows = [r for r in SWEEP.read(SHIPPED_SWEEPS / "sweep.json")["rows"] if r["reuse"] == "residual"]
    answer = answer_of(rows)
    ratio, period = re.search(r"drop ratio (\S+), period (\d+)", answer.text).groups()
    assert (float(ratio), int(period)) == (answer.row["drop_ratio"], answer.row["period"])
    assert f"{answer.row['speedup']:.2f}×" in answer.text or "noisy" in answer.text
    assert answer.is_safe == any(map(reads_well, rows))


def test_a_speed_beyond_the_bound_does_not_choose():
    rows = [row(0.25, 2, speed=1.4), row(0.25, 4, speed=3.0, bound=1.1)]
    assert answer_of(rows).row is rows[0]
    assert [r["period"] for r in best_of(rows)] == [2]


def test_the_frontier_is_what_no_other_beats():
    rows = [row(0.1 * i, 2, own, speed) for i, (own, speed) in enumerate(
        [(0.1, 1.1), (0.2, 1.1), (0.3, 1.3), (0.05, 1.05), (0.4, 1.2)], start=1
    )]  # fmt: skip
    best = best_of([*rows, row(0.9, 1, 0.0, 1.4, layers_dropped=0)])
    beaten = {
        id(r) for r in rows for other in rows
        if r is not other and other["speedup"] >= r["speedup"] and other["free_regret"] <= r["free_regret"]
    }  # fmt: skip
    assert {id(r) for r in best} == set(map(id, rows)) - beaten
    assert [r["speedup"] for r in best] == sorted(r["speedup"] for r in best)


NONE = dict.fromkeys(SPEEDS)


def test_without_speeds_of_this_machine_the_bound_decides():
    rows = [row(0.25, 2, 0.05, bound=1.2) | NONE, row(0.25, 4, 0.1, bound=1.4) | NONE, row(0.5, 2, 0.12, speed=1.9)]
    answer = answer_of(rows)
    assert answer.row is rows[2] and "the highest bound of those that read well" in answer.text, "one is not timed"
    answer = answer_of(rows[:2])
    assert answer.row is rows[1] and "it has no speed measured on this machine (bound 1.40×)" in answer.text
    assert best_of(rows[:2]) == rows[:2]
    assert [one.label for one in measures_of(rows[:2])][3] == "Speed bound"
    assert [one.label for one in measures_of(rows)][3] == "Speed"


def test_speeds_of_another_processor_or_decoder_are_left_out(tiny):
    here = {"device": describe_device(tiny.device)}
    mine, other = row(0.25, 2), row(0.25, 2, decoder="reference")
    assert timed_here([mine, other], here, tiny) == [mine, other | NONE]
    for change in ({"name": "another processor"}, {"threads": 99}):
        assert timed_here([mine], {"device": here["device"] | change}, tiny) == [mine | NONE]
    assert timed_here([mine], {}, tiny) == [mine | NONE]
    fast = {"speedup": 1.3, "speedup_interval": [1.28, 1.32], "bound": 1.4}
    assert with_speed(mine | NONE, fast)["speedup"] == 1.3 and with_speed(mine, fast)["speedup_low"] == 1.28
    assert with_speed(mine, fast | {"speedup_interval": [1.0, 1.6]}) == mine, "too noisy"


def test_the_dial_shows_what_the_screened_head_alone_gives():
    measured = Measured({"memory": preset_row("memory", 0.1, 1.05) | NONE}, {}, ABOUT)
    samples = [sample("baseline", "The full text.")]
    _, head, skipping = stops_of(measured, samples, None, {}, has_head=True)
    assert head.label == "Full model, screened head" and head.sample == "The full text." and head.reads_well
    assert (head.config.drop_layers, head.config.head, head.config.accept) == ((), "screened", 1.0)
    for stop in (head, skipping):
        assert "It has no speed measured on this machine" in stop.words
    timed = {"speedup": 1.08, "speedup_interval": [1.06, 1.1], "bound": 1.22}
    speeds = {HEAD: timed | {"config": head_config(8).differences()}, "memory": timed}
    _, head, skipping = stops_of(measured, samples, None, speeds, has_head=True)
    assert head.config.period == 8
    chosen = row(0.25, 2, head="screened")
    assert head_words(chosen, speeds[HEAD]) == " The full model with the screened head alone runs at 1.08× here."
    assert head_words(row(0.25, 2, head="full"), speeds[HEAD]) == head_words(chosen, None) == ""
    for stop in (head, skipping):
        assert "1.08×" in stop.words


def test_a_rows_setting_runs_with_what_auto_takes():
    assert setting_of(row(0.25, 2)) == LoraDropConfig(drop_ratio=0.25, period=2)
    assert setting_of(row(0.25, 2) | {"adapters": "none"}).adapters == "none"
    assert setting_of(row(0.25, 2) | {"period": 0}) is None, "no setting at all"
    old = {"drop_ratio": 0.5, "period": 4, "reuse": "state", "part": "block", "kv": "skip", "adapters": "bank"}
    assert setting_of(old) == LoraDropConfig(drop_ratio=0.5, period=4, reuse="state")


MODEL = {"revision": "r", "dtype": "float32"}
ABOUT = {"model": MODEL, "device": {"name": "here"}}


def preset_row(name, own, speed, **more):
    config = PRESETS[name].config
    figures = {k: v for k, v in row(0.1, 2, own, speed, **more).items() if k not in config.to_dict()}
    return config.to_dict() | figures | {"adapters": "bank", "preset": name, "config": config.differences()}


def sample(lane, text, config=None, prompt=PROMPT):
    return {"prompt": prompt, "lane": lane, "text": text, "config": config}


def test_the_dial_goes_from_the_full_model_over_the_frontier():
    measured = Measured({"memory": preset_row("memory", 0.1, 1.05), "paper": preset_row("paper", 5.0, 1.2)}, {}, ABOUT)
    skipping = measured.rows["memory"]["config"]
    samples = [
        sample("baseline", "other", prompt="another prompt"),
        sample("baseline", "The full text."),
        sample("memory", "of other settings", {"period": 9}),
        sample("memory", "Nearly.", skipping),
    ]
    sweep = ABOUT | {
        "sample": {"prompt": PROMPT, "text": "The full text."},
        "rows": [row(0.75, 8, 3.0, 1.5, sample="the the the"), row(0.5, 2, 6.0, 1.1, sample="beaten")],
    }
    stops = stops_of(measured, samples, sweep)
    assert [stop.label for stop in stops] == ["Never skip", "Memory", "Drop ratio 0.75, period 8"]
    assert [stop.sample for stop in stops] == ["The full text.", "Nearly.", "the the the"]
    assert stops[0].config.period == 1 and [stop.reads_well for stop in stops] == [True, True, False]
    assert stops[1].config == PRESETS["memory"].config
    assert stops[2].config == LoraDropConfig(drop_ratio=0.75, period=8)
    assert "Regret 3.00 nats per token on average: reads badly" in stops[2].words and "1.50×" in stops[2].words
    # Speeds of another machine do not compare; another prompt's samples do not either.
    other = sweep | {"device": {"name": "elsewhere"}}
    assert [stop.label for stop in stops_of(measured, samples, other)] == [
        "Never skip",
        "Memory",
        "Paper (p 0.5, k 3)",
    ]
    asked = stops_of(measured, samples, sweep | {"sample": {"prompt": "another", "text": "x"}})
    assert asked[-1].sample is None and asked[-1].label == "Drop ratio 0.75, period 8"


def test_without_measurements_there_is_no_dial(tmp_path):
    assert stops_of(Measured(), [], None) == []
    given_only = row(0.25, 2) | {"own_all_steps_kl": None, "free_regret": None}
    assert stops_of(Measured(), [], ABOUT | {"rows": [given_only]}) == []
    from_sweep = stops_of(
        Measured(), [], ABOUT | {"sample": {"prompt": PROMPT, "text": "full"}, "rows": [row(0.25, 2)]}
    )
    assert [stop.sample for stop in from_sweep] == ["full", None]
    for broken in ("", "[]", '{"model": 3}', '{"model": {"revision": "r"}, "samples": [{"prompt": 3}]}'):
        (tmp_path / "samples.json").write_text(broken)
        assert SAMPLES.rows_of("r", tmp_path / "samples.json") == []
    assert SAMPLES.rows_of("r", tmp_path / "none.json") == []
