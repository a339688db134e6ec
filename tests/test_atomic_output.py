"""A result is there whole or not at all: full disks, failing disks, Ctrl-C and SIGKILL leave the old file."""

import errno
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from click.testing import CliRunner

from titokc.cli import main
from titokc.errors import OutputError
from titokc.files import write_atomic


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def failing(error):
    def fail(*args, **kwargs):
        raise error

    return fail


ERRORS = [
    OSError(errno.ENOSPC, "No space left on device"),
    OSError(errno.EIO, "Input/output error"),
    KeyboardInterrupt(),
    MemoryError(),
]


@pytest.mark.parametrize("error", ERRORS, ids=lambda error: type(error).__name__)
@pytest.mark.parametrize(
    ("call", "old"),
    [
        ("os.fsync", None),
        ("os.fsync", b"old"),
        ("pathlib.Path.replace", None),
        ("pathlib.Path.replace", b"old"),
        ("pathlib.Path.chmod", b"old"),
    ],
)
def test_an_error_leaves_the_old_file_and_no_litter(tmp_path, monkeypatch, error, call, old):
    path = tmp_path / "x.tok"
    if old is not None:
        path.write_bytes(old)
    monkeypatch.setattr(call, failing(error))
    expected = OutputError if isinstance(error, OSError) else type(error)
    with pytest.raises(expected) as caught:
        write_atomic(path, b"new")
    monkeypatch.undo()
    if isinstance(error, OSError):
        assert str(caught.value) == f"{path} cannot be written: {error.strerror.lower()}"
    assert names(tmp_path) == ([] if old is None else ["x.tok"])
    assert old is None or path.read_bytes() == old


def test_a_full_disk():
    """/dev/full takes every open and refuses every write."""
    with pytest.raises(OutputError):
        write_atomic("/dev/full/x.tok", b"new")


def test_success_replaces_makes_folders_and_keeps_permissions(tmp_path):
    path = tmp_path / "a" / "b" / "x.tok"
    write_atomic(path, b"one")
    assert path.read_bytes() == b"one"
    mask = os.umask(0)
    os.umask(mask)
    assert path.stat().st_mode & 0o777 == 0o666 & ~mask
    path.chmod(0o640)
    write_atomic(path, b"two")
    assert (path.read_bytes(), path.stat().st_mode & 0o777) == (b"two", 0o640)
    assert names(path.parent) == ["x.tok"]


@pytest.mark.parametrize("name", ["x" * 250 + ".tok", "\N{CAMERA}" * 62 + ".tok"])
def test_a_long_name(tmp_path, name):
    path = tmp_path / name
    write_atomic(path, b"one")
    assert path.read_bytes() == b"one"


def test_a_link_is_followed(tmp_path):
    (tmp_path / "real.tok").write_bytes(b"old")
    (tmp_path / "x.tok").symlink_to("real.tok")
    write_atomic(tmp_path / "x.tok", b"new")
    assert (tmp_path / "x.tok").is_symlink()
    assert (tmp_path / "real.tok").read_bytes() == b"new"


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="named pipes")
def test_a_pipe_is_written_to(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    reader = os.open(tmp_path / "pipe", os.O_RDONLY | os.O_NONBLOCK)
    write_atomic(tmp_path / "pipe", b"new")
    assert os.read(reader, 10) == b"new"
    os.close(reader)
    assert (tmp_path / "pipe").is_fifo()


def test_a_folder_in_the_way(tmp_path):
    (tmp_path / "x.tok").mkdir()
    with pytest.raises(OutputError):
        write_atomic(tmp_path / "x.tok", b"new")
    assert names(tmp_path) == ["x.tok"]


@pytest.mark.parametrize(("error", "code"), [(ERRORS[0], 1), (ERRORS[1], 1), (KeyboardInterrupt(), 130)])
def test_the_command_line(tmp_path, monkeypatch, photo, tiny, error, code):
    monkeypatch.setattr("titokc.weights.load", lambda name, device: tiny)
    photo().save(tmp_path / "a.png")
    (tmp_path / "a.tok").write_bytes(b"old")
    monkeypatch.setattr("os.fsync", failing(error))
    result = CliRunner().invoke(main, ["encode", str(tmp_path / "a.png"), "--force"])
    monkeypatch.undo()
    assert result.exit_code == code
    assert len(result.stderr.splitlines()) == 1
    assert names(tmp_path) == ["a.png", "a.tok"]
    assert (tmp_path / "a.tok").read_bytes() == b"old"


WRITER = """
import signal, sys, titokc.files
signal.signal(signal.SIGINT, signal.default_int_handler)  # a parent in the background would have it ignored
print("ready", flush=True)
while True:
    for fill in (b"a", b"b"):
        titokc.files.write_atomic(sys.argv[1], fill * 2_000_000)
"""


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="POSIX signals")
@pytest.mark.parametrize("stop", ["SIGKILL", "SIGINT"])
def test_killed_while_writing(tmp_path, stop):
    path = tmp_path / "x.tok"
    path.write_bytes(b"a" * 2_000_000)
    for delay in (0.0, 0.0, 0.0, 0.01, 0.03):
        command = [sys.executable, "-c", WRITER, str(path)]
        root = Path(__file__).parent.parent
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, cwd=root) as child:
            assert child.stdout.readline() == b"ready\n"
            time.sleep(delay)
            child.send_signal(getattr(signal, stop))
            child.wait(10)
        data = path.read_bytes()
        assert data in (b"a" * 2_000_000, b"b" * 2_000_000)
        if stop == "SIGINT":
            assert names(tmp_path) == ["x.tok"]
        else:  # at most a hidden file that no later run takes for a result
            assert all(name == "x.tok" or (name[0] == "." and name.endswith(".part")) for name in names(tmp_path))
