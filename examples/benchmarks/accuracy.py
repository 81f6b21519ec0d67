"""Compare the accuracy out of the box with what users would otherwise try, on many data sets and several seeds.

Each way gets the raw training texts of a set and gives probabilities for its test texts; nothing is tuned. Each run
appends one JSON line to `--runs`; runs that stand there are not repeated, so that the script can be stopped and started
again: begin another file where the code has changed. Ways without chance in them run with one seed.

    python examples/benchmarks/accuracy.py --data FOLDER --runs runs.jsonl
"""

import argparse
import json
import statistics
import tempfile
import time
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
import torch
import transformers
from common import (
    BATCH_SIZE,
    LEARNING_RATE,
    MAX_LENGTH,
    best_dtype,
    device,
    is_installed,
    name_of,
    processor,
    versions,
)
from minilm import minilm_folder
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import accuracy_score, f1_score, log_loss, matthews_corrcoef
from sklearn.multiclass import OneVsRestClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import MultiLabelBinarizer
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    DataCollatorWithPadding,
    PrinterCallback,
    Trainer,
    TrainingArguments,
)

from bertclf import BertSequenceClassifier

N_PAIRS = 20
N_BINS = 15  # of the calibration error, as in Guo et al. (2017), "On Calibration of Modern Neural Networks"


@dataclass(frozen=True)
class Rows:
    """Texts, or pairs of them as tuples, with one label each, or with a matrix of zeros and ones."""

    texts: list
    labels: np.ndarray

    @property
    def are_pairs(self):
        """Whether each row has two texts."""
        return isinstance(self.texts[0], tuple)

    @property
    def are_multilabel(self):
        """Whether a text can have any number of labels."""
        return self.labels.ndim == 2

    @property
    def joined(self):
        """The texts; of pairs, both in one."""
        return [" ".join(pair) for pair in self.texts] if self.are_pairs else self.texts


@dataclass(frozen=True)
class DataSet:
    """Files of JSON lines below a folder, and what the table shows of it."""

    train: str
    test: str
    metric: str = "accuracy"


SETS = {
    "tiny_chatbot": DataSet("tiny_chatbot/train", "tiny_chatbot/test"),
    "tiny_askubuntu": DataSet("tiny_askubuntu/train", "tiny_askubuntu/test"),
    "banking77, 5 a class": DataSet("banking77_fewshot/train_5", "banking77_fewshot/test"),
    "banking77, 10 a class": DataSet("banking77_fewshot/train_10", "banking77_fewshot/test"),
    "banking77": DataSet("banking77/train", "banking77/test"),
    "rte": DataSet("rte/train", "rte/valid"),
    "trec": DataSet("trec/train", "trec/test"),
    "mr": DataSet("mr/train", "mr/test"),
    "sms_spam": DataSet("sms_spam/train", "sms_spam/test"),
    "germeval2018_de": DataSet("germeval2018_de/train", "germeval2018_de/test"),
    "cola": DataSet("cola/train", "cola/test", metric="matthews"),
    "emotion6": DataSet("emotion6/train", "emotion6/test"),
    "goemotions_ekman": DataSet("goemotions_ekman/train", "goemotions_ekman/test", metric="macro_f1"),
    "movie_reviews_long": DataSet("movie_reviews_long/train", "movie_reviews_long/test"),
}


def read_set(folder, files):
    """Return the training and the test rows of a set."""
    parts = []
    for name in (files.train, files.test):
        lines = (folder / f"{name}.jsonl").read_text(encoding="utf-8").split("\n")
        parts.append([json.loads(line) for line in lines if line])
    if "labels" in parts[0][0]:
        binarizer = MultiLabelBinarizer().fit([row["labels"] for rows in parts for row in rows])
        labels = [binarizer.transform([row["labels"] for row in rows]) for rows in parts]
    else:
        labels = [np.array([row["label"] for row in rows]) for rows in parts]
    texts = [[(row["text"], row["text_pair"]) if "text_pair" in row else row["text"] for row in rows] for rows in parts]
    return Rows(texts[0], labels[0]), Rows(texts[1], labels[1])


def some_of(rows, n_rows):
    """Return so many rows, drawn at random, always the same; all if None."""
    if n_rows is None or len(rows.texts) <= n_rows:
        return rows
    chosen = np.random.default_rng(0).choice(len(rows.texts), n_rows, replace=False)
    return replace(rows, texts=[rows.texts[row] for row in chosen], labels=rows.labels[chosen])


def found_in(file, keys):
    """Return the runs in a file of JSON lines that have all entries of one of these dicts, none if there is no file."""
    runs = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()] if file.exists() else []
    return [run for run in runs if any(key.items() <= run.items() for key in keys)]


