"""The figures of a sweep: every number is the sweep's, the paper's are the paper's, and texts stay texts."""

import json
import re

import pytest

from lora_drop.cli.main import main
from lora_drop.errors import LoraDropError
from lora_drop.method import paper
from lora_drop.method.cost import ModelShape
from lora_drop.models.random_weights import LARGE_SHAPES
from lora_drop.run.exports.figures.heatmaps import PANELS, sweep_heatmaps
from lora_drop.run.exports.figures.pages import write_figures, write_frontier
from lora_drop.run.exports.figures.pareto import frontier_figure, pareto
from lora_drop.run.results.rows import QUALITIES, Group, groups

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


def texts(figure):
    """Every string that plotly gets."""
    return [json.loads(one) for one in re.findall(r'"(?:[^"\\]|\\.)*"', figure.to_json())]


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_the_cells_are_the_rows(sweep, theme):
    figure = sweep_heatmaps(sweep, OURS, theme)
    maps = {trace.name: trace for trace in figure.data if trace.type == "heatmap"}
    words = [trace for trace in figure.data if trace.type == "scatter"]
    assert list(maps) == [panel[0] for panel in PANELS]
    cells = {(f"{r['drop_ratio']:g}", f"{r['period']:g}"): r for r in sweep["rows"] if r["adapters"] == "none"}
    for (name, _, form), shown in zip(PANELS, words, strict=True):
        trace = maps[name]
        assert (trace.x, trace.y) == (("0.25", "0.5", "0.75"), ("1", "2", "8"))
        printed = {(x, y): text for x, y, text in zip(shown.x, shown.y, shown.text, strict=True)}
        for j, y in enumerate(trace.y):
            for i, x in enumerate(trace.x):
                value = cells.get((x, y), {}).get(name)
                assert trace.z[j][i] == value
                assert printed[x, y] == ("–" if value is None else form(value))
    assert maps["speedup"].zmin == maps["bound"].zmin and maps["speedup"].zmax == maps["bound"].zmax


def test_the_papers_safe_zone_is_outlined_as_the_papers(sweep):
    figure = sweep_heatmaps(sweep, OURS)
    assert [(s.x0, s.x1, s.y0, s.y1) for s in figure.layout.shapes] == [(-0.5, 1.5, -0.5, 1.5)] * len(PANELS)
    assert texts(figure).count("the paper's safe zone") == len(PANELS)
    words = next(text for text in texts(figure) if "The paper's own speed" in text)
    assert "second-hand" in words and "1.68x to 1.73x" in words and "2.35x to 2.60x" in words
    sweep["rows"] = [row(0.75, 8, 0.1, 2.0, 1.6)]
    assert not sweep_heatmaps(sweep, OURS).layout.shapes


@pytest.mark.parametrize("quality", QUALITIES)
def test_the_points_are_the_rows(sweep, quality):
    column = QUALITIES[quality][0]
    figure = pareto(sweep, quality)
    traces = {trace.name: trace for trace in figure.data}
    measured = [r for r in sweep["rows"] if r["period"] > 1 and None not in (r["speedup"], r[column])]
    for name, adapters in (
        ("residual · whole layers · no adapters", "none"),
        ("residual · whole layers · adapters bank", "bank"),
    ):
        own = [r for r in measured if r["adapters"] == adapters]
        points, twins = traces[name], traces[f"{name}: bound"]
        assert points.x == tuple(r["speedup"] for r in own) and points.y == tuple(r[column] for r in own)
        assert twins.x[1::3] == tuple(r["bound"] for r in own) and twins.x[::3] == points.x
    front = traces["Pareto front"]
    assert list(front.x) == [1.15, 1.3, 1.6]  # 1.1 and 1.2 are slower and worse than others
    assert front.y == tuple(next(r[column] for r in measured if r["speedup"] == x) for x in front.x)
    better_is_up = figure.layout.yaxis2.autorange != "reversed"
    assert better_is_up == (quality == "agreement")


def test_the_papers_points_are_marked_as_the_papers(sweep):
    figure = pareto(sweep)
    own = next(trace for trace in figure.data if "PAPER'S" in (trace.name or ""))
    assert own.x == tuple(r.speedup for r in paper.ROWS) and own.y == tuple(r.model for r in paper.ROWS)
    assert own.yaxis == "y" and next(t for t in figure.data if t.name == "Pareto front").yaxis == "y2"
    for r, label, hover in zip(paper.ROWS, own.text, own.hovertext, strict=True):
        assert f"{r.accuracy - r.accuracy_full:+.1f}" in label
        assert "The paper's" in hover and paper.LABEL in hover and f"{r.bound:.2f}x" in hover
    assert any("PAPER'S own points" in text and "second-hand" in text for text in texts(figure))


def test_the_papers_table_lies_above_its_bounds():
    for model, shape in paper.SHAPES.items():
        assert ModelShape.from_config(LARGE_SHAPES[model.lower()]) == shape
    assert all(r.speedup > r.bound and r.kv_saved > r.kv_limit for r in paper.ROWS)
    llama3 = {(r.drop_ratio, r.k): round(r.bound, 2) for r in paper.ROWS if r.model == "LLaMA3-8B"}
    assert llama3 == {(0.5, 3): 1.44, (0.75, 3): 1.84}
    assert [paper.in_safe_zone(*point) for point in ((0.5, 4), (0.5, 5), (0.51, 2))] == [True, False, False]


