"""What is measured on was not trained on."""

import json
import re
from importlib.resources import files

from lora_drop.run.results.prompts import HELD_OUT, SAMPLE_PROMPTS
from lora_drop.training.prompts import all_prompts
from scripts.prompt_sets import SETS, prompt_hash


def test_the_held_out_prompts_are_many_and_all_different():
    assert len(set(HELD_OUT)) == len(HELD_OUT) == 64
    assert not set(HELD_OUT) & set(SAMPLE_PROMPTS)


def test_no_prompt_for_training_is_measured_on():
    assert not {*HELD_OUT, *SAMPLE_PROMPTS} & set(all_prompts())


def test_settings_are_chosen_on_one_set_and_reported_on_others():
    assert {name: len(hashes) for name, hashes in SETS.items()} == {"report": 96, "circles": 500, "reading": 24}
    assert set(SETS["reading"]) < set(SETS["circles"])
    every = [*SETS["report"], *SETS["circles"], *map(prompt_hash, (*HELD_OUT, *SAMPLE_PROMPTS, *all_prompts()))]
    assert len(set(every)) == len(every)


def test_no_held_out_prompt_has_the_form_of_one_for_training():
    families = json.loads(files("lora_drop.training").joinpath("prompts.json").read_text(encoding="utf-8"))
    forms = [re.sub(r"\\{\w+\\}", ".+", re.escape(form)) for family in families for form in family["templates"]]
    telling = [form for form in forms if re.sub(r"\.\+|\W", "", form)]  # "{x}?" alone would match any question
    assert len(telling) > 80
    found = [(prompt, form) for prompt in HELD_OUT for form in telling if re.fullmatch(form, prompt)]
    assert not found
