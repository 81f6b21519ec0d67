"""Run the tests of conformance with scikit-learn and write `docs/conformance.md`: every check and its result.

It needs the packages of the `test` extra.

    python docs/conformance.py
"""

import os
import sys
from collections import Counter, defaultdict
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from platform import python_version
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ["numpy", "scikit-learn", "torch", "transformers"]

# What it means for a cell of the matrix that a test of it passes.
CELLS = {
    "test_a_tool_that_takes_every_container_gives_the_results_of_a_list": "yes",
    "test_a_tool_for_tables_takes_columns_of_texts": "yes",
    "test_a_tool_for_tables_refuses_one_dimension": "no",
    "test_a_tool_that_appends_numbers_to_the_texts_fails": "no",
    "test_a_tool_that_turns_texts_into_numbers_fails": "no",
    "test_a_tool_that_turns_texts_into_numbers_overlooks_those_of_polars": "yes",
}

INTRODUCTION = """# Conformance with scikit-learn

Written by `python docs/conformance.py`, which runs `tests/test_sklearn_*.py`. Every line of the tables, and every cell
of the matrix, is at least one test.

{versions}

{totals}
"""
NUMBERS = """
## scikit-learn's checks

scikit-learn's `check_estimator` draws numbers, and skips an estimator of texts but for one check. So they run through
an adapter of the tests, `NumbersAsText`: a subclass that writes each number as a letter, leaves shape, dtype, NaN and
columns of numbers to scikit-learn's `validate_data`, and hands everything else to the classifier. Checks of
`BertSequenceClassifier` run without it.
"""
MATRIX = """
## scikit-learn's tools by container

Yes: works, and gives what the same texts, or pairs, give in another container. No: raises, since the tool makes a
table or numbers of whatever it gets. OneVsOneClassifier and SelfTrainingClassifier work through row numbers, which a
transformer in front of the classifier turns into texts; they take a frame of polars by accident, as scikit-learn
doesn't see that it holds strings.
"""
TEXTS = """
## On raw texts

Each behaviour, with the number of cases in which it was tested.
"""


@dataclass
class Case:
    """One test: its function, its parameters, and how it ended."""

    function: str
    parameters: dict[str, Any]
    result: str = "not run"


class Recorder:
    """A plugin of pytest that keeps what was collected and how it ended."""

    def __init__(self) -> None:
        self.cases: dict[str, Case] = {}

    def pytest_collection_finish(self, session: pytest.Session) -> None:
        """Keep the tests that will run."""
        for item in session.items:
            parameters = item.callspec.params if hasattr(item, "callspec") else {}
            self.cases[item.nodeid] = Case(item.originalname, parameters)

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Keep the result of a test: that of its call, or of a setup that kept it from being called."""
        if report.when != "call" and report.passed:
            return
        result = {"passed": "passed", "failed": "**failed**", "skipped": "skipped"}[report.outcome]
        if hasattr(report, "wasxfail"):
            result = f"expected failure: {report.wasxfail}" if report.skipped else "passed, though expected to fail"
        elif report.skipped:
            result = f"skipped: {report.longrepr[2].removeprefix('Skipped: ')}"
        self.cases[report.nodeid].result = result


def name_of(check: Any) -> str:
    """Return the name of a check of scikit-learn with the arguments that tell it from others."""
    function = getattr(check, "func", check)
    arguments = ", ".join(f"{name}={value!r}" for name, value in getattr(check, "keywords", {}).items())
    return f"{function.__name__}({arguments})" if arguments else function.__name__


def table(header: list[str], rows: list[list[str]]) -> str:
    """Return a Markdown table."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n"


def checks(cases: list[Case]) -> str:
    """Return the table of scikit-learn's checks."""
    rows = []
    for case in cases:
        adapted = "estimator" in case.parameters and type(case.parameters["estimator"]).__name__ == "NumbersAsText"
        adapted |= case.function == "test_the_checks_that_the_battery_leaves_out_pass"
        runs_on = "`NumbersAsText`" if adapted else "`BertSequenceClassifier`"
        rows.append([f"`{name_of(case.parameters['check'])}`", runs_on, case.result])
    return table(["check", "runs on", "result"], rows)


def matrix(cases: list[Case]) -> str:
    """Return the table of tools by container."""
    tools: dict[str, dict[str, str]] = defaultdict(dict)
    for case in cases:
        cell = CELLS[case.function] if case.result == "passed" else case.result
        tools[case.parameters["use"]][case.parameters["container"]] = cell
    containers = list(next(iter(tools.values())))
    rows = [[tool, *(cells.get(container, "") for container in containers)] for tool, cells in tools.items()]
    return table(["tool", *containers], rows)


def behaviours(cases: list[Case]) -> str:
    """Return the table of the other tests, a line for each function and result."""
    counted = Counter((case.function, case.result) for case in cases)
    rows = [
        [function.removeprefix("test_").replace("_", " "), str(number), result]
        for (function, result), number in counted.items()
    ]
    return table(["behaviour", "cases", "result"], rows)


def page(cases: list[Case]) -> str:
    """Return the page."""
    with_checks = [case for case in cases if "check" in case.parameters]
    of_tools = [case for case in cases if case.function in CELLS]
    others = [case for case in cases if "check" not in case.parameters and case.function not in CELLS]
    kinds = Counter(case.result.partition(":")[0].strip("*") for case in cases)
    totals = f"{len(cases)} tests: " + ", ".join(f"{kind} {number}" for kind, number in kinds.items()) + "."
    versions = ", ".join([f"Python {python_version()}", *(f"{name} {version(name)}" for name in PACKAGES)]) + "."
    parts = [INTRODUCTION.format(versions=versions, totals=totals), NUMBERS, checks(with_checks), MATRIX]
    return "\n".join([*parts, matrix(of_tools), TEXTS, behaviours(others)])


def main() -> int:
    """Run the tests, write the page, and return the exit status of pytest."""
    os.environ["SCIPY_ARRAY_API"] = "1"  # read when scipy is imported; one of scikit-learn's checks needs it
    recorder = Recorder()
    files = [str(file) for file in sorted((ROOT / "tests").glob("test_sklearn_*.py"))]
    status = pytest.main(["-q", "-p", "no:cacheprovider", "--rootdir", str(ROOT), *files], plugins=[recorder])
    (ROOT / "docs" / "conformance.md").write_text(page(list(recorder.cases.values())), encoding="utf-8")
    return int(status)


if __name__ == "__main__":
    sys.exit(main())
