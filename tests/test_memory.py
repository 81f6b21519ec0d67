"""The room `_memory`: what is kept in a folder is made once, whoever asks, and is never in the way."""

import json
import os
import re
import signal
import sqlite3
import subprocess
import sys
import threading
import time
import warnings
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path

import joblib
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bertclf import _memory
from bertclf._memory import FILE_NAME, TextMemory, key_of, open_memory

lists_of_parts = st.lists(st.text("ab\x00é", max_size=3), max_size=3)

KEYS = [key_of(str(number)) for number in range(1200)]


class Maker:
    """Makes the value of a key, its double, and counts what it makes."""

    def __init__(self, keys: list[bytes]) -> None:
        self.keys = keys
        self.made: Counter[bytes] = Counter()

    def __call__(self, positions: list[int]) -> list[bytes]:
        keys = [self.keys[position] for position in positions]
        self.made.update(keys)
        return [2 * key for key in keys]


def ask(memory: TextMemory, keys: list[bytes]) -> Counter[bytes]:
    """Ask for the values of keys, and return what was made for it."""
    maker = Maker(keys)
    assert memory.get_or_make(keys, maker) == [2 * key for key in keys]
    return maker.made


@pytest.fixture
def memory(tmp_path: Path) -> TextMemory:
    return TextMemory(tmp_path / "deep" / "folder")


def test_what_was_made_is_found_again_by_whoever_has_the_folder(memory: TextMemory) -> None:
    assert ask(memory, KEYS) == Counter(KEYS)
    assert not ask(memory, KEYS[::-1])
    assert not ask(TextMemory(str(memory.folder)), KEYS)
    assert ask(memory, [b"new", *KEYS, b"newer"]) == Counter([b"new", b"newer"])


def test_a_key_that_comes_twice_is_made_once(memory: TextMemory) -> None:
    assert ask(memory, [b"a", b"b", b"a", b"a"]) == Counter([b"a", b"b"])
    assert ask(memory, [b"c", b"b", b"c"]) == Counter([b"c"])


def test_values_may_be_empty_and_long(memory: TextMemory) -> None:
    values = [b"", bytes(1 << 20)]
    assert memory.get_or_make([b"empty", b"long"], lambda positions: values) == values
    assert memory.get_or_make([b"long", b"empty"], Maker([])) == values[::-1]


def test_no_keys_make_nothing(memory: TextMemory) -> None:
    assert memory.get_or_make([], Maker([])) == []


def test_threads_make_nothing_twice(memory: TextMemory) -> None:
    barrier = threading.Barrier(8)

    def work(number: int) -> Counter[bytes]:
        barrier.wait()
        made: Counter[bytes] = Counter()
        for start in range(40 * number, 40 * number + 400, 100):
            made += ask(memory, KEYS[start : start + 100])
        return made

    with ThreadPoolExecutor(8) as pool:
        made = sum(pool.map(work, range(8)), Counter())
    assert made == Counter(KEYS[: 40 * 7 + 400])


def test_who_makes_does_not_keep_others_from_reading(memory: TextMemory) -> None:
    ask(memory, [b"old"])

    def make(positions: list[int]) -> list[bytes]:
        with ThreadPoolExecutor(1) as pool:
            assert not pool.submit(ask, memory, [b"old"]).result()
        return [b"value"]

    assert memory.get_or_make([b"new"], make) == [b"value"]


IN_A_PROCESS = """
import json, runpy, sys

# Without the package around it, whose import takes seconds.
TextMemory, key_of = map(runpy.run_path(sys.argv.pop(1)).get, ("TextMemory", "key_of"))
folder, first, last, hangs = sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), sys.argv[4] == "hangs"
made = []

def make(positions):
    if hangs:
        print("making", flush=True)
        sys.stdin.read()
    made.extend(keys[position] for position in positions)
    return [2 * keys[position] for position in positions]

print("ready", flush=True)
sys.stdin.readline()
for start in range(first, last, 50):
    keys = [key_of(str(number)) for number in range(start, min(start + 50, last))]
    assert TextMemory(folder).get_or_make(keys, make) == [2 * key for key in keys]
print(json.dumps([key.hex() for key in made]), flush=True)
"""


