"""Kill a process with SIGKILL at random moments of `save_pretrained`, and fill the disk under it.

Over and over, a process saves two classifiers in turn into one folder and is killed. After each kill the folder must
load, and predict what the one or the other predicts, to the last bit. At the end of it all a last save must leave
nothing but the folder. With --set-aside two folders are never exchanged in one step, as on network drives. Then the
same folder is saved on a full disk of a megabyte, which takes root to mount.

    python examples/stress/kill_saves.py --kills 50
"""

import argparse
import collections
import errno
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "tests"))

import numpy as np
from conftest import LABELS, TEXTS
from tiny import build

# Imported once, but nothing is computed here: the children are forked.
from transformers import BertForSequenceClassification, BertTokenizer  # noqa: F401

import bertclf._saving  # noqa: F401
from bertclf import BertSequenceClassifier, _files

NAMES = ("one", "other")


def in_child(work, *given):
    """Run a function in a forked process and return the process id: what it returns is its exit status."""
    if child := os.fork():
        return child
    status = 70
    try:
        status = work(*given) or 0
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        os._exit(status)


def finished(child):
    """Return the exit status of a process, when it has ended."""
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def fit(workplace):
    """Save two classifiers that predict differently, and what they predict."""
    build("bert", workplace / "checkpoint")
    for seed, name in enumerate(NAMES):
        classifier = BertSequenceClassifier(workplace / "checkpoint", epochs=1, random_state=seed).fit(TEXTS, LABELS)
        classifier.save_pretrained(workplace / name)
        np.save(workplace / f"{name}.npy", classifier.predict_proba(TEXTS))


def save_for_ever(workplace, pipe):
    """Save the two in turn until the process is killed; tell each time how long it took."""
    classifiers = [BertSequenceClassifier.from_pretrained(workplace / name) for name in NAMES]
    while True:
        start = time.perf_counter()
        for classifier in classifiers:
            classifier.save_pretrained(workplace / "place" / "model")
        os.write(pipe, f"{time.perf_counter() - start}\n".encode())


def which(workplace, folder):
    """Return which of the two a folder holds, as an index; another number if it holds neither."""
    probabilities = BertSequenceClassifier.from_pretrained(folder).predict_proba(TEXTS)
    matches = [np.array_equal(probabilities, np.load(workplace / f"{name}.npy")) for name in NAMES]
    return matches.index(True) if True in matches else len(NAMES)


def kill_once(workplace, generator):
    """Start a process that saves, and kill it at a random moment."""
    reader, writer = os.pipe()
    child = in_child(save_for_ever, workplace, writer)
    os.close(writer)
    with open(reader, encoding="ascii") as times:
        seconds = [float(times.readline()) for _ in range(2)]  # the first time is longer
        time.sleep(generator.uniform(0, seconds[-1]))
        os.kill(child, signal.SIGKILL)
    if finished(child) != -signal.SIGKILL:
        raise RuntimeError("The process that saves ended by itself.")


def kill_often(workplace, *, kills, seed):
    """Kill again and again; return how often which was found, and how often something was left beside the folder."""
    generator, counts = random.Random(seed), collections.Counter()
    place = workplace / "place"
    finished(in_child(copy_to, workplace / "one", place / "model"))
    for number in range(kills):
        kill_once(workplace, generator)
        beside = [name for name in os.listdir(place) if name != "model"]
        counts["with something beside it"] += bool(beside)
        counts["set aside"] += not (place / "model").exists()
        found = finished(in_child(which, workplace, place / "model"))
        counts[NAMES[found] if found in range(len(NAMES)) else "LOST"] += 1
        print(f"kill {number + 1}: {NAMES[found] if found in range(len(NAMES)) else 'LOST'}", file=sys.stderr)
    finished(in_child(copy_to, workplace / "other", place / "model"))
    counts["LOST"] += os.listdir(place) != ["model"] or finished(in_child(which, workplace, place / "model")) != 1
    return counts


def copy_to(source, target):
    """Load a classifier and save it elsewhere."""
    BertSequenceClassifier.from_pretrained(source).save_pretrained(target)


def on_full_disk(workplace):
    """Save on a disk that is full; return what happened in words."""
    disk = workplace / "disk"
    disk.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(disk)], capture_output=True, text=True
    )
    if mounted.returncode:
        return f"full disk: left out, since mount says {mounted.stderr.strip()!r}"
    try:
        return {0: "full disk: OSError with the path, the old model intact, nothing left behind"}.get(
            finished(in_child(fill_and_save, workplace, disk / "model")), "full disk: LOST"
        )
    finally:
        subprocess.run(["umount", str(disk)], check=True)


def fill_and_save(workplace, folder):
    """Save where there is room for one model, fill the rest, and save another one."""
    one, other = (BertSequenceClassifier.from_pretrained(workplace / name) for name in NAMES)
    one.save_pretrained(folder)
    for left in (0, 5_000, 20_000, 36_000):
        free = os.statvfs(folder)
        (folder.parent / "filling").write_bytes(bytes(max(0, free.f_bavail * free.f_frsize - left)))
        try:
            other.save_pretrained(folder)
            return 71
        except OSError as error:
            if error.errno != errno.ENOSPC or error.filename != str(folder):
                raise
        if sorted(os.listdir(folder.parent)) != ["filling", "model"] or which(workplace, folder) != 0:
            return 72
        (folder.parent / "filling").unlink()
    other.save_pretrained(folder)
    return 0 if which(workplace, folder) == 1 else 73


def main(argv=None):
    """Kill and fill, and print what came of it; return the number of models lost."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--set-aside", action="store_true", help="never exchange two folders in one step")
    arguments = parser.parse_args(argv)
    if arguments.set_aside:
        _files._exchange = lambda first, second: False
    with tempfile.TemporaryDirectory() as scratch:
        workplace = Path(scratch)
        if finished(in_child(fit, workplace)):
            raise RuntimeError("The two classifiers could not be made.")
        counts = kill_often(workplace, kills=arguments.kills, seed=arguments.seed)
        print(f"{arguments.kills} kills: {', '.join(f'{counts[name]} {name}' for name in [*NAMES, 'LOST'])}", end="; ")
        print(f"{counts['with something beside it']} left something beside the folder, {counts['set aside']} the old")
        full = on_full_disk(workplace)
        print(full)
    return counts["LOST"] + ("LOST" in full)


if __name__ == "__main__":
    sys.exit(1 if main() else 0)
