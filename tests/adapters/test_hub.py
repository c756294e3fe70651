"""Adapters on the Hub: the real client, in processes of its own, against a Hub on this machine."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from lora_drop.adapters.bank import AdapterBank
from lora_drop.adapters.hub import CARD_NAME, CONFIG_NAME, FILES, WEIGHTS_NAME, bank_name, hub_name
from lora_drop.errors import LoraDropError
from lora_drop.paths import PRESETS_NAME
from tests.support import ROOT
from tests.support.decoding import random_bank
from tests.support.stand_in_hub import TOKEN, commit_of, running

# Runs commands (lists) and Python (texts) one after the other; prints what each returned and wrote.
DRIVER = """
import contextlib, io, json, os, sys
from lora_drop.cli.main import main
from lora_drop.errors import LoraDropError

results, shared = [], {"os": os}
for step in json.load(open(sys.argv[1])):
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            code = main(step) if isinstance(step, list) else exec(step, shared)
        except Exception as error:
            code = f"{type(error).__name__}: {error}"
    results.append([code, out.getvalue(), err.getvalue()])
print(json.dumps(results))
"""
RUN = ["run", "--model", "random:tiny-llama", "--device", "cpu", "--dtype", "float32", "--prompt", "Hi"]
RUN += ["--max-new-tokens", "8", "--layers", "1-4", "--json", "--adapters"]
ONLINE = {
    "push": ["adapters", "push", "bank", "me/bank"],
    "pull": ["adapters", "pull", "me/bank", "--json"],
    "show": ["adapters", "show", "me/bank"],
    "verify": ["adapters", "verify", "me/bank@main"],
    "run": [*RUN, "me/bank@main", "--trace", "run.jsonl"],
    "folder": [*RUN, "bank"],
    "preset": [*RUN, "me/bank@main", "--preset", "fast"],
    "peft": "from peft import PeftConfig; PeftConfig.from_pretrained('me/bank')",
    "peft folder": "PeftConfig.from_pretrained('bank')",
    # The branch moves. A process that has read it stays with its commit; `from_pretrained` asks each time.
    "move": (
        "from lora_drop import AdapterBank\n"
        "bank = AdapterBank.from_pretrained('me/bank')\n"
        "bank.b[2] += 1\n"
        "print(bank.push_to_hub('me/bank', private=True))"
    ),
    "moved": "print(float(AdapterBank.from_pretrained('me/bank', revision='main').b[2][0, 0]))",
    "pinned": f"print(float(AdapterBank.from_pretrained('me/bank@{commit_of('me/bank', 1)}').b[2][0, 0]))",
    "still": [*RUN, "me/bank@main"],
    "look inside": (
        "from lora_drop import load_model, read_trace\n"
        "from lora_drop.run.inspect import recorded_lane\n"
        "tiny = load_model('random:tiny-llama', 'cpu', 'float32')\n"
        "trace = read_trace('run.jsonl')\n"
        "recorded_lane(tiny, trace, 'lora_drop')"
    ),
    "page": (
        "from lora_drop.models.pool import ModelPool\n"
        "from lora_drop.ui.api import functions\n"
        "from lora_drop.ui.callbacks import Callbacks\n"
        "os.environ['LORA_DROP_ADAPTERS'] = 'me/bank'\n"
        "public, private = Callbacks(ModelPool(tiny), public=True), Callbacks(ModelPool(tiny))\n"
        "def asks(calls, name):\n"
        "    return ''.join(functions(calls)['generate']('Hi', layers='1-4', max_new_tokens=3, adapters=name))\n"
        "assert '\"adapters\": \"me/bank\"' in asks(public, 'me/bank')\n"
        "assert '\"adapters\": \"me/bank@main\"' in asks(private, 'me/bank@main')"
    ),
    "page, not listed": "asks(public, 'me/bank@main')",
    "page, a folder": "asks(private, '/etc')",
    "listed wrongly": "os.environ['LORA_DROP_ADAPTERS'] = '/etc'; Callbacks(ModelPool(tiny))",
    # Bad input.
    "no repository": [*RUN, "me/gone"],
    "no revision": ["adapters", "pull", "me/bank@v9"],
    "no config": ["adapters", "pull", "me/peft"],
    "pickle": ["adapters", "pull", "me/pickle"],
    "cut": ["adapters", "pull", "me/cut"],
    "damaged": ["adapters", "verify", "me/damaged"],
    "no base model": ["adapters", "push", "nameless", "me/new"],
    "no licence": ["adapters", "push", "unlicensed", "me/new"],
    "refused card": ["adapters", "push", "odd", "me/odd"],
    "no branch": ["adapters", "push", "bank", "me/bank@v9"],
    "log out": "del os.environ['HF_TOKEN']",
    "private": ["adapters", "pull", "private/bank"],
    "refused push": ["adapters", "push", "bank", "me/bank"],
}
OFFLINE = {
    "run": [*RUN, "me/bank@main"],
    "pinned": f"from lora_drop import AdapterBank; AdapterBank.from_pretrained('me/bank@{commit_of('me/bank', 1)}')",
    "never fetched": [*RUN, "me/other"],
    "push": ["adapters", "push", "bank", "me/bank"],
}


def results_of(steps: dict[str, list[str] | str], place: Path, url: str) -> dict[str, tuple]:
    (place / "steps.json").write_text(json.dumps(list(steps.values())))
    env = os.environ | {"HF_ENDPOINT": url, "HF_HOME": str(place / "hf"), "HF_TOKEN": TOKEN, "PYTHONPATH": str(ROOT)}
    env |= {"HF_HUB_DISABLE_XET": "1", "HF_HUB_DISABLE_TELEMETRY": "1", "NO_PROXY": "127.0.0.1,localhost"}
    command = [sys.executable, "-c", DRIVER, "steps.json"]
    done = subprocess.run(command, cwd=place, env=env, capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stderr[-3000:]
    return dict(zip(steps, map(tuple, json.loads(done.stdout.splitlines()[-1])), strict=True))


@pytest.fixture(scope="module")
def results(tiny, tmp_path_factory):
    """What all steps came to, online and then without the Hub; the Hub, and the folder of the client."""
    place = tmp_path_factory.mktemp("client")
    bank = random_bank(tiny)
    bank.revision, bank.num_layers, bank.base_model = tiny.revision, tiny.num_layers, "me/tiny"
    bank.meta = {"license": "mit"}
    bank.save(place / "bank")
    config = {"period": 5, "refresh": "repair", "kv": "write", "accept": 0.4}
    content = {"model": {"id": "me/tiny", "revision": tiny.revision, "dtype": "float32"}, "rows": []}
    content["presets"] = {"fast": {"note": "", "config": config}}
    (place / "bank" / PRESETS_NAME).write_text(json.dumps(content))
    for name, base, licence in (
        ("nameless", "random:tiny-llama", "mit"),
        ("unlicensed", "me/tiny", None),
        ("odd", "me/tiny", "mine"),
    ):
        bank.base_model, bank.meta = base, {"license": licence}
        bank.save(place / name)
    files = {path.name: path.read_bytes() for path in (place / "bank").iterdir()}
    with running() as hub:
        hub.commit("me/peft", {WEIGHTS_NAME: files[WEIGHTS_NAME], "adapter_config.json": b"{}"})
        hub.commit("me/pickle", {CONFIG_NAME: files[CONFIG_NAME], "adapter_model.bin": b"\x80\x04."})
        flipped = bytearray(files[WEIGHTS_NAME])
        flipped[-1] ^= 1
        hub.commit("me/damaged", files | {WEIGHTS_NAME: bytes(flipped)})
        for name in ("me/cut", "private/bank"):
            hub.commit(name, files)
        hub.cut.add("me/cut")
        online = results_of(ONLINE, place, hub.url)
        url = hub.url
    return online, results_of(OFFLINE, place, url), hub, place


@pytest.mark.full
def test_what_is_pushed_is_pulled(results):
    online, _, hub, place = results
    code, out, err = online["push"]
    assert code == 0 and out.strip() == f"{hub.url}/me/bank/commit/{commit_of('me/bank', 1)}", err
    pushed = hub.commits["me/bank"][1]
    assert set(pushed) == set(FILES), "and no adapter_config.json"
    assert pushed == {path.name: path.read_bytes() for path in (place / "bank").iterdir()}
    assert any(".git/info/lfs" in path for path in hub.asked)
    pulled = json.loads(online["pull"][1])
    assert pulled["adapters"] == bank_name(Path(pulled["folder"])) == f"me/bank@{commit_of('me/bank', 1)[:12]}"
    [back, bank] = [AdapterBank.load(folder) for folder in (pulled["folder"], place / "bank")]
    assert all(torch.equal(back.a[i], bank.a[i]) for i in bank.a)
    assert "base_model: me/tiny" in online["show"][1] and "in order" in online["verify"][1]


@pytest.mark.full
def test_a_run_takes_them_by_name(results):
    online, offline, _, place = results
    by_name, by_folder = (json.loads(online[name][1]) for name in ("run", "folder"))
    tokens = by_name["lora_drop"]["token_ids"]
    assert tokens == by_folder["lora_drop"]["token_ids"] != by_name["baseline"]["token_ids"]
    header = json.loads((place / "run.jsonl").read_text().splitlines()[0])
    assert header["lanes"][1]["config"]["adapters"] == "me/bank@main"
    still = json.loads(online["still"][1])["lora_drop"]["token_ids"]
    assert still == tokens, "of one commit, whatever happens to the branch meanwhile"
    config = json.loads(online["preset"][1])["config"]
    assert (config["period"], config["accept"], config["adapters"]) == (5, 0.4, "me/bank@main"), "its own preset"
    assert online["look inside"][0] == (
        "LoraDropError: this run's adapters have changed since, or are gone: run it again to look inside."
    )
    assert offline["run"][0] == 0, "the newest commit that was fetched"
    assert json.loads(offline["run"][1])["lora_drop"]["token_ids"] != tokens


@pytest.mark.full
def test_a_moved_branch_is_read_anew_and_a_commit_stays(results):
    online, offline, hub, _ = results
    moved, pinned = (float(online[name][1]) for name in ("moved", "pinned"))
    assert moved == pytest.approx(pinned + 1, abs=1e-3)
    assert online["move"][1].strip().endswith(commit_of("me/bank", 2)) and len(hub.commits["me/bank"]) == 3
    assert offline["pinned"][0] is None


@pytest.mark.full
def test_peft_cannot_find_its_config(results):
    online, *_ = results
    for name in ("peft", "peft folder"):
        assert "Can't find 'adapter_config.json'" in online[name][0]


@pytest.mark.full
def test_a_visitor_of_a_public_page_has_the_listed_ones(results):
    online, *_ = results
    assert online["page"][0] is None
    assert online["page, not listed"][0] == "Error: 'adapters must be auto or none or me/bank.'"
    assert "auto or none or me/bank or a repository USER/REPO" in online["page, a folder"][0]
    assert online["listed wrongly"][0].startswith("LoraDropError: LORA_DROP_ADAPTERS lists")


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("no repository", "no adapters me/gone on the Hub: check the spelling"),
        ("no revision", "me/bank@v9 is no revision on the Hub"),
        ("no config", f"me/peft has no {CONFIG_NAME}, so it holds no LoRA-Drop adapters"),
        (
            "pickle",
            f"me/pickle has no {WEIGHTS_NAME}, so it holds no LoRA-Drop adapters (pickled weights are never read)",
        ),
        ("cut", "the download of me/cut broke off: try again."),
        ("damaged", f"{WEIGHTS_NAME} differs from SHA256SUMS"),
        ("no base model", f"the card of me/new, {CARD_NAME}, names no base model of the Hub"),
        ("no licence", "names no licence: write `license: apache-2.0`"),
        ("refused card", '"license" must be one of'),
        ("no branch", "me/bank@v9 is no revision on the Hub"),
        ("private", "no adapters private/bank on the Hub: check the spelling; if it is private, log in"),
        ("refused push", "the Hub refuses access to me/bank: log in with `hf auth login`"),
    ],
)
@pytest.mark.full
def test_bad_input_is_one_line(results, name, says):
    code, out, err = results[0][name]
    assert (code, out, err.count("\n")) == (2, "", 1) and says in err, (code, out, err)
    assert "me/new" not in results[2].commits


@pytest.mark.full
def test_without_the_hub_what_was_never_fetched_is_one_line(results):
    _, offline, *_ = results
    for name, says in (
        ("never fetched", "me/other is not on this machine and"),
        ("push", "me/bank was not pushed, as"),
    ):
        code, _, err = offline[name]
        assert code == 2 and err.count("\n") == 1 and f"{says} the Hub cannot be reached" in err, err


def test_a_local_folder_comes_first(tiny, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert hub_name("me/bank@v1") == ("me/bank", "v1") and hub_name("me/bank") == ("me/bank", None)
    random_bank(tiny).save("me/bank")
    assert hub_name("me/bank") is None and AdapterBank.from_pretrained("me/bank").rank == 4
    with pytest.raises(LoraDropError, match="so it has no revision"):
        AdapterBank.from_pretrained("me/bank", revision="v1")
    for name in ("bank", "/me/bank", "me/bank/x", "me/bank@../x", "me/bank@", "../me", "a b/c"):
        assert hub_name(name) is None, name
