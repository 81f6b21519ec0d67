"""Saved folders: what is kept, what others make of them, and that a loaded classifier is as good as the saved one."""

import copy
import json
import os
import pickle
import shutil
import threading
from pathlib import Path

import joblib
import numpy as np
import pytest
import torch
import transformers
from conftest import LABELS, TEXTS, texts_are_cut
from sklearn.base import clone
from sklearn.exceptions import NotFittedError

from bertclf import BertSequenceClassifier, ModelFileError, _files
from bertclf._device import choose_compute
from bertclf._manifest import FITTED, decode, encode
from bertclf._network import PooledClassifier, encoder_of

GOLDEN = Path(__file__).parent / "golden"
PAIRS = list(zip(TEXTS, TEXTS[::-1], strict=True))
TOPICS = np.array([[1, 0, 1], [0, 1, 0], [1, 1, 0], [0, 0, 0], [0, 0, 1]])[np.arange(len(TEXTS)) % 5]


def fitted(checkpoint, X=TEXTS, y=LABELS, **settings):
    return BertSequenceClassifier(checkpoint, **({"epochs": 1, "random_state": 0} | settings)).fit(X, y)


def through_a_folder(clf, folder):
    clf.save_pretrained(folder)
    return BertSequenceClassifier.from_pretrained(folder)


@pytest.fixture(scope="module", params=["auto", "mean"])
def clf(checkpoint, request):
    return fitted(checkpoint, pooling=request.param, precision="float32", epochs=2)


@pytest.fixture(scope="module")
def folder(clf, tmp_path_factory):
    """A saved folder, for tests that only read it."""
    folder = tmp_path_factory.mktemp("saved") / "model"
    clf.save_pretrained(folder)
    return folder


def test_a_loaded_classifier_predicts_the_same_bits(clf, folder):
    again = BertSequenceClassifier.from_pretrained(folder)
    np.testing.assert_array_equal(again.predict_proba(TEXTS), clf.predict_proba(TEXTS))
    np.testing.assert_array_equal(again.decision_function(TEXTS), clf.decision_function(TEXTS))
    np.testing.assert_array_equal(again.predict(TEXTS), clf.predict(TEXTS))
    assert again.get_params() == clf.get_params() | {"model": str(clf.model)}
    assert set(vars(again)) == set(vars(clf))
    for name in ("truncation_", *FITTED):
        assert getattr(again, name) == getattr(clf, name), name
    assert all(weight.requires_grad for weight in again.model_.parameters())


def test_a_folder_is_saved_again_as_the_same_bytes(folder, tmp_path):
    BertSequenceClassifier.from_pretrained(folder).save_pretrained(tmp_path / "again")
    contents = [{file.name: file.read_bytes() for file in place.iterdir()} for place in (folder, tmp_path / "again")]
    assert contents[0] == contents[1]


def test_a_loaded_classifier_is_as_usable_as_an_unpickled_one(clf, folder):
    again = BertSequenceClassifier.from_pretrained(folder)
    unpickled = pickle.loads(pickle.dumps(clf))
    for other in (pickle.loads(pickle.dumps(again)), copy.deepcopy(again), copy.copy(again)):
        np.testing.assert_array_equal(other.predict_proba(TEXTS), clf.predict_proba(TEXTS))
    assert not hasattr(clone(again), "model_")
    for one in (again, unpickled):
        one.partial_fit(TEXTS[:4], LABELS[:4])
        one.set_params(warm_start=True, epochs=1).fit(TEXTS, LABELS)
    np.testing.assert_array_equal(again.predict_proba(TEXTS), unpickled.predict_proba(TEXTS))
    for one in (again, unpickled):
        one.set_params(warm_start=False).fit(TEXTS, LABELS)
    np.testing.assert_array_equal(again.predict_proba(TEXTS), unpickled.predict_proba(TEXTS))


