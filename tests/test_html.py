"""What a notebook shows of the classifier: scikit-learn draws it, from the parameters and the fitted attributes."""

import re
import subprocess
import sys

import pytest
from conftest import LABELS, TEXTS
from sklearn.base import clone
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer

from bertclf import BertSequenceClassifier


def parameters_in(html: str) -> dict[str, str]:
    """Return how each parameter is marked: set by the user, or at its default."""
    row = r'<tr class="(user-set|default)">(?:(?!</tr>).)*<td class="param">(\w+)</td>'
    return {name: mark for mark, name in re.findall(row, html, flags=re.DOTALL)}


@pytest.fixture(scope="module")
def clf(checkpoint):
    labels = [f"label {number % 7}" for number in range(len(TEXTS))]
    return BertSequenceClassifier(checkpoint, epochs=12, random_state=0).fit(TEXTS, labels)


def test_every_parameter_is_shown():
    assert parameters_in(BertSequenceClassifier()._repr_html_()) == dict.fromkeys(
        BertSequenceClassifier().get_params(), "default"
    )


def test_parameters_that_differ_from_their_defaults_are_marked(tmp_path):
    given = {"model": tmp_path, "epochs": 3, "learning_rate": 2e-5, "max_grad_norm": None, "random_state": 0}
    marks = parameters_in(BertSequenceClassifier(**given)._repr_html_())
    assert {name for name, mark in marks.items() if mark == "user-set"} == set(given)


def test_no_page_of_documentation_is_linked(clf):
    for classifier in (clf, clone(clf)):
        assert "href" not in classifier._repr_html_()


def test_a_fitted_classifier_is_told_from_an_unfitted_one(clf):
    assert "<span>Fitted</span>" in clf._repr_html_()
    assert "<span>Not fitted</span>" in clone(clf)._repr_html_()


def test_network_tokenizer_and_history_are_shown_in_a_few_words(clf):
    html = clf._repr_html_()
    assert "(embeddings)" not in html
    assert "AddedToken" not in html
    assert len(html) < len(clone(clf)._repr_html_()) + 6_000


def test_a_search_over_a_pipeline_shows_the_classifier_with_its_parameters(clf):
    pipeline = make_pipeline(FunctionTransformer(), clone(clf))
    search = GridSearchCV(pipeline, {"bertsequenceclassifier__epochs": [1]}, cv=2)
    for html in (search._repr_html_(), search.fit(TEXTS, LABELS)._repr_html_()):
        assert parameters_in(html).items() >= parameters_in(clone(clf)._repr_html_()).items()
        assert not re.search(r'href="[^"]*bert', html)


def test_an_unfitted_classifier_is_shown_without_torch_and_transformers():
    code = (
        "import sys; from bertclf import BertSequenceClassifier; BertSequenceClassifier()._repr_html_();"
        "assert not {'torch', 'transformers'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
