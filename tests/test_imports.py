"""The rooms of the house: arrows go one way, and importing the package is cheap."""

import ast
import subprocess
import sys
from pathlib import Path

import bertclf

PACKAGE = Path(bertclf.__file__).parent

# Each room may use those above it, and no other.
ROOMS = [
    "_version",
    "_files",
    "_folder",
    "_silence",
    "_defaults",
    "_inputs",
    "_targets",
    "_process",
    "_manifest",
    "_device",
    "_random",
    "_memory",
    "_cuts",
    "_encoding",
    "_tokens",
    "_batches",
    "_weights",
    "_dropout",
    "_layout",
    "_groups",
    "_kernels",
    "_attention",
    "_budget",
    "_embeddings",
    "_hub",
    "_network",
    "_trees",
    "_head",
    "_unpadded",
    "_engine",
    "_frozen",
    "_checkpoint",
    "_inference",
    "_callbacks",
    "_tasks",
    "_resume",
    "_steps",
    "_progress",
    "_calibration",
    "_collapse",
    "_probe",
    "_training",
    "_persistence",
    "_saving",
    "_display",
    "_classifier",
    "__init__",
]


def rooms_used_by(room: str) -> set[str]:
    """Return every room that a module imports, inside functions too."""
    used = set()
    for node in ast.walk(ast.parse((PACKAGE / f"{room}.py").read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("bertclf."):
            used.add(node.module.removeprefix("bertclf."))
        elif isinstance(node, ast.ImportFrom) and node.module == "bertclf":
            used |= {alias.name for alias in node.names}
        elif isinstance(node, ast.Import):
            used |= {alias.name.removeprefix("bertclf.") for alias in node.names if alias.name.startswith("bertclf")}
    return used


def test_every_room_is_listed():
    assert {file.stem for file in PACKAGE.glob("*.py")} == set(ROOMS)


def test_imports_point_one_way():
    for position, room in enumerate(ROOMS):
        assert rooms_used_by(room) <= set(ROOMS[:position]), room


def test_no_room_but_init_uses_the_estimator():
    assert [room for room in ROOMS if "_classifier" in rooms_used_by(room)] == ["__init__"]


def test_no_room_receives_the_estimator():
    for room in set(ROOMS) - {"_classifier", "_display"}:
        tree = ast.parse((PACKAGE / f"{room}.py").read_text(encoding="utf-8"))
        names = {node.arg for node in ast.walk(tree) if isinstance(node, ast.arg)}
        assert not names & {"estimator", "clf", "classifier"}, room


def test_importing_the_package_imports_neither_torch_nor_transformers():
    code = "import sys, bertclf; print(sorted({'torch', 'transformers', 'matplotlib'} & set(sys.modules)))"
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert answer.stdout.strip() == "[]"
    assert answer.stderr == ""


def test_all_is_the_public_namespace():
    public = {name for name in vars(bertclf) if not name.startswith("_")}
    assert public | {"__version__"} == set(bertclf.__all__)