@pytest.fixture
def start(memory: TextMemory):
    """A function that starts a process which asks for some keys as soon as it is told to."""
    processes = []

    def start(first: int, last: int, *, hangs: bool = False) -> subprocess.Popen[str]:
        arguments = [_memory.__file__, str(memory.folder), str(first), str(last), "hangs" if hangs else "works"]
        command = [sys.executable, "-W", "error", "-c", IN_A_PROCESS, *arguments]
        processes.append(subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True))
        return processes[-1]

    yield start
    for process in processes:
        process.kill()
        process.communicate()


def begin(*processes: subprocess.Popen[str]) -> None:
    """Wait until all processes are ready, and tell them to go on."""
    for process in processes:
        assert process.stdout.readline() == "ready\n"
    for process in processes:
        process.stdin.write("\n")
        process.stdin.flush()


def test_processes_make_nothing_twice(memory: TextMemory, start: Callable[..., subprocess.Popen[str]]) -> None:
    processes = [start(first, first + 600) for first in (0, 0, 300)]
    begin(*processes)
    made: Counter[bytes] = Counter()
    for process in processes:
        made.update(bytes.fromhex(key) for key in json.loads(process.stdout.readline()))
    assert made == Counter(KEYS[:900])
    assert not ask(memory, KEYS[:900])


@pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="needs a timer of the system")
def test_waiting_for_the_file_can_be_interrupted(memory: TextMemory, monkeypatch: pytest.MonkeyPatch) -> None:
    class Interrupted(Exception):
        """Raised by the signal."""

    def interrupt(*_: object) -> None:
        raise Interrupted

    ask(memory, KEYS[:1])
    earlier = signal.signal(signal.SIGALRM, interrupt)
    holder = sqlite3.connect(memory.folder / FILE_NAME, isolation_level=None)
    try:
        holder.execute("BEGIN IMMEDIATE")
        signal.setitimer(signal.ITIMER_REAL, 0.1)
        start = time.monotonic()
        with pytest.raises(Interrupted):
            ask(memory, KEYS[:2])
        assert time.monotonic() - start < 30
    finally:
        signal.signal(signal.SIGALRM, earlier)
        holder.close()
    assert ask(memory, KEYS[:2]) == Counter(KEYS[1:2])


def test_a_file_that_stays_locked_is_given_up_with_a_warning(
    memory: TextMemory, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_memory, "SECONDS_TO_WAIT", 0.1)
    monkeypatch.setattr(_memory, "SECONDS_AT_ONCE", 0.05)
    ask(memory, KEYS[:1])
    with closing(sqlite3.connect(memory.folder / FILE_NAME, isolation_level=None)) as holder:
        holder.execute("BEGIN EXCLUSIVE")
        with pytest.warns(UserWarning, match="can't be used, so nothing is kept there: database is locked"):
            assert ask(memory, KEYS[:2]) == Counter(KEYS[:2])


def test_a_process_killed_while_it_makes_leaves_all_as_it_was(
    memory: TextMemory, start: Callable[..., subprocess.Popen[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_memory, "SECONDS_TO_WAIT", 30)
    ask(memory, KEYS[:10])
    process = start(5, 20, hangs=True)
    begin(process)
    assert process.stdout.readline() == "making\n"
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert not ask(memory, KEYS[:10])
    assert ask(memory, KEYS[:20]) == Counter(KEYS[10:20])


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, OSError, MemoryError])
def test_what_goes_wrong_in_making_is_told_and_nothing_of_it_kept(
    memory: TextMemory, error: type[BaseException]
) -> None:
    ask(memory, [b"old"])
    n_calls = []

    def make(positions: list[int]):
        n_calls.append(len(positions))
        yield b"value"
        raise error("of the maker")

    with pytest.raises(error, match="of the maker"):
        memory.get_or_make([b"old", b"new", b"newer"], make)
    assert n_calls == [2]
    assert ask(memory, [b"old", b"new", b"newer"]) == Counter([b"new", b"newer"])


def garbage(file: Path) -> None:
    file.write_bytes(b"no data base at all " * 1000)


