"""Time the prediction of one text beside the bare forward pass of the same network on the same tokens.

The bare pass gets tensors of tokens that were made before; on top of it come tokenization, the way to numpy and all
that scikit-learn asks for. The text is the one of median length among the rows. Calls of all kinds take turns.

    python examples/benchmarks/latency.py --data train.jsonl
"""

import sys
import time

import torch
from common import device, medians, parsed, parser_of, read, report, wait_for_device

from bertclf import BertSequenceClassifier
from bertclf._device import PRECISIONS

TRAINING_ROWS, WARM_UP_CALLS = 32, 20
OURS, BARE, TOKENIZATION = "predict_proba([text])", "bare forward pass", "tokenization alone"


def calls_of(classifier, text, dtype):
    """Return what is timed, by name: functions without arguments; the bare pass runs in a precision."""
    tokenizer, network = classifier.tokenizer_, classifier.model_
    tokens = tokenizer([text], return_tensors="pt").to(device())

    def bare():
        with torch.inference_mode(), torch.autocast(device().type, dtype=dtype, enabled=dtype != torch.float32):
            return network(**tokens).logits

    return {OURS: lambda: classifier.predict_proba([text]), BARE: bare, TOKENIZATION: lambda: tokenizer([text])}


def timed(calls, *, n_calls):
    """Call all in turn; yield the name and the seconds of each call."""
    for _ in range(n_calls):
        for name, call in calls.items():
            start = time.perf_counter()
            call()
            wait_for_device()
            yield name, time.perf_counter() - start


def main(argv=None):
    """Measure and print the table."""
    parser = parser_of(__doc__)
    parser.add_argument("--precision", default="float32", choices=PRECISIONS)
    parser.add_argument("--calls", type=int, default=300, help="calls of each kind a turn")
    arguments = parsed(parser, argv)
    texts, labels = read(arguments.data, TRAINING_ROWS)
    text = sorted(texts, key=len)[len(texts) // 2]
    classifier = BertSequenceClassifier(arguments.model, epochs=1, precision=arguments.precision, random_state=0)
    classifier.fit(texts, labels)

    calls = calls_of(classifier, text, PRECISIONS[arguments.precision])
    list(timed(calls, n_calls=WARM_UP_CALLS))
    turns = []
    for repeat in range(arguments.repeats):
        turns += medians(timed(calls, n_calls=arguments.calls)).items()
        print(f"turn {repeat + 1} of {arguments.repeats}", file=sys.stderr)
    seconds = medians(turns)
    report(
        f"One text of {len(classifier.tokenizer_(text)['input_ids'])} tokens, {arguments.precision}; medians "
        f"of {arguments.repeats} medians of {arguments.calls} calls.",
        ["", "milliseconds", "times the bare forward pass"],
        [[name, f"{median * 1e3:.3f}", f"{median / seconds[BARE]:.2f}"] for name, median in seconds.items()],
    )


if __name__ == "__main__":
    main()
