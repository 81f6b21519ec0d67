"""Compare what is done with texts that are longer than the network reads: cut them, or read them in windows.

Ways are the values of `long_text`, with the defaults otherwise: `"truncate"` reads the beginning, `"head_tail"` the
beginning and the end, `"chunk"` all of it in windows. Each run appends one JSON line to `--runs`; runs that stand there
are not repeated.

    python examples/benchmarks/long_texts.py --data FOLDER --runs runs.jsonl
"""

import statistics
import time

import numpy as np
from accuracy import cases, found_or_run, machine, mean_and_spread, measures, parsed_for_runs, show

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
        seconds = " | ".join(f"{mean[key]:.1f}" for key in ("fit_seconds", "predict_seconds"))
        lines.append(f'| {name} | `"{WAYS[way]}"` | {accuracy} | {scores} | {mean["tokens_cut"]:.0f} | {seconds} |')
    return "\n".join(lines)


def main(argv=None):
    """Run what is missing and print the table."""
    arguments = parsed_for_runs(__doc__, argv, sets=LONG, ways=WAYS, seeds=range(3))
    show(table(found_or_run(cases(arguments, run), file=arguments.runs)))


if __name__ == "__main__":
    main()
