"""Compare accuracies where there are 1 to 16 texts a class: texts drawn at random, with another draw for each seed.

Ways are those of `accuracy.py`. Each run appends one JSON line to `--runs`; runs that stand there are not repeated.

    python examples/benchmarks/few_texts.py --data FOLDER --runs runs.jsonl
"""

import statistics
from dataclasses import replace
from pathlib import Path

import numpy as np
from accuracy import SETS, WAYS, append, found_in, mean_and_spread, parsed_for_runs, read_set, run, some_of
from common import best_dtype, name_of, processor, versions

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


def main(argv=None):
    """Run what is missing and print the table."""
    arguments = parsed_for_runs(__doc__, argv, sets=DRAWN_FROM, ways=list(WAYS), seeds=range(3))
    model = arguments.model
    wanted = []
    for seed in arguments.seeds:
        for name in arguments.sets:
            train, test = read_set(arguments.data, SETS[name])
            train, test = some_of(train, arguments.rows), some_of(test, N_TEST_ROWS)
            for n_texts in TEXTS_A_CLASS:
                few = drawn(train, n_texts, seed=seed)
                for way in arguments.ways:
                    key = {"set": name, "way": way, "model": Path(model).name, "seed": seed}
                    key |= {"per_class": n_texts, "drawn_from": len(train.texts)}
                    wanted.append(key)
                    if not found_in(arguments.runs, [key]):
                        append(key | run(way, few, test, model=model, seed=seed), file=arguments.runs)
    print(f"{processor()}; {name_of(best_dtype())}; {versions()}.\n\n{table(found_in(arguments.runs, wanted))}")


if __name__ == "__main__":
    main()