def found_or_run(wanted, *, file):
    """Return the runs of some cases from a file of JSON lines; those that don't stand there are run, shown and added.

    Cases are pairs: what tells a run from others, as a dict, and a function that returns its scores.
    """
    keys = []
    for key, scores in wanted:
        keys.append(key)
        if not found_in(file, [key]):
            line = json.dumps(key | scores())
            with file.open("a", encoding="utf-8") as stream:
                print(line, file=stream)
            print(line, flush=True)
    return found_in(file, keys)


def parsed_for_runs(description, argv, *, sets, ways, seeds):
    """Return the arguments of a script that keeps its runs in a file, and keep transformers silent of its progress.

    Ways whose package isn't installed are left out, with a line that says so.
    """
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder with a folder of JSON lines for each set")
    parser.add_argument("--runs", type=Path, required=True, help="file of JSON lines, one a run")
    parser.add_argument("--model", help="name on the Hugging Face Hub, or folder; default: the installed MiniLM")
    parser.add_argument("--sets", nargs="+", default=sets, choices=sets)
    parser.add_argument("--ways", nargs="+", default=ways, choices=ways)
    parser.add_argument("--seeds", nargs="+", type=int, default=seeds)
    parser.add_argument("--rows", type=int, help="most training rows, drawn at random, always the same; default: all")
    arguments = parser.parse_args(argv)
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    arguments.model = arguments.model or minilm_folder()
    arguments.ways = [way for way in arguments.ways if way not in NEEDS or is_installed(NEEDS[way], way=way)]
    return arguments


def rows_of_sets(arguments):
    """Yield for each seed and set what tells its runs from others, the training rows asked for, and the test rows."""
    for seed in arguments.seeds:
        for name in arguments.sets:
            train, test = read_set(arguments.data, SETS[name])
            yield {"set": name, "model": Path(arguments.model).name, "seed": seed}, some_of(train, arguments.rows), test


def show(rows):
    """Print processor, precision and versions, and tables below."""
    print(f"{processor()}; {name_of(best_dtype())}; {versions()}.\n\n{rows}")


def bertclf(train, test, *, model, seed, **settings):
    """Fit `BertSequenceClassifier` with its defaults, some of them changed by `settings`."""
    classifier = BertSequenceClassifier(model, random_state=seed, **settings).fit(train.texts, train.labels)
    return classifier.predict_proba(test.texts)


def tutorial(train, test, **settings):
    """Train as the tutorial does: 4 epochs at 5e-5 without warm-up, 64 tokens, first token, a head drawn at random.

    Targets aren't smoothed.
    """
    return bertclf(
        train,
        test,
        epochs=4,
        batch_size=BATCH_SIZE,
        learning_rate=LEARNING_RATE,
        warmup_ratio=0.0,
        label_smoothing=0.0,
        max_length=MAX_LENGTH,
        long_text="truncate",
        pooling="cls",
        head_init="random",
        **settings,
    )


def with_trainer(train, test, *, model, seed):
    """Train with `Trainer` and its defaults: 3 epochs at 5e-5, batches of 8, padded to the longest text in each."""
    transformers.set_seed(seed)
    if train.are_multilabel:
        n_classes, targets, kind = train.labels.shape[1], train.labels.astype(np.float32), "multi_label_classification"
    else:
        classes, targets = np.unique(train.labels, return_inverse=True)
        n_classes, kind = len(classes), "single_label_classification"
    tokenizer = AutoTokenizer.from_pretrained(model)
    network = AutoModelForSequenceClassification.from_pretrained(
        model, num_labels=n_classes, problem_type=kind, dtype=torch.float32
    )

    def encoded(rows):
        columns = zip(*rows.texts, strict=True) if rows.are_pairs else [rows.texts]
        tokens = tokenizer(*map(list, columns), truncation=True)
        return [{name: values[row] for name, values in tokens.items()} for row in range(len(rows.texts))]

    rows = [row | {"labels": target} for row, target in zip(encoded(train), targets.tolist(), strict=True)]
    with tempfile.TemporaryDirectory() as scratch:
        settings = TrainingArguments(scratch, save_strategy="no", report_to="none", disable_tqdm=True, seed=seed)
        collate = DataCollatorWithPadding(tokenizer)
        trainer = Trainer(network, settings, train_dataset=rows, processing_class=tokenizer, data_collator=collate)
        trainer.remove_callback(PrinterCallback)
        trainer.train()
        logits = torch.from_numpy(trainer.predict(encoded(test)).predictions)
    return (logits.sigmoid() if train.are_multilabel else logits.softmax(dim=1)).numpy()


def logistic_regression(train):
    """Return a logistic regression for vectors of length one, or of many labels one each.

    The default of scikit-learn holds it back too much on such vectors: a tenth of it is better on most sets.
    """
    regression = LogisticRegression(C=10.0, max_iter=1000)
    return OneVsRestClassifier(regression) if train.are_multilabel else regression


