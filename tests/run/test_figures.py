"""The figures of a sweep: every number is the sweep's, the paper's are the paper's, and texts stay texts."""

import json
from xml.etree import ElementTree

import pytest

from lora_drop.cli.main import main
from lora_drop.errors import LoraDropError
from lora_drop.method import paper
from lora_drop.run.exports.figures.sweep import PANELS, pareto, sweep_map, write_figures
from lora_drop.run.results.rows import QUALITIES, Group, groups, percent
from tests.support.golden import check_golden_text

OURS = Group("residual", "block", "none", "")
BANK = OURS._replace(adapters="bank")
HOSTILE = "<b>x</b></script><script>alert(1)</script>%{x}<a href='javascript:alert(2)'>"


def row(ratio, period, agreement, gap, speedup, bound=1.5, adapters="none", **more):
    return {
        "drop_ratio": ratio, "period": period, "reuse": "residual", "part": "block", "kv": "skip",
        "adapters": adapters, "rank": 0, "layers_dropped": 3, "own_all_steps_kl": gap,
        "tokens": 40, "lora_steps_top1_agreement": agreement,
        "all_steps_nll_gap": gap, "speedup": speedup, "bound": bound, "kv_saved": 0.2, "kv_bytes": 800,
        "kv_bytes_baseline": 1000, **more,
    }  # fmt: skip


@pytest.fixture
def sweep():
    rows = [
        row(0.25, 2, 0.9, 0.1, 1.1),
        row(0.5, 2, 0.7, 0.3, 1.2),
        row(0.75, 2, 0.4, None, None),
        row(0.25, 8, 0.8, 0.2, 1.3),
        row(0.75, 8, 0.1, 2.0, 1.6, bound=None),
        row(0.5, 2, 0.95, 0.05, 1.15, adapters="bank"),
        row(0.25, 1, None, 0.0, 1.0, layers_dropped=3),
    ]
    return {"model": {"id": "m", "dtype": "float32"}, "device": {"name": "d"}, "data": {"file": "f"}, "rows": rows}


def texts(svg, tag="text"):
    """Every text of a drawing, or every text at the pointer (`title`)."""
    return [one.text or "" for one in ElementTree.fromstring(svg).iter(f"{{http://www.w3.org/2000/svg}}{tag}")]


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_a_sweep_is_drawn_as_it_was(sweep, theme):
    check_golden_text(f"map-{theme}.svg", sweep_map(sweep, OURS, theme))
    check_golden_text(f"pareto-{theme}.svg", pareto(sweep, "own", theme))


def test_the_cells_are_the_rows(sweep):
    drawn = texts(sweep_map(sweep, OURS))
    cells = [r for r in sweep["rows"] if r["adapters"] == "none"]
    for name, title, form in PANELS:
        assert title in drawn
        values = [r[name] for r in cells if r.get(name) is not None]
        assert all(form(value) in drawn for value in values)
    hovers = texts(sweep_map(sweep, OURS), "title")
    assert sum("drop ratio 0.25, period 8" in words for words in hovers) == len(PANELS)


def test_the_papers_safe_zone_is_outlined_as_the_papers(sweep):
    drawn = sweep_map(sweep, OURS)
    assert texts(drawn, "title").count("the paper's safe zone") == len(PANELS) and drawn.count("stroke-dasharray") == 5
    words = "\n".join(texts(drawn))
    assert "second-hand" in words and "1.68x to 1.73x" in words and "2.35x to 2.60x" in words
    sweep["rows"] = [row(0.75, 8, 0.1, 2.0, 1.6)]
    assert "stroke-dasharray" not in sweep_map(sweep, OURS)


