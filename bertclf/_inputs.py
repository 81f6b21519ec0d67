"""What the caller passes, turned into texts, targets and weights; every error about data is raised here."""

from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass
from typing import Any

import narwhals as nw
import numpy as np
import numpy.typing as npt
from scipy.sparse import issparse
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import column_or_1d

LONGEST_QUOTE = 40


@dataclass(frozen=True)
class Texts:
    """Single texts, or pairs of texts, in the order of the caller's rows.

    Attributes
    ----------
    first : list of str
        The texts; of a pair the first one.
    second : list of str or None
        The second text of each pair, None for single texts.
    n_columns : int or None
        Columns of a 2-D input, None for a 1-D input.
    column_names : ndarray of str or None
        Names of the columns of a data frame, None if it has none or they are not all strings.
    """

    first: list[str]
    second: list[str] | None
    n_columns: int | None
    column_names: npt.NDArray[np.object_] | None

    def __len__(self) -> int:
        """Return the number of rows."""
        return len(self.first)

    @property
    def are_pairs(self) -> bool:
        """Whether each row holds two texts."""
        return self.second is not None


@dataclass(frozen=True)
class LabelledTexts:
    """Texts with the class (position among the sorted classes) and the weight (mean one) of each."""

    texts: Texts
    targets: npt.NDArray[np.int64]
    weights: npt.NDArray[np.float32]


def read_texts(X: Any, *, name: str = "X") -> Texts:
    """Check and unpack a container of texts.

    Parameters
    ----------
    X : list, tuple, ndarray, Series, data frame or any sequence, of str
        One text a row (1-D, or 2-D with one column), or two texts a row (2-D with two columns, or 1-D of tuples).
    name : str, default="X"
        What error messages call the container.

    Raises
    ------
    ValueError
        If the container is one string, is empty, has a wrong shape, misses an item or holds a lone surrogate.
    TypeError
        If the container or an item is of a wrong type.
    """
    texts = _unpacked(X, name)
    if texts.second is None:
        _check_items(texts.first, name, "")
    else:
        _check_items(texts.first, name, ", 0")
        _check_items(texts.second, name, ", 1")
    return texts


def read_labels(y: Any, *, n_texts: int, name: str = "y", texts_name: str = "X") -> npt.NDArray[Any]:
    """Check the labels, one a text, and return them as a 1-D array of the dtype in which they came.

    Raises
    ------
    ValueError
        If labels are missing, of mixed types, continuous, not 1-D, or not as many as there are texts.
    TypeError
        If a label is bytes.
    """
    if y is None:
        raise ValueError(f"This BertSequenceClassifier estimator requires {name} to be passed, but it is None.")
    if isinstance(y, (str, bytes, Mapping, Set)) or np.isscalar(y):
        raise ValueError(f"{name} is a {type(y).__name__}, but one label a text is needed. Pass a list or an array.")
    if isinstance(y, (list, tuple)):
        _check_label_types(list(y), name)
    elif hasattr(y, "to_numpy") and not hasattr(y, "to_pylist"):
        y = y.to_numpy()
    # scikit-learn knows no StringDType, whose labels are classes whatever they say.
    are_strings = getattr(getattr(y, "dtype", None), "kind", "") == "T"
    labels: npt.NDArray[Any] = np.ravel(y) if are_strings and y.ndim == 1 else column_or_1d(y, warn=True)
    if labels.dtype.kind == "S":
        raise TypeError(f"{name} holds bytes, but a label must be str, int, bool or float. Decode the labels first.")
    if labels.dtype.kind in "OTmM":
        _check_label_types(list(labels), name)
        if labels.dtype.kind == "O" and not any(isinstance(label, str) for label in labels[:1]):
            labels = np.asarray(labels.tolist())
    elif labels.dtype.kind == "f" and not np.isfinite(labels).all():
        row = int(np.argmin(np.isfinite(labels)))
        raise ValueError(
            f"{name}[{row}] is {labels[row]}, but every text needs a label, and a label must be finite. "
            "Drop the texts without one."
        )
    if len(labels) != n_texts:
        raise ValueError(
            f"{texts_name} has {n_texts} texts and {name} has {len(labels)} labels: "
            "found input variables with inconsistent numbers of samples. Pass one label a text."
        )
    if not are_strings:
        check_classification_targets(labels)
    return labels


