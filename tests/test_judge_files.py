"""Weights of judging networks: where they are looked for, in which order, and what is said without them."""

import hashlib

import pytest

from titokc.errors import MetricWeightsMissingError
from titokc.judge import files
from titokc.judge.files import NetworkFile, find


@pytest.fixture
def weights_file(tmp_path, monkeypatch):
    """A published file of five bytes, places where it may be, and none where it is."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    monkeypatch.delenv("TITOKC_WEIGHTS_DIR", raising=False)
    prefix = hashlib.sha256(b"trunk").hexdigest()[:8]
    return NetworkFile(f"trunk-{prefix}.pth", prefix, 1, f"http://127.0.0.1:9/nets/trunk-{prefix}.pth")


def test_weights_are_looked_for_in_order(weights_file, tmp_path, monkeypatch):
    cache = tmp_path / "torch" / "hub" / "checkpoints"
    named = tmp_path / "named"
    option = tmp_path / "option"
    monkeypatch.setenv("TITOKC_WEIGHTS_DIR", str(named))
    for folder in (cache, named, option):
        folder.mkdir(parents=True)
        (folder / weights_file.name).write_bytes(b"trunk")
        assert find(weights_file, option) == (folder / weights_file.name, hashlib.sha256(b"trunk").hexdigest())


def test_any_of_several_files_will_do_and_the_first_comes_first(weights_file, tmp_path):
    other = weights_file._replace(name="other.safetensors", url=None)
    (tmp_path / other.name).write_bytes(b"trunk")
    assert find([weights_file, other], tmp_path).path == tmp_path / other.name
    (tmp_path / weights_file.name).write_bytes(b"trunk")
    assert find([weights_file, other], tmp_path).path == tmp_path / weights_file.name


def test_weights_published_nowhere_say_so(weights_file, tmp_path):
    with pytest.raises(MetricWeightsMissingError, match=r"for a test is not in .*; put it into one .*, or do not"):
        find(weights_file._replace(url=None), tmp_path, used_for="a test", without="do not")


def test_missing_weights_say_all_that_helps(weights_file, tmp_path):
    with pytest.raises(MetricWeightsMissingError) as raised:
        find(weights_file, tmp_path / "option")
    message = str(raised.value)
    for part in (weights_file.name, "1 MB", str(tmp_path / "option"), str(tmp_path / "torch"), weights_file.url):
        assert part in message
    assert "--download-weights" in message


def test_weights_of_another_hash_are_refused(weights_file, tmp_path):
    (tmp_path / weights_file.name).write_bytes(b"trunc")
    with pytest.raises(MetricWeightsMissingError, match=f"expected {weights_file.sha256}"):
        find(weights_file, tmp_path)


def test_weights_are_downloaded_when_allowed_and_checked(weights_file, tmp_path):
    import http.server
    import threading

    (tmp_path / weights_file.name).write_bytes(b"trunk")
    (tmp_path / weights_file.name.replace("trunk", "other")).write_bytes(b"trunc")

    class Handler(http.server.SimpleHTTPRequestHandler):
        def __init__(self, *args):
            super().__init__(*args, directory=str(tmp_path))

        def log_message(self, *_):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        address = f"http://127.0.0.1:{server.server_port}"
        path, _ = find(weights_file._replace(url=f"{address}/{weights_file.name}"), download=True)
        assert path == tmp_path / "torch" / "hub" / "checkpoints" / weights_file.name
        assert path.read_bytes() == b"trunk"
        other = weights_file.name.replace("trunk", "other")
        wrong = weights_file._replace(name=other, url=f"{address}/{other}")
        with pytest.raises(MetricWeightsMissingError, match="could not be downloaded"):
            find(wrong, download=True)
        server.shutdown()
    with pytest.raises(MetricWeightsMissingError, match="could not be downloaded"):
        find(weights_file._replace(name="gone.pth", url="http://127.0.0.1:9/gone.pth"), download=True)


def test_published_files_name_their_hash():
    assert files.ALEXNET.sha256 == "7be5be79"
    assert files.INCEPTION.sha256 == "6726825d"
