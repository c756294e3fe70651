"""The table of the paper's settings, on a tiny shape; what is measured is not judged."""

from lora_drop.method.cost import ModelShape, kv_bytes
from lora_drop.method.schedule import baseline_schedule
from lora_drop.models.random_weights import SHAPES
from lora_drop.run.results import files
from scripts import paper_shapes


def test_a_shape_that_is_too_large_loses_half_of_its_layers(monkeypatch):
    monkeypatch.setattr(paper_shapes, "SHAPES", dict(SHAPES))
    assert paper_shapes.fitted("llama3-8b", 20 * 10**9) == ("llama3-8b", 32)
    assert paper_shapes.fitted("qwen2.5-14b", 20 * 10**9) == ("qwen2.5-14b-24", 24)
    found = paper_shapes.SHAPES["qwen2.5-14b-24"]
    assert ModelShape.from_config(found).params * 2 <= 20 * 10**9 and SHAPES["qwen2.5-14b"].num_hidden_layers == 48


def test_the_table(monkeypatch):
    """All nine settings, with the KV bytes of the formula and the paper's figures where it has some."""
    monkeypatch.setitem(paper_shapes.MODELS, "tiny-llama", "LLaMA3-8B")
    rows = list(paper_shapes.rows(["tiny-llama"], 10**9, 5, "float32"))
    assert len(rows) == 9
    files.SHAPES.shape.model_validate(
        {
            **{"source": "", "date": "", "read_gb_per_second": 1.0, "rows": rows},
            "device": {"type": "cpu", "name": "x", "threads": 2},
        }
    )
    cells = [[cell.strip() for cell in paper_shapes.line(row).split("|")[1:-1]] for row in rows]
    assert all(len(row) == paper_shapes.HEADER.count("|") - 1 for row in cells)
    assert [row[2:4] for row in cells] == [[str(p), str(k)] for p in (0.25, 0.5, 0.75) for k in (1, 3, 5)]
    assert {tuple(row[:2]) for row in cells} == {("random:tiny-llama", "6 of 6")}
    assert [row[9] for row in cells] == ["", "", "", "", "1.70", "", "", "2.38", ""]
    runs = paper_shapes.measured(paper_shapes.load_model("random:tiny-llama", "cpu", "float32"), 0.5, 3, 5)
    shape = ModelShape.from_config(SHAPES["tiny-llama"])
    assert len(runs) == paper_shapes.ROUNDS
    for run in runs:
        held = {name: lane.steps[-1].kv_bytes for name, lane in run.lanes.items()}
        assert held["baseline"] == kv_bytes(shape, baseline_schedule(6), 5, 8, 4)
        assert held["lora_drop"] == kv_bytes(shape, run.lanes["lora_drop"].schedule, 5, 8, 4)
