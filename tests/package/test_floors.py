"""The oldest versions that requirements.txt allows: `make test-floors` makes a venv of them, and runs these in it."""

import json
import os
import subprocess
import sys
from importlib.metadata import version
from urllib.request import urlopen

import pytest
from packaging.requirements import Requirement
from packaging.version import Version

from lora_drop.models.bundled import ensure
from lora_drop.models.download import GGUF
from lora_drop.paths import CHECKOUT

pytestmark = [pytest.mark.floors, pytest.mark.timeout(900)]

ANSWER = [504, 6376, 314, 4461, 30, 657, 506, 253, 4959, 1909, 281, 2092, 284, 984, 338, 553, 32525, 701, 327, 5034]
ASK = """
from lora_drop import LoraDropConfig, load_model
from lora_drop.run.request import Request
from lora_drop.run.run import run
from lora_drop.run.trace.trace import gather
loaded = load_model("bundled", device="cpu", dtype="float32")
asked = Request("Explain why the sky is blue.", LoraDropConfig(period=4), 20, audit=False)
print(gather(run(loaded, asked)).token_ids("baseline"))
"""


def test_this_venv_has_the_floors():
    """A lowest version that another package's own floor lifts is no version that anybody has."""
    lines = (CHECKOUT / "requirements.txt").read_text(encoding="utf-8").splitlines()
    asked = [Requirement(line) for line in lines if not line.startswith("#")]
    lowest = {of.name: next(Version(s.version) for s in of.specifier if s.operator == ">=") for of in asked}
    assert {name: Version(Version(version(name)).public) for name in lowest} == lowest


def test_the_bundled_model_says_what_it_should(tmp_path):
    """Converted anew: some versions read the GGUF without an error, and wrong."""
    env = os.environ | {"LORA_DROP_CACHE": str(tmp_path), "LORA_DROP_WHEEL": str(ensure() / GGUF.name)}
    done = subprocess.run([sys.executable, "-c", ASK], cwd=CHECKOUT, env=env, stdout=subprocess.PIPE, text=True)
    assert done.returncode == 0 and done.stdout.strip() == str(ANSWER)


def test_the_page_answers(tiny):
    from gradio_client import Client

    from lora_drop.models.pool import ModelPool
    from lora_drop.ui.page import build_app, launch

    page = build_app(ModelPool(tiny))
    address = launch(page, block=False)
    try:
        with urlopen(address) as answer:
            assert "LoRA-Drop Studio" in answer.read().decode()
        result = Client(address, verbose=False, httpx_kwargs={"timeout": 60}).predict(
            "hi", max_new_tokens=4, api_name="/generate"
        )
        assert len(json.loads(result.splitlines()[0])["lanes"]) == 2
    finally:
        page.close()
