"""What the caller passes as X, turned into texts; every error about texts is raised here."""

from collections.abc import Iterator, Mapping, Sequence, Set
from dataclasses import dataclass, replace
from typing import Any

import narwhals as nw
import numpy as np
import numpy.typing as npt
from scipy.sparse import issparse

LONGEST_QUOTE = 40

# Texts that are held in memory at once where not all are needed: of sentences some tens of megabytes.
TEXTS_PER_PART = 65_536


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
        Names of the columns of a data frame, None if it has none or none is a str.
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

    def take(self, rows: npt.NDArray[np.int64]) -> "Texts":
        """Return some of the texts, in the order of `rows`."""
        return replace(
            self,
            first=[self.first[row] for row in rows],
            second=None if self.second is None else [self.second[row] for row in rows],
        )

    def as_list(self) -> list[str] | list[tuple[str, str]]:
        """Return what `read_texts` reads: a list of texts, or of tuples of two."""
        return self.first if self.second is None else list(zip(self.first, self.second, strict=True))


def read_in_parts(X: Any, *, name: str = "X") -> Iterator[Texts]:
    """Check and unpack a container of texts a part at a time, see `read_texts`.

    Memory-mapped arrays and columns of Arrow are never held whole. Every part is checked before the first is yielded,
    so that an error comes before any work is done.
    """
    if not _has_slices(X) or len(X) <= TEXTS_PER_PART:
        yield read_texts(X, name=name)
        return
    starts = range(0, len(X), TEXTS_PER_PART)
    kinds = {read_texts(_slice(X, start), name=name, first_row=start).n_columns for start in starts}
    if len(kinds) > 1:
        read_texts(X, name=name)  # raises: it sees which row is of another kind than the first
    for start in starts:
        yield read_texts(_slice(X, start), name=name, first_row=start)


def _has_slices(X: Any) -> bool:
    """Tell whether a slice of a container is a container of the same kind, and not a row or a column."""
    if isinstance(X, np.ndarray):
        return X.ndim > 0
    if isinstance(X, (list, tuple)):
        return True
    if hasattr(X, "to_pylist") or isinstance(
        nw.from_native(X, allow_series=True, pass_through=True), (nw.Series, nw.DataFrame)
    ):
        return True
    if not isinstance(X, Sequence) or isinstance(X, (str, bytes)):
        return False
    try:
        return isinstance(X[:1], Sequence)
    except TypeError:  # a deque
        return False


def _slice(X: Any, start: int) -> Any:
    """Return the part of a container that begins at a row."""
    sliceable = nw.from_native(X, allow_series=True, pass_through=True)
    return nw.to_native(sliceable[start : start + TEXTS_PER_PART], pass_through=True)


def read_texts(X: Any, *, name: str = "X", first_row: int = 0) -> Texts:
    """Check and unpack a container of texts.

    Parameters
    ----------
    X : list, tuple, ndarray, Series, data frame or any sequence, of str
        One text a row (1-D, or 2-D with one column), or two texts a row (2-D with two columns, or 1-D of tuples).
    name : str, default="X"
        What error messages call the container.
    first_row : int, default=0
        Number that error messages give to the first row.

    Raises
    ------
    ValueError
        If the container is one string, is empty, has a wrong shape, misses an item or holds a lone surrogate.
    TypeError
        If the container or an item is of a wrong type.
    """
    texts = _unpacked(X, name, first_row)
    if texts.second is None:
        _check_items(texts.first, name, "", first_row)
    else:
        _check_items(texts.first, name, ", 0", first_row)
        _check_items(texts.second, name, ", 1", first_row)
    return texts


def _unpacked(X: Any, name: str, first_row: int) -> Texts:
    """Return the items of a container, not yet checked, column by column."""
    if isinstance(X, str):
        raise ValueError(
            f"Iterable over raw text documents expected, string object received. {name} is one str, but a container "
            f"of texts is needed. Pass [text] to classify a single text."
        )
    if issparse(X):
        raise TypeError(f"{name} is a sparse {type(X).__name__}, but texts are needed. Pass the raw texts.")
    is_plain = isinstance(X, (list, tuple))
    frame = X if is_plain else nw.from_native(X, allow_series=True, pass_through=True)
    if isinstance(frame, nw.LazyFrame):
        raise TypeError(f"{name} is a lazy frame, but the texts themselves are needed. Pass {name}.collect().")
    if isinstance(frame, nw.DataFrame):
        columns = [frame[:, position].to_list() for position in range(frame.shape[1])]
        return _table(columns, name, names=frame.columns)
    items = frame.to_list() if isinstance(frame, nw.Series) else _items(X, name)
    if not items:
        raise ValueError(f"Found array with 0 sample(s): {name} is empty, but at least one text is required.")
    if isinstance(items[0], (list, tuple, np.ndarray)):
        return _table(_transposed(items, name, first_row), name, names=[])
    return Texts(first=items, second=None, n_columns=None, column_names=None)