def embeddings(train, test, *, model, seed):
    """Fit a logistic regression on the embeddings of sentence-transformers."""
    from sentence_transformers import SentenceTransformer

    encoder = SentenceTransformer(str(model), device=str(device()))
    vectors = [encoder.encode(rows.joined, show_progress_bar=False) for rows in (train, test)]
    return logistic_regression(train).fit(vectors[0], train.labels).predict_proba(vectors[1])


def tfidf(train, test, *, model, seed):
    """Fit a logistic regression on counts of words and pairs of words, weighted by their rarity."""
    pipeline = make_pipeline(TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True), logistic_regression(train))
    return pipeline.fit(train.joined, train.labels).predict_proba(test.joined)


def setfit(train, test, *, model, seed):
    """Train with SetFit: one epoch on 20 pairs alike and 20 pairs apart a text, then a logistic regression.

    Twenty is the number in Tunstall et al. (2022), "Efficient Few-Shot Learning Without Prompts"; its default today is
    all pairs, hundreds of thousands where there are many classes.
    """
    from datasets import Dataset
    from setfit import SetFitModel
    from setfit import Trainer as SetFitTrainer
    from setfit import TrainingArguments as SetFitArguments

    strategy = "one-vs-rest" if train.are_multilabel else None
    encoder = SetFitModel.from_pretrained(str(model), device=str(device()), multi_target_strategy=strategy)
    rows = Dataset.from_dict({"text": train.joined, "label": train.labels.tolist()})
    with tempfile.TemporaryDirectory() as scratch:
        settings = SetFitArguments(
            scratch, batch_size=16, num_iterations=N_PAIRS, seed=seed, save_strategy="no", report_to="none"
        )
        trainer = SetFitTrainer(encoder, settings, train_dataset=rows)
        trainer.train()
    return encoder.predict_proba(test.joined, as_numpy=True)


OURS, CALIBRATED = "bertclf", "bertclf, calibration"
TUTORIAL, TRAINER = "tutorial's settings", "Trainer's defaults"
EMBEDDINGS, TFIDF, SETFIT = "embeddings and logistic regression", "TF-IDF and logistic regression", "SetFit"
WAYS = {
    OURS: bertclf,
    CALIBRATED: partial(bertclf, calibration="temperature"),
    TUTORIAL: tutorial,
    TRAINER: with_trainer,
    EMBEDDINGS: embeddings,
    TFIDF: tfidf,
    SETFIT: setfit,
}
NEEDS = {TRAINER: "accelerate", EMBEDDINGS: "sentence_transformers", SETFIT: "setfit"}
WITHOUT_CHANCE = {EMBEDDINGS, TFIDF}


def calibration_error(hits, confidences):
    """Return the expected calibration error: how far confidence is from the share of hits, in the mean over bins."""
    bins = np.minimum((confidences * N_BINS).astype(int), N_BINS - 1)
    gaps = np.bincount(bins, confidences, N_BINS) - np.bincount(bins, hits, N_BINS)
    return float(np.abs(gaps).sum() / len(hits))


def measures(labels, probabilities, classes):
    """Return all scores of probabilities by name."""
    if labels.ndim == 2:
        predicted = probabilities > 0.5
        hits, confidences = (labels == 1).ravel(), probabilities.ravel()
        return {
            "accuracy": float(accuracy_score(labels, predicted)),
            "macro_f1": float(f1_score(labels, predicted, average="macro", zero_division=0)),
            "micro_f1": float(f1_score(labels, predicted, average="micro", zero_division=0)),
            "log_loss": float(
                np.mean([log_loss(*pair, labels=[0, 1]) for pair in zip(labels.T, probabilities.T, strict=True)])
            ),
            "calibration_error": calibration_error(hits, confidences),
        }
    predicted = classes[probabilities.argmax(axis=1)]
    rows = probabilities.astype(np.float64)
    rows /= rows.sum(axis=1, keepdims=True)  # to the last bit, or log_loss warns
    return {
        "accuracy": float(accuracy_score(labels, predicted)),
        "macro_f1": float(f1_score(labels, predicted, average="macro", zero_division=0)),
        "matthews": float(matthews_corrcoef(labels, predicted)),
        "log_loss": float(log_loss(labels, rows, labels=classes)),
        "calibration_error": calibration_error(predicted == labels, probabilities.max(axis=1)),
    }


def machine():
    """Return what seconds depend on, and scores a little: processor and precision."""
    return {"processor": processor(), "precision": name_of(best_dtype())}


