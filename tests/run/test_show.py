"""What a notebook shows: one-line reprs, and a drawing of a run without a script."""

import pytest

import lora_drop
from lora_drop.errors import LoraDropError
from lora_drop.paths import ASSETS, SHIPPED_ADAPTERS
from lora_drop.run.exports.figures.run import run_svg
from lora_drop.ui import start
from tests.support.elements import Elements


def test_a_run_is_one_call_and_a_drawing(tiny):
    trace = lora_drop.show("Why?", preset="fast", model=tiny, layers=(1, 4), max_new_tokens=12, ignore_eos=True)
    assert trace.header.sampling["max_new_tokens"] == 12 and len(trace.steps["lora_drop"]) == 12
    html = trace._repr_html_()
    assert html == run_svg(trace) and "script" not in [tag for tag, _ in Elements(html).found]
    assert repr(trace) == f"Trace('Why?', {tiny.id}: baseline 12 tokens, lora_drop 12 tokens)"
    for words, settings in (("no such setting: beauty", {"beauty": 1}), ("preset", {"preset": "beautiful"})):
        with pytest.raises(LoraDropError, match=words):
            lora_drop.show("Why?", model=tiny, **settings)


def test_a_file_is_drawn_in_at_most_150_kb():
    trace = lora_drop.read_trace(ASSETS / "recorded" / "show-me.jsonl")
    assert 20_000 < len(trace._repr_html_().encode()) <= 150_000


def test_the_others_are_one_line(tiny):
    bank = lora_drop.AdapterBank.load(next(path for path in SHIPPED_ADAPTERS.iterdir() if path.is_dir()))
    for one in (bank, tiny):
        assert repr(one).count("\n") == 0 and len(repr(one)) < 250
    assert f"rank {bank.rank}" in repr(bank) and f"{tiny.num_layers} layers" in repr(tiny)


def test_the_page_without_its_packages_is_one_line(monkeypatch):
    monkeypatch.setattr(start, "find_spec", lambda name: None)
    with pytest.raises(LoraDropError, match="the page needs Gradio.*pip install"):
        lora_drop.launch()
