"""The paper's table, and the figures that we compute beside it."""

import pytest

from lora_drop.method.paper import READINGS, ROWS, SHAPES, SPEEDS_OF_K, bound_of, in_safe_zone
from scripts import paper_readings
from tests.support import ROOT


def test_figures_beside_a_row():
    row = ROWS[3]
    assert (row.model, row.drop_ratio, row.k, row.period) == ("Qwen2.5-7B", 0.75, 3, 4)
    assert row.accuracy_change == -2.4
    assert (len(row.schedule.dropped), row.schedule.reuse) == (round(0.75 * 24), "state")
    assert row.kv_limit == pytest.approx(18 / 28 * 3 / 4)  # a skipped layer keeps one token in four


def test_the_papers_speeds_lie_above_the_bound_of_the_default_range():
    bounds = {(row.model, row.drop_ratio): row.bound for row in ROWS}
    assert bounds["LLaMA3-8B", 0.5] == pytest.approx(1.44, abs=0.01)
    assert bounds["LLaMA3-8B", 0.75] == pytest.approx(1.84, abs=0.02)
    assert all(1 < row.bound < row.speedup for row in ROWS)


def test_whether_the_papers_speeds_exceed_the_bound_depends_on_the_reading():
    by = {(row.model, row.drop_ratio): (row.speedup, *row.bounds) for row in ROWS}
    assert all(speed > max(first, second) for speed, first, second, _ in by.values())
    last = {key: (speed, bounds[-1]) for key, (speed, *bounds) in by.items()}
    assert [round(bound, 2) for (_, ratio), (_, bound) in last.items() if ratio == 0.75] == [2.80, 2.53, 2.56, 2.63]
    assert {key: round(bound, 2) for key, (speed, bound) in last.items() if speed > bound} == {
        ("Qwen2.5-7B", 0.5): 1.68,
        ("LLaMA3-8B", 0.5): 1.69,
    }
    assert round(last["LLaMA2-7B", 0.5][1], 2) == 1.75


def test_a_bound_of_all_layers_is_that_of_its_weights():
    shape = SHAPES["LLaMA2-7B"]
    layer = 4 * 4096 * 4096 + 3 * 4096 * 11_008 + 2 * 4096
    ends, corrections = 32_000 * 4096 + 2 * 4096, 16 * 2 * 16 * 4096  # of 16 skipped layers
    full, lora = ends + shape.num_layers * layer, ends + 16 * layer + corrections
    assert bound_of("LLaMA2-7B", 0.5, 3, READINGS[2]) == pytest.approx(8 * full / (7 * lora + full))


def test_the_table_over_k_exceeds_the_first_reading():
    for one in SPEEDS_OF_K:
        assert 1 < bound_of("LLaMA2-7B", 0.5, one.k, READINGS[0]) < one.high


def test_picture_and_table_of_the_readings_are_in_step():
    assert paper_readings.FILE.read_text() == paper_readings.readings_picture()
    assert paper_readings.table() in (ROOT / "docs/method.md").read_text()


@pytest.mark.parametrize(
    ("ratio", "period", "safe"), [(0.5, 4, True), (0.51, 4, False), (0.5, 5, False), (0.25, 1, True), (0.75, 8, False)]
)
def test_the_safe_zone_includes_its_limits(ratio, period, safe):
    assert in_safe_zone(ratio, period) is safe


@pytest.mark.parametrize("model", SHAPES)
def test_shapes_are_those_of_the_random_models(model):
    from lora_drop.method.cost import ModelShape
    from lora_drop.models.random_weights import SHAPES as CONFIGS

    assert SHAPES[model] == ModelShape.from_config(CONFIGS[model.lower()])
