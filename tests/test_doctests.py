import doctest
import importlib

import pytest
from test_imports import PACKAGE

MODULES = sorted(file.stem for file in PACKAGE.glob("*.py") if ">>>" in file.read_text(encoding="utf-8"))


@pytest.mark.parametrize("name", MODULES)
def test_the_examples_of_the_docstrings_run(name, checkpoint, monkeypatch):
    monkeypatch.setenv("MPLBACKEND", "agg")
    module = importlib.import_module(f"bertclf.{name}")
    result = doctest.testmod(module, extraglobs={"checkpoint": checkpoint})
    assert result.attempted > 0
    assert result.failed == 0
