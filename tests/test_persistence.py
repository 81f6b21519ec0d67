"""Pickles of every kind: plain bytes and Python, equal predictions, at home where there is no GPU."""

import copy
import io
import pickle
import pickletools

import cloudpickle
import joblib
import numpy as np
import pytest
import torch
from conftest import LABELS, TEXTS
from sklearn.base import clone

import bertclf
from bertclf import BertSequenceClassifier


@pytest.fixture(scope="module", params=["auto", "mean"])
def clf(checkpoint, request):
    return BertSequenceClassifier(checkpoint, epochs=1, random_state=0, pooling=request.param).fit(TEXTS, LABELS)


def through_joblib(clf):
    buffer = io.BytesIO()
    joblib.dump(clf, buffer)
    buffer.seek(0)
    return joblib.load(buffer)


def through_a_worker(clf):
    return joblib.Parallel(n_jobs=2, backend="loky")(joblib.delayed(_given_back)(clf) for _ in range(2))[1]


def _given_back(clf):
    return clf


COPIES = {
    "pickle": lambda clf: pickle.loads(pickle.dumps(clf)),
    "cloudpickle": lambda clf: cloudpickle.loads(cloudpickle.dumps(clf)),
    "joblib": through_joblib,
    "deepcopy": copy.deepcopy,
    "loky": through_a_worker,
}


@pytest.mark.parametrize("way", COPIES)
def test_a_copy_predicts_the_same_bits(clf, way):
    again = COPIES[way](clf)
    np.testing.assert_array_equal(again.predict_proba(TEXTS), clf.predict_proba(TEXTS))
    np.testing.assert_array_equal(again.predict(TEXTS), clf.predict(TEXTS))
    assert again.get_params() == clf.get_params()
    assert again.history_ == clf.history_
    assert again.classes_.dtype == clf.classes_.dtype
    assert set(vars(again)) == set(vars(clf))


def test_a_copy_is_fitted_independently(clf):
    before = clf.predict_proba(TEXTS)
    copy.deepcopy(clf).fit(TEXTS, LABELS[::-1])
    np.testing.assert_array_equal(clf.predict_proba(TEXTS), before)


def test_an_unfitted_classifier_pickles(checkpoint):
    again = pickle.loads(pickle.dumps(BertSequenceClassifier(checkpoint, epochs=3)))
    assert again.epochs == 3
    assert not hasattr(again, "model_")


def test_the_state_is_plain_python_numpy_and_bytes(clf):
    def plain(value):
        if isinstance(value, dict):
            return all(plain(key) and plain(item) for key, item in value.items())
        if isinstance(value, (list, tuple)):
            return all(plain(item) for item in value)
        return value is None or isinstance(value, (str, bytes, bool, int, float, np.ndarray))

    state = clf.__getstate__()
    assert plain({name: value for name, value in state.items() if name != "model"})
    assert isinstance(state["network_and_tokenizer"]["weights"], bytes)
    assert {"tokenizer.json", "tokenizer_config.json"} <= set(state["network_and_tokenizer"]["tokenizer"])


def test_a_pickle_names_no_class_of_torch_or_transformers(clf):
    modules = {
        argument.split(" ")[0]
        for code, argument, _ in pickletools.genops(pickle.dumps(clf, protocol=2))
        if code.name == "GLOBAL"
    }
    assert "bertclf._classifier" in modules
    assert not {module for module in modules if module.startswith(("torch", "transformers"))}


def test_a_classifier_of_one_class_pickles(checkpoint):
    clf = BertSequenceClassifier(checkpoint, epochs=1, random_state=0).fit(TEXTS, ["fresh"] * len(TEXTS))
    assert set(pickle.loads(pickle.dumps(clf)).predict(TEXTS)) == {"fresh"}


def test_pickling_changes_nothing_and_is_silent(clf, capfd):
    before = dict(vars(clf))
    pickle.loads(pickle.dumps(clf))
    assert vars(clf).keys() == before.keys()
    assert all(vars(clf)[name] is value for name, value in before.items())
    assert capfd.readouterr() == ("", "")


def test_pickling_and_unpickling_leave_the_global_generator_of_torch_alone(clf):
    state = torch.get_rng_state()
    pickle.loads(pickle.dumps(clf))
    assert torch.equal(torch.get_rng_state(), state)


def test_a_classifier_fitted_on_a_gpu_is_loaded_on_the_cpu_where_there_is_none(clf):
    state = clf.__getstate__() | {"device": "cuda:1"}
    again = BertSequenceClassifier.__new__(BertSequenceClassifier)
    if torch.cuda.device_count() < 2:
        with pytest.warns(UserWarning, match="device='cuda:1' of the classifier is not on this machine"):
            again.__setstate__(state)
        np.testing.assert_array_equal(again.predict_proba(TEXTS), clf.predict_proba(TEXTS))


def test_a_pickle_of_another_version_warns(clf):
    state = clf.__getstate__() | {"bertclf_version": "0.0.1"}
    again = BertSequenceClassifier.__new__(BertSequenceClassifier)
    from sklearn.exceptions import InconsistentVersionWarning

    with pytest.warns(InconsistentVersionWarning, match=f"pickled with bertclf 0.0.1 is loaded.*{bertclf.__version__}"):
        again.__setstate__(state)


def test_clone_drops_the_weights(clf):
    again = clone(clf)
    assert not hasattr(again, "model_")
    assert again.get_params() == clf.get_params()


@pytest.mark.parametrize("pooling", ["auto", "mean"])
def test_a_network_that_was_altered_is_not_saved_as_what_it_was(checkpoint, pooling):
    """Loaded, the weights of its new modules would be random."""
    clf = BertSequenceClassifier(checkpoint, epochs=1, pooling=pooling, random_state=0).fit(TEXTS, LABELS)
    clf.model_.classifier = torch.nn.Sequential(torch.nn.Linear(16, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2))
    expected = clf.predict_proba(TEXTS)
    for save in (pickle.dumps, copy.deepcopy):
        with pytest.raises(ValueError, match=r"model_ can't be saved: classifier.*Save model_.state_dict\(\)"):
            save(clf)
    np.testing.assert_array_equal(clf.predict_proba(TEXTS), expected)
