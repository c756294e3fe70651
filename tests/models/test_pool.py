"""The models menu's pool: what may be chosen, one model in memory at a time, and what goes wrong."""

import gc
import threading
import weakref
from types import SimpleNamespace

import pytest
import torch

from lora_drop.errors import LoraDropError
from lora_drop.method.config import LoraDropConfig
from lora_drop.method.presets import PRESETS, Preset, Presets
from lora_drop.models import pool as shelf_module
from lora_drop.models.load import BUNDLED_ID, load_model
from lora_drop.models.pool import PRESET_MODELS, ModelPool, allowed_models, label_of
from lora_drop.run.request import Request, plan
from lora_drop.run.run import run
from lora_drop.run.trace.trace import gather, parse_trace
from lora_drop.ui import api
from lora_drop.ui.api import functions
from lora_drop.ui.callbacks import Callbacks
from lora_drop.ui.facts import page_facts, train_command
from lora_drop.ui.serve.policy import Limits
from tests.support.calls import press_run

LLAMA, QWEN = "random:tiny-llama", "random:tiny-qwen2"
ASKED = Request("Why?", LoraDropConfig(period=3), 8, audit=False, ignore_eos=True)


class Loader:
    """`load_model` that keeps weak references to what it hands out, and counts those alive when it is called.

    It sets `reading` when it begins, and waits for `read_on`.
    """

    def __init__(self):
        self.names, self.handed, self.alive = [], [], []
        self.error: Exception | None = None
        self.reading, self.read_on = threading.Event(), threading.Event()
        self.read_on.set()

    def slow(self) -> None:
        """Have the next load wait."""
        self.reading.clear()
        self.read_on.clear()

    def __call__(self, name):
        self.reading.set()
        assert self.read_on.wait(30)
        gc.collect()
        self.names.append(name)
        self.alive.append(sum(ref() is not None for ref in self.handed))
        if self.error:
            raise self.error
        loaded = load_model(name, "cpu", "float32")
        self.handed.append(weakref.ref(loaded.model))
        return loaded


@pytest.fixture
def loader():
    return Loader()


@pytest.fixture
def pool(loader):
    return ModelPool(loader(LLAMA), [QWEN], loader)


def test_the_environment_names_the_models_on_offer(monkeypatch, tmp_path):
    monkeypatch.setenv("LORA_DROP_CACHE", str(tmp_path))  # no larger model is in it
    monkeypatch.delenv("LORA_DROP_MODELS", raising=False)
    assert allowed_models(public=False) == PRESET_MODELS
    assert allowed_models(public=True) == (), "to the public a page offers what its owner lists, and nothing else"
    for public in (False, True):
        monkeypatch.setenv("LORA_DROP_MODELS", " a/b, presets ,, c/d")
        assert allowed_models(public) == ("a/b", *PRESET_MODELS, "c/d")
        monkeypatch.setenv("LORA_DROP_MODELS", "")
        assert allowed_models(public) == ()


def test_visitors_see_ids_and_no_paths(tmp_path):
    (tmp_path / "mine").mkdir()
    assert label_of(str(tmp_path / "mine")) == "mine"
    assert (label_of("bundled"), label_of("a/b")) == (BUNDLED_ID, "a/b")


def test_only_models_of_the_list_are_lent(pool, loader):
    assert pool.labels == (LLAMA, QWEN)
    for wrong in ("random:tiny-mistral", "", "../" + LLAMA, 3, ["x"], "x" * 10_000):
        with pytest.raises(LoraDropError, match="model must be one of random:tiny-llama, random:tiny-qwen2") as says:
            next(_lent_id(pool, wrong))
        assert len(str(says.value)) < 300 and "\n" not in str(says.value)
    assert loader.names == [LLAMA]


def test_a_swap_lets_the_old_model_go_before_it_reads_the_new_one(pool, loader):
    pool.load_seconds = -1.0
    for name in (QWEN, LLAMA, LLAMA, QWEN):
        with pool.lend(name) as loaded:
            assert loaded.id == name
            assert gather(run(loaded, ASKED)).token_ids("lora_drop")
            del loaded
    assert loader.names == [LLAMA, QWEN, LLAMA, QWEN], "what is in memory is not read again"
    assert loader.alive == [0, 0, 0, 0], "two models were in memory"
    assert pool.load_seconds >= 0, "the owner's metrics have it"


@pytest.mark.full
def test_a_swapped_model_answers_as_one_that_was_loaded_alone(pool):
    alone = gather(run(load_model(QWEN, "cpu", "float32"), ASKED)).token_ids("lora_drop")
    calls = Callbacks(pool)
    for _ in range(2):
        for model in (QWEN, None):
            ids = gather(calls.run(ASKED, None, model)).token_ids("lora_drop")
            assert (ids == alone) == (model == QWEN)


