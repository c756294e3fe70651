"""The figure of a search: its points are the rows, and names stay text."""

import pytest

from scripts.lab.frontier import frontier_figure
from tests.run.test_figures import HOSTILE, texts
from tests.support.golden import check_golden_text


@pytest.fixture
def found():
    def point(count, speedup, loss, low=None, high=None, accept=0.0, head="full", **more):
        return {
            "config": {"drop_layers": list(range(3, 3 + count)), "head": head, "accept": accept}, "loss": loss,
            "layers_dropped": count, "period": 4, "refresh": "repair", "accept": accept, "head": head,
            "refresh_entropy": None, "adapters": "bank", "speedup": speedup, "speedup_low": low, "speedup_high": high,
            "bound": 1.4, "kv_saved": 0.0, "accepted": None, "head_only": not count, **more,
        }  # fmt: skip

    rows = [
        point(4, 1.1, 0.1, 1.05, 1.2),
        point(8, 1.3, 0.3, 1.2, 1.35),
        point(8, 1.2, 0.08, accept=0.1, head="screened"),
        point(9, 1.5, None),
        point(0, 1.25, 0.01, head="screened"),
    ]
    before = [{"preset": "fast", "speedup": 1.36, "speedup_low": None, "speedup_high": None, "loss": 0.5}]
    before += [before[0] | {"preset": "paper", "loss": 5.0}]
    limits = {"loss": 0.15, "regret": 0.09}
    return {"rows": rows, "limits": limits, "recommended": rows[2]["config"], "before": before, "data": {}}


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_a_search_is_drawn_as_it_was(found, theme):
    check_golden_text(f"frontier-{theme}.svg", frontier_figure(found, theme))


def test_a_searchs_points_are_its_rows_and_only_lora_drops_are_the_front(found):
    drawn = frontier_figure(found)
    hovers, labels = texts(drawn, "title"), texts(drawn)
    assert len(hovers) == 5, "a row without a loss is no point, nor is a preset far below"
    assert sum("speed 1.10x (1.05x to 1.20x)" in words for words in hovers) == 1
    assert labels.count("8 layers, w 4") >= 1 and "4 layers, w 4" not in labels, "1.1 is slower and worse than 1.2"
    legend = {
        "repair · accept 0 · head full",
        "presets before",
        "the fastest within the limit",
        "limit",
        "limit with accept",
    }
    assert legend <= set(labels) and any(text.startswith("full model, screened head") for text in labels)
    assert any("1 presets before lie below" in text for text in labels)


def test_a_searchs_names_stay_text_and_an_empty_one_says_so(found):
    found["before"][0]["preset"] = HOSTILE
    found["rows"] = [r | {"adapters": HOSTILE, "head": HOSTILE} for r in found["rows"]]
    drawn = frontier_figure(found)
    assert "<script" not in drawn and HOSTILE in "".join(texts(drawn, "title"))
    empty = frontier_figure(found | {"rows": [], "recommended": None})
    assert any("No setting has" in text for text in texts(empty))
