"""The packages that this program asks for: pyproject.toml's for the wheel, requirements.txt's for a Space."""

import tomllib

from huggingface_hub import metadata_load
from packaging.requirements import Requirement

from lora_drop.paths import CHECKOUT
from lora_drop.ui.serve import space_folder

PROJECT = tomllib.loads((CHECKOUT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
REQUIREMENTS = (CHECKOUT / "requirements.txt").read_text(encoding="utf-8")
FRONT_MATTER = metadata_load(CHECKOUT / "README.md")


def allows(package, version):
    """Whether requirements.txt allows a version of a package."""
    lines = [Requirement(line) for line in REQUIREMENTS.splitlines() if line and not line.startswith("#")]
    return [version in line.specifier for line in lines if line.name == package] == [True]


def test_a_space_gets_the_core_and_the_page():
    lines = [line for line in REQUIREMENTS.splitlines() if not line.startswith("#")]
    assert lines == PROJECT["dependencies"] + PROJECT["optional-dependencies"]["page"]


def test_the_tests_have_the_lm_eval_that_the_extra_names():
    lines = (CHECKOUT / "tests" / "requirements.txt").read_text(encoding="utf-8").splitlines()
    assert set(PROJECT["optional-dependencies"]["benchmark"]) <= set(lines)


def test_the_next_transformers_may_be_installed():
    assert allows("huggingface_hub", "2.4.0"), "transformers 5.25 needs it"


def test_zero_gpu_has_what_is_asked_for():
    assert allows("torch", space_folder.ZERO_GPU_TORCH) and allows("gradio", FRONT_MATTER["sdk_version"])
    oldest = PROJECT["requires-python"].removeprefix(">=").split(".")
    assert [int(part) for part in FRONT_MATTER["python_version"].split(".")] >= [int(part) for part in oldest]