def test_a_call_takes_the_presets_of_the_weights_also_before_they_were_loaded(pool, monkeypatch):
    """Before: those of the name at the first call, and those of the weights at the second."""
    ours = Presets([Preset("fast", "Fast", "", LoraDropConfig(period=3, drop_ratio=1.0))])
    monkeypatch.setattr(api, "presets_of", lambda info, adapters=None: ours if info.id == QWEN else PRESETS)
    for _ in range(2):
        *_, text = functions(Callbacks(pool))["generate"]("Hi", preset="fast", model=QWEN, max_new_tokens=4)
        written = parse_trace(text.encode()).header.main["config"]
        assert (written["period"], written["drop_ratio"]) == (3, 1.0)


def test_a_swap_waits_for_the_run_that_is_on(pool):
    order = []
    with pool.lend() as loaded:
        waiting = threading.Thread(target=lambda: order.append(list(_lent_id(pool, QWEN))))
        waiting.start()
        with pool.lend() as also:  # the same model serves others meanwhile
            assert also is loaded
        order.append("given back")
        del loaded, also
    waiting.join(30)
    assert order == ["given back", [QWEN]]


def test_while_a_model_is_fetched_or_read_others_go_on(loader):
    """Before: a lock was held for the whole of a download, and nobody could even give a model back."""
    fetching, go_on = threading.Event(), threading.Event()

    def fetch(name, should_stop):
        fetching.set()
        yield f"Fetching {name}: 0 of 1 MB."
        assert go_on.wait(30)

    pool, done = ModelPool(loader(LLAMA), [QWEN], loader, fetch=fetch), []
    loader.slow()
    other = threading.Thread(target=lambda: done.append(next(_lent_id(pool, QWEN))))
    other.start()
    assert fetching.wait(30)
    for _ in range(3):
        with pool.lend(LLAMA) as loaded:
            assert loaded.id == LLAMA and loader.names == [LLAMA], "nothing is dropped for what is not here yet"
            del loaded
    go_on.set()
    assert loader.reading.wait(30)
    assert pool.check(QWEN) == QWEN and pool.info(LLAMA).id == LLAMA and not pool.is_known(QWEN)
    says = "^Stopped: random:tiny-llama was not loaded.$"
    with pytest.raises(LoraDropError, match=says), pool.lend(LLAMA, lambda: True):
        pass
    loader.read_on.set()
    other.join(30)
    assert done == [QWEN] and loader.alive == [0, 0]


def test_a_fetch_ends_when_its_visitor_stops_it_and_is_begun_again(loader):
    begun = []

    def fetch(name, should_stop):
        begun.append(name)
        yield "Fetching."
        if should_stop():
            raise LoraDropError("Stopped: it was not fetched.")

    pool = ModelPool(loader(LLAMA), [QWEN], loader, fetch=fetch)
    with pytest.raises(LoraDropError, match="^Stopped"):
        list(pool.fetch(QWEN, lambda: True))
    assert list(pool.fetch(QWEN)) == ["Fetching."] and list(pool.fetch(QWEN)) == list(pool.fetch(LLAMA)) == []
    assert begun == [QWEN, QWEN]


def test_the_menu_fetches_first_and_goes_back_where_that_fails(loader):
    def fetch(name, should_stop):
        yield f"Fetching {name}: 1 of 2 MB."
        raise LoraDropError(f"{name} is gated.")

    visitor = SimpleNamespace(session_hash="me")
    calls = Callbacks(ModelPool(loader(LLAMA), [QWEN], loader, fetch=fetch))
    (says, _, stop), (wrong, menu, off) = calls.fetch_model(QWEN, LLAMA, visitor)
    assert says == {"kind": "running", "text": f"Fetching {QWEN}: 1 of 2 MB."} and stop["interactive"]
    assert wrong == {"kind": "error", "text": f"{QWEN} is gated."} and menu["value"] == LLAMA
    assert not off["interactive"] and len(calls.stops) == 0
    assert len(list(calls.fetch_model(LLAMA, LLAMA, visitor))) == 1
    run_s = calls.stops.start("me")  # a run of the same visitor keeps its flag and its button
    (_, _, _), (_, _, button) = calls.fetch_model(QWEN, LLAMA, visitor)
    assert button["interactive"]
    calls.stop_page(visitor)
    assert run_s.is_set()


