"""Public or private, whose request it is, which names the page answers to; whose run is next."""

from contextlib import ExitStack

import pytest

from lora_drop.errors import LoraDropError
from lora_drop.ui import page, start
from lora_drop.ui.serve.policy import PUBLIC, Limits, Policy
from lora_drop.ui.serve.turns import KNOWN, Turns


@pytest.fixture(autouse=True)
def plain_environment(monkeypatch):
    for name in ("SPACE_ID", "LORA_DROP_PUBLIC", "LORA_DROP_ALLOWED_HOSTS", "LORA_DROP_TRUSTED_HOPS"):
        monkeypatch.delenv(name, raising=False)


@pytest.mark.parametrize(
    ("host", "share", "public"),
    [
        *((host, False, False) for host in (None, "127.0.0.1", "127.3.2.1", "localhost", "[::1]")),
        *((host, False, True) for host in ("0.0.0.0", "::", "192.168.1.4", "my-machine")),
        (None, True, True),
    ],
)
def test_public_is_what_others_can_reach(host, share, public):
    found = Policy.from_environment(None, host, share)
    assert found.public is public and found.limits == (PUBLIC if public else Limits())
    assert Policy.from_environment(True, host, share).public and not Policy.from_environment(False, host, share).public


@pytest.mark.parametrize(
    ("words", "public", "share"),
    [
        ([], False, False),
        (["--public"], True, False),
        (["--host", "0.0.0.0"], True, False),
        (["--host", "0.0.0.0", "--private"], False, False),
        (["--share"], True, True),
        (["--share", "--no-public"], False, True),
    ],
)
def test_the_start_takes_the_choice_from_its_options(monkeypatch, tmp_path, words, public, share):
    launched = []
    monkeypatch.setenv("GRADIO_TEMP_DIR", str(tmp_path))
    monkeypatch.delenv("GRADIO_SERVER_NAME", raising=False)
    monkeypatch.setattr(page, "build_app", lambda pool, policy: policy)
    monkeypatch.setattr(page, "launch", lambda policy, *_, share, **__: launched.append((policy.public, share)))
    parser = start._parser("app.py")
    start._serve(parser.parse_args(["--model", "random:tiny-llama", "--device", "cpu", *words]), ExitStack())
    assert launched == [(public, share)], "an address of the web is asked for by --share alone"


def test_a_space_is_public_and_the_variable_says_otherwise(monkeypatch):
    monkeypatch.setenv("SPACE_ID", "user/name")
    assert Policy.from_environment().public
    monkeypatch.setenv("LORA_DROP_PUBLIC", "0")
    assert not Policy.from_environment(host="0.0.0.0").public
    assert Policy.from_environment(True).public, "what is said at the start comes first"
    monkeypatch.setenv("LORA_DROP_PUBLIC", "maybe")
    with pytest.raises(LoraDropError, match="LORA_DROP_PUBLIC must be 1 or 0, not 'maybe'"):
        Policy.from_environment()


def test_hops_that_are_no_number_are_one_line(monkeypatch):
    for value in ("-1", "two", "1.5", "99999"):
        monkeypatch.setenv("LORA_DROP_TRUSTED_HOPS", value)
        with pytest.raises(LoraDropError, match="^the variable LORA_DROP_TRUSTED_HOPS must be a number of proxies"):
            Policy.from_environment()


@pytest.mark.parametrize(
    ("hops", "peer", "forwarded", "found"),
    [
        (0, "9.9.9.9", ["1.1.1.1"], "9.9.9.9"),  # whoever asks may write what he likes
        (1, "9.9.9.9", ["1.1.1.1, 2.2.2.2"], "2.2.2.2"),
        (1, "9.9.9.9", ["1.1.1.1", "2.2.2.2"], "2.2.2.2"),  # two lines are one list
        (2, "9.9.9.9", ["1.1.1.1, 2.2.2.2, 3.3.3.3"], "2.2.2.2"),
        (2, "9.9.9.9", ["2.2.2.2"], "9.9.9.9"),  # it did not come through the proxies
        (1, "9.9.9.9", ["nonsense"], "9.9.9.9"),
        (1, "9.9.9.9", ["1.2.3.4:567"], "1.2.3.4"),
        (1, "9.9.9.9", ["[2001:db8:1:2:3:4:5:6]:80"], "2001:db8:1:2::/64"),
        (0, "2001:db8:1:2:ffff::1", [], "2001:db8:1:2::/64"),
        (0, "::ffff:1.2.3.4", [], "1.2.3.4"),
        (0, "fe80::1%eth0", [], "fe80::/64"),
        (0, None, [], "unknown"),
    ],
)
def test_an_address_is_counted_from_the_right(hops, peer, forwarded, found):
    assert Policy(hops=hops).address(peer, forwarded) == found


def test_on_loopback_the_page_answers_to_its_own_names(monkeypatch):
    monkeypatch.setenv("LORA_DROP_ALLOWED_HOSTS", "My.Tunnel, *.notebooks.example")
    local = Policy.from_environment(host="127.0.0.2")
    own = "localhost:7860 LOCALHOST 127.0.0.1:1 [::1]:7860 127.0.0.2 my.tunnel:443 a.notebooks.example"
    others = "evil.example notebooks.example localhost.evil.example xnotebooks.example 127.0.0.1.evil"
    assert all(local.allows_host(name) for name in own.split())
    assert not any(local.allows_host(name) for name in ("", *others.split()))
    monkeypatch.delenv("LORA_DROP_ALLOWED_HOSTS")
    assert Policy.from_environment(host="0.0.0.0").allows_host("any.example")
    assert Policy.from_environment(share=True).allows_host("1234.gradio.live")
    monkeypatch.setenv("LORA_DROP_ALLOWED_HOSTS", "mine.example")
    assert not Policy.from_environment(host="0.0.0.0").allows_host("any.example")


def served(turns: Turns, waiting: list[str]) -> list[str]:
    """Serve all of them, one after the other."""
    found = []
    while waiting:
        waiting = [waiting[i] for i in turns.order(waiting)]
        found.append(waiting.pop(0))
        turns.serve(found[-1])
    return found


def test_addresses_take_turns_and_the_order_told_is_the_order_kept():
    turns = Turns()
    turns.serve("a")
    waiting = ["a", "a", "a", "b", "b", "c"]
    told = [waiting[i] for i in turns.order(waiting)]
    assert told == ["b", "c", "a", "b", "a", "a"] == served(turns, waiting)
    assert Turns().order(["a", "a", "b", "a"]) == [0, 2, 1, 3], "within an address the order is that of asking"


def test_few_addresses_are_remembered():
    turns = Turns()
    for number in range(3 * KNOWN):
        turns.serve(str(number))
    assert turns.order([str(3 * KNOWN - 1), "0"]) == [1, 0] and len(turns._last) == KNOWN
