"""The page calibrates the machine while nobody runs, and a visitor never waits for more than a step of it."""

import threading
import time
from contextlib import ExitStack

import pytest

from lora_drop.errors import LoraDropError
from lora_drop.evaluation.measure import calibrate
from lora_drop.method.presets import PRESETS
from lora_drop.models.pool import ModelPool
from lora_drop.run.results import calibration as kept
from lora_drop.run.results.calibration import is_calibrated, speeds_here, write_calibration
from lora_drop.ui import page, start
from lora_drop.ui.callbacks import Callbacks
from lora_drop.ui.serve import calibration
from lora_drop.ui.serve.calibration import Background, calibrates


@pytest.fixture(autouse=True)
def folder(monkeypatch, tmp_path):
    monkeypatch.setattr(kept, "calibrations", lambda: tmp_path / "kept")
    monkeypatch.setattr(calibrate, "LEAST_TOKENS", 1)
    monkeypatch.setattr(calibration, "PAUSE", 0.01)


@pytest.fixture
def quick(monkeypatch):
    """Calibrations that are done after one short prompt."""
    monkeypatch.setattr(calibrate, "ANSWER_TOKENS", 9)
    monkeypatch.setattr(calibration, "Calibration", lambda info, seconds: calibrate.Calibration(info, 1e-9))


class Slow:
    """A calibration that ends only where it is asked to stop."""

    is_done = False

    def __init__(self):
        self.is_running, self.began = False, threading.Event()

    def go_on(self, loaded, should_stop):
        self.is_running = True
        self.began.set()
        while not should_stop():
            time.sleep(0.01)
        self.is_running = False


@pytest.fixture
def slow(monkeypatch, tiny):
    """A pool and its background at work on a slow calibration."""
    work = Slow()
    monkeypatch.setattr(calibration, "Calibration", lambda info, seconds: work)
    pool = ModelPool(tiny)
    background = Background(pool)
    ended = threading.Event()

    def repeat():
        while not ended.is_set():
            background.advance(tiny.id)

    thread = threading.Thread(target=repeat)
    thread.start()
    assert work.began.wait(30)
    yield pool, work
    ended.set()
    with pool.lend():
        thread.join(30)
    assert not thread.is_alive()


def test_a_model_in_memory_is_calibrated_once(tiny, quick):
    background = Background(ModelPool(tiny))
    background.advance(tiny.id)
    assert speeds_here(tiny).keys() == PRESETS.keys()
    assert background._next[tiny.id] > time.monotonic(), "settled, or noisy and tried again much later"


def test_speeds_that_are_clear_are_not_measured_again(tiny, quick, monkeypatch):
    rows = [
        {"lane": name, "config": preset.config.differences(), "adapters_fingerprint": None, "accepted": None}
        | {"speedup": 1.0, "speedup_interval": [0.99, 1.01], "bound": 1.1}
        for name, preset in PRESETS.items()
    ]
    write_calibration(tiny, rows)
    background = Background(ModelPool(tiny))
    background.advance(tiny.id)
    assert list(speeds_here(tiny).values()) == rows and background._next == {tiny.id: float("inf")}
    rows[0] = rows[0] | {"speedup_interval": None}
    write_calibration(tiny, rows)
    noisy = [row | {"speedup_interval": None} for row in rows]
    monkeypatch.setattr(calibrate.Calibration, "rows", lambda self: noisy)
    background = Background(ModelPool(tiny))
    for count in range(calibration.TRIES):
        assert background._next.get(tiny.id, 0) < float("inf"), count
        background.advance(tiny.id)
    assert background._next == {tiny.id: float("inf")}
    assert list(speeds_here(tiny).values()) == rows, "what is less clear takes no other's place"


def test_it_rests_while_somebody_runs(slow):
    pool, work = slow
    for _ in range(3):
        with pool.lend():
            assert not work.is_running
            work.began.clear()
        assert work.began.wait(30), "and goes on later"


def test_a_look_inside_a_token_comes_first_too(slow, tiny):
    pool, work = slow
    with pool.spare(tiny.id, 60) as (_, is_wanted):
        assert not work.is_running and not is_wanted()


def test_a_model_that_cannot_be_calibrated_is_left_alone(tiny, monkeypatch):
    def refuse(info, seconds):
        raise LoraDropError("no")

    monkeypatch.setattr(calibration, "Calibration", refuse)
    background = Background(ModelPool(tiny))
    background.advance(tiny.id)
    assert background._next == {tiny.id: float("inf")} and not is_calibrated(tiny)


def test_a_page_that_is_open_gets_the_speeds_once_they_are_there(tiny, quick):
    pool = ModelPool(tiny)
    calls = Callbacks(pool)
    assert calls.calibrated_presets() is None
    Background(pool).advance(tiny.id)
    facts = calls.calibrated_presets()
    assert facts["is_calibrated"] and facts is calls.calibrated_presets()


@pytest.mark.parametrize(("variable", "zero", "measures"), [("", "", True), ("0", "", False), ("1", "true", False)])
def test_who_measures(monkeypatch, tmp_path, variable, zero, measures):
    monkeypatch.setenv("LORA_DROP_CALIBRATE", variable)
    monkeypatch.setenv("SPACES_ZERO_GPU", zero)
    assert calibrates() is measures
    if zero:
        return
    begun = []
    monkeypatch.setenv("GRADIO_TEMP_DIR", str(tmp_path))
    monkeypatch.setattr(page, "build_app", lambda pool, policy: policy)
    monkeypatch.setattr(page, "launch", lambda *_, **__: None)
    monkeypatch.setattr(Background, "start", lambda self: begun.append(self))
    args = start._parser("app.py").parse_args(["--model", "random:tiny-llama", "--device", "cpu"])
    start._serve(args, ExitStack())
    assert bool(begun) is measures, "after the model is loaded"


def test_another_value_of_the_variable_is_refused(monkeypatch):
    monkeypatch.setenv("LORA_DROP_CALIBRATE", "maybe")
    with pytest.raises(LoraDropError, match="LORA_DROP_CALIBRATE must be 1 or 0"):
        calibrates()