def test_who_stops_while_weights_are_read_does_not_wait_for_them(pool, loader):
    """The next visitor finds the model, which was read once."""
    loader.slow()
    says = "^Stopped: random:tiny-qwen2 was not loaded.$"
    with pytest.raises(LoraDropError, match=says), pool.lend(QWEN, loader.reading.is_set):
        pass
    assert not pool.is_at_hand(QWEN)
    waiting = []
    next_one = threading.Thread(target=lambda: waiting.append(next(_lent_id(pool, QWEN))))
    next_one.start()
    loader.read_on.set()
    next_one.join(30)
    assert waiting == [QWEN] and loader.names == [LLAMA, QWEN] and loader.alive == [0, 0]
    assert next(_lent_id(pool, LLAMA)) == LLAMA and max(loader.alive) == 0, "it was lent to nobody else"


def test_a_visitors_stop_and_the_clock_end_a_run_that_waits_for_weights(loader):
    visitor = SimpleNamespace(session_hash="me")
    for limits, stops in ((Limits(), True), (Limits(seconds=1e-6), False)):
        calls = Callbacks(ModelPool(loader(LLAMA), [QWEN], loader), limits)
        loader.slow()
        if stops:
            threading.Thread(target=lambda calls=calls: loader.reading.wait(30) and calls.stop_page(visitor)).start()
        says = list(press_run(calls, visitor, "Why?", model=QWEN, max_new_tokens=4))
        assert says[-1][1] == {"kind": "error", "text": f"Stopped: {QWEN} was not loaded."}
        assert len(calls.stops) == 0
        loader.read_on.set()


def _lent_id(pool, label):
    with pool.lend(label) as loaded:
        yield loaded.id


def test_a_run_that_is_never_given_back_blocks_no_one_for_ever(pool, monkeypatch):
    monkeypatch.setattr(shelf_module, "WAIT", 0.01)
    with pool.lend(), pytest.raises(LoraDropError, match="still in use: ask for random:tiny-qwen2 again"):
        next(_lent_id(pool, QWEN))
    assert next(_lent_id(pool, QWEN)) == QWEN


def test_where_a_load_fails_the_next_request_is_served(pool, loader):
    loader.error = LoraDropError(f"{QWEN} is gated: accept its terms on its Hub page.")
    with pytest.raises(LoraDropError, match="is gated"):
        next(_lent_id(pool, QWEN))
    loader.error = None
    assert next(_lent_id(pool, LLAMA)) == LLAMA
    assert next(_lent_id(pool, QWEN)) == QWEN
    assert max(loader.alive) == 0


def test_what_is_known_stays_when_the_weights_go(pool):
    with pytest.raises(LoraDropError, match="was not loaded here yet"):
        pool.info(QWEN)
    with pool.lend(QWEN) as loaded:
        facts, checked = page_facts(loaded), plan(loaded, ASKED)
        del loaded
    with pool.lend(LLAMA):
        assert not pool.is_at_hand(QWEN) and pool.is_known(QWEN)
        info = pool.info(QWEN)
        assert page_facts(info) == facts
        assert plan(info, ASKED) == checked
        estimate = functions(Callbacks(pool))["estimate"]
        assert estimate(model=QWEN)["bound"] > 1 and estimate(model=QWEN) != estimate()
    assert not any(isinstance(value, torch.nn.Module) for value in vars(info).values())


def test_the_menu_shows_a_model_and_goes_back_where_it_cannot_be_had(pool, loader, capsys):
    calls = Callbacks(pool)
    (_, loading, _, _), (facts, ready, _, shown) = calls.use_model(QWEN, LLAMA)
    assert loading["kind"] == "running" and QWEN in loading["text"]
    assert (facts["model"]["id"], ready["kind"], shown) == (QWEN, "idle", QWEN)
    assert len(list(calls.use_model(QWEN, QWEN))) == 1, "the menu was put back: nothing happens"
    [(_, wrong, menu, _)] = calls.use_model("other/model", QWEN)
    assert wrong["kind"] == "error" and "must be one of" in wrong["text"] and menu["value"] == QWEN
    calls, loader.error = Callbacks(ModelPool(loader(LLAMA), [QWEN], loader)), RuntimeError("secret detail")
    *_, (_, says, menu, _) = calls.use_model(QWEN, LLAMA)
    assert says["kind"] == "error" and "secret" not in says["text"] and menu["value"] == LLAMA
    assert "secret detail" in capsys.readouterr().err, "the operator's log has it"


def test_without_adapters_training_is_offered_with_the_command_filled_in(pool):
    with pool.lend() as loaded:
        assert page_facts(loaded)["model"]["train"] == train_command(LLAMA)
    assert train_command("Qwen/Qwen2.5-7B-Instruct") == (
        "python -m lora_drop train --model Qwen/Qwen2.5-7B-Instruct --self-generate 500 "
        "--out assets/adapters/qwen2-5-7b-instruct-residual-block"
    )
    assert "--model 'my model;ls'" in train_command("my model;ls"), "quoted for a shell"
