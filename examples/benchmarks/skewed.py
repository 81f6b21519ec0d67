"""Compare what helps rare labels: weights of classes, tuned thresholds, and neither, by macro F1.

Ways are the defaults, `class_weight="balanced"`, and a tuned threshold: of two classes that of
`TunedThresholdClassifierCV`, found on a fifth of the training rows before all are fitted, of many labels
`thresholds="f1"`, found on a tenth that is not learnt from. More than two classes with one label a text have no
threshold. Each run appends one JSON line to `--runs`; runs that stand there are not repeated.

    python examples/benchmarks/skewed.py --data FOLDER --runs runs.jsonl
"""

import statistics
import time

import numpy as np
from accuracy import cases, found_or_run, machine, parsed_for_runs, show
from sklearn.metrics import accuracy_score, f1_score, recall_score
from sklearn.model_selection import TunedThresholdClassifierCV

from bertclf import BertSequenceClassifier

SKEWED = ("sms_spam", "germeval2018_de", "emotion6", "goemotions_ekman")
DEFAULTS, BALANCED, TUNED = "defaults", "class_weight balanced", "tuned threshold"


def is_for(way, train):
    """Tell whether a way is for the labels of these rows."""
    return way != TUNED or train.are_multilabel or len(np.unique(train.labels)) == 2


def classifier_of(way, train, *, model, seed):
    """Return the classifier of a way."""
    settings = {
        DEFAULTS: {},
        BALANCED: {"class_weight": "balanced"},
        TUNED: {"thresholds": "f1" if train.are_multilabel else None},
    }
    classifier = BertSequenceClassifier(model, random_state=seed, **settings[way])
    if way != TUNED or train.are_multilabel:
        return classifier
    return TunedThresholdClassifierCV(classifier, scoring="f1_macro", cv=0.2, random_state=seed)


def run(way, train, test, *, model, seed):
    """Return what the predictions of a way score, and its seconds from texts to predictions."""
    classifier = classifier_of(way, train, model=model, seed=seed)
    begun = time.perf_counter()
    predicted = classifier.fit(train.texts, train.labels).predict(test.texts)
    seconds = time.perf_counter() - begun
    labels = np.flatnonzero(test.labels.any(axis=0)) if test.are_multilabel else np.unique(test.labels)
    recalls = recall_score(test.labels, predicted, labels=labels, average=None, zero_division=0)
    return {
        "macro_f1": float(f1_score(test.labels, predicted, average="macro", zero_division=0)),
        "micro_f1": float(f1_score(test.labels, predicted, average="micro", zero_division=0)),
        "accuracy": float(accuracy_score(test.labels, predicted)),
        "lowest_recall": float(recalls.min()),
        "seconds": seconds,
    } | machine()


def table(runs):
    """Return a Markdown table of means over the seeds, one row for each set and way."""
    lines = ["| set | training rows | way | runs | macro F1 | micro F1 | lowest recall | seconds |", "|---" * 8 + "|"]
    groups = {}
    for found in runs:
        groups.setdefault((found["set"], found["rows"], found["way"]), []).append(found)
    for (name, n_rows, way), found in groups.items():
        means = [statistics.mean(run[key] for run in found) for key in ("macro_f1", "micro_f1", "lowest_recall")]
        scores = " | ".join(f"{mean:.3f}" for mean in means)
        seconds = statistics.mean(run["seconds"] for run in found)
        lines.append(f"| {name} | {n_rows} | {way} | {len(found)} | {scores} | {seconds:.0f} |")
    return "\n".join(lines)


def main(argv=None):
    """Run what is missing and print the table."""
    arguments = parsed_for_runs(__doc__, argv, sets=SKEWED, ways=(DEFAULTS, BALANCED, TUNED), seeds=range(3))
    show(table(found_or_run(cases(arguments, run, is_for=is_for), file=arguments.runs)))


if __name__ == "__main__":
    main()
