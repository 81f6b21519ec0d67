"""Row 38 of the table of bad input and bad days: the Hugging Face Hub, a fake one on the loopback address."""

import http.server
import json
import os
import pickle
import shutil
import socket
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
from conftest import LABELS, TEXTS, saying
from sklearn.base import clone

from bertclf import BertSequenceClassifier, _hub

COMMIT = "89abcdef0123456789abcdef0123456789abcdef"
SECONDS = 5.0


class FakeHub(http.server.BaseHTTPRequestHandler):
    """A Hub that serves a tiny checkpoint as `someone/tiny`, and other repositories that have something wrong."""

    folder: Path
    requests: list[str]

    def log_message(self, *args: Any) -> None:
        """Stay silent."""

    def do_HEAD(self) -> None:
        self.answer(with_body=False)

    def do_GET(self) -> None:
        self.answer(with_body=True)

    def answer(self, *, with_body: bool) -> None:
        path = self.path.split("?")[0]
        self.requests.append(f"{self.command} {path}")
        _, _, repository = path.removeprefix("/api/models").partition("/someone/")
        name = repository.split("/")[0]
        if name.startswith("status"):
            return self.send(int(name.removeprefix("status")), b"{}", {}, with_body)
        if name == "login":
            return self.send(200, b"<html>Welcome to the airport. Please log in.</html>", {}, with_body)
        if name == "gated":
            return self.send(403, b"{}", {"X-Error-Code": "GatedRepo"}, with_body)
        if name not in {"tiny", "truncated", "shorter", "without-config"}:
            return self.send(404, b"{}", {"X-Error-Code": "RepoNotFound"}, with_body)
        if "nowhere" in path:
            return self.send(404, b"{}", {"X-Error-Code": "RevisionNotFound"}, with_body)
        if path.startswith("/api/models/"):
            files = [{"rfilename": file.name} for file in self.folder.iterdir()]
            info = {"id": f"someone/{name}", "sha": COMMIT, "siblings": files}
            return self.send(200, json.dumps(info).encode(), {}, with_body)
        file = self.folder / path.rsplit("/", 1)[1]
        if name == "without-config" and file.name == "config.json":
            return self.send(404, b"{}", {"X-Error-Code": "EntryNotFound"}, with_body)
        content = file.read_bytes()
        headers = {"ETag": f'"{file.name}"', "X-Repo-Commit": COMMIT}
        if with_body and file.suffix == ".safetensors":
            if name == "truncated":
                headers["Content-Length"] = str(len(content))
            if name in {"truncated", "shorter"}:
                content = content[: len(content) // 2]
        return self.send(200, content, headers, with_body)

    def send(self, status: int, body: bytes, headers: dict[str, str], with_body: bool) -> None:
        self.send_response(status)
        for name, value in ({"Content-Length": str(len(body)), "Content-Type": "application/json"} | headers).items():
            self.send_header(name, value)
        self.end_headers()
        if with_body:
            self.wfile.write(body)


@pytest.fixture
def requests() -> list[str]:
    """What the fake Hub was asked for."""
    return []


@pytest.fixture
def fake_hub(checkpoint: Path, requests: list[str]) -> Iterator[str]:
    """The address of the fake Hub."""
    handler = type("Handler", (FakeHub,), {"folder": checkpoint, "requests": requests})
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache of the Hub, which is used offline."""
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    return tmp_path


def connect(monkeypatch: pytest.MonkeyPatch, address: str) -> None:
    """Go online, where the Hub has another address than it usually has."""
    template = address + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", address)
    monkeypatch.setattr(huggingface_hub.constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    huggingface_hub.utils.close_session()


@pytest.fixture
def online(cache: Path, fake_hub: str, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The empty cache, while the fake Hub can be reached."""
    connect(monkeypatch, fake_hub)
    return cache


@pytest.fixture
def hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    """No pauses between the attempts of a download."""
    monkeypatch.setattr(time, "sleep", lambda seconds: None)


def fit(model: Any, **parameters: Any) -> BertSequenceClassifier:
    return BertSequenceClassifier(model, epochs=1, random_state=0, **parameters).fit(TEXTS, LABELS)


def failure(model: Any, **parameters: Any) -> str:
    """Return what a fit says that fails within seconds."""
    begun = time.perf_counter()
    with pytest.raises(OSError, match="model=") as error:
        fit(model, **parameters)
    assert time.perf_counter() - begun < SECONDS
    return str(error.value)


def lay_out_cache(cache: Path, checkpoint: Path) -> None:
    """Lay the checkpoint out as the Hub's local cache does, under the name `someone/tiny`."""
    repository = cache / "models--someone--tiny"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text(COMMIT, encoding="utf-8")
    shutil.copytree(checkpoint, repository / "snapshots" / COMMIT)


REFUSALS = {
    "misspelt": ("someone/misspelt", None, ("neither a folder", "nor a repository", "Check the spelling")),
    "no name": ("not a name", None, ("neither a folder", "nor a repository", "Check the spelling")),
    "gated": ("someone/gated", None, ("is a gated repository", "Ask for access", "hf auth login")),
    "revision": ("someone/tiny", "nowhere", ("no such branch, tag or commit", "Look it up")),
    "no checkpoint": ("someone/without-config", None, ("a repository without config.json", "Name one")),
    "broken Hub": ("someone/status503", None, ("not in the local cache", "answers with status 503", "Try again later")),
    "asked too often": ("someone/status429", None, ("not in the local cache", "status 429", "Wait some minutes")),
    "no access": ("someone/status401", None, ("not in the local cache", "status 401", "hf auth login")),
    "login page": ("someone/login", None, ("not in the local cache", "not the Hugging Face Hub", "Log in")),
}


@pytest.mark.parametrize(("model", "revision", "parts"), REFUSALS.values(), ids=REFUSALS)
@pytest.mark.usefixtures("online")
def test_row_38_each_refusal_of_the_hub_has_a_message_of_its_own(
    model: str, revision: str | None, parts: tuple[str, ...]
) -> None:
    message = failure(model, revision=revision)
    for part in (model, *parts):
        assert part in message


@pytest.mark.parametrize("address", ["http://127.0.0.1:1", "http://no-such-host.invalid"], ids=["refused", "no name"])
def test_row_38_an_unreachable_hub_is_told(cache: Path, monkeypatch: pytest.MonkeyPatch, address: str) -> None:
    connect(monkeypatch, address)
    message = failure("someone/other")
    for part in ("is not in the local cache", "Hub can't be reached", "ConnectError", "Connect once", "pass a folder"):
        assert part in message


def test_row_38_a_hub_that_takes_the_connection_and_says_nothing_is_not_waited_for(
    cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert _hub.SECONDS_TO_ANSWER <= 10
    monkeypatch.setattr(_hub, "SECONDS_TO_ANSWER", 0.2)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        connect(monkeypatch, f"http://127.0.0.1:{silent.getsockname()[1]}")
        assert "Hub can't be reached, or not for long (ReadTimeout" in failure("someone/tiny")


def test_row_38_a_name_that_is_not_in_the_cache_is_told_offline(cache: Path) -> None:
    message = failure("someone/other")
    for part in ("is not in the local cache", "HF_HUB_OFFLINE is set", "Connect once", "pass a folder"):
        assert part in message


@pytest.mark.parametrize("model", ["{}/nowhere", "./no/such/folder", "~/no-such-folder", "a/b/c"])
def test_row_38_a_folder_that_is_not_there_is_told_from_a_name(tmp_path: Path, model: str) -> None:
    model = model.format(tmp_path)
    for given in (model, Path(model)):
        with pytest.raises(FileNotFoundError, match=saying("is not a folder on this machine", "Pass a folder with")):
            fit(given)


@pytest.mark.parametrize("name", ["truncated", "shorter"])
@pytest.mark.usefixtures("hasty")
def test_row_38_a_download_that_breaks_off_is_told_and_never_taken_for_a_checkpoint(
    online: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    message = failure(f"someone/{name}")
    for part in ("is not in the local cache", "can't be reached, or not for long", "pass a folder"):
        assert part in message
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    for revision in (None, COMMIT):
        assert "HF_HUB_OFFLINE is set" in failure(f"someone/{name}", revision=revision)


def test_row_38_a_full_disk_is_not_taken_for_an_unreachable_hub(online: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*args: Any, **kwargs: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(_hub, "hf_hub_download", fail)
    with pytest.raises(OSError, match=r"\[Errno 28\] No space left on device"):
        fit("someone/tiny")


def test_row_38_a_checkpoint_is_downloaded_once_and_then_asked_for_twice(online: Path, requests: list[str]) -> None:
    fit("someone/tiny")
    downloads = [request for request in requests if request.startswith("GET /someone")]
    assert len(downloads) == len(set(downloads)) >= 4
    requests.clear()
    fit("someone/tiny")
    assert requests == ["GET /api/models/someone/tiny", "HEAD /someone/tiny/resolve/main/config.json"]


@pytest.mark.parametrize("address", ["http://127.0.0.1:1", None], ids=["unreachable", "misspelt there"])
def test_row_38_a_checkpoint_in_the_cache_is_used_where_the_hub_does_not_help(
    checkpoint: Path, cache: Path, fake_hub: str, monkeypatch: pytest.MonkeyPatch, address: str | None
) -> None:
    lay_out_cache(cache, checkpoint)
    (cache / "models--someone--tiny").rename(cache / "models--someone--withdrawn")
    connect(monkeypatch, address or fake_hub)
    assert fit("someone/withdrawn").predict(TEXTS).shape == (len(TEXTS),)


def no_network(*args: Any, **kwargs: Any) -> None:
    raise AssertionError("a socket was opened")


@pytest.fixture
def without_sockets(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make all that leads to the network fail."""
    for name in ("socket", "create_connection", "getaddrinfo", "gethostbyname"):
        monkeypatch.setattr(socket, name, no_network)


@pytest.mark.usefixtures("without_sockets")
def test_row_38_offline_a_name_is_loaded_from_the_cache_without_network(checkpoint: Path, cache: Path) -> None:
    lay_out_cache(cache, checkpoint)
    for revision in (None, "main", COMMIT):
        assert fit("someone/tiny", revision=revision).predict(TEXTS).shape == (len(TEXTS),)


@pytest.mark.usefixtures("without_sockets")
def test_row_38_a_local_or_fitted_model_never_opens_a_socket(checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    clf = fit(checkpoint)
    expected = clf.predict_proba(TEXTS).tolist()
    assert pickle.loads(pickle.dumps(clf)).predict_proba(TEXTS).tolist() == expected
    assert clone(clf).fit(TEXTS, LABELS).predict_proba(TEXTS).tolist() == expected
    assert clf.fit(TEXTS, LABELS).predict_proba(TEXTS).tolist() == expected
    clf.set_params(warm_start=True).fit(TEXTS, LABELS).partial_fit(TEXTS, LABELS)
    assert clf.score(TEXTS, LABELS) >= 0


def test_row_38_a_name_is_downloaded_silently_as_the_environment_says(fake_hub: str, tmp_path: Path) -> None:
    code = f"""
        from bertclf import BertSequenceClassifier
        clf = BertSequenceClassifier("someone/tiny", epochs=1, random_state=0)
        print(clf.fit({TEXTS!r}, {LABELS!r}).predict_proba(["a fine film"]).shape)
    """
    settings = {"HF_ENDPOINT": fake_hub, "HF_HUB_CACHE": str(tmp_path), "HF_HUB_DISABLE_XET": "1"}
    answer = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)],
        capture_output=True,
        text=True,
        check=True,
        env={name: value for name, value in os.environ.items() if not name.startswith("HF_")} | settings,
    )
    assert (answer.stdout, answer.stderr) == ("(1, 2)\n", "")
    snapshot = tmp_path / "models--someone--tiny" / "snapshots" / COMMIT
    assert {"config.json", "model.safetensors", "tokenizer.json"} <= {file.name for file in snapshot.iterdir()}