@pytest.mark.parametrize("quality", QUALITIES)
def test_the_points_are_the_rows(sweep, quality):
    column, title, _ = QUALITIES[quality]
    drawn = pareto(sweep, quality)
    measured = [r for r in sweep["rows"] if r["period"] > 1 and None not in (r["speedup"], r[column])]
    hovers = texts(drawn, "title")
    for r in measured:
        (*_, words) = [text for text in hovers if f"measured {r['speedup']:.2f}x, bound" in text]
        assert f"drop ratio {r['drop_ratio']:g}, period {r['period']:g}" in words
    labels = texts(drawn)
    assert {"residual · whole layers · no adapters", "residual · whole layers · adapters bank", title} <= set(labels)
    # The front's labels: 1.1 and 1.2 are slower and worse than others.
    assert {"p 0.25, w 8", "p 0.75, w 8"} <= set(labels) and "p 0.25, w 2" not in labels


def test_the_papers_points_are_marked_as_the_papers(sweep):
    drawn = pareto(sweep)
    hovers = [words for words in texts(drawn, "title") if words.startswith("The paper's: ")]
    assert len(hovers) == 2 * len(paper.ROWS)
    for r in paper.ROWS:
        assert f"p {r.drop_ratio:g}, k {r.k}: accuracy {r.accuracy - r.accuracy_full:+.1f}" in texts(drawn)
        assert any(paper.LABEL in words and f"{r.bound:.2f}x" in words and r.model in words for words in hovers)
    assert any("PAPER'S own points" in text and "second-hand" in text for text in texts(drawn))


def test_hostile_names_stay_text(sweep, tmp_path, capsys):
    sweep["model"]["id"] = sweep["device"]["name"] = sweep["data"]["file"] = HOSTILE
    sweep["rows"] = [r | {"reuse": HOSTILE, "adapters": HOSTILE} for r in sweep["rows"]]
    (tmp_path / "sweep.json").write_text(json.dumps(sweep))
    assert main(["sweep-figures", str(tmp_path), "--out", str(tmp_path / "figures")]) == 0
    names = ["map-1.svg", *(f"pareto-{quality}.svg" for quality in QUALITIES)]
    assert capsys.readouterr().out.split() == [str(tmp_path / "figures" / name) for name in names]
    for name in names:
        drawn = (tmp_path / "figures" / name).read_text()
        assert "<script" not in drawn and "<b>" not in drawn and "<a " not in drawn
        assert any(HOSTILE[:9] in text for text in texts(drawn))


@pytest.mark.parametrize("rows", [[], [row(0.5, 2, None, None, None)]])
def test_an_empty_sweep_says_so(rows):
    for quality in QUALITIES:
        assert any("no point" in text for text in texts(pareto({"rows": rows}, quality)))
    figure = sweep_map({"rows": rows}, OURS._replace(reuse="state"))
    assert any("no point of this rule" in text for text in texts(figure))


def test_the_baseline_belongs_to_every_group_of_its_rule(sweep):
    assert groups(sweep) == [OURS, BANK]
    drawn = texts(sweep_map(sweep, BANK))
    assert drawn.count("1.00x") == 1 and drawn.count("1.15x") == 1 and "1.10x" not in drawn
    assert groups({"rows": [row(0.5, 1, None, 0.0, 1.0)]}) == [OURS]


def test_ways_that_differ_in_what_else_is_set_do_not_mix(sweep):
    exact = {"refresh": "repair", "kv": "write", "accept": 0.1, "head": "screened", "drop_layers": [3, 5]}
    sweep["rows"].append(row(0.25, 2, 0.99, 0.0, 1.05) | exact)
    ways = groups(sweep)
    assert ways[-1][:3] == OURS[:3] and "accept 0.1" in ways[-1].others
    for way, own, other in ((OURS, 0.9, 0.99), (ways[-1], 0.99, 0.9)):
        drawn = texts(sweep_map(sweep, way))
        assert percent(own) in drawn and percent(other) not in drawn


def test_words_that_do_not_exist(sweep, tmp_path, capsys):
    with pytest.raises(LoraDropError, match="theme"):
        write_figures(sweep, tmp_path, "pink")
    with pytest.raises(LoraDropError, match="quality"):
        pareto(sweep, "beauty")
    assert main(["sweep-figures", str(tmp_path / "gone"), "--out", str(tmp_path)]) == 2
    assert "cannot read sweep.json" in capsys.readouterr().err