@pytest.mark.parametrize(
    "labels",
    [
        np.array(LABELS, dtype="<U20"),
        np.array(LABELS, dtype=object),
        np.array(LABELS, dtype=np.dtypes.StringDType()),
        np.array(LABELS, dtype=np.dtypes.StringDType(na_object=np.nan)),
        np.array([label == "fresh" for label in LABELS]),
        (np.arange(len(LABELS)) % 3).astype(np.int8),
        (np.arange(len(LABELS)) % 3).astype(">u4"),
        (np.arange(len(LABELS)) % 3).astype(np.float32),
        np.array(["é\u202e", "\U0001f600 \ud800", "a\tb"])[np.arange(len(LABELS)) % 3],
        np.zeros(len(LABELS), dtype=int),
    ],
    ids=lambda labels: str(labels.dtype),
)
def test_row_21_labels_keep_their_dtype_through_a_folder(checkpoint, tmp_path, labels):
    clf = fitted(checkpoint, y=labels)
    again = through_a_folder(clf, tmp_path / "model")
    assert again.classes_.dtype == clf.classes_.dtype == labels.dtype
    assert again.predict(TEXTS).dtype == clf.predict(TEXTS).dtype
    assert again.classes_.tolist() == clf.classes_.tolist()
    assert again.truncation_ == clf.truncation_


@pytest.mark.parametrize("dtype", [np.int64, np.uint8, bool, np.float32])
def test_an_indicator_matrix_keeps_its_dtype_through_a_folder(checkpoint, tmp_path, dtype):
    clf = fitted(checkpoint, y=TOPICS.astype(dtype))
    again = through_a_folder(clf, tmp_path / "model")
    np.testing.assert_array_equal(again.predict(TEXTS), clf.predict(TEXTS))
    np.testing.assert_array_equal(again.predict_proba(TEXTS), clf.predict_proba(TEXTS))
    assert again.predict(TEXTS).dtype == dtype


def test_columns_and_pairs_are_kept(checkpoint, tmp_path):
    import pandas as pd

    X = pd.DataFrame(PAIRS, columns=["first", "second"])
    clf = fitted(checkpoint, X)
    again = through_a_folder(clf, tmp_path / "model")
    np.testing.assert_array_equal(again.predict_proba(X), clf.predict_proba(X))
    assert again.n_features_in_ == 2
    assert again.feature_names_in_.tolist() == ["first", "second"]
    with pytest.raises(ValueError, match="single texts and pairs can't be exchanged"):
        again.predict(TEXTS)
    with pytest.raises(ValueError, match="feature names"):
        again.predict(X.rename(columns={"first": "other"}))


@texts_are_cut
@pytest.mark.parametrize(
    "architecture", ["albert", "bert", "deberta-v2", "distilbert", "gpt2", "modernbert", "roberta"]
)
def test_a_pipeline_of_transformers_gives_the_same_labels_and_probabilities(checkpoints, tmp_path, architecture):
    clf = fitted(checkpoints(architecture), precision="float32", max_length=8, long_text="truncate")
    clf.save_pretrained(tmp_path)
    texts = [*TEXTS, " ".join(TEXTS)]
    assert_same_as_pipeline(clf, tmp_path, texts, names=clf.classes_)
    assert isinstance(clf.model_, transformers.PreTrainedModel)


def test_a_pipeline_gives_the_same_of_an_indicator_matrix_and_of_many_classes(checkpoint, tmp_path):
    for name, y in {"topics": TOPICS, "three": np.arange(len(TEXTS)) % 3}.items():
        clf = fitted(checkpoint, y=y, precision="float32")
        clf.save_pretrained(tmp_path / name)
        assert_same_as_pipeline(clf, tmp_path / name, TEXTS, names=[str(label) for label in clf.classes_])


def assert_same_as_pipeline(clf, folder, texts, *, names):
    pipeline = transformers.pipeline("text-classification", model=str(folder), top_k=None, device="cpu")
    answers = [{row["label"]: row["score"] for row in rows} for rows in pipeline(texts, truncation=True)]
    found = np.array([[answer[name] for name in names] for answer in answers])
    np.testing.assert_allclose(found, clf.predict_proba(texts), atol=1e-6)


