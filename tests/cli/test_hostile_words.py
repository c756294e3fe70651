"""Any word for any option of any command: it runs, or is refused in one line with exit code 2."""

import os

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lora_drop.cli.main import _parser
from tests.support.commands import COMMANDS, TINY, ends_well
from tests.support.fuzzing import HOSTILE, profile

pytestmark = pytest.mark.full

SLOW = {"presets", "bench", "calibrate"}  # a whole run of them takes seconds
WRITES = {"--out", "--trace", "--html", "--chrome"}
UNBOUNDED = {"--rounds", "--max-tokens", "--self-generate", "--seconds"}  # who asks for a million may wait for them
WORDS = [word for word in HOSTILE if "\x00" not in word]  # no program can be given a null byte
NUMBERS = [*"-1 0 1 2 0.5 -0.0 1e-9 1e3 nan inf -inf 5000 1_0".split(), str(2**63), str(10**30)]


def options_of(command: str) -> list[str]:
    """All options of a command, and its positional argument as an empty name."""
    commands = next(action for action in _parser()._actions if action.choices)
    actions = [action for action in commands.choices[command]._actions if action.dest != "help"]
    return ["" if not action.option_strings else action.option_strings[0] for action in actions]


@pytest.mark.parametrize("command", [*COMMANDS])
def test_any_word_for_any_option_runs_or_is_refused_in_one_line(command, workplace, offline, capsys):
    @profile(100 if command == "run" else 20 if command not in SLOW else 8)
    @given(data=st.data())
    def try_one(data):
        option = data.draw(st.sampled_from(options_of(command)), "option")
        value = data.draw(st.one_of(st.sampled_from([*WORDS, *NUMBERS]), words), "value")
        if option in WRITES:
            value = value.replace("/", "").replace("..", "") or "x"
        if option in UNBOUNDED and (value.strip().isdecimal() or (option, value) == ("--seconds", "1e3")):
            value = "2"
        base = COMMANDS[command]
        if option == "" and command in ("sweep-figures", "replay"):
            ends_well([command, "--", value] if command == "replay" else [command, *base[1:], "--", value], capsys)
        else:
            ends_well([command, *base, *([f"{option}={value}"] if option else [value])], capsys)

    outside = set(workplace.parent.iterdir())
    try_one()
    assert set(workplace.parent.iterdir()) == outside and not [*workplace.rglob("hacked")]


PATHS = """run --trace, run --adapters, evaluate --data, sweep --out, sweep-figures --out, benchmark --data-dir,
benchmark --out, train --out, train --data, train --start, replay --html, replay --chrome, diff --html,
drop-order --data"""


@pytest.mark.parametrize("words", [words.split() for words in PATHS.split(",")])
def test_a_path_too_long_is_one_line(words, offline, capsys):
    """It is also reported where the system only says so when a file is looked for, which was taken for a full disk."""
    command, option = words
    for path in ("a" * 5000, "a/" * 3000):
        assert ends_well([command, *COMMANDS[command], option, path], capsys) == 2


words = st.text(alphabet=st.characters(exclude_characters="\x00"), max_size=20)


@profile(60)
@given(
    argv=st.lists(st.one_of(st.sampled_from([*COMMANDS, "--json", "--prompt", "--model", *WORDS]), words), max_size=5)
)
def test_any_words_are_no_command(argv, offline, capsys):
    argv = [word for word in argv if word not in ("-h", "--help")]
    if argv[:1] not in (["run"], ["bench"]):  # these go on to the bundled model
        ends_well(argv, capsys)


ENDLESS = {
    "replay": ["/dev/zero"],
    "train": [*TINY, "--out", "x", "--data", "/dev/zero"],
    "evaluate": [*TINY, "--prompt-field", "a", "--target-field", "b", "--data", "/dev/zero"],
}


@pytest.mark.parametrize("command", ENDLESS)
@pytest.mark.skipif(not os.path.exists("/dev/zero"), reason="there is no file without an end here")
def test_a_file_without_an_end_is_refused(command, offline, capsys):
    assert ends_well([command, *ENDLESS[command]], capsys) == 2
