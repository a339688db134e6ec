"""Fetching from a hub: a local HTTP server stands in for it, and child processes know it by HF_ENDPOINT alone."""

import hashlib
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import torch

import titokc
from titokc import weights
from titokc.errors import ModelNotFoundError, UsageError, WeightsError
from titokc.models.titok.config import TiTokConfig, ViTSize
from titokc.models.titok.releases import RELEASES
from titokc.models.titok.tokenizer import TiTok

pytest.importorskip("huggingface_hub")

COMMIT = "0123456789abcdef0123456789abcdef01234567"


class Hub(ThreadingHTTPServer):
    """Serves /REPO/resolve/main/FILE from `files`, as huggingface.co does, and remembers what was asked for."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.files: dict[str, bytes] = {}
        self.requests: list[str] = []
        self.url = f"http://127.0.0.1:{self.server_address[1]}"


class Handler(BaseHTTPRequestHandler):
    server: Hub

    def do_HEAD(self) -> None:
        self.answer()

    def do_GET(self) -> None:
        self.wfile.write(self.answer())

    def answer(self) -> bytes:
        self.server.requests.append(f"{self.command} {self.path}")
        content = self.server.files.get(self.path.partition("?")[0])
        self.send_response(404 if content is None else 200)
        if content is None:
            self.send_header("X-Error-Code", "EntryNotFound" if "titok" in self.path else "RepoNotFound")
            content = b"{}"
        else:
            self.send_header("ETag", f'"{hashlib.sha1(content).hexdigest()}"')
        self.send_header("X-Repo-Commit", COMMIT)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        return content

    def log_message(self, *args: object) -> None:
        pass


@pytest.fixture
def hub() -> Iterator[Hub]:
    server = Hub()
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture(scope="module")
def model() -> TiTok:
    torch.manual_seed(0)
    size = ViTSize(64, 1, 1)
    return TiTok(TiTokConfig(size, size, 4, 16, 8, use_l2_norm=False, is_legacy=False, image_size=32))


@pytest.fixture
def environment(tmp_path: Path, hub: Hub) -> dict[str, str]:
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("HF_")}
    return inherited | {
        "HF_ENDPOINT": hub.url,
        "HF_HOME": str(tmp_path / "hf"),
        "TITOKC_HOME": str(tmp_path / "titokc"),
        "PYTHONPATH": str(Path(titokc.__file__).parents[1]),
        "NO_PROXY": "127.0.0.1",
    }


def titokc_models(environment: dict[str, str], *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "titokc", "models", *arguments]
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=120)


@pytest.mark.parametrize("file", ["model.safetensors", "pytorch_model.bin"])
def test_a_model_is_fetched_once_and_then_found_offline(
    hub: Hub, environment: dict[str, str], model: TiTok, tmp_path: Path, file: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    weights.save(model, tmp_path / "saved")
    torch.save(model.state_dict(), tmp_path / "saved" / "pytorch_model.bin")
    hub.files = {
        f"/someone/titok-tiny/resolve/main/{name}": (tmp_path / "saved" / name).read_bytes()
        for name in ("config.json", file)
    }
    fetched = titokc_models(environment, "fetch", "someone/titok-tiny")
    assert fetched.returncode == 0, fetched.stderr
    expected = tmp_path / "hf" / "hub" / "models--someone--titok-tiny" / "snapshots" / COMMIT / file
    assert fetched.stdout.strip() == str(expected)
    assert f"GET /someone/titok-tiny/resolve/main/{file}" in hub.requests

    asked = len(hub.requests)
    monkeypatch.setenv("HF_HOME", environment["HF_HOME"])
    monkeypatch.delenv("HF_HUB_CACHE", raising=False)
    assert weights.load("someone/titok-tiny").info.weights == weights.fingerprints(model).weights
    assert len(hub.requests) == asked


def test_a_known_name_is_fetched_from_its_repository(hub: Hub, environment: dict[str, str], tmp_path: Path) -> None:
    repository = "/yucornetto/tokenizer_titok_l32_imagenet/resolve/main"
    hub.files = {f"{repository}/config.json": b"{}", f"{repository}/model.safetensors": b"weights"}
    fetched = titokc_models(environment, "fetch", "titok-l-32")
    assert fetched.returncode == 0, fetched.stderr
    assert titokc_models(environment, "path", "titok-l-32").stdout == fetched.stdout
    listed = json.loads(titokc_models(environment, "list", "--json").stdout)
    assert {row["name"]: row["where"] for row in listed}["titok-l-32"].startswith("hub cache")


def test_a_repository_without_weights_is_one_clear_line(hub: Hub, environment: dict[str, str]) -> None:
    hub.files = {"/someone/titok-empty/resolve/main/config.json": b"{}"}
    fetched = titokc_models(environment, "fetch", "someone/titok-empty")
    assert fetched.returncode == 4
    assert fetched.stderr.strip().splitlines()[-1] == (
        "titokc: someone/titok-empty on the hub has neither model.safetensors nor pytorch_model.bin"
    )


def test_a_missing_repository_is_one_clear_line(hub: Hub, environment: dict[str, str]) -> None:
    fetched = titokc_models(environment, "fetch", "someone/nothing")
    assert fetched.returncode == 4
    assert fetched.stderr.startswith("titokc: someone/nothing could not be downloaded from someone/nothing: ")
    assert len(fetched.stderr.splitlines()) == 1


def test_the_offline_switch_is_honoured(hub: Hub, environment: dict[str, str]) -> None:
    fetched = titokc_models(environment | {"HF_HUB_OFFLINE": "1"}, "fetch", "titok-b-64")
    assert fetched.returncode == 4
    assert "titok-b-64 could not be downloaded" in fetched.stderr
    assert hub.requests == []


@pytest.mark.slow
def test_an_unreachable_hub_is_one_clear_line(environment: dict[str, str]) -> None:
    fetched = titokc_models(environment | {"HF_ENDPOINT": "http://127.0.0.1:9"}, "fetch", "titok-b-64")
    assert fetched.returncode == 4
    assert "titok-b-64 could not be downloaded" in fetched.stderr
    assert "Traceback" not in fetched.stderr


def test_nothing_but_fetch_asks_the_hub(hub: Hub, environment: dict[str, str]) -> None:
    for arguments in (["list"], ["path", "titok-b-64"], ["verify", "titok-b-64"], ["convert", "titok-b-64", "out"]):
        assert titokc_models(environment, *arguments).returncode in (0, 4)
    assert hub.requests == []


def test_without_the_hubs_library_fetch_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(ModelNotFoundError, match=r"needs the huggingface_hub package: pip install 'titokc\[hub\]'"):
        weights.fetch("titok-b-64")


def test_fetch_refuses_what_is_neither_a_model_nor_a_repository() -> None:
    with pytest.raises(UsageError, match="neither a known model"):
        weights.fetch("titok-l-33")


def test_a_pinned_release_is_fetched_at_its_revision_and_hash(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    asked = []

    def download(repo_id: str, name: str, revision: str | None = None) -> str:
        asked.append((name, revision))
        (tmp_path / name).write_bytes(b"weights")
        return str(tmp_path / name)

    monkeypatch.setattr("huggingface_hub.hf_hub_download", download)
    right = hashlib.sha256(b"weights").hexdigest()
    pinned = RELEASES["titok-l-32"]._replace(revision="abc123", sha256=right)
    monkeypatch.setitem(RELEASES, "titok-l-32", pinned)
    assert weights.fetch("titok-l-32").weights == tmp_path / "model.safetensors"
    assert asked == [("config.json", "abc123"), ("model.safetensors", "abc123")]
    monkeypatch.setitem(RELEASES, "titok-l-32", pinned._replace(sha256="0" * 64))
    with pytest.raises(WeightsError, match=f"its SHA-256 is {right}, expected 0000"):
        weights.fetch("titok-l-32")


def test_nothing_is_pinned_yet() -> None:
    """Nobody here has the released files: what `titokc models fetch --help` says of it is to change with this."""
    assert {(release.revision, release.sha256) for release in RELEASES.values()} == {("", "")}
