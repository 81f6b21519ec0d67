"""Compare accuracies where there are 1 to 16 texts a class: texts drawn at random, with another draw for each seed.

Ways are those of `accuracy.py`. Each run appends one JSON line to `--runs`; runs that stand there are not repeated.

    python examples/benchmarks/few_texts.py --data FOLDER --runs runs.jsonl
"""

import statistics
from dataclasses import replace
from functools import partial

import numpy as np
from accuracy import WAYS, found_or_run, mean_and_spread, parsed_for_runs, rows_of_sets, run, show, some_of

DRAWN_FROM = ("trec", "mr", "sms_spam", "germeval2018_de", "emotion6", "banking77")
TEXTS_A_CLASS = (1, 2, 4, 8, 16)
N_TEST_ROWS = 1000


def drawn(rows, n_texts, *, seed):
    """Return so many rows of each class, or all, drawn at random: with the same seed those of fewer and more."""
    order = np.random.default_rng(seed).permutation(len(rows.texts))
    chosen = np.concatenate([order[rows.labels[order] == label][:n_texts] for label in np.unique(rows.labels)])
    return replace(rows, texts=[rows.texts[row] for row in chosen], labels=rows.labels[chosen])


def table(runs):
    """Return a Markdown table: mean and standard deviation of the accuracy over the seeds."""
    ways = [way for way in WAYS if any(run["way"] == way for run in runs)]
    kinds = sorted({(DRAWN_FROM.index(run["set"]), run["per_class"]) for run in runs})
    lines = [f"| set | texts a class | {' | '.join(ways)} |", "|---" * (len(ways) + 2) + "|"]
    for place, n_texts in kinds:
        cells = []
        for way in ways:
            kind = {"set": DRAWN_FROM[place], "per_class": n_texts, "way": way}
            found = [run["accuracy"] for run in runs if kind.items() <= run.items()]
            cells.append(mean_and_spread(found))
        lines.append(f"| {DRAWN_FROM[place]} | {n_texts} | {' | '.join(cells)} |")
    for way in ways:
        seconds = statistics.mean(run["seconds"] for run in runs if run["way"] == way)
        lines.append(f"\n{way}: {seconds:.1f} s a run on average.")
    return "\n".join(lines)


def cases(arguments):
    """Yield a case for each seed, set, number of texts and way, for `found_or_run`."""
    for key, train, test in rows_of_sets(arguments):
        some = some_of(test, N_TEST_ROWS)
        for n_texts in TEXTS_A_CLASS:
            few = drawn(train, n_texts, seed=key["seed"])
            for way in arguments.ways:
                scores = partial(run, way, few, some, model=arguments.model, seed=key["seed"])
                yield key | {"way": way, "per_class": n_texts, "drawn_from": len(train.texts)}, scores


def main(argv=None):
    """Run what is missing and print the table."""
    arguments = parsed_for_runs(__doc__, argv, sets=DRAWN_FROM, ways=list(WAYS), seeds=range(3))
    show(table(found_or_run(cases(arguments), file=arguments.runs)))


if __name__ == "__main__":
    main()
