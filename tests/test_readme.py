"""The README says what the code does, and its examples run."""

import ast
import inspect
import json
import re
import statistics
from pathlib import Path

import pytest

from bertclf import BertSequenceClassifier

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def test_parameter_table_is_the_signature():
    table = README.partition("## Parameters")[2].partition("\n## ")[0]
    documented = {
        name: ast.literal_eval(default) for name, default in re.findall(r"^\| `(\w+)` \| `([^`]+)` \|", table, re.M)
    }
    signature = inspect.signature(BertSequenceClassifier).parameters
    assert list(documented.items()) == [(name, parameter.default) for name, parameter in signature.items()]


def test_python_examples_run(checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(r"^```python\n(.*?)^```$", README, re.M | re.S)
    assert len(blocks) == 4
    code = "\n".join(blocks)
    assert code.count('model="bert-base-uncased"') == code.count("BertSequenceClassifier(")
    namespace: dict[str, object] = {}
    exec(code.replace('"bert-base-uncased"', repr(str(checkpoint))), namespace)
    search = namespace["search"]
    assert set(search.predict(["a fine film"])) <= {"fresh", "rotten"}
    assert search.best_params_["bertsequenceclassifier__learning_rate"] in (2e-5, 5e-5)


@pytest.mark.parametrize(
    ("name", "last_line"),
    [("quickstart", "python examples/quickstart.py"), ("tests", "python -m pytest -n auto --cov")],
)
def test_each_command_stands_once_right_after_its_marker(name: str, last_line: str):
    blocks = re.findall(rf"^<!-- command: {name} -->\n```bash\n(.*?)^```$", README, re.M | re.S)
    assert [block.splitlines()[-1] for block in blocks] == [last_line]
    assert blocks[0].startswith("pip install --no-compile -c .ci/constraints.txt ")


def test_accuracies_are_those_that_were_measured():
    sets = {
        "100 questions to a chatbot": "tiny_chatbot",
        "53 questions about Ubuntu": "tiny_askubuntu",
        "770 questions to a bank": "banking77, 10 a class",
        "10,003 questions to a bank": "banking77",
        "5,452 questions": "trec",
        "4,129 short messages": "sms_spam",
        "8,530 sentences of reviews": "mr",
        "5,009 German tweets": "germeval2018_de",
        "1,600 film reviews of 750 words": "movie_reviews_long",
        "2,490 pairs of texts": "rte",
    }
    lines = (ROOT / "docs" / "accuracy.jsonl").read_text(encoding="utf-8").splitlines()
    runs = [json.loads(line) for line in lines]
    header, *rows = re.findall(
        r"^\| (.*) \|$", README.partition("## Good without tuning")[2].partition("\n## ")[0], re.M
    )
    ways = header.split(" | ")[1:]
    for row in rows:
        name, *cells = row.split(" | ")
        for way, cell in zip(ways, cells, strict=True):
            found = [run["accuracy"] for run in runs if (run["set"], run["way"]) == (sets[name.split(", ")[0]], way)]
            assert cell == f"{statistics.fmean(found):.3f}", (name, way)
    assert len(rows) == len(sets)
