"""Files and folders replaced whole or not at all: on full disks, interrupted, killed, by several at once."""

import errno
import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from bertclf import _files
from bertclf._files import ModelFileError, folder_to_read, replace_file, replace_folder

NAMES = {"marker", "other"}


def saved(folder, content="new", **names):
    """Replace a folder by one of two files."""

    def write(path):
        for name in sorted(NAMES):
            (path / name).write_text(content, encoding="utf-8")

    replace_folder(folder, write, **({"marker": "marker", "names": NAMES} | names))


def contents(folder):
    return {file.name: file.read_text(encoding="utf-8") for file in Path(folder).iterdir()}


@pytest.fixture(params=["exchanged", "set aside"])
def way(request, monkeypatch):
    """Both ways to put one folder in the place of another."""
    if request.param == "set aside":
        monkeypatch.setattr(_files, "_exchange", lambda first, second: False)
    return request.param


@pytest.fixture
def folder(tmp_path):
    saved(tmp_path / "model", "old")
    return tmp_path / "model"


def test_a_folder_is_replaced_whole_and_nothing_else_is_left(folder, way):
    saved(folder)
    assert contents(folder) == {"marker": "new", "other": "new"}
    assert os.listdir(folder.parent) == ["model"]


def test_folders_on_the_way_are_made(tmp_path):
    saved(tmp_path / "a" / "b" / "model")
    assert contents(tmp_path / "a" / "b" / "model") == {"marker": "new", "other": "new"}
    replace_file(tmp_path / "c" / "file", b"new")
    assert (tmp_path / "c" / "file").read_bytes() == b"new"


def test_an_empty_folder_is_filled(tmp_path, way):
    (tmp_path / "model").mkdir()
    saved(tmp_path / "model")
    assert contents(tmp_path / "model") == {"marker": "new", "other": "new"}


@pytest.mark.parametrize("umask", [0o022, 0o077, 0o002])
def test_modes_follow_the_umask(tmp_path, umask):
    before = os.umask(umask)
    try:
        saved(tmp_path / "model")
        replace_file(tmp_path / "file", b"")
    finally:
        os.umask(before)
    modes = [stat.S_IMODE(path.stat().st_mode) for path in (tmp_path / "model", tmp_path / "file")]
    assert modes == [0o777 & ~umask, 0o666 & ~umask]
    assert stat.S_IMODE((tmp_path / "model" / "marker").stat().st_mode) == 0o666 & ~umask


class Unlucky:
    """Fills a folder in part, or writes a file in part, and then fails."""

    def __init__(self, error):
        self.error = error

    def __call__(self, target):
        if isinstance(target, Path):
            (target / "marker").write_text("half", encoding="utf-8")
        else:
            target.write(b"half")
        raise self.error


@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)), KeyboardInterrupt()])
@pytest.mark.parametrize("is_new", [True, False])
def test_a_save_that_fails_leaves_the_old_and_nothing_beside_it(tmp_path, error, is_new):
    folder, file = tmp_path / "a" / "model", tmp_path / "b" / "file"
    if not is_new:
        saved(folder, "old")
        replace_file(file, b"old")
    for place, replace in (
        (folder, lambda: replace_folder(folder, Unlucky(error), marker="marker", names=NAMES)),
        (file, lambda: replace_file(file, Unlucky(error))),
    ):
        with pytest.raises(type(error)) as raised:
            replace()
        if isinstance(error, OSError):
            assert str(raised.value) == f"[Errno 28] No space left on device: {str(place)!r}"
    if is_new:
        assert os.listdir(tmp_path) == []
    else:
        assert contents(folder) == {"marker": "old", "other": "old"}
        assert file.read_bytes() == b"old"
        assert os.listdir(folder.parent) == ["model"]
        assert os.listdir(file.parent) == ["file"]


@pytest.mark.parametrize("number", [errno.EMFILE, errno.ENFILE, errno.EACCES])
def test_a_new_folder_that_cannot_be_opened_is_told_and_deleted(folder, monkeypatch, number):
    open_it, asked = os.open, []

    def refused(path, *arguments, **names):
        if ".bertclf-" not in str(path):
            return open_it(path, *arguments, **names)
        asked.append(path)
        if len(asked) > 3:
            raise AssertionError("it would go on for ever")
        raise OSError(number, os.strerror(number), path)

    monkeypatch.setattr(os, "open", refused)
    with pytest.raises(OSError, match=rf"{os.strerror(number)}: .*model'") as raised:
        saved(folder)
    assert raised.value.errno == number
    assert contents(folder) == {"marker": "old", "other": "old"}
    assert os.listdir(folder.parent) == ["model"]


