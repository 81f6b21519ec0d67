"""BertSequenceClassifier inside scikit-learn's tools for choosing, calibrating and combining models.

Each tool runs on the same few hundred texts, film reviews unless `--data` names a file of JSON lines with `text` and
`label`. Every line below is plain scikit-learn: the classifier needs no wrapper.

    python examples/model_selection.py
    python examples/model_selection.py --data sms.jsonl --only calibration threshold
"""

import argparse
import json
import time
from collections import Counter
from pathlib import Path

import numpy as np
from minilm import minilm_folder
from quickstart import film_reviews
from sklearn.calibration import CalibratedClassifierCV
from sklearn.ensemble import StackingClassifier
from sklearn.experimental import enable_halving_search_cv  # noqa: F401
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import accuracy_score, f1_score, log_loss, make_scorer
from sklearn.model_selection import (
    GridSearchCV,
    HalvingGridSearchCV,
    TunedThresholdClassifierCV,
    cross_val_score,
    train_test_split,
)
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer

from bertclf import BertSequenceClassifier

N_TEST = 300


def tidy(texts):
    """Return the texts with runs of white space made one blank."""
    return [" ".join(text.split()) for text in texts]


def tfidf():
    """Return the usual baseline."""
    return make_pipeline(TfidfVectorizer(), LogisticRegression(max_iter=1000))


def cross_validation(clf, training, test):
    """Measure accuracy over three folds."""
    scores = cross_val_score(clf, *training, cv=3)
    print(f"accuracy {scores.mean():.3f}, folds from {scores.min():.3f} to {scores.max():.3f}")


def grid_search(clf, training, test):
    """Choose the learning rate by a grid search over a pipeline, with two workers."""
    pipeline = make_pipeline(FunctionTransformer(tidy), clf)
    grid = {"bertsequenceclassifier__learning_rate": [2e-5, 2e-4]}
    search = GridSearchCV(pipeline, grid, cv=2, n_jobs=2).fit(*training)
    for parameters, score in zip(search.cv_results_["params"], search.cv_results_["mean_test_score"], strict=True):
        print(f"accuracy {score:.3f} with {parameters}")
    print(f"on the test texts {search.score(*test):.3f}")


def successive_halving(clf, training, test):
    """Choose the learning rate by successive halving: many candidates for few epochs, the best of them for more."""
    grid = {"learning_rate": [2e-5, 5e-5, 1e-4, 3e-4]}
    search = HalvingGridSearchCV(clf, grid, resource="epochs", max_resources=4, factor=2, cv=2, random_state=0)
    search.fit(*training)
    for epochs, n_candidates in zip(search.n_resources_, search.n_candidates_, strict=True):
        print(f"{n_candidates} candidates for {epochs} epochs")
    print(f"best {search.best_params_}, on the test texts {search.score(*test):.3f}")


def calibration(clf, training, test):
    """Calibrate the probabilities by one temperature, fitted on what networks of three folds say of unseen texts."""
    calibrated = CalibratedClassifierCV(clf, method="temperature", cv=3, ensemble=False).fit(*training)
    plain = calibrated.calibrated_classifiers_[0].estimator
    for name, model in {"as trained": plain, "calibrated": calibrated}.items():
        # scikit-learn returns these float32 numbers as float64, and then misses the last digits of their sums.
        probabilities = model.predict_proba(test[0]).astype(np.float32)
        print(f"log loss {log_loss(test[1], probabilities):.3f} {name}")


def threshold(clf, training, test):
    """Choose the threshold with the best F1 of the rarer of two classes."""
    if len(set(training[1])) != 2:
        print("a threshold is for two classes")
        return
    rare = min(Counter(training[1]).items(), key=lambda item: item[1])[0]
    scorer = make_scorer(f1_score, pos_label=rare)
    tuned = TunedThresholdClassifierCV(clf, scoring=scorer, cv=2, store_cv_results=True).fit(*training)
    plain = scorer(tuned.estimator_, *test)
    print(f"F1 of {rare!r} {plain:.3f} at 0.5, {scorer(tuned, *test):.3f} at {tuned.best_threshold_:.3f}")


def stacking(clf, training, test):
    """Stack the network and TF-IDF: logistic regression on the probabilities of both."""
    stack = StackingClassifier([("network", clf), ("tfidf", tfidf())], cv=2).fit(*training)
    network = stack.named_estimators_["network"]
    alone = {
        "the network": stack.classes_[network.predict(test[0])],  # inside a stack labels are positions
        "TF-IDF": tfidf().fit(*training).predict(test[0]),
    }
    for name, predicted in alone.items():
        print(f"accuracy {accuracy_score(test[1], predicted):.3f} of {name} alone")
    print(f"accuracy {stack.score(*test):.3f} of both")


def early_stopping(clf, training, test):
    """Train for as many epochs as help, by texts held out, and keep the best weights."""
    texts, held_out, labels, held_out_labels = train_test_split(
        *training, test_size=0.1, stratify=training[1], random_state=0
    )
    clf.set_params(epochs=8, early_stopping=True, scoring="accuracy")
    clf.fit(texts, labels, X_val=held_out, y_val=held_out_labels)
    print(f"scores of {clf.n_iter_} epochs: {', '.join(f'{score:.3f}' for score in clf.validation_scores_)}")
    print(f"kept {clf.best_validation_score_:.4f}, measured again {clf.score(held_out, held_out_labels):.4f}")


TOOLS = {
    tool.__name__: tool
    for tool in (cross_validation, grid_search, successive_halving, calibration, threshold, stacking, early_stopping)
}


def main(argv=None):
    """Run the tools one after the other."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", help="name on the Hugging Face Hub, or folder; default: the installed MiniLM")
    parser.add_argument("--data", type=Path, help="JSON lines with text and label; default: film reviews")
    parser.add_argument("--texts", type=int, default=400, help="texts to train on")
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--only", nargs="+", choices=TOOLS, default=list(TOOLS))
    arguments = parser.parse_args(argv)

    if arguments.data:
        rows = [json.loads(line) for line in arguments.data.read_text(encoding="utf-8").splitlines()]
        texts, labels = [row["text"] for row in rows], [row["label"] for row in rows]
    else:
        texts, labels = film_reviews()
    n_test = min(N_TEST, len(texts) - arguments.texts)
    kept, test, kept_labels, test_labels = train_test_split(
        texts, labels, train_size=arguments.texts, test_size=n_test, stratify=labels, random_state=0
    )
    for name in arguments.only:
        start = time.perf_counter()
        print(f"{name}: {TOOLS[name].__doc__}", flush=True)
        clf = BertSequenceClassifier(
            arguments.model or minilm_folder(), epochs=arguments.epochs, batch_size=16, max_length=64, random_state=0
        )
        TOOLS[name](clf, (kept, kept_labels), (test, test_labels))
        print(f"{time.perf_counter() - start:.0f} s\n", flush=True)


if __name__ == "__main__":
    main()