@pytest.mark.parametrize("architecture", ["bert", "gpt2", "distilbert", "electra"])
def test_with_another_pooling_transformers_loads_the_encoder_but_never_takes_the_head_for_its_own(
    checkpoints, tmp_path, architecture, capfd
):
    clf = fitted(checkpoints(architecture), pooling="mean")
    assert isinstance(clf.model_, PooledClassifier)
    clf.save_pretrained(tmp_path)
    assert json.loads((tmp_path / "bertclf.json").read_text())["pooling"] == "mean"
    expected = encoder_of(clf.model_).state_dict()
    encoder, report = transformers.AutoModel.from_pretrained(tmp_path, output_loading_info=True)
    assert all(torch.equal(expected[name], weight) for name, weight in encoder.state_dict().items())
    assert not report["missing_keys"]
    _, report = transformers.AutoModelForSequenceClassification.from_pretrained(tmp_path, output_loading_info=True)
    assert {"pooled_head.weight", "pooled_head.bias"} <= set(report["unexpected_keys"])
    assert any(name.startswith(("classifier", "score")) for name in report["missing_keys"])


def test_a_saved_folder_can_be_fine_tuned_further_with_its_pooling(checkpoint, tmp_path):
    fitted(checkpoint, pooling="mean").save_pretrained(tmp_path)
    clf = fitted(tmp_path, y=[str(len(text)) for text in TEXTS])
    assert clf.model_.pooling == "mean"


def test_numpy_paths_and_dicts_among_the_parameters_are_kept_as_plain_python(checkpoint, tmp_path):
    weights = {np.int64(0): np.float32(0.1), 1: 2}
    clf = fitted(checkpoint, y=np.arange(len(TEXTS)) % 2, class_weight=weights, epochs=np.int64(1), dropout=0.1)
    again = through_a_folder(clf, tmp_path / "model")
    assert again.class_weight == weights
    assert [type(key) for key in again.class_weight] == [int, int]
    assert (again.epochs, type(again.epochs)) == (1, int)
    assert again.model == str(checkpoint)
    again.fit(TEXTS, np.arange(len(TEXTS)) % 2)
    np.testing.assert_array_equal(again.predict_proba(TEXTS), clf.predict_proba(TEXTS))


@pytest.mark.parametrize(
    ("name", "value"),
    [("scoring", lambda estimator, X, y: 0.5), ("random_state", np.random.RandomState(0))],
)
def test_a_parameter_that_json_cannot_hold_is_told_and_has_its_default(checkpoint, tmp_path, name, value):
    clf = fitted(checkpoint).set_params(**{name: value})
    with pytest.warns(UserWarning, match=rf"{name}=.* is not saved, since JSON can't hold a .*the default"):
        clf.save_pretrained(tmp_path / "model")
    assert getattr(BertSequenceClassifier.from_pretrained(tmp_path / "model"), name) is None


def test_nothing_of_this_machine_but_the_name_of_the_model_is_in_a_folder(checkpoint, tmp_path):
    cache = tmp_path / "cache"
    clf = fitted(checkpoint, memory=joblib.Memory(cache, verbose=0), device="cpu")
    clf.set_params(model="a-checkpoint", checkpoint=tmp_path / "fit")
    clf.save_pretrained(tmp_path / "model")
    for file in (tmp_path / "model").iterdir():
        assert str(tmp_path).encode() not in file.read_bytes()
        assert str(checkpoint).encode() not in file.read_bytes()
    again = BertSequenceClassifier.from_pretrained(tmp_path / "model")
    assert (again.memory, again.checkpoint, again.device) == (None, None, "auto")


@pytest.mark.parametrize(
    "value",
    [
        None,
        True,
        3,
        "a",
        0.1,
        float("inf"),
        [1, [2.5]],
        {"a": 1},
        {1: "x", "b": None},
        {"pairs": {"float": 1}},
    ],
)
def test_what_is_encoded_for_json_comes_back(value):
    assert decode(json.loads(json.dumps(encode(value), allow_nan=False))) == value


