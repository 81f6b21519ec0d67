"""Compare a grid search of six candidates and five folds with the sum of its thirty bare fits, done by hand.

The search is scikit-learn's, without the refit; by hand, the same classifiers are fitted on the same folds and predict
what is held out. Counted is as well how often each text was tokenized. With `--memory`, a search whose classifier keeps
tokens in a temporary folder, empty at the beginning of each turn, takes its turns with the two.

    python examples/benchmarks/grid_search.py --data train.jsonl
    python examples/benchmarks/grid_search.py --data train.jsonl --memory
"""

import tempfile
from contextlib import contextmanager
from functools import partial

import numpy as np
from common import classifier_of, in_turn, medians, parsed, parser_of, read, report
from sklearn.base import clone
from sklearn.metrics import accuracy_score
from sklearn.model_selection import GridSearchCV, ParameterGrid, StratifiedKFold
from transformers import PreTrainedTokenizerBase

GRID = {"learning_rate": [2e-5, 5e-5, 1e-4], "warmup_ratio": [0.0, 0.1]}
FOLDS = StratifiedKFold(5)
BARE, SEARCH, REMEMBERING = "30 bare fits by hand", "GridSearchCV", "GridSearchCV with memory"


@contextmanager
def counting_tokenized(counts):
    """Append the number of texts that tokenizers get inside."""
    call = PreTrainedTokenizerBase.__call__

    def counted(self, text=None, *arguments, **named):
        counts.append(0 if isinstance(text, str) else len(text))  # a single text tries a checkpoint as it is loaded
        return call(self, text, *arguments, **named)

    PreTrainedTokenizerBase.__call__ = counted
    try:
        yield
    finally:
        PreTrainedTokenizerBase.__call__ = call


def by_hand(classifier, texts, labels, _):
    """Fit each candidate on each fold; return scores of shape (6, 5), and how many texts were tokenized."""
    texts, labels = np.array(texts, dtype=object), np.array(labels)
    counts, scores = [], []
    with counting_tokenized(counts):
        for candidate in ParameterGrid(GRID):
            for train, test in FOLDS.split(texts, labels):
                fitted = clone(classifier).set_params(**candidate).fit(list(texts[train]), labels[train])
                scores.append(accuracy_score(labels[test], fitted.predict(list(texts[test]))))
    return np.reshape(scores, (-1, FOLDS.n_splits)), sum(counts)


def search(classifier, texts, labels, _):
    """Let scikit-learn do the same, and return the same."""
    counts = []
    with counting_tokenized(counts):
        results = (
            GridSearchCV(classifier, GRID, cv=FOLDS, refit=False, error_score="raise").fit(texts, labels).cv_results_
        )
    return np.stack([results[f"split{fold}_test_score"] for fold in range(FOLDS.n_splits)], axis=1), sum(counts)


def remembering_search(classifier, texts, labels, repeat):
    """Let scikit-learn do the same with a classifier that keeps tokens in a folder."""
    with tempfile.TemporaryDirectory() as folder:
        return search(clone(classifier).set_params(memory=folder), texts, labels, repeat)


def main(argv=None):
    """Run the sides in turn and print the table."""
    parser = parser_of(__doc__)
    parser.add_argument("--rows", type=int, default=200, help="rows to search on, always the same")
    parser.add_argument("--memory", action="store_true", help="search also with the parameter memory, a folder")
    arguments = parsed(parser, argv)
    texts, labels = read(arguments.data, arguments.rows)
    classifier = classifier_of(arguments.model)
    clone(classifier).fit(texts, labels).predict(texts)  # untimed: what is made on first use is charged to none

    ways = {BARE: by_hand, SEARCH: search} | ({REMEMBERING: remembering_search} if arguments.memory else {})
    turns = {name: partial(way, classifier, texts, labels) for name, way in ways.items()}
    measured = list(in_turn(turns, repeats=arguments.repeats))
    seconds = medians((name, elapsed) for name, _, elapsed in measured)
    tokenized = medians((name, n_texts) for name, (_, n_texts), _ in measured)
    scores = {name: result for name, (result, _), _ in measured}
    report(
        f"{len(texts)} texts, {len(ParameterGrid(GRID))} candidates, {FOLDS.n_splits} folds, 1 epoch, float32, medians "
        f"of {arguments.repeats}.",
        ["way", "seconds", "times the bare fits", "each text tokenized", "mean accuracy", "scores as by hand"],
        [
            [
                name,
                f"{median:.1f}",
                f"{median / seconds[BARE]:.3f}",
                f"{tokenized[name] / len(texts):.1f} times",
                f"{scores[name].mean():.3f}",
                f"{np.mean(np.isclose(scores[name], scores[BARE])):.0%}",
            ]
            for name, median in seconds.items()
        ],
    )


if __name__ == "__main__":
    main()
