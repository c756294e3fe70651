"""The paper's table, and the figures that we compute beside it."""

import pytest

from lora_drop.method.paper import ROWS, SHAPES, in_safe_zone


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