def test_labels_that_json_would_change_are_not_saved(checkpoint, tmp_path):
    clf = fitted(checkpoint, y=np.array(["a", "\ud83d\ude00"])[np.arange(len(TEXTS)) % 2])
    with pytest.raises(ValueError, match="can't be saved: JSON would change them"):
        clf.save_pretrained(tmp_path / "model")


@pytest.mark.parametrize("unit", ["D", "us", "ns"])
def test_dates_as_labels_are_not_saved(checkpoint, tmp_path, unit):
    days = np.array(["2020-01-01", "2021-01-01"], dtype=f"datetime64[{unit}]")
    clf = fitted(checkpoint, y=days[np.arange(len(TEXTS)) % 2])
    with pytest.raises(ValueError, match=r"^Labels of type datetime64\[.*\] can't be saved.*Fit on labels that"):
        clf.save_pretrained(tmp_path / "model")
    assert not (tmp_path / "model").exists()


def test_what_json_cannot_hold_is_not_encoded():
    with pytest.raises(TypeError, match="JSON can't hold a set"):
        encode({"a": {1}})


def test_the_device_is_that_of_the_caller(folder):
    assert BertSequenceClassifier.from_pretrained(folder, device="cpu").device == "cpu"
    with pytest.raises(ValueError, match="device='cuda:9' is not available"):
        BertSequenceClassifier.from_pretrained(folder, device="cuda:9")


def test_an_unfitted_classifier_is_not_saved(checkpoint, tmp_path):
    with pytest.raises(NotFittedError):
        BertSequenceClassifier(checkpoint).save_pretrained(tmp_path / "model")
    assert not (tmp_path / "model").exists()


def test_a_parameter_that_is_wrong_is_told_before_anything_is_written(clf, tmp_path):
    wrong = copy.copy(clf).set_params(learning_rate=-1.0)
    with pytest.raises(ValueError, match="The 'learning_rate' parameter of BertSequenceClassifier must be"):
        wrong.save_pretrained(tmp_path / "model")
    assert os.listdir(tmp_path) == []


def test_a_network_that_was_altered_or_is_not_finite_is_not_saved(clf, tmp_path):
    for spoil, message in (
        (lambda model: setattr(model, "classifier", torch.nn.Sequential(model.classifier)), "model_ can't be saved"),
        (
            lambda model: model.classifier.bias.data.fill_(float("nan")),
            r"^model_: 'classifier.bias' holds values that are not finite. .* a lower learning_rate",
        ),
    ):
        spoilt = copy.deepcopy(clf)
        spoil(spoilt.model_)
        with pytest.raises(ValueError, match=message):
            spoilt.save_pretrained(tmp_path / "model")
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_a_network_of_another_precision_is_not_saved_until_it_is_float32(clf, tmp_path, dtype):
    other = copy.deepcopy(clf)
    clf.save_pretrained(tmp_path / "model")
    before = {file.name: file.read_bytes() for file in (tmp_path / "model").iterdir()}
    other.model_.to(dtype)
    name = str(dtype).removeprefix("torch.")
    with pytest.raises(ValueError, match=rf"\.weight is {name}, .* saved as float32. Call clf.model_.float\(\)"):
        other.save_pretrained(tmp_path / "model")
    assert {file.name: file.read_bytes() for file in (tmp_path / "model").iterdir()} == before
    other.model_.float()
    assert through_a_folder(other, tmp_path / "model").predict(TEXTS).shape == (len(TEXTS),)


@pytest.mark.parametrize("pooling", ["max", "", ["mean"], 1])
def test_a_folder_whose_pooling_is_unknown_is_not_fine_tuned(clf, folder, tmp_path, pooling):
    shutil.copytree(folder, tmp_path / "model")
    manifest = json.loads((folder / "bertclf.json").read_text(encoding="utf-8"))
    (tmp_path / "model" / "bertclf.json").write_text(json.dumps(manifest | {"pooling": pooling}), encoding="utf-8")
    with pytest.raises(ModelFileError, match=r"bertclf.json has pooling .* must be 'cls', 'mean' or 'last'"):
        fitted(tmp_path / "model")