def test_hostile_names_stay_text(sweep, tmp_path, capsys):
    sweep["model"]["id"] = sweep["device"]["name"] = sweep["data"]["file"] = HOSTILE
    sweep["rows"] = [r | {"reuse": HOSTILE, "adapters": HOSTILE} for r in sweep["rows"]]
    for figure in (sweep_heatmaps(sweep, Group(HOSTILE, "block", HOSTILE, "")), pareto(sweep)):
        shown = texts(figure)
        assert any("&lt;script&gt;" in text for text in shown)
        assert not any("<script" in text or "<b>x" in text or "<a " in text for text in shown)
        assert not any(trace.hovertemplate for trace in figure.data)  # %{x} is only read there
    (tmp_path / "sweep.json").write_text(json.dumps(sweep))
    assert main(["sweep-figures", str(tmp_path), "--out", str(tmp_path / "figures")]) == 0
    assert capsys.readouterr().out.split() == [str(tmp_path / "figures" / n) for n in ("heatmaps.html", "pareto.html")]
    for name in ("heatmaps.html", "pareto.html"):
        page = (tmp_path / "figures" / name).read_text()
        assert "<script>alert" not in page and "cdn.plot.ly" not in page.split("<body>")[0]
        assert page.count("plotly.js v") == 1


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


def test_a_searchs_points_are_its_rows_and_only_lora_drops_are_the_front(found):
    figure = frontier_figure(found)
    traces = {trace.name: trace for trace in figure.data}
    plain = traces["repair · accept 0 · head full"]
    assert (plain.x, plain.y) == ((1.1, 1.3), (0.1, 0.3)), "a row without a loss is no point"
    assert plain.error_x.array == pytest.approx((0.1, 0.05)) and plain.error_x.arrayminus == pytest.approx((0.05, 0.1))
    front = traces["Pareto front"]
    assert (list(front.x), list(front.y)) == ([1.2, 1.3], [0.08, 0.3]), "1.1 is slower and worse than 1.2"
    assert front.text == ("\u20028 layers, w 4",) * 2
    alone = next(trace for name, trace in traces.items() if name.startswith("full model, screened head"))
    assert (alone.x, alone.y) == ((1.25,), (0.01,))
    assert (traces["presets before"].x, traces["presets before"].y) == ((1.36,), (0.5,))
    assert any("1 presets before lie below" in text for text in texts(figure))
    assert (traces["the fastest within the limit"].x, traces["the fastest within the limit"].y) == ((1.2,), (0.08,))
    assert {shape.y0 for shape in figure.layout.shapes if shape.y0 == shape.y1} == {0.15, 0.09}
    assert figure.layout.yaxis.autorange == "reversed"


def test_a_searchs_names_stay_text_and_an_empty_one_says_so(found, tmp_path):
    found["before"][0]["preset"] = HOSTILE
    found["rows"] = [r | {"adapters": HOSTILE, "head": HOSTILE} for r in found["rows"]]
    shown = texts(frontier_figure(found))
    assert any("&lt;script&gt;" in text for text in shown)
    assert not any("<script" in text or "<b>x" in text or "<a " in text for text in shown)
    (page,) = write_frontier(found, tmp_path)
    assert page.name == "frontier.html" and "<script>alert" not in page.read_text()
    empty = frontier_figure(found | {"rows": [], "recommended": None})
    assert not empty.data and any("No setting has" in text for text in texts(empty))


@pytest.mark.parametrize("rows", [[], [row(0.5, 2, None, None, None)]])
def test_an_empty_sweep_says_so(rows):
    for quality in QUALITIES:
        figure = pareto({"rows": rows}, quality)
        assert not figure.data and any("no point" in text for text in texts(figure))
    figure = sweep_heatmaps({"rows": rows}, OURS._replace(reuse="state"))
    assert not figure.data and any("no point of this rule" in text for text in texts(figure))


def test_the_baseline_belongs_to_every_group_of_its_rule(sweep):
    assert groups(sweep) == [OURS, BANK]
    speeds = next(t for t in sweep_heatmaps(sweep, BANK).data if t.name == "speedup")
    assert [list(line) for line in speeds.z] == [[1.0, None], [None, 1.15]]
    assert groups({"rows": [row(0.5, 1, None, 0.0, 1.0)]}) == [OURS]


def test_ways_that_differ_in_what_else_is_set_do_not_mix(sweep):
    exact = {"refresh": "repair", "kv": "write", "accept": 0.1, "head": "screened", "drop_layers": [3, 5]}
    sweep["rows"].append(row(0.25, 2, 0.99, 0.0, 1.05) | exact)
    ways = groups(sweep)
    assert ways[-1][:3] == OURS[:3] and "accept 0.1" in ways[-1].others
    for way, speed in ((OURS, 1.1), (ways[-1], 1.05)):
        speeds = next(t for t in sweep_heatmaps(sweep, way).data if t.name == "speedup")
        assert speeds.z[1][0] == speed, "period 2 stands above the baseline's"


def test_words_that_do_not_exist(sweep, tmp_path, capsys):
    with pytest.raises(LoraDropError, match="theme"):
        write_figures(sweep, tmp_path, "pink")
    with pytest.raises(LoraDropError, match="quality"):
        pareto(sweep, "beauty")
    assert main(["sweep-figures", str(tmp_path / "gone"), "--out", str(tmp_path)]) == 2
    assert "cannot read sweep.json" in capsys.readouterr().err
