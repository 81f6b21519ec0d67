"""From a name on the Hugging Face Hub to a folder on this machine: the only room that opens a network connection."""

from contextlib import suppress
from fnmatch import fnmatch
from json import JSONDecodeError
from pathlib import Path
from typing import Any

from huggingface_hub import HfApi, hf_hub_download, is_offline_mode, snapshot_download
from huggingface_hub.errors import (  # type: ignore[attr-defined]  # HTTPError is that of httpx or of its successor
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    HTTPError,
    LocalEntryNotFoundError,
    RemoteEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from tqdm.auto import tqdm

# What a checkpoint is made of. Hub repositories also hold copies of the weights for other frameworks.
CHECKPOINT_FILES = [
    "model.safetensors",
    "model-*.safetensors",
    "model.safetensors.index.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "vocab.txt",
    "merges.txt",
    "*.model",
    "modules.json",
    "*_Pooling/config.json",
]
OTHERS = ("onnx/", "openvino/")
CONFIG = "config.json"  # fetched by itself

# Without a limit, a Hub that takes the connection and says nothing would be waited for without end.
SECONDS_TO_ANSWER = 10.0

FAILURES = (HTTPError, HFValidationError, JSONDecodeError, OSError)
REMEDIES = {
    401: "Log in with `hf auth login`",
    403: "Log in with `hf auth login`",
    429: "Wait some minutes, since you asked too often",
}


class _SilentBar(tqdm):
    """A progress bar that shows nothing."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **(kwargs | {"disable": True}))


def download(name: str, *, revision: str | None, verbose: bool) -> Path:
    """Return the folder in the Hub's local cache that holds a repository's checkpoint, fetching what is missing.

    Where the Hub gives no answer, or none that helps, a checkpoint that is in the cache already is taken.

    Raises
    ------
    OSError
        If it is neither on the Hub nor in the cache; the message tells which of the many reasons it is.
    """
    where = f"model={name!r}" if revision is None else f"model={name!r}, revision={revision!r}"
    try:
        if is_offline_mode():
            return _cached(name, revision=revision)
        return _fetched(name, revision=revision, verbose=verbose)
    except FAILURES as error:
        if getattr(error, "errno", None) is not None:
            raise  # of this machine, such as a full disk
        if not isinstance(error, RevisionNotFoundError):
            with suppress(*FAILURES):
                return _cached(name, revision=revision)
        raise OSError(f"{where} {_explained(error)}") from error


def _cached(name: str, *, revision: str | None) -> Path:
    """Return the folder of a checkpoint that was downloaded before."""
    folder = Path(snapshot_download(name, revision=revision, local_files_only=True))
    if not (folder / CONFIG).is_file():
        raise LocalEntryNotFoundError(f"{folder} holds no {CONFIG}, which is downloaded last.")
    return folder


def _fetched(name: str, *, revision: str | None, verbose: bool) -> Path:
    """Return the folder of a checkpoint as it is on the Hub now; what is in the cache is not downloaded again.

    Not with `snapshot_download`, which asks the Hub without a limit in time.
    """
    repository = HfApi().model_info(name, revision=revision, timeout=SECONDS_TO_ANSWER)
    names = [file.rfilename for file in repository.siblings or []]
    # Files of one commit. The configuration comes last and by the name of its branch, from when on the cache knows to
    # which commit that leads: what is there in part, since a download broke off, is never taken for a checkpoint.
    for file in filter(_is_wanted, names):
        _fetch(name, file, revision=repository.sha, verbose=verbose)
    return Path(_fetch(name, CONFIG, revision=revision, verbose=verbose)).parent


def _fetch(name: str, file: str, *, revision: str | None, verbose: bool) -> str:
    """Return the path of one file in the cache."""
    return hf_hub_download(name, file, revision=revision, tqdm_class=None if verbose else _SilentBar)


def _is_wanted(file: str) -> bool:
    """Tell whether a file of a repository belongs to the checkpoint, beside its configuration."""
    return any(fnmatch(file, wanted) for wanted in CHECKPOINT_FILES) and not file.startswith(OTHERS)


def _explained(error: Exception) -> str:
    """Return why there is no checkpoint, and what to do."""
    if isinstance(error, GatedRepoError):
        return "is a gated repository of the Hugging Face Hub. Ask for access on its page, then `hf auth login`."
    if isinstance(error, RevisionNotFoundError):
        return "is not there: the repository has no such branch, tag or commit. Look it up on its page."
    if isinstance(error, RepositoryNotFoundError | HFValidationError):
        return (
            "is neither a folder on this machine nor a repository of the Hugging Face Hub that you may read. Check the "
            "spelling; for a private repository log in with `hf auth login`."
        )
    if isinstance(error, RemoteEntryNotFoundError):
        return f"is a repository without {CONFIG}: it holds no checkpoint. Name one that transformers can load."
    if is_offline_mode():
        reason, remedy = "HF_HUB_OFFLINE is set", "Connect once to download it"
    elif isinstance(error, HfHubHTTPError):
        status = error.response.status_code
        reason, remedy = f"the Hugging Face Hub answers with status {status}", REMEDIES.get(status, "Try again later")
    elif isinstance(error, JSONDecodeError):
        reason, remedy = "what answers is not the Hugging Face Hub", "Log in to your network, or look at HF_ENDPOINT"
    else:
        if isinstance(error, LocalEntryNotFoundError) and isinstance(error.__cause__, Exception):
            error = error.__cause__
        told = str(error).partition("\n")[0]
        reason = f"the Hugging Face Hub can't be reached, or not for long ({type(error).__name__}: {told})"
        remedy = "Connect once to download it"
    return f"is not in the local cache, and {reason}. {remedy}, or pass a folder that holds it."