def test_saving_and_loading_change_nothing_else_and_are_silent(clf, folder, tmp_path, capfd):
    before, random, threads = dict(vars(clf)), torch.get_rng_state(), threading.active_count()
    clf.save_pretrained(tmp_path / "model")
    BertSequenceClassifier.from_pretrained(folder).predict(TEXTS)
    assert all(vars(clf)[name] is value for name, value in before.items())
    assert vars(clf).keys() == before.keys()
    assert torch.equal(torch.get_rng_state(), random)
    assert capfd.readouterr() == ("", "")
    assert threading.active_count() == threads


def test_a_loaded_classifier_outlives_its_folder(clf, tmp_path):
    again = through_a_folder(clf, tmp_path / "model")
    shutil.rmtree(tmp_path / "model")
    np.testing.assert_array_equal(again.predict_proba(TEXTS), clf.predict_proba(TEXTS))


def test_a_folder_that_was_set_aside_by_a_killed_save_is_loaded(clf, tmp_path):
    clf.save_pretrained(tmp_path / "model")
    os.rename(tmp_path / "model", _files._beside(tmp_path / "model", "old-"))
    again = BertSequenceClassifier.from_pretrained(tmp_path / "model")
    np.testing.assert_array_equal(again.predict_proba(TEXTS), clf.predict_proba(TEXTS))


def test_a_folder_that_a_save_replaces_meanwhile_is_read_anew(clf, tmp_path, monkeypatch):
    from bertclf import _saving

    clf.save_pretrained(tmp_path / "model")
    read, calls = _saving._read, []

    def interrupted(source):
        calls.append(source)
        if len(calls) == 1:
            clf.save_pretrained(tmp_path / "model")  # which deletes the files of the folder that is open
        return read(source)

    monkeypatch.setattr(_saving, "_read", interrupted)
    again = BertSequenceClassifier.from_pretrained(tmp_path / "model")
    assert len(calls) == 2
    np.testing.assert_array_equal(again.predict_proba(TEXTS), clf.predict_proba(TEXTS))


def test_a_folder_that_is_not_there_or_not_ours_says_what_to_do(checkpoint, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"There is no such folder.*nowhere"):
        BertSequenceClassifier.from_pretrained(tmp_path / "nowhere")
    with pytest.raises(ModelFileError, match=r"holds no bertclf.json.* pass it as the parameter model"):
        BertSequenceClassifier.from_pretrained(checkpoint)


def test_a_checkpoint_is_not_overwritten(clf, checkpoint, tmp_path):
    shutil.copytree(checkpoint, tmp_path / "checkpoint")
    with pytest.raises(FileExistsError, match=r"lacks bertclf.json"):
        clf.save_pretrained(tmp_path / "checkpoint")


@pytest.mark.parametrize("version", sorted(path.name for path in GOLDEN.glob("v*")))
def test_folders_of_earlier_versions_load_for_ever(version):
    expected = json.loads((GOLDEN / version / "expected.json").read_text(encoding="utf-8"))
    clf = BertSequenceClassifier.from_pretrained(GOLDEN / version / "model", device="cpu")
    assert clf._compute == choose_compute(device="cpu", precision="float32")
    texts = [tuple(pair) for pair in expected["texts"]]
    np.testing.assert_allclose(clf.predict_proba(texts), expected["probabilities"], atol=1e-5)
    assert clf.classes_.tolist() == expected["classes"]
    assert clf.truncation_["per_class"].keys() == set(expected["classes"])
    assert len(clf.history_) == clf.n_iter_ == 2
    assert clf.temperature_ == 1.0  # what a fit without calibration says, and the first files do not
    assert clf.thresholds_ is None
    assert clf.long_text == "truncate"  # the default when they were saved