def half(file: Path) -> None:
    os.truncate(file, file.stat().st_size // 2)


def another_table(file: Path) -> None:
    file.unlink()
    with sqlite3.connect(file) as connection:
        connection.execute("CREATE TABLE kept (word TEXT)")
    connection.close()


def no_folder(file: Path) -> None:
    file.unlink()
    file.parent.rmdir()
    file.parent.write_text("a file")


@pytest.mark.parametrize("damage", [garbage, half, another_table, no_folder])
def test_a_memory_that_can_not_be_used_is_told_once_and_all_is_made(
    memory: TextMemory, damage: Callable[[Path], None]
) -> None:
    ask(memory, KEYS)
    damage(memory.folder / FILE_NAME)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        assert ask(memory, KEYS).keys() <= set(KEYS)
        made = ask(memory, [b"a", b"b", b"a"])
    assert made == Counter([b"a", b"b"])
    (warning,) = caught
    assert re.search(
        rf"memory='{memory.folder}' can't be used.*Pass a folder that can be written, or delete {FILE_NAME}",
        str(warning.message),
    )


def test_a_full_disk_is_told_and_what_is_made_for_it_is_made_once(
    memory: TextMemory, monkeypatch: pytest.MonkeyPatch
) -> None:
    connect = sqlite3.connect

    def connect_to_three_pages(*args, **kwargs) -> sqlite3.Connection:
        connection = connect(*args, **kwargs)
        connection.execute("PRAGMA max_page_count = 3")
        return connection

    ask(memory, [b"old"])
    monkeypatch.setattr(_memory.sqlite3, "connect", connect_to_three_pages)
    with pytest.warns(UserWarning, match=r"folder' can't be used, so nothing is kept there: database or disk is full"):
        assert ask(memory, [b"old", *KEYS]) == Counter(KEYS)
    monkeypatch.undo()
    again = TextMemory(memory.folder)
    assert not ask(again, [b"old"])
    assert ask(again, KEYS[:3]) == Counter(KEYS[:3])


def test_a_file_that_can_only_be_read_is_read(memory: TextMemory, monkeypatch: pytest.MonkeyPatch) -> None:
    ask(memory, KEYS)
    connect = sqlite3.connect

    def connect_to_read(file: Path, **kwargs) -> sqlite3.Connection:
        return connect(f"file:{file}?mode=ro", uri=True, **kwargs)

    monkeypatch.setattr(_memory.sqlite3, "connect", connect_to_read)
    assert not ask(memory, KEYS)
    with pytest.warns(UserWarning, match="attempt to write a readonly database"):
        assert ask(memory, [*KEYS, b"new"]) == Counter([b"new"])


@settings(deadline=None, max_examples=50)
@given(lists_of_parts, lists_of_parts)
def test_keys_are_equal_where_all_parts_are(first: list[str], second: list[str]) -> None:
    assert (key_of(*first) == key_of(*second)) == (first == second)
    assert key_of(*first) == key_of(*(part.encode() for part in first))


def test_parts_of_a_key_are_not_run_together() -> None:
    parts = [("ab", "c"), ("a", "bc"), ("abc",), ("abc", ""), ("", "abc"), ("a", "b", "c")]
    assert len({key_of(*some) for some in parts}) == len(parts)


def test_the_folder_may_be_a_path_and_a_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    for location in ["~/kept", Path("~/kept"), tmp_path / "kept"]:
        opened = open_memory(location)
        assert opened is not None
        assert opened.folder == tmp_path / "kept"
        ask(opened, KEYS[:3])
    assert (tmp_path / "kept" / FILE_NAME).is_file()


def test_a_memory_of_joblib_clears_what_is_kept(tmp_path: Path) -> None:
    memory = joblib.Memory(tmp_path / "kept", verbose=0)
    opened = open_memory(memory)
    assert opened is not None
    ask(opened, KEYS[:3])
    assert not ask(opened, KEYS[:3])
    assert tmp_path / "kept" in opened.folder.parents
    memory.clear(warn=False)
    assert ask(opened, KEYS[:3]) == Counter(KEYS[:3])


def test_no_name_is_no_folder() -> None:
    with pytest.raises(ValueError, match="memory='' names no folder"):
        open_memory("")


@pytest.mark.parametrize(
    "damage", ["substr(value, 1, length(value) - 1)", "value || x'00'", "x''", "x'00' || substr(value, 2)"]
)
def test_what_is_damaged_in_the_file_is_made_anew(memory: TextMemory, damage: str) -> None:
    ask(memory, KEYS[:3])
    with closing(sqlite3.connect(memory.folder / FILE_NAME, isolation_level=None)) as file:
        file.execute(f"UPDATE kept SET value = CAST({damage} AS BLOB) WHERE key = ?", [KEYS[1]])
    assert ask(memory, KEYS[:3]) == Counter(KEYS[1:2])
    assert not ask(memory, KEYS[:3])


@pytest.mark.parametrize("nothing", [None, joblib.Memory(location=None)], ids=["None", "joblib"])
def test_no_folder_keeps_nothing(nothing: object) -> None:
    assert open_memory(nothing) is None