def _items(X: Any, name: str) -> list[Any]:
    """Return the rows of a container that is neither a Series nor a data frame."""
    if isinstance(X, (list, tuple)):
        return list(X)
    if hasattr(X, "to_pylist"):
        return list(X.to_pylist())
    if hasattr(X, "__array__"):
        array = np.asarray(X)
        if isinstance(X, np.ma.MaskedArray):
            array = array.astype(object)
            array[np.ma.getmaskarray(X)] = None
        if array.ndim not in (1, 2):
            raise ValueError(f"{name} has {array.ndim} dimensions, but texts come in 1 or 2. Pass {name}.ravel().")
        return list(array.tolist())
    if isinstance(X, (bytes, bytearray, Mapping, Set)) or not (hasattr(X, "__len__") and hasattr(X, "__getitem__")):
        raise TypeError(
            f"{name} is a {type(X).__name__}, but a sequence of texts with a length is needed: a list, a tuple, "
            f"an array, a Series or a data frame. Pass list({name}) if it yields one text after another."
        )
    return list(X)


def _transposed(rows: list[Any], name: str, first_row: int) -> list[list[Any]]:
    """Return the columns of a list of equally long rows."""
    width = len(rows[0])
    for position, row in enumerate(rows, start=first_row):
        if is_missing(row):
            _refuse_item(row, f"{name}[{position}]")
        if not isinstance(row, (list, tuple, np.ndarray)):
            raise TypeError(
                f"{name}[{position}] is {described(row)}, but {name}[{first_row}] is a row of {width} texts. "
                "Pass single texts or pairs, not both."
            )
        if len(row) != width:
            raise ValueError(
                f"{name}[{position}] has {len(row)} items, but {name}[{first_row}] has {width}. Pass rows of the same "
                "length."
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
    are_str = {isinstance(column, str) for column in names}
    if len(are_str) == 2:
        raise TypeError(
            f"{name} has the columns {list(names)}: feature names are only supported if all of them are str. Rename "
            f"the columns, by {name}.columns = {name}.columns.astype(str) for example."
        )
    return Texts(
        first=columns[0],
        second=columns[1] if len(columns) == 2 else None,
        n_columns=len(columns),
        column_names=np.asarray(names, dtype=object) if are_str == {True} else None,
    )


def _check_items(items: list[Any], name: str, column: str, first_row: int) -> None:
    """Raise the error of the first item that is not a text; `column` is what follows the row in its index."""
    for row, item in enumerate(items, start=first_row):
        if not isinstance(item, str):
            _refuse_item(item, f"{name}[{row}{column}]")
        elif not item.isascii():
            try:
                item.encode()
            except UnicodeEncodeError as error:
                where = f"{name}[{row}{column}]"
                raise ValueError(
                    f"{where} is {quote(item)}, which holds a lone surrogate at character {error.start}, but a text "
                    "must be valid unicode. Decode the source with the right encoding, or replace it."
                ) from error


def _refuse_item(item: Any, where: str) -> None:
    if is_missing(item):
        raise ValueError(
            f"{where} is {described(item)}, but every text must be a str. Replace missing texts by '' or drop them."
        )
    if isinstance(item, Mapping):
        raise TypeError(
            f"{where} is {described(item)}, but every text must be a str. Convert it yourself, or if this is a row of "
            "a Dataset pass the column that holds the texts, such as X['text']."
        )
    if isinstance(item, (bytes, bytearray)):
        raise TypeError(f"{where} is {described(item)}, but every text must be a str. Decode it first: text.decode().")
    raise TypeError(
        f"{where} is {described(item)}, but every text must be a str. Convert it yourself if its characters are "
        "what you want to classify."
    )


def is_missing(item: Any) -> bool:
    """Tell None, NaN, NaT and pandas.NA from values."""
    if item is None or type(item).__name__ in {"NAType", "NaTType"}:
        return True
    return isinstance(item, (float, np.floating, np.datetime64, np.timedelta64)) and bool(item != item)


def described(item: Any) -> str:
    """Return type and value of an item, for an error."""
    return f"{type(item).__name__} ({quote(item)})"


def quote(item: Any) -> str:
    """Return at most 40 characters of an item, escaped where they don't print."""
    text = ascii(item[:LONGEST_QUOTE]) if isinstance(item, (str, bytes, bytearray)) else ascii(item)
    return text if len(text) <= LONGEST_QUOTE else text[: LONGEST_QUOTE - 3] + "..."
