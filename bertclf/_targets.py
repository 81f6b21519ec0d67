"""What the caller passes as y and as weights, turned into targets; every error about them is raised here."""

import math
from collections.abc import Mapping, MappingView, Set
from dataclasses import dataclass, replace
from numbers import Integral, Real
from typing import Any, Self

import numpy as np
import numpy.typing as npt
from scipy.sparse import issparse
from sklearn.utils.class_weight import compute_class_weight
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import column_or_1d

from bertclf._inputs import Texts, described, is_missing, quote, read_texts

LABELS_SHOWN = 10
COLLECTIONS = (list, tuple, set, frozenset, np.ndarray)

Targets = npt.NDArray[np.int64] | npt.NDArray[np.float32]


def metric_labels(labels: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Return labels as numpy and scikit-learn can compare them with others: StringDType as objects."""
    return labels.astype(object) if labels.dtype.kind == "T" else labels


def quote_all(values: npt.NDArray[Any]) -> str:
    """Return the first of some labels for an error, and how many there are if they are many."""
    shown = ", ".join(quote(value) for value in values[:LABELS_SHOWN].tolist())
    return f"[{shown}]" if len(values) <= LABELS_SHOWN else f"[{shown}, ...] ({len(values)} labels)"


@dataclass(frozen=True, eq=False)
class Classes:
    """What a text can be labelled with.

    Attributes
    ----------
    values : ndarray of shape (n_classes,)
        The sorted labels; of an indicator matrix the positions of its columns.
    indicator_dtype : dtype or None
        Type of the indicator matrix of a multi-label problem, None if each text has one label.
    """

    values: npt.NDArray[Any]
    indicator_dtype: np.dtype[Any] | None = None

    @classmethod
    def of(cls, labels: npt.NDArray[Any]) -> Self:
        """Return the classes of what `read_labels` returned."""
        if labels.ndim == 2:
            return cls(np.arange(labels.shape[1]), labels.dtype)
        return cls(np.unique(labels))

    def __len__(self) -> int:
        """Return the number of classes."""
        return len(self.values)

    def __eq__(self, other: object) -> bool:
        """Tell whether the classes are the same, whatever the type of an indicator matrix."""
        return (
            isinstance(other, Classes)
            and self.are_multilabel == other.are_multilabel
            and np.array_equal(self.values, other.values)
        )

    @property
    def are_multilabel(self) -> bool:
        """Whether a text can have any number of the labels."""
        return self.indicator_dtype is not None

    def described(self) -> str:
        """Return the classes for an error."""
        return f"{len(self)} columns of an indicator matrix" if self.are_multilabel else quote_all(self.values)

    def encode(self, labels: npt.NDArray[Any], *, name: str = "y") -> Targets:
        """Return targets: positions among the classes, of shape (n_texts,), or the indicator matrix as float32.

        Raises
        ------
        ValueError
            If a label is not among the classes, or labels come in another shape.
        """
        if self.are_multilabel != (labels.ndim == 2):
            kinds = {True: "an indicator matrix", False: "one label a text"}
            raise ValueError(
                f"{name} is {kinds[labels.ndim == 2]}, but the classes come from {kinds[self.are_multilabel]}. "
                "Pass the same kind."
            )
        if self.are_multilabel:
            if labels.shape[1] != len(self):
                raise ValueError(
                    f"{name} has {labels.shape[1]} columns, but there are {len(self)} labels. Pass a column for each."
                )
            return labels.astype(np.float32)
        labels, values = metric_labels(labels), metric_labels(self.values)
        unknown = ~np.isin(labels, values)
        if unknown.any():
            row = int(np.argmax(unknown))
            raise ValueError(
                f"{name}[{row}] is {quote(labels[row : row + 1].tolist()[0])}, a class that is not among the classes "
                f"of the training: {quote_all(values)}. Drop those rows, or train on texts of that class too."
            )
        return np.searchsorted(values, labels).astype(np.int64)

    def decode(
        self, probabilities: npt.NDArray[np.float32], *, thresholds: list[float] | None = None
    ) -> npt.NDArray[Any]:
        """Return the labels that probabilities stand for, in the type in which labels came.

        Where a text can have any number of labels, those whose probability is above their threshold; None is 0.5 each.
        """
        if self.indicator_dtype is not None:
            return (probabilities > (0.5 if thresholds is None else np.array(thresholds))).astype(self.indicator_dtype)
        labels: npt.NDArray[Any] = self.values[probabilities.argmax(axis=1)]
        return labels


def read_labels(y: Any, *, n_texts: int, name: str = "y", texts_name: str = "X") -> npt.NDArray[Any]:
    """Check the labels, one a text or an indicator matrix, and return them in the dtype in which they came.

    Returns
    -------
    ndarray of shape (n_texts,) or (n_texts, n_labels)
        Two-dimensional with at least two columns for an indicator matrix of zeros and ones.

    Raises
    ------
    ValueError
        If labels are missing, of mixed types, continuous, of a wrong shape, or not as many as there are texts.
    TypeError
        If a label is bytes.
    """
    if y is None:
        raise ValueError(
            f"This BertSequenceClassifier estimator requires {name} to be passed, but the target {name} is None."
        )
    is_array_like = hasattr(y, "__len__") or hasattr(y, "__array__")
    if isinstance(y, (str, bytes, Mapping, MappingView, Set)) or np.isscalar(y) or not is_array_like:
        raise ValueError(f"{name} is a {type(y).__name__}, but one label a text is needed. Pass a list or an array.")
    y = y if hasattr(y, "__len__") else np.asarray(y)
    matrix = _as_matrix(y, name)
    labels = _read_column(y, name) if matrix is None else _read_indicators(matrix, name)
    if len(labels) != n_texts:
        raise ValueError(
            f"{texts_name} has {n_texts} texts and {name} has {len(labels)} labels: "
            "found input variables with inconsistent numbers of samples. Pass one label a text."
        )
    return labels


def read_classes(classes: Any, *, labels: npt.NDArray[Any]) -> Classes:
    """Return the classes that `partial_fit` is told of before it has met them all.

    Raises
    ------
    ValueError
        If they are not labels, or for an indicator matrix not the numbers of its columns.
    """
    if isinstance(classes, (str, bytes, Mapping)) or not hasattr(classes, "__len__") or not len(classes):
        raise ValueError(f"classes is {described(classes)}, but all labels are needed. Pass a list of them.")
    listed = sorted(classes) if isinstance(classes, Set) else classes
    values = np.unique(read_labels(listed, n_texts=len(listed), name="classes", texts_name="classes"))
    if labels.ndim == 1:
        return Classes(values)
    announced = Classes.of(labels)
    if announced != Classes(values, labels.dtype):
        raise ValueError(
            f"classes is {quote_all(values)}, but y is a matrix of {len(announced)} columns. Pass "
            f"range({len(announced)})."
        )
    return announced


def read_weights(sample_weight: Any, *, n_texts: int, name: str = "sample_weight") -> npt.NDArray[np.float64]:
    """Check the weights of the texts; None weighs all texts alike.

    Returns
    -------
    ndarray of float64, shape (n_texts,)
        Weights with a largest one of 1.

    Raises
    ------
    ValueError
        If the weights are not one a text, not finite, negative, or all zero.
    """
    if sample_weight is None:
        return np.ones(n_texts)
    try:
        weights: npt.NDArray[np.float64] = np.asarray(sample_weight, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{name} must hold one number a text, but: {error}. Pass numbers.") from error
    if weights.shape not in {(), (n_texts,)}:
        raise ValueError(f"{name}.shape == {weights.shape}, expected {(n_texts,)}: pass one weight a text.")
    weights = np.broadcast_to(weights, n_texts)
    if not (np.isfinite(weights) & (weights >= 0)).all():
        row = int(np.argmin(np.isfinite(weights) & (weights >= 0)))
        raise ValueError(
            f"{name}[{row}] is {weights[row]}, but weights must be finite numbers and none may be negative "
            "(negative values in data passed to `sample_weight`). Use 0 to leave a text out."
        )
    if not weights.any():
        raise ValueError(f"All values of {name} are zero: at least one text needs a positive weight.")
    scaled: npt.NDArray[np.float64] = weights / weights.max()
    return scaled


def read_class_weight(
    class_weight: Any, *, classes: Classes, targets: Targets, weights: npt.NDArray[np.float64]
) -> npt.NDArray[np.float64]:
    """Check `class_weight` and return a weight for each class.

    Parameters
    ----------
    class_weight : None, "balanced", dict or list of dict
        As the parameter of the classifier.
    classes : Classes
        The classes.
    targets, weights : ndarray of shape (n_texts,), or (n_texts, n_labels) and (n_texts,)
        Targets and weights of the texts, which "balanced" counts.

    Returns
    -------
    ndarray of float64, shape (n_classes,) or (2, n_labels)
        One weight a class; of a multi-label problem, the weights of absence and of presence of each label.

    Raises
    ------
    ValueError
        If the weights are of a wrong form, name no class, or are negative, not finite or all zero.
    """
    if not classes.are_multilabel:
        if isinstance(class_weight, list):
            raise ValueError(
                "class_weight is a list, which is for an indicator matrix as y, but each text has one label. Pass a "
                "dict from label to weight."
            )
        return _weights_of_values(class_weight, classes.values, targets, weights, name="class_weight")
    one_each = class_weight if isinstance(class_weight, list) else [class_weight] * len(classes)
    if isinstance(class_weight, dict) or len(one_each) != len(classes):
        given = "a dict" if isinstance(class_weight, dict) else f"a list of {len(one_each)}"
        raise ValueError(
            f"class_weight is {given}, but y is a matrix of {len(classes)} columns. Pass a list with one dict for each "
            "of them, such as [{0: 1, 1: 5}, ...]."
        )
    columns = [
        _weights_of_values(one, np.arange(2), targets[:, label], weights, name=f"class_weight[{label}]")
        for label, one in enumerate(one_each)
    ]
    return np.stack(columns, axis=1)


@dataclass(frozen=True)
class LabelledTexts:
    """Texts with what is known of each.

    Attributes
    ----------
    texts : Texts
        The texts.
    labels : ndarray of shape (n_texts,) or (n_texts, n_labels)
        Their labels as the caller gave them.
    targets : ndarray of the same shape
        The labels as `Classes.encode` returns them.
    weights : ndarray of shape (n_texts,), or None
        Weights that the caller gave, None if none were given.
    loss_weights : ndarray of float64, of shape (n_texts,) or (n_texts, n_labels)
        What each text, or each label of each text, weighs in the loss.
    """

    texts: Texts
    labels: npt.NDArray[Any]
    targets: Targets
    weights: npt.NDArray[np.float64] | None
    loss_weights: npt.NDArray[np.float64]

    def __len__(self) -> int:
        """Return the number of texts."""
        return len(self.texts)

    def take(self, rows: npt.NDArray[np.int64]) -> "LabelledTexts":
        """Return some of the texts, in the order of `rows`."""
        return LabelledTexts(
            self.texts.take(rows),
            self.labels[rows],
            self.targets[rows],
            None if self.weights is None else self.weights[rows],
            self.loss_weights[rows],
        )


def label_texts(
    texts: Texts,
    labels: npt.NDArray[Any],
    sample_weight: Any,
    *,
    classes: Classes,
    name: str = "y",
    weight_name: str = "sample_weight",
) -> LabelledTexts:
    """Join texts with their targets and weights.

    Raises
    ------
    ValueError
        If a label is not among the classes, or a weight is not what it must be.
    """
    targets = classes.encode(labels, name=name)
    weights = read_weights(sample_weight, n_texts=len(texts), name=weight_name)
    return LabelledTexts(texts, labels, targets, None if sample_weight is None else weights, weights)


def weigh_classes(labelled: LabelledTexts, class_weights: npt.NDArray[np.float64], *, name: str = "X") -> LabelledTexts:
    """Multiply what each text weighs in the loss by the weight of its class; a label of many has a weight of its own.

    Raises
    ------
    ValueError
        If all products are zero.
    """
    targets, weights = labelled.targets, labelled.loss_weights
    class_weights = class_weights / class_weights.max()
    if targets.ndim == 2:
        products = weights[:, None] * np.where(targets > 0, class_weights[1], class_weights[0])
    else:
        products = weights * class_weights[targets]
    if not products.any():
        raise ValueError(
            f"Every text of {name} weighs zero, since class_weight is zero wherever its own weight is not. At least "
            "one text needs a positive weight."
        )
    return replace(labelled, loss_weights=products)


def read_validation(
    X_val: Any,
    y_val: Any,
    sample_weight_val: Any,
    *,
    like: Texts,
    classes: Classes,
    class_weights: npt.NDArray[np.float64],
) -> LabelledTexts | None:
    """Check and join the validation data of `fit`; None if none were passed.

    Raises
    ------
    ValueError, TypeError
        If one of texts and labels is missing, or something is not what it must be, or not of the kind of the training
        texts `like`.
    """
    given = {"X_val": X_val, "y_val": y_val, "sample_weight_val": sample_weight_val}
    passed = [name for name, value in given.items() if value is not None]
    if not passed:
        return None
    if X_val is None or y_val is None:
        missing = "X_val" if X_val is None else "y_val"
        raise ValueError(f"{passed[0]} was passed without {missing}: validation needs both X_val and y_val.")
    texts = read_texts(X_val, name="X_val")
    if texts.are_pairs != like.are_pairs:
        kinds = {True: "pairs", False: "single texts"}
        raise ValueError(
            f"X_val holds {kinds[texts.are_pairs]}, but X holds {kinds[like.are_pairs]}. Pass the same kind to both."
        )
    names, expected = texts.column_names, like.column_names
    if names is not None and expected is not None and names.tolist() != expected.tolist():
        raise ValueError(
            f"X_val has the columns {names.tolist()}, but X has {expected.tolist()}. Pass the same columns in the same "
            "order."
        )
    labels = read_labels(y_val, n_texts=len(texts), name="y_val", texts_name="X_val")
    labelled = label_texts(
        texts, labels, sample_weight_val, classes=classes, name="y_val", weight_name="sample_weight_val"
    )
    return weigh_classes(labelled, class_weights, name="X_val")


def without_weightless(labelled: LabelledTexts) -> LabelledTexts:
    """Leave out the texts that weigh nothing, so that a weight of zero equals absence."""
    counts = (labelled.loss_weights > 0).reshape(len(labelled), -1).any(axis=1)
    return labelled if counts.all() else labelled.take(np.flatnonzero(counts))


def split(labelled: LabelledTexts, *, fraction: float, seed: int) -> tuple[LabelledTexts, LabelledTexts]:
    """Split texts into those to train on and those to hold out, each class in its proportion.

    The labels of an indicator matrix are not balanced: its rows are split at random.

    Raises
    ------
    ValueError
        If there are too few texts, in all or of one class.
    """
    from sklearn.model_selection import train_test_split

    targets = labelled.targets
    try:
        if targets.ndim == 1 and (alone := np.isin(targets, np.flatnonzero(np.bincount(targets) == 1))).any():
            labels = metric_labels(labelled.labels[alone])
            raise ValueError(f"there is only one text of each of {quote_all(labels)}, and a class needs two")
        kept, held_out = train_test_split(
            np.arange(len(labelled)),
            test_size=fraction,
            random_state=seed,
            stratify=None if targets.ndim == 2 else targets,
        )
    except ValueError as error:
        raise ValueError(
            f"early_stopping, calibration or thresholds can't hold out validation_fraction={fraction} of "
            f"{len(labelled)} texts: {str(error).rstrip('.')}. Pass X_val and y_val, change validation_fraction, or "
            "set early_stopping=False, calibration=None and thresholds=None."
        ) from error
    return labelled.take(np.sort(kept)), labelled.take(np.sort(held_out))


def mean_one(weights: npt.NDArray[np.float64]) -> npt.NDArray[np.float32]:
    """Scale weights to a mean of one, so that their unit doesn't change the size of the steps."""
    return np.asarray(weights / weights.mean(), dtype=np.float32)


def _as_matrix(y: Any, name: str) -> npt.NDArray[Any] | None:
    """Return labels that come in two or more columns as an array, None if they come in one."""
    if issparse(y):
        return y.toarray() if y.shape[1] > 1 else None
    if isinstance(y, (list, tuple)):
        if not y or not isinstance(y[0], COLLECTIONS):
            return None
        try:
            matrix = np.array(y)
        except ValueError:
            matrix = np.empty(0)
        if matrix.ndim != 2 or (matrix.shape[1] > 1 and matrix.dtype.kind not in "biufO"):
            _refuse_collection(y[0], name)
        y = matrix
    shape: tuple[int, ...] = getattr(y, "shape", ())
    if len(shape) < 2 or (len(shape) == 2 and shape[1] == 1):
        return None
    return y.to_numpy() if hasattr(y, "to_numpy") else np.asarray(y)


def _refuse_collection(item: Any, name: str) -> None:
    raise ValueError(
        f"{name}[0] is {described(item)}, but labels come one a text or as a matrix of zeros and ones. Turn lists of "
        "labels into such a matrix with sklearn.preprocessing.MultiLabelBinarizer."
    )


def _read_indicators(matrix: npt.NDArray[Any], name: str) -> npt.NDArray[Any]:
    """Check an indicator matrix: two columns or more, of zeros and ones."""
    if matrix.ndim != 2 or matrix.shape[1] == 0:
        raise ValueError(
            f"{name}.shape == {matrix.shape}, but labels come one a text, or as a matrix with a row a text and a "
            "column a label. Reshape it."
        )
    if matrix.dtype.kind in "biuf":
        good = np.isin(matrix, (0, 1))
    else:
        good = np.array([[isinstance(cell, Real) and cell in (0, 1) for cell in row] for row in matrix.tolist()])
    if not good.all():
        row, column = np.argwhere(~good)[0].tolist()
        cell = matrix[row : row + 1, column].tolist()[0]
        rule = (
            "every text needs a 0 or a 1 for every label. Fill the gaps, or drop those texts."
            if is_missing(cell)
            else "an indicator matrix holds 0 and 1 alone: several classes for each of several outputs "
            "(multiclass-multioutput) and continuous targets are not supported. Use "
            "sklearn.multioutput.MultiOutputClassifier for several outputs."
        )
        raise ValueError(f"{name}[{row}, {column}] is {described(cell)}, but {rule}")
    if matrix.dtype.kind == "O":
        matrix = np.array(matrix.tolist())
    return matrix


def _read_column(y: Any, name: str) -> npt.NDArray[Any]:
    """Check one label a text and return a 1-D array."""
    if isinstance(y, (list, tuple)):
        _check_label_types(list(y), name)
    elif hasattr(y, "to_numpy") and not hasattr(y, "to_pylist"):
        y = y.to_numpy()
    if isinstance(y, np.ndarray) and y.dtype.kind == "O" and y.size and isinstance(y.flat[0], COLLECTIONS):
        _refuse_collection(y.flat[0], name)
    # scikit-learn knows no StringDType, whose labels are classes whatever they say.
    are_strings = getattr(getattr(y, "dtype", None), "kind", "") == "T"
    labels: npt.NDArray[Any] = np.ravel(y) if are_strings and y.ndim == 1 else column_or_1d(y, warn=True)
    if labels.dtype.kind == "S":
        raise TypeError(f"{name} holds bytes, but a label must be str, int, bool or float. Decode the labels first.")
    if labels.dtype.kind in "OTmM":
        _check_label_types(list(labels), name)
        if labels.dtype.kind == "O" and not any(isinstance(label, str) for label in labels[:1]):
            y = labels.tolist()
            labels = np.asarray(y)
            if labels.dtype.kind == "O":
                _refuse_objects(y, name)
    if _are_rounded(labels, y):
        _refuse_objects(list(y), name)
    if labels.dtype.kind == "f" and not np.isfinite(labels).all():
        row = int(np.argmin(np.isfinite(labels)))
        raise ValueError(
            f"{name}[{row}] is {labels[row]}, but every text needs a label, and a label must be finite. "
            "Drop the texts without one."
        )
    if not are_strings:
        check_classification_targets(labels)
    return labels


def _are_rounded(labels: npt.NDArray[Any], given: Any) -> bool:
    """Tell whether whole numbers became floats, since no type of integers holds them all."""
    is_list = isinstance(given, (list, tuple)) and len(given) > 0
    return labels.dtype.kind == "f" and is_list and all(isinstance(label, Integral) for label in given)


def _refuse_objects(labels: list[Any], name: str) -> None:
    """Raise the error of labels that numpy can't hold in a type of its own."""
    others = (row for row, label in enumerate(labels) if not isinstance(label, (Real, np.bool_)))
    row = next(others, None)
    if row is None:
        row = max(range(len(labels)), key=lambda row: abs(labels[row]))
    raise ValueError(
        f"{name}[{row}] is {described(labels[row])}, but labels must be str, bool, int of up to 64 bits, float or "
        "datetime64, all of one type (Unknown label type). Convert them, to str for example."
    )


def _weights_of_values(
    class_weight: Any,
    values: npt.NDArray[Any],
    targets: npt.NDArray[Any],
    weights: npt.NDArray[np.float64],
    *,
    name: str,
) -> npt.NDArray[np.float64]:
    """Return the weight of each value of one label; targets are positions among the values."""
    answer: npt.NDArray[np.float64] = np.ones(len(values))
    if class_weight == "balanced":
        counted = targets[weights > 0].astype(np.int64)
        present = np.unique(counted)
        answer[present] = compute_class_weight(
            "balanced", classes=present, y=counted, sample_weight=weights[weights > 0]
        )
    elif isinstance(class_weight, dict):
        labels = values.tolist()
        known = set(labels)
        unknown = [label for label in class_weight if label not in known]
        # A fold of a cross-validation may lack a class that has a weight; a class without one beside it is a slip.
        if unknown and not all(label in class_weight for label in labels):
            raise ValueError(
                f"{name} names {quote(unknown[0])}, which is not among the classes {quote_all(values)}. Correct the "
                "label, or leave it out."
            )
        given = [class_weight.get(label, 1.0) for label in labels]
        for label, weight in zip(labels, given, strict=True):
            if not isinstance(weight, Real) or not math.isfinite(weight) or weight < 0:
                raise ValueError(
                    f"{name}[{quote(label)}] is {described(weight)}, but a weight must be a finite number, zero or "
                    "more. Leave out a label to weigh it 1."
                )
        answer = np.array(given, dtype=np.float64)
    elif class_weight is not None:
        raise ValueError(f"{name} is {described(class_weight)}, but must be a dict from 0 and 1 to weights.")
    if not answer.any():
        raise ValueError(
            f"{name} is zero for all of {quote_all(values)}, but at least one must weigh more. Leave out a label to "
            "weigh it 1."
        )
    return answer


def _check_label_types(labels: list[Any], name: str) -> None:
    """Raise if labels are missing, bytes, or a mixture of str and other types."""
    first_is_str: bool | None = None
    for row, label in enumerate(labels):
        if is_missing(label):
            raise ValueError(
                f"{name}[{row}] is {described(label)}, but every text needs a label. Drop the texts without one."
            )
        if isinstance(label, bytes):
            raise TypeError(f"{name}[{row}] is {described(label)}, but a label must not be bytes. Decode it first.")
        if first_is_str is None:
            first_is_str = isinstance(label, str)
        elif isinstance(label, str) != first_is_str:
            raise ValueError(
                f"{name}[{row}] is {described(label)}, but {name}[0] is {described(labels[0])}: labels must be of "
                "one type that sorts. Convert them all to str or all to int."
            )