def run(way, train, test, *, model, seed):
    """Return the scores of one way on one set, and its seconds from texts to probabilities."""
    begun = time.perf_counter()
    probabilities = WAYS[way](train, test, model=model, seed=seed)
    seconds = time.perf_counter() - begun
    return measures(test.labels, probabilities, np.unique(train.labels)) | {"seconds": seconds} | machine()


def mean_and_spread(scores):
    """Return a cell of a table: mean, standard deviation and number of scores; of one the score, of none nothing."""
    spread = f" ± {statistics.stdev(scores):.3f} ({len(scores)})" if len(scores) > 1 else ""
    return f"{statistics.mean(scores):.3f}{spread}" if scores else ""


def names_of(runs):
    """Return the sets that have runs, in order."""
    return [name for name in SETS if any(run["set"] == name for run in runs)]


def mean_of(runs, field, digits=3):
    """Return a cell of a table: the mean over runs; of none nothing."""
    return f"{statistics.mean(run[field] for run in runs):.{digits}f}" if runs else ""


def table(runs):
    """Return a Markdown table: mean and standard deviation over the seeds of what each set is measured by."""
    ways = [way for way in WAYS if way != CALIBRATED and any(run["way"] == way for run in runs)]
    lines = [f"| set | {' | '.join(ways)} |", "|---" * (len(ways) + 1) + "|"]
    for name in names_of(runs):
        cells = []
        for way in ways:
            found = [run[SETS[name].metric] for run in runs if run["set"] == name and run["way"] == way]
            cells.append(mean_and_spread(found))
        metric = "" if SETS[name].metric == "accuracy" else f", {SETS[name].metric}"
        lines.append(f"| {name}{metric} | {' | '.join(cells)} |")
    return "\n".join(lines)


def table_of_probabilities(runs):
    """Return a Markdown table: means over the seeds of log loss and calibration error, and of the seconds on a CPU."""
    ways = (OURS, TUTORIAL, EMBEDDINGS)
    three, two = "{}, bertclf | tutorial's | embeddings", "{}, bertclf | tutorial's"
    titles = [three.format("log loss"), three.format("calibration error"), two.format("seconds")]
    lines = [f"| set | {' | '.join(titles)} |", "|---" * 9 + "|"]
    for name in names_of(runs):
        of = {way: [run for run in runs if (run["set"], run["way"]) == (name, way)] for way in ways}
        on_cpu = [[run for run in of[way] if "NVIDIA" not in run.get("processor", "")] for way in (OURS, TUTORIAL)]
        cells = [mean_of(of[way], field) for field in ("log_loss", "calibration_error") for way in ways]
        cells += [mean_of(some, "seconds", digits=0) for some in on_cpu]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines)


def table_of_calibration(runs):
    """Return a Markdown table: what `calibration` changes, means over the seeds that ran with it and without."""
    pairs = [f"{field}, without | with" for field in ("score", "log loss", "calibration error")]
    lines = [f"| set | training rows | {' | '.join(pairs)} |", "|---" * 8 + "|"]
    for name in names_of(runs):
        plain, scaled = (
            {run["seed"]: run for run in runs if (run["set"], run["way"]) == (name, way)} for way in (OURS, CALIBRATED)
        )
        seeds = sorted(plain.keys() & scaled.keys())
        if seeds:
            sides = [[side[seed] for seed in seeds] for side in (plain, scaled)]
            cells = [
                mean_of(side, field) for field in (SETS[name].metric, "log_loss", "calibration_error") for side in sides
            ]
            lines.append(f"| {name} | {sides[0][0]['rows']} | {' | '.join(cells)} |")
    return "\n".join(lines)


def cases(arguments, run_way, *, is_for=lambda way, train: True):
    """Yield a case for each seed, set and way that is for the set, for `found_or_run`; ways without chance have seed 0.

    `run_way` is called as `run` is; `is_for` tells of a way and training rows whether it can be run on them.
    """
    for key, train, test in rows_of_sets(arguments):
        for way in arguments.ways:
            if is_for(way, train):
                seed = 0 if way in WITHOUT_CHANCE else key["seed"]
                scores = partial(run_way, way, train, test, model=arguments.model, seed=seed)
                yield key | {"way": way, "rows": len(train.texts), "seed": seed}, scores


def main(argv=None):
    """Run what is missing and print the tables, also of ways and seeds that were run before."""
    arguments = parsed_for_runs(__doc__, argv, sets=list(SETS), ways=list(WAYS), seeds=range(5))
    ran = found_or_run(cases(arguments, run), file=arguments.runs)
    runs = found_in(arguments.runs, [{field: run[field] for field in ("set", "model", "rows")} for run in ran])
    show("\n\n".join(make(runs) for make in (table, table_of_probabilities, table_of_calibration)))


if __name__ == "__main__":
    main()