def targets_of(labels: npt.NDArray[Any], classes: npt.NDArray[Any], *, name: str) -> npt.NDArray[np.int64]:
    """Return the position of each label among the sorted classes.

    Raises
    ------
    ValueError
        If a label is not among the classes.
    """
    unknown = ~np.isin(labels, classes)
    if unknown.any():
        row = int(np.argmax(unknown))
        raise ValueError(
            f"{name}[{row}] is {_quote(labels[row])}, a class that y does not hold. "
            "Drop those rows, or add texts of that class to the training data."
        )
    return np.searchsorted(classes, labels).astype(np.int64)


def read_weights(sample_weight: Any, *, n_texts: int) -> npt.NDArray[np.float32]:
    """Check the weights of the texts and scale them to a mean of one; None weighs all texts alike.

    Raises
    ------
    ValueError
        If the weights are not one a text, not finite, negative, or all zero.
    """
    if sample_weight is None:
        return np.ones(n_texts, dtype=np.float32)
    try:
        weights: npt.NDArray[np.float64] = np.asarray(sample_weight, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise ValueError(f"sample_weight must hold one number a text, but: {error}. Pass numbers.") from error
    if weights.shape not in {(), (n_texts,)}:
        raise ValueError(f"sample_weight.shape == {weights.shape}, expected {(n_texts,)}: pass one weight a text.")
    weights = np.broadcast_to(weights, n_texts)
    if not (np.isfinite(weights) & (weights >= 0)).all():
        row = int(np.argmin(np.isfinite(weights) & (weights >= 0)))
        raise ValueError(
            f"sample_weight[{row}] is {weights[row]}, but weights must be finite numbers and none may be negative "
            "(negative values in data passed to `sample_weight`). Use 0 to leave a text out."
        )
    if not weights.any():
        raise ValueError("All values of sample_weight are zero: at least one text needs a positive weight.")
    weights = weights / weights.max()
    return np.asarray(weights / weights.mean(), dtype=np.float32)


def _unpacked(X: Any, name: str) -> Texts:
    """Return the items of a container, not yet checked, column by column."""
    if isinstance(X, str):
        raise ValueError(
            f"Iterable over raw text documents expected, string object received. {name} is one str, but a container "
            f"of texts is needed. Pass [text] to classify a single text."
        )
    if issparse(X):
        raise TypeError(f"{name} is a sparse {type(X).__name__}, but texts are needed. Pass the raw texts.")
    frame = nw.from_native(X, allow_series=True, pass_through=True)
    if isinstance(frame, nw.DataFrame):
        columns = [frame[:, position].to_list() for position in range(frame.shape[1])]
        return _table(columns, name, names=frame.columns)
    items = frame.to_list() if isinstance(frame, nw.Series) else _items(X, name)
    if not items:
        raise ValueError(f"Found array with 0 sample(s): {name} is empty, but at least one text is required.")
    if isinstance(items[0], (list, tuple, np.ndarray)):
        return _table(_transposed(items, name), name, names=[])
    return Texts(first=items, second=None, n_columns=None, column_names=None)


def _items(X: Any, name: str) -> list[Any]:
    """Return the rows of a container that is neither a Series nor a data frame."""
    if isinstance(X, (list, tuple)):
        return list(X)
    if hasattr(X, "to_pylist"):
        return list(X.to_pylist())
    if hasattr(X, "__array__"):
        array = np.asarray(X)
        if array.ndim not in (1, 2):
            raise ValueError(f"{name} has {array.ndim} dimensions, but texts come in 1 or 2. Pass {name}.ravel().")
        return list(array.tolist())
    if isinstance(X, (bytes, bytearray, Mapping, Set)) or not (hasattr(X, "__len__") and hasattr(X, "__getitem__")):
        raise TypeError(
            f"{name} is a {type(X).__name__}, but a sequence of texts with a length is needed: a list, a tuple, "
            f"an array, a Series or a data frame. Pass list({name}) if it yields one text after another."
        )
    return list(X)


def _transposed(rows: list[Any], name: str) -> list[list[Any]]:
    """Return the columns of a list of equally long rows."""
    width = len(rows[0])
    for position, row in enumerate(rows):
        if _is_missing(row):
            _refuse_item(row, f"{name}[{position}]")
        if not isinstance(row, (list, tuple, np.ndarray)):
            raise TypeError(
                f"{name}[{position}] is {_described(row)}, but {name}[0] is a row of {width} texts. "
                "Pass single texts or pairs, not both."
            )
        if len(row) != width:
            raise ValueError(
                f"{name}[{position}] has {len(row)} items, but {name}[0] has {width}. Pass rows of the same length."
            )
    return [list(column) for column in zip(*rows, strict=True)]


def _table(columns: list[list[Any]], name: str, *, names: Sequence[Any]) -> Texts:
    """Return one or two columns of equal length as texts; `names` is empty where columns have none."""
    if len(columns) not in (1, 2):
        raise ValueError(
            f"{name} has {len(columns)} columns, but a table of texts has one, or two for pairs. Select the columns "
            "that hold the texts."
        )
    if not columns[0]:
        raise ValueError(f"Found array with 0 sample(s): {name} is empty, but at least one text is required.")
    has_names = bool(names) and all(isinstance(column, str) for column in names)
    return Texts(
        first=columns[0],
        second=columns[1] if len(columns) == 2 else None,
        n_columns=len(columns),
        column_names=np.asarray(names, dtype=object) if has_names else None,
    )


def _check_items(items: list[Any], name: str, column: str) -> None:
    """Raise the error of the first item that is not a text; `column` is what follows the row in its index."""
    for row, item in enumerate(items):
        if not isinstance(item, str):
            _refuse_item(item, f"{name}[{row}{column}]")
        elif not item.isascii():
            try:
                item.encode()
            except UnicodeEncodeError as error:
                where = f"{name}[{row}{column}]"
                raise ValueError(
                    f"{where} is {_quote(item)}, which holds a lone surrogate at character {error.start}, but a text "
                    "must be valid unicode. Decode the source with the right encoding, or replace it."
                ) from error


def _refuse_item(item: Any, where: str) -> None:
    if _is_missing(item):
        raise ValueError(
            f"{where} is {_described(item)}, but every text must be a str. Replace missing texts by '' or drop them."
        )
    if isinstance(item, (bytes, bytearray)):
        raise TypeError(f"{where} is {_described(item)}, but every text must be a str. Decode it first: text.decode().")
    raise TypeError(
        f"{where} is {_described(item)}, but every text must be a str. Convert it yourself if its characters are "
        "what you want to classify."
    )


def _check_label_types(labels: list[Any], name: str) -> None:
    """Raise if labels are missing, bytes, or a mixture of str and other types."""
    first_is_str: bool | None = None
    for row, label in enumerate(labels):
        if _is_missing(label):
            raise ValueError(
                f"{name}[{row}] is {_described(label)}, but every text needs a label. Drop the texts without one."
            )
        if isinstance(label, bytes):
            raise TypeError(f"{name}[{row}] is {_described(label)}, but a label must not be bytes. Decode it first.")
        if first_is_str is None:
            first_is_str = isinstance(label, str)
        elif isinstance(label, str) != first_is_str:
            raise ValueError(
                f"{name}[{row}] is {_described(label)}, but {name}[0] is {_described(labels[0])}: labels must be of "
                "one type that sorts. Convert them all to str or all to int."
            )


def _is_missing(item: Any) -> bool:
    """Tell None, NaN, NaT and pandas.NA from values."""
    if item is None or type(item).__name__ in {"NAType", "NaTType"}:
        return True
    return isinstance(item, (float, np.floating, np.datetime64, np.timedelta64)) and bool(item != item)


def _described(item: Any) -> str:
    return f"{type(item).__name__} ({_quote(item)})"


def _quote(item: Any) -> str:
    """Return at most 40 characters of an item, escaped where they don't print."""
    text = ascii(item[:LONGEST_QUOTE]) if isinstance(item, (str, bytes, bytearray)) else ascii(item)
    return text if len(text) <= LONGEST_QUOTE else text[: LONGEST_QUOTE - 3] + "..."
