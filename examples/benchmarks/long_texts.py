"""Compare what is done with texts that are longer than the network reads: cut them, or read them in windows.

Ways are the values of `long_text`, with the defaults otherwise: `"truncate"` reads the beginning, `"head_tail"` the
beginning and the end, `"chunk"` all of it in windows. Each run appends one JSON line to `--runs`; runs that stand there
are not repeated.

    python examples/benchmarks/long_texts.py --data FOLDER --runs runs.jsonl
"""

import statistics
import time
from pathlib import Path

import numpy as np
from accuracy import SETS, append, found_in, machine, mean_and_spread, measures, parsed_for_runs, read_set, some_of
from common import best_dtype, name_of, processor, versions

from bertclf import BertSequenceClassifier

LONG = ("movie_reviews_long",)
WAYS = ("truncate", "head_tail", "chunk")


def run(way, train, test, *, model, seed):
    """Return what one value of `long_text` scores, how many tokens a text it cuts, and the seconds of both parts."""
    begun = time.perf_counter()
    classifier = BertSequenceClassifier(model, long_text=way, random_state=seed).fit(train.texts, train.labels)
    fitted = time.perf_counter()
    probabilities = classifier.predict_proba(test.texts)
    seconds = {"fit_seconds": fitted - begun, "predict_seconds": time.perf_counter() - fitted}
    cut = {"tokens_cut": classifier.truncation_["tokens"] / len(train.texts)}
    return measures(test.labels, probabilities, np.unique(train.labels)) | cut | seconds | machine()


def table(runs):
    """Return a Markdown table of means over the seeds, one row for each set and way."""
    columns = ("log loss", "calibration error", "tokens cut a text", "fit, s", "prediction, s")
    lines = [f"| set | long_text | accuracy | {' | '.join(columns)} |", "|---" * 8 + "|"]
    groups = {}
    for found in runs:
        groups.setdefault((found["set"], WAYS.index(found["way"])), []).append(found)
    for (name, way), found in sorted(groups.items()):
        accuracy = mean_and_spread([run["accuracy"] for run in found])
        mean = {key: statistics.mean(run[key] for run in found) for key in found[0] if isinstance(found[0][key], float)}
        scores = " | ".join(f"{mean[key]:.3f}" for key in ("log_loss", "calibration_error"))
        rest = " | ".join(f"{mean[key]:.0f}" for key in ("tokens_cut", "fit_seconds", "predict_seconds"))
        lines.append(f'| {name} | `"{WAYS[way]}"` | {accuracy} | {scores} | {rest} |')
    return "\n".join(lines)


def main(argv=None):
    """Run what is missing and print the table."""
    arguments = parsed_for_runs(__doc__, argv, sets=LONG, ways=WAYS, seeds=range(3))
    wanted = []
    for seed in arguments.seeds:
        for name in arguments.sets:
            train, test = read_set(arguments.data, SETS[name])
            train = some_of(train, arguments.rows)
            for way in arguments.ways:
                key = {"set": name, "way": way, "model": Path(arguments.model).name, "seed": seed}
                key |= {"rows": len(train.texts)}
                wanted.append(key)
                if not found_in(arguments.runs, [key]):
                    append(key | run(way, train, test, model=arguments.model, seed=seed), file=arguments.runs)
    print(f"{processor()}; {name_of(best_dtype())}; {versions()}.\n\n{table(found_in(arguments.runs, wanted))}")


if __name__ == "__main__":
    main()
