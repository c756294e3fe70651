"""Shared by all tests: tiny models of each architecture, and the bundled model."""

import os
from collections import Counter

os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")
os.environ.setdefault("LORA_DROP_CALIBRATE", "0")  # no page measures beside a test

import pytest

pytest.register_assert_rewrite("tests.support")  # so that `python -O` keeps their asserts, as it does the tests' own

import lora_drop  # noqa: E402, F401  sets OpenMP's waiting before torch is imported

# isort: split
import torch  # noqa: E402

if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")  # before Triton is imported, by whomever
# Workers share the cores; threads of both on each core would wait for one another.
torch.set_num_threads(max(1, torch.get_num_threads() // int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))))

from lora_drop.models.load import LoadedModel, load_model  # noqa: E402
from lora_drop.run.results import calibration  # noqa: E402

pytest_plugins = [
    f"tests.support.{name}" for name in ("calls", "commands", "faults", "task_files", "workshop")
]  # their fixtures are every test's
ARCHITECTURES = ("tiny-llama", "tiny-qwen2", "tiny-qwen3", "tiny-mistral")


@pytest.hookimpl(tryfirst=True)  # before `-m` looks at the marks
def pytest_collection_modifyitems(items):
    seen = Counter()
    for item in items:
        if item.get_closest_marker("gpu") and not torch.cuda.is_available():
            item.add_marker(pytest.mark.skip(reason="there is no CUDA device here"))
        if item.get_closest_marker("products"):
            architecture = item.callspec.params["any_tiny"]
            seen[item.originalname, architecture] += 1
            at = ARCHITECTURES.index(architecture)
            if at and seen[item.originalname, architecture] % (len(ARCHITECTURES) - 1) != at - 1:
                item.add_marker(pytest.mark.full)


@pytest.fixture(scope="session", autouse=True)
def calibrated_nowhere(tmp_path_factory):
    """What was measured on this machine is no part of a test: calibrations are kept in a folder of the tests."""
    with pytest.MonkeyPatch.context() as patch:
        folder = tmp_path_factory.mktemp("calibrations")
        patch.setattr(calibration, "calibrations", lambda: folder)
        yield


@pytest.fixture(scope="session")
def tiny() -> LoadedModel:
    """A tiny random Llama in float32 on the CPU."""
    return load_model("random:tiny-llama", device="cpu", dtype="float32")


@pytest.fixture(scope="session", params=ARCHITECTURES)
def any_tiny(request) -> LoadedModel:
    """A tiny random model of each architecture, float32, CPU."""
    return load_model(f"random:{request.param}", device="cpu", dtype="float32")


@pytest.fixture(scope="session")
def bundled() -> LoadedModel:
    """The real bundled model in float32 on the CPU, fetched into the cache folder if it is not there yet."""
    return load_model("bundled", device="cpu", dtype="float32")


def pytest_terminal_summary(terminalreporter):
    """With LORA_DROP_FUZZ: how many inputs the tests of hostile input tried."""
    from tests.support.fuzzing import FACTOR, SEED, TRIED

    if FACTOR and TRIED:
        counts = ", ".join(f"{name} {count:,}" for name, count in sorted(TRIED.items()))
        terminalreporter.write_line(f"inputs tried: {sum(TRIED.values()):,} ({counts}); seed of mutations {SEED}")
