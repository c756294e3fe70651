"""The mutants of `make mutants`: what is changed, and that its tables follow the files."""

from pathlib import Path

import pytest

from scripts import mutants


def test_every_file_and_test_of_the_table_is_there():
    for target in mutants.TARGETS:
        for pattern in target.files:
            assert list(mutants.ROOT.glob(pattern)), pattern
        for test in target.tests:
            assert (mutants.ROOT / "tests" / test).is_file(), test


@pytest.mark.parametrize(
    ("line", "changed"),
    [
        ("x = a + 1", ["x = a - 1"]),
        ("x = a < b", ["x = a <= b"]),
        ("x = a and b", ["x = a or b"]),
        ("x = not a", ["x = a"]),
        ("x += 1", ["x -= 1", "x = 1"]),
        ("def f(a: int | None): return a", ["def f(a: int | None): return None"]),
        ("@d(frozen=True)\nclass A: pass", []),
        ("x = zip(a, b, strict=True)", []),
    ],
)
def test_one_expression_is_changed(line, changed, tmp_path, monkeypatch):
    monkeypatch.setattr(mutants, "ROOT", tmp_path)
    (tmp_path / "file.py").write_text(line)
    assert [mutant.code() for mutant in mutants.mutants_of(Path("file.py"), ())] == changed


def test_the_draw_is_the_seed_s(monkeypatch):
    monkeypatch.setattr(mutants, "TARGETS", mutants.TARGETS[-1:])
    one, again, other = (mutants.draw(20, seed, []) for seed in (0, 0, 1))
    assert one == again != other and len(one) == 20
