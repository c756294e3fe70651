"""Files that are written whole or not at all, by one program at a time."""

import multiprocessing
import os
import signal
import stat
from pathlib import Path
from unittest.mock import Mock

import pytest

from lora_drop import system
from lora_drop.errors import LoraDropError
from lora_drop.paths import drafted, new_folder, only_writer, write_files
from tests.support.faults import files_of_at_most


def content(folder: Path) -> dict[str, str]:
    return {path.name: path.read_text() for path in folder.iterdir()}


def test_all_files_or_none(tmp_path):
    one, other = tmp_path / "one", tmp_path / "other"
    write_files({one: "1\n", other: b"2"})
    with files_of_at_most(100), pytest.raises(OSError, match="too large"):
        write_files({one: "new", other: "long " * 50})
    assert content(tmp_path) == {"one": "1\n", "other": "2"}
    with pytest.raises(RuntimeError), drafted(one) as (draft,):
        draft.write_text("half")
        raise RuntimeError
    assert content(tmp_path) == {"one": "1\n", "other": "2"}
    write_files({one: "\ud800", other: "3"})
    assert content(tmp_path) == {"one": "\\ud800", "other": "3"}


def test_all_are_on_the_disk_before_one_takes_its_place(tmp_path, monkeypatch):
    """A power cut after the rename would else leave an empty file under the name."""
    done: list[str] = []
    sync, replace = os.fsync, os.replace
    monkeypatch.setattr(os, "fsync", lambda file: (done.append("sync"), sync(file)))
    monkeypatch.setattr(os, "replace", lambda draft, place: (done.append("rename"), replace(draft, place)))
    write_files({tmp_path / "one": "1", tmp_path / "other": "2"})
    assert done == ["sync", "sync", "rename", "rename", "sync"], "the folder's list of names comes last"


def test_a_file_keeps_its_mode_and_a_new_one_has_the_umasks(tmp_path):
    secret, new = tmp_path / "secret", tmp_path / "new"
    secret.write_text("")
    secret.chmod(0o600)
    before = os.umask(0o027)
    try:
        write_files({secret: "a", new: "b"})
    finally:
        os.umask(before)
    assert [stat.S_IMODE(path.stat().st_mode) for path in (secret, new)] == [0o600, 0o640]


def test_links_stay_links_and_what_is_no_file_is_written_to(tmp_path):
    (tmp_path / "there").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "there" / "file")
    write_files({tmp_path / "link": "text"})
    assert (tmp_path / "link").is_symlink() and content(tmp_path / "there") == {"file": "text"}
    write_files({Path("/dev/null"): "text"})
    assert stat.S_ISCHR(os.stat("/dev/null").st_mode)
    with pytest.raises(OSError, match="No space left"):
        write_files({Path("/dev/full"): "text"})


@pytest.mark.parametrize("name", ["a" * 250, "a #\"%'\n b", "\u202e日本"])
def test_any_name(tmp_path, name):
    with only_writer(tmp_path / name, "a sweep"):
        write_files({tmp_path / name / name: "text"})
    assert content(tmp_path / name) == {name: "text"}


def test_a_second_writer_is_told_so_in_one_line(tmp_path):
    with only_writer(tmp_path, "a sweep"):
        says = f"another command is writing a sweep to {tmp_path.name}: wait for"
        with pytest.raises(LoraDropError, match=says), only_writer(tmp_path, "a sweep"):
            pytest.fail("two at once")
        with only_writer(tmp_path / "inner", "a sweep"):
            pass
    assert not (tmp_path / "inner").exists(), "a new folder without a file is gone"
    with only_writer(tmp_path, "a sweep"):
        pass


def holds(folder: Path, begun) -> None:
    with only_writer(folder, "a sweep"), drafted(folder / "sweep.json") as (draft,):
        draft.write_text("half")
        begun.set()
        signal.pause()


def test_a_killed_writer_leaves_no_lock_and_its_draft_goes(tmp_path):
    (tmp_path / ".kept.part").write_text("a file of somebody's")
    context = multiprocessing.get_context("fork")
    begun = context.Event()
    process = context.Process(target=holds, args=(tmp_path, begun))
    process.start()
    assert begun.wait(60)
    with pytest.raises(LoraDropError, match="another command is writing"), only_writer(tmp_path, "a sweep"):
        pass
    process.kill()
    process.join()
    assert len(content(tmp_path)) == 2
    with only_writer(tmp_path, "a sweep"):
        assert content(tmp_path) == {".kept.part": "a file of somebody's"}


def test_a_file_system_without_locks(tmp_path, monkeypatch):
    def none(*_, **__):
        raise OSError(38, "Function not implemented")

    monkeypatch.setattr(system, "FileLock", lambda *_, **__: Mock(acquire=none))
    with only_writer(tmp_path, "a sweep"):
        pass


def test_a_folder_is_whole_or_not_there(tmp_path):
    out = tmp_path / "out"
    for failure in (OSError(28, "No space left on device"), LoraDropError("a bad trace")):
        with pytest.raises(LoraDropError, match="No space left|a bad trace"), new_folder(out) as draft:
            (draft / "README.md").write_text("half")
            raise failure
        assert list(tmp_path.iterdir()) == []
    for _ in range(2):
        with new_folder(out) as draft:
            (draft / "README.md").write_text("whole")
        assert content(out) == {"README.md": "whole"} and list(tmp_path.iterdir()) == [out]
        (out / "README.md").unlink()  # an empty folder will do
    (out / "something").write_text("")
    with pytest.raises(LoraDropError, match="in use"), new_folder(out):
        pytest.fail("in use")
