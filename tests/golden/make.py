"""Makes a folder of the format version that bertclf writes, once: it must load for ever, so it is never made anew.

    python tests/golden/make.py tests/golden/v1

`expected.json` beside the files of the model holds texts and the probabilities that they had, in float32.
"""

import json
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from conftest import BAD, GOOD
from tiny import build

from bertclf import BertSequenceClassifier


def main():
    """Fit a tiny classifier on pairs of texts, save it, and write down what it says."""
    target = Path(sys.argv[1])
    texts = [(first, second) for first, second in zip(GOOD, BAD[::-1], strict=True)] * 2
    labels = ["fresh", "so-so", "rotten"] * 4 + ["fresh", "rotten"]
    with tempfile.TemporaryDirectory() as folder:
        build("bert", Path(folder), initializer_range=0.2)
        classifier = BertSequenceClassifier(folder, epochs=2, precision="float32", random_state=0, max_length=32)
        classifier.fit(texts, labels, X_val=texts, y_val=labels)
        classifier.set_params(model="a-checkpoint")
    classifier.save_pretrained(target / "model")
    probabilities = classifier.predict_proba(texts[:7]).tolist()
    expected = {"texts": texts[:7], "classes": classifier.classes_.tolist(), "probabilities": probabilities}
    (target / "expected.json").write_text(json.dumps(expected, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
