"""The verdict at one glance: figures and a line from the facts."""

import pytest

from lora_drop.run.report.headline import headline, refuses
from tests.run.test_verdict import QUIET, SAME, facts_with
from tests.support.golden import check_golden

GUESSES = {"accept": 0.15, "accepted": 0.953, "accepted_without": 0.64}
CASES = {
    "plain": ("compared", {}),
    "guesses": ("compared", GUESSES | {"accepted_in_its_kind": ("under 5%", 0.874)}),
    "guesses, nothing to compare with": ("compared", GUESSES | {"accepted_without": None}),
    "above the bound": ("compared", {"speedup": 1.7, "by_chance": True, "preset_figures": QUIET}),
    "noisy": ("compared", {"speed": "noisy"}),
    "noisy, not calibrated": ("compared", {"speed": "noisy", "preset_figures": {"preset": "fast"}}),
    "short": ("compared", {"speed": "short", "speedup_interval": None, "preset_figures": QUIET | {"speedup": 1.01}}),
    "the head alone": ("compared", GUESSES | {"head": "screened", "preset_figures": QUIET | {"head_speedup": 1.08}}),
    "reference": ("compared", {"speed": "reference", "speedup": None}),
    "slower": ("compared", {"speed": "slower", "speedup": 0.8, "speedup_interval": [0.79, 0.81]}),
    "all rejected": ("compared", GUESSES | {"skipped_share": -0.1, "reads": "badly", "quality_loss": 0.7}),
    "slips": ("compared", {"reads": "slips", "quality_loss": 0.3, "part": "attention", "kv_saved": -0.1}),
    "no quality": ("compared", {"reads": None, "quality_loss": None, "corrections": "missing"}),
    "the full model loops": ("compared", {"baseline_collapsed_word": 7, "corrections": "off"}),
    "lossless": ("lossless", SAME | {"accept": 1, "accepted": 0.74}),
    "collapsed": ("collapsed", {"collapsed_word": 3, "reads": "badly"}),
    "nothing skipped": ("nothing_skipped", {"nothing": "period"} | SAME),
    "alone": ("compared", {"speed": None, "words": None, "kv_saved": None}),
    "stopped": ("stopped", {"stopped": "stopped"}),
    "refuses": ("compared", {"refuses": True}),
}


@pytest.fixture
def headlines():
    return {name: headline(kind, facts_with(changes)) for name, (kind, changes) in CASES.items()}


def test_the_figures_of_each_kind(headlines):
    check_golden("headline", headlines)
    ids = {name: [figure["id"] for figure in one["figures"]] for name, one in headlines.items()}
    assert ids["plain"] == ["speed", "skipped", "reads"] and ids["guesses"] == ["speed", "accepted", "reads"]
    for name in ("above the bound", "noisy", "short", "reference"):
        assert "speed" not in ids[name] and headlines[name]["line"], "no figure, and the line says why"
    assert ids["stopped"] == [] and ids["alone"] == ["skipped"]


def test_a_figure_beyond_the_bound_is_never_shown(headlines):
    assert "1.7" not in str(headlines["above the bound"])


TEXTS = {
    "I cannot help with that request.": True,
    "I'm sorry, but I can't assist with that.": True,
    "I\u2019m sorry, I don\u2019t know.": True,
    "Sorry, I am only a language model.": True,
    "As an AI language model, I do not have feelings.": True,
    "Unfortunately, I don't have access to the internet.": True,
    "I apologize for the confusion.": True,
    "I am unable to answer this question.": True,
    "Thank you for asking! However, I cannot give medical advice.": True,
    "I'm not able to do that.": True,
    "The sky is blue because of Rayleigh scattering.": False,
    "I can help you with that. First, open the file.": False,
    "Here are five tips for better sleep.": False,
    "Can I cannon? No such verb exists.": False,
    "Once upon a time there was a keeper who was sorry, and cold.": False,
    "I am sorrel, a plant of the meadow.": False,
    "def add(a, b):\n    return a + b": False,
    "Penguins are birds that cannot fly, but they swim very well, so": False,
    "It is a long way from the harbour to the hills, and on the way I cannot tell you how often I stopped.": False,
    "": False,
}


@pytest.mark.parametrize(("text", "refusal"), TEXTS.items())
def test_a_refusal_is_named_by_its_opening(text, refusal):
    assert refuses(text) is refusal
