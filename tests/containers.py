"""The texts of the tests in the containers that scikit-learn's users hold them in."""

import numpy as np
import pandas as pd
import polars as pl
from conftest import TEXTS

STRING = np.dtypes.StringDType()
SECOND = TEXTS[::-1]
PAIRS = list(zip(TEXTS, SECOND, strict=True))
OBJECTS = np.array(TEXTS, dtype=object)

ONE_DIMENSIONAL = {
    "list": TEXTS,
    "tuple": tuple(TEXTS),
    "fixed-width array": np.array(TEXTS),
    "object array": OBJECTS,
    "StringDType array": np.array(TEXTS, dtype=STRING),
    "Series": pd.Series(TEXTS),
    "polars Series": pl.Series(TEXTS),
}
TWO_DIMENSIONAL = {
    "(n, 1) array": OBJECTS[:, None],
    "one-column frame": pd.DataFrame({"text": TEXTS}),
    "two-column frame": pd.DataFrame({"text": TEXTS, "reply": SECOND}),
    "polars frame": pl.DataFrame({"text": TEXTS}),
}
CONTAINERS = ONE_DIMENSIONAL | TWO_DIMENSIONAL
