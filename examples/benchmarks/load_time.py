"""Time `from_pretrained` of a saved classifier beside transformers, which loads the same folder without any check.

transformers maps the file of the weights into memory and reads nothing of it until the network is first used;
`from_pretrained` reads all of it once, to compare its SHA-256. So the ways are timed on their own and with what comes
next: the first prediction of a text. The hash alone, of bytes that are in memory, is the least that the check costs.
All take turns on a folder that the operating system has in its cache; below the table each in a fresh process,
from the start of the interpreter to its end, imports included.

    python examples/benchmarks/load_time.py
"""

import argparse
import hashlib
import subprocess
import sys
import tempfile
from pathlib import Path

import torch
from common import in_turn, medians, minilm_folder, random_texts, report
from transformers import AutoModelForSequenceClassification, AutoTokenizer
from transformers.utils import logging

from bertclf import BertSequenceClassifier

OURS, OURS_PREDICTS = "from_pretrained of bertclf", "from_pretrained of bertclf, first prediction"
NETWORK, TOKENIZER = "AutoModelForSequenceClassification", "the same and AutoTokenizer"
IN_MEMORY, PREDICTS = "the same, weights read into memory", "network and tokenizer, first prediction"
HASH = "SHA-256 of the weights alone"
TEXT = "a fine film"

FRESH = {
    OURS_PREDICTS: """
from bertclf import BertSequenceClassifier
BertSequenceClassifier.from_pretrained({folder!r}).predict_proba([{text!r}])
""",
    PREDICTS: """
import torch
from transformers import AutoModelForSequenceClassification as M, AutoTokenizer as T
with torch.inference_mode():
    M.from_pretrained({folder!r})(**T.from_pretrained({folder!r})([{text!r}], return_tensors="pt")).logits.softmax(1)
""",
}


def ways_of(folder):
    """Return what is timed, by name: functions of the number of the turn."""
    content = (folder / "model.safetensors").read_bytes()

    def network(_=None):
        return AutoModelForSequenceClassification.from_pretrained(folder, dtype=torch.float32)

    def both(_=None):
        return network(), AutoTokenizer.from_pretrained(folder)

    def in_memory(_):
        return [weight.clone() for weight in both()[0].parameters()]

    def first_prediction(_):
        loaded, tokenizer = both()
        with torch.inference_mode():
            return loaded(**tokenizer([TEXT], return_tensors="pt")).logits.softmax(1)

    return {
        OURS: lambda _: BertSequenceClassifier.from_pretrained(folder, device="cpu"),
        OURS_PREDICTS: lambda _: BertSequenceClassifier.from_pretrained(folder, device="cpu").predict_proba([TEXT]),
        NETWORK: network,
        TOKENIZER: both,
        IN_MEMORY: in_memory,
        PREDICTS: first_prediction,
        HASH: lambda _: hashlib.sha256(content).digest(),
    }


def run(script, folder):
    """Run a script in a new interpreter."""
    script = script.format(folder=str(folder), text=TEXT)
    subprocess.run([sys.executable, "-c", script], check=True, capture_output=True)


def main(argv=None):
    """Measure and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", help="name on the Hugging Face Hub, or folder; default: the installed MiniLM")
    parser.add_argument("--repeats", type=int, default=15, help="turns, of which the median is shown")
    parser.add_argument("--processes", type=int, default=3, help="the same, of the fresh processes")
    arguments = parser.parse_args(argv)
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    texts = random_texts(16)
    labels = [number % 2 for number in range(len(texts))]
    classifier = BertSequenceClassifier(
        arguments.model or str(minilm_folder()), epochs=1, pooling="cls", precision="float32", random_state=0
    ).fit(texts, labels)
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch) / "model"
        classifier.save_pretrained(folder)
        size = (folder / "model.safetensors").stat().st_size
        ways = ways_of(folder)
        for way in ways.values():  # once untimed: modules are imported, files cached
            way(0)
        measured = in_turn(ways, repeats=arguments.repeats)
        seconds = medians((name, taken) for name, _, taken in measured)
        fresh = {name: lambda _, script=script: run(script, folder) for name, script in FRESH.items()}
        started = medians((name, taken) for name, _, taken in in_turn(fresh, repeats=arguments.processes))
    report(
        f"Weights of {size / 1e6:.1f} MB; medians of {arguments.repeats} turns.",
        ["", "milliseconds", f"times {NETWORK}", f"times {TOKENIZER}"],
        [
            [name, f"{taken * 1e3:.1f}", f"{taken / seconds[NETWORK]:.2f}", f"{taken / seconds[TOKENIZER]:.2f}"]
            for name, taken in seconds.items()
        ],
    )
    for name, taken in started.items():
        ratio = taken / started[PREDICTS]
        print(
            f"\nIn fresh processes, medians of {arguments.processes}: {name}: {taken:.2f} s, {ratio:.2f} times", end=""
        )
    print()


if __name__ == "__main__":
    main()
