"""The BERT fine-tuning tutorial in three lines: tell grammatical English sentences from others.

The data is the Corpus of Linguistic Acceptability (Warstadt et al., 2019) in its original layout, the folder
`cola_public/raw`: tab-separated files without header or quoting, with the columns source, label (1 is acceptable),
notes and sentence. The settings are the tutorial's: 64 tokens, batches of 32, AdamW at 5e-5, linear decay without
warm-up, 4 epochs, a head drawn at random, no smoothing of the targets.

    python examples/cola_tutorial.py --data cola_public/raw
"""

import argparse
import csv
import sys
from pathlib import Path

from quickstart import epochs_table
from sklearn.metrics import matthews_corrcoef

from bertclf import BertSequenceClassifier, TrainingDisplay


def read(file):
    """Return the sentences and the labels (0 or 1) of a file of the corpus."""
    with file.open(encoding="utf-8", newline="") as stream:
        rows = list(csv.reader(stream, delimiter="\t", quoting=csv.QUOTE_NONE))
    return [sentence for _, _, _, sentence in rows], [int(label) for _, label, _, _ in rows]


def main(argv=None):
    """Fine-tune, and print what the tutorial prints."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder with in_domain_train.tsv and its kin")
    parser.add_argument("--model", default="bert-base-uncased", help="name on the Hugging Face Hub, or folder")
    parser.add_argument("--plot", type=Path, default=Path("cola_training.png"), help="image file for the loss curves")
    parser.add_argument("--epochs", type=int, default=4)
    arguments = parser.parse_args(argv)

    X, y = read(arguments.data / "in_domain_train.tsv")
    X_val, y_val = read(arguments.data / "in_domain_dev.tsv")
    X_test, y_test = read(arguments.data / "out_of_domain_dev.tsv")

    clf = BertSequenceClassifier(
        arguments.model,
        epochs=arguments.epochs,
        batch_size=32,
        learning_rate=5e-5,
        lr_schedule="linear",
        warmup_ratio=0.0,
        label_smoothing=0.0,
        head_init="random",
        max_length=64,
        random_state=42,
        verbose=int(sys.stderr.isatty()),
    )
    clf.fit(X, y, X_val=X_val, y_val=y_val)
    correlation = matthews_corrcoef(y_test, clf.predict(X_test))

    print(epochs_table(clf.history_))
    TrainingDisplay.from_estimator(clf).figure_.savefig(arguments.plot)
    print(f"\nThe loss curves are in {arguments.plot}.")
    print(f"Matthews correlation on {len(X_test)} out-of-domain sentences: {correlation:.3f}")


if __name__ == "__main__":
    main()