def test_a_leftover_that_cannot_be_opened_stays_and_does_not_stop_a_save(folder):
    leftover = _files._beside(folder)
    leftover.symlink_to("nowhere")
    saved(folder)
    assert contents(folder) == {"marker": "new", "other": "new"}
    assert leftover.is_symlink()


def test_an_interrupt_between_the_two_renames_puts_the_old_folder_back(folder, monkeypatch):
    rename, calls = os.rename, []

    def interrupted(source, target):
        calls.append(source)
        if len(calls) == 3:  # onto the old folder, the old folder aside, the new one into its place
            raise KeyboardInterrupt
        rename(source, target)

    monkeypatch.setattr(_files, "_exchange", lambda first, second: False)
    monkeypatch.setattr(os, "rename", interrupted)
    with pytest.raises(KeyboardInterrupt):
        saved(folder)
    assert contents(folder) == {"marker": "old", "other": "old"}
    assert os.listdir(folder.parent) == ["model"]


def test_what_a_killed_save_set_aside_is_read_until_the_next_save_replaces_it(folder):
    os.rename(folder, _files._beside(folder, "old-"))
    assert contents(folder_to_read(folder)) == {"marker": "old", "other": "old"}
    saved(folder)
    assert folder_to_read(folder) == folder
    assert os.listdir(folder.parent) == ["model"]


def test_leftovers_of_killed_saves_are_deleted_by_the_next_one(folder):
    _files._beside(folder).mkdir()
    saved(folder)
    assert os.listdir(folder.parent) == ["model"]
    file = folder.parent / "file"
    _files._beside(file).write_bytes(b"half")
    replace_file(file, b"new")
    assert sorted(os.listdir(folder.parent)) == ["file", "model"]


def test_a_save_that_is_under_way_is_not_deleted_by_another_one(folder, way):
    def write(path):
        saved(folder, "first")
        (path / "marker").write_text("second", encoding="utf-8")

    replace_folder(folder, write, marker="marker", names=NAMES)
    assert contents(folder) == {"marker": "second"}
    assert os.listdir(folder.parent) == ["model"]


# Run in processes that import nothing of the package but the room, and so may fork.
SAVE = """
import importlib.util, os, signal, sys
from pathlib import Path

specification = importlib.util.spec_from_file_location("_files", sys.argv[3])
_files = importlib.util.module_from_spec(specification)
specification.loader.exec_module(_files)

folder, way = Path(sys.argv[1]) / "model", sys.argv[2]
if way == "set aside":
    _files._exchange = lambda first, second: False


def save(content):
    def write(path):
        for name in ("marker", "other"):
            (path / name).write_text(content, encoding="utf-8")

    _files.replace_folder(folder, write, marker="marker", names={"marker", "other"})
"""

KILLED_AT_EVERY_STEP = """
def save_until(n_steps):
    left = [n_steps]

    def count(event, arguments):
        if event.startswith(("open", "os.", "shutil.", "ctypes.call")):
            left[0] -= 1
            if not left[0]:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(count)
    save("new")
    os._exit(0)


n_steps, is_killed, found = 0, True, set()
while is_killed:
    n_steps += 1
    save("old")
    if not (child := os.fork()):
        save_until(n_steps)
    is_killed = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
    place = _files.folder_to_read(folder)
    contents = {file.name: file.read_text(encoding="utf-8") for file in place.iterdir()}
    assert contents in ({name: content for name in ("marker", "other")} for content in ("old", "new")), contents
    found.add((contents["marker"], place == folder))
assert os.listdir(folder.parent) == ["model"]
print(n_steps, sorted(found))
"""

AT_ONCE = """
def save_often(content):
    try:
        for _ in range(20):
            save(content)
    except BaseException as error:
        os.write(2, repr(error).encode())
        os._exit(1)
    os._exit(0)


children = [os.fork() or save_often(content) for content in ("one", "two", "three")]
assert [os.waitpid(child, 0)[1] for child in children] == [0, 0, 0]
contents = {file.name: file.read_text(encoding="utf-8") for file in folder.iterdir()}
assert contents["marker"] == contents["other"], contents
assert os.listdir(folder.parent) == ["model"], os.listdir(folder.parent)
"""


def run_alone(script, folder, way):
    """Run a script that saves, and return what it prints."""
    command = [sys.executable, "-c", SAVE + script, str(folder), way, _files.__file__]
    answer = subprocess.run(command, capture_output=True, text=True)
    assert answer.returncode == 0, answer.stderr
    return answer.stdout


