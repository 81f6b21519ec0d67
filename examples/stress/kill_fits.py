"""Kill a fit at random moments, start it again, and compare what it ends with to a fit that was never stopped.

Each attempt is a process of its own. It is killed (SIGKILL) up to three epochs after its first step, so that it
may be in a step, between two epochs or in the middle of a save; the next one goes on in the same folder. At the end all
weights and losses must be the same, bit by bit. The exit status is 1 if they are not, or if more than the epoch under
way was lost.

    python examples/stress/kill_fits.py --kills 5
"""

import argparse
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from minilm import minilm_folder
from safetensors import safe_open
from safetensors.torch import save_file

WORDS = "the film plot actor story scene of and was is a very quite never so fine great dull bad awful".split()


def texts_and_labels(n_texts: int) -> tuple[list[str], list[str]]:
    """Return sentences of random words, and whether they say more good than bad."""
    drawn = random.Random(0)
    texts = [" ".join(drawn.choices(WORDS, k=drawn.randint(3, 30))) for _ in range(n_texts)]
    good = [sum(text.count(word) for word in ("fine", "great", "very")) for text in texts]
    bad = [sum(text.count(word) for word in ("dull", "bad", "awful")) for text in texts]
    return texts, ["good" if more else "bad" for more in map(int.__gt__, good, bad)]


def fit(options: argparse.Namespace) -> None:
    """Fit as the child process that may be killed, and save what came of it."""
    from bertclf import BertSequenceClassifier, _training

    train_epoch = _training._train_epoch

    def told(*arguments: object, **named: object) -> tuple[float, float, int]:
        """Print that an epoch begins."""
        print(named["epoch"], flush=True)
        return train_epoch(*arguments, **named)

    _training._train_epoch = told
    texts, labels = texts_and_labels(options.texts)
    clf = BertSequenceClassifier(
        options.model, epochs=options.epochs, early_stopping=True, n_iter_no_change=options.epochs, random_state=0
    )
    clf.set_params(checkpoint=options.folder).fit(texts, labels)
    save_file(clf.model_.state_dict(), options.result / "weights.safetensors")
    losses = [[row["training_loss"], row["validation_loss"]] for row in clf.history_]
    (options.result / "losses.json").write_text(json.dumps(losses))


def start(options: argparse.Namespace, *, folder: Path | None, result: Path) -> subprocess.Popen[str]:
    """Start a child process that fits."""
    result.mkdir(exist_ok=True)
    command = [sys.executable, __file__, "--model", str(options.model), "--texts", str(options.texts)]
    command += ["--epochs", str(options.epochs), "--result", str(result)]
    command += [] if folder is None else ["--folder", str(folder)]
    path = os.pathsep.join([str(Path(__file__).resolve().parents[2]), os.environ.get("PYTHONPATH", "")])
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=os.environ | {"PYTHONPATH": path})


def epochs_kept(folder: Path) -> int:
    """Return how many epochs the file in a folder has."""
    files = list(folder.glob("*.safetensors"))
    if not files:
        return 0
    with safe_open(files[0], framework="pt") as file:
        return len(json.loads(file.metadata()["bertclf"])["values"]["history"])


def contents(result: Path) -> list[bytes]:
    """Return what a fit ended with."""
    return [(result / name).read_bytes() for name in ("weights.safetensors", "losses.json")]


def kill_fits(options: argparse.Namespace, work: Path) -> int:
    """Kill and start fits, print what happened, and return the exit status."""
    drawn = random.Random(options.seed)
    with start(options, folder=None, result=work / "whole") as process:
        begun = [time.perf_counter() for _ in process.stdout or []]
    if process.returncode:
        return 1
    seconds = (begun[-1] - begun[0]) / (options.epochs - 1)
    expected = contents(work / "whole")
    kills = fits = attempts = differing = lost = 0
    folder = work / "fit 0"
    while kills < options.kills or folder.exists():
        attempts += 1
        before = epochs_kept(folder)
        with start(options, folder=folder, result=work / "killed") as process:
            assert process.stdout is not None
            first = process.stdout.readline()
            lost += bool(first) and int(first) != before + 1
            if kills < options.kills:
                try:
                    process.wait(drawn.uniform(0, 3 * seconds))
                except subprocess.TimeoutExpired:
                    process.kill()
            last = [first, *process.stdout][-1]
        if process.returncode > 0:
            return 1
        if process.returncode < 0:
            kills += 1
            kept = epochs_kept(folder)
            lost += kept < int(last) - 1
            print(f"kill {kills}: in epoch {last.strip()}, {kept} of {options.epochs} kept", flush=True)
            continue
        fits += 1
        differing += contents(work / "killed") != expected
        size = sum(file.stat().st_size for file in folder.iterdir())
        leftovers = len(list(folder.iterdir())) - 1
        folder = work / f"fit {fits}"
    print(
        f"{kills} kills, {attempts} attempts, {fits} fits ended: {differing} with other bits than the fit that was "
        f"never stopped, {lost} epochs lost that were over, {leftovers} files left over; file of {size / 1e6:.1f} MB, "
        f"epochs of {seconds:.1f} s"
    )
    return int(differing > 0 or lost > 0 or leftovers > 0)


def main(arguments: list[str] | None = None) -> int:
    """Run the script."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", help="folder of a checkpoint; MiniLM from its pip package if left out")
    parser.add_argument("--kills", type=int, default=5, help="how many fits to kill (default: 5)")
    parser.add_argument("--epochs", type=int, default=5, help="epochs of the fit (default: 5)")
    parser.add_argument("--texts", type=int, default=80, help="texts to train on (default: 80)")
    parser.add_argument("--seed", type=int, default=0, help="of the moments of the kills (default: 0)")
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--result", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    options.model = options.model or minilm_folder()
    if options.result is not None:
        fit(options)
        return 0
    with tempfile.TemporaryDirectory() as work:
        return kill_fits(options, Path(work))


if __name__ == "__main__":
    sys.exit(main())
