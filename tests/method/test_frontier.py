"""The frontier of speed and quality."""

from lora_drop.method.frontier import frontier


def test_rows_that_no_other_row_beats_in_both():
    points = [(1.0, 5), (1.5, 4), (1.5, 3), (1.2, 4), (2.0, 1), (1.8, 1), (0.9, 5)]
    rows = [{"speedup": speedup, "quality": quality} for speedup, quality in points]
    front = frontier(rows, lambda row: row["quality"])
    assert [(row["speedup"], row["quality"]) for row in front] == [(1.0, 5), (1.5, 4), (2.0, 1)]
    assert frontier([], lambda row: 0) == []