def test_several_processes_may_replace_one_folder_at_once(tmp_path, way):
    run_alone(AT_ONCE, tmp_path, way)


@pytest.mark.parametrize("name", ["notes.txt", "photos"])
def test_a_folder_with_anything_of_others_in_it_is_refused(folder, name):
    (folder / name).write_text("dear", encoding="utf-8") if "." in name else (folder / name).mkdir()
    with pytest.raises(FileExistsError, match=rf"The folder holds {name}, so that bertclf did not write .*model'"):
        saved(folder)
    assert (folder / name).exists()


def test_what_others_put_into_the_folder_while_a_save_writes_is_seen_and_nothing_replaced(folder, way):
    def write(path):
        (path / "marker").write_text("new", encoding="utf-8")
        (folder / "notes.txt").write_text("dear", encoding="utf-8")

    with pytest.raises(FileExistsError, match=r"The folder holds notes.txt, .*model'"):
        replace_folder(folder, write, marker="marker", names=NAMES)
    assert contents(folder) == {"marker": "old", "notes.txt": "dear", "other": "old"}
    assert os.listdir(folder.parent) == ["model"]


def test_what_others_put_into_the_folder_at_the_last_moment_is_kept(folder, way, monkeypatch):
    put = _files._put

    def put_late(new, place):
        (place / "notes.txt").write_text("dear", encoding="utf-8")
        (place / "photos").mkdir()
        (place / "photos" / "marker").write_text("dear", encoding="utf-8")
        put(new, place)

    monkeypatch.setattr(_files, "_put", put_late)
    with pytest.warns(UserWarning, match=r"notes.txt got into the folder .*model' while .* is kept in '.*bertclf-"):
        saved(folder)
    monkeypatch.undo()
    saved(folder, "newer")
    assert contents(folder) == {"marker": "newer", "other": "newer"}
    (kept,) = set(folder.parent.iterdir()) - {folder}
    assert sorted(os.listdir(kept)) == ["notes.txt", "photos"]
    assert contents(kept / "photos") == {"marker": "dear"}


def test_a_folder_without_the_marker_is_refused(folder):
    (folder / "marker").unlink()
    with pytest.raises(FileExistsError, match=r"The folder lacks marker, .* Name a new folder"):
        saved(folder)
    assert contents(folder) == {"other": "old"}


def test_a_file_where_the_folder_should_be_is_refused(tmp_path):
    (tmp_path / "model").write_text("dear", encoding="utf-8")
    with pytest.raises(NotADirectoryError, match=r"A file is where the folder should be"):
        saved(tmp_path / "model")
    with pytest.raises(OSError, match=r"model/below"):
        saved(tmp_path / "model" / "below")
    assert (tmp_path / "model").read_text(encoding="utf-8") == "dear"


def test_the_current_folder_is_refused(folder, monkeypatch):
    monkeypatch.chdir(folder)
    for name in (".", folder):
        with pytest.raises(OSError, match=r"The current folder can't be replaced. Name a folder inside it"):
            saved(name)


def test_a_link_stays_and_what_it_leads_to_is_replaced(folder, way):
    link = folder.parent / "latest"
    link.symlink_to(folder.name)
    saved(link)
    assert link.is_symlink()
    assert contents(folder) == {"marker": "new", "other": "new"}
    (folder.parent / "file").symlink_to("real")
    replace_file(folder.parent / "file", b"new")
    assert (folder.parent / "real").read_bytes() == b"new"


def test_the_home_may_be_written_as_a_tilde(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    saved("~/model")
    assert folder_to_read("~/model") == Path(os.path.realpath(tmp_path)) / "model"
    assert os.listdir(tmp_path) == ["model"]


def test_a_file_is_written_by_a_function_too(tmp_path):
    replace_file(tmp_path / "file", lambda file: file.write(b"new"))
    assert (tmp_path / "file").read_bytes() == b"new"


def test_the_error_of_broken_model_files_is_a_value_error():
    assert issubclass(ModelFileError, ValueError)


def test_killed_at_any_step_a_save_leaves_the_old_folder_or_the_new(tmp_path, way):
    n_steps, found = run_alone(KILLED_AT_EVERY_STEP, tmp_path, way).split(maxsplit=1)
    assert int(n_steps) > 20
    in_place = [("new", True), ("old", True)]
    assert found.strip() == str(sorted([*in_place, ("old", False)] if way == "set aside" else in_place))
