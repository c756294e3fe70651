"""What is measured on was not trained on."""

import json
import re
from importlib.resources import files

import pytest

from lora_drop.evaluation.measure.pairs import read_prompt_set
from lora_drop.run.results.prompts import HELD_OUT, SAMPLE_PROMPTS
from lora_drop.training.prompts import all_prompts
from scripts.prompt_sets import SETS, prompt_hash
from tests.support import ROOT


def test_the_held_out_prompts_are_many_and_all_different():
    assert len(set(HELD_OUT)) == len(HELD_OUT) == 64
    assert not set(HELD_OUT) & set(SAMPLE_PROMPTS)


def test_no_prompt_for_training_is_measured_on():
    assert not {*HELD_OUT, *SAMPLE_PROMPTS} & set(all_prompts())


def test_settings_are_chosen_on_one_set_and_reported_on_others():
    assert {name: len(hashes) for name, hashes in SETS.items()} == {"report": 96, "circles": 500, "reading": 24}
    assert set(SETS["reading"]) < set(SETS["circles"])
    named = *HELD_OUT, *SAMPLE_PROMPTS, *all_prompts(), *read_prompt_set().texts
    every = [*SETS["report"], *SETS["circles"], *map(prompt_hash, named)]
    assert len(set(every)) == len(every)


def test_the_report_prompts_are_of_three_kinds_in_turn():
    prompts = read_prompt_set()
    assert prompts.kinds == ("chat", "instructions", "code") * 32
    assert prompts.about["prompts"] == 96 and len(set(prompts.texts)) == 96
    assert prompts.about["sha256"] in (ROOT / "docs" / "performance.md").read_text("utf-8")
    few = read_prompt_set(limit=3)
    assert few.texts == prompts.texts[:3] and few.about == prompts.about | {"prompts": 3}


def test_no_report_prompt_shares_eight_words_in_a_row_with_what_anything_was_chosen_on():
    def runs_of_words(prompts, length=8):
        words = [re.findall(r"\w+", prompt.lower()) for prompt in prompts]
        return {tuple(text[i : i + length]) for text in words for i in range(len(text) - length + 1)}

    assert not runs_of_words(read_prompt_set().texts) & runs_of_words([*HELD_OUT, *SAMPLE_PROMPTS, *all_prompts()])


@pytest.mark.parametrize("measured_on", [HELD_OUT, read_prompt_set().texts])
def test_no_held_out_prompt_has_the_form_of_one_for_training(measured_on):
    families = json.loads(files("lora_drop.training").joinpath("prompts.json").read_text(encoding="utf-8"))
    forms = [re.sub(r"\\{\w+\\}", ".+", re.escape(form)) for family in families for form in family["templates"]]
    telling = [form for form in forms if re.sub(r"\.\+|\W", "", form)]  # "{x}?" alone would match any question
    assert len(telling) > 80
    found = [(prompt, form) for prompt in measured_on for form in telling if re.fullmatch(form, prompt)]
    assert not found
