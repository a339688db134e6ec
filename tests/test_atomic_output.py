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
from titokc.files import staged, write_atomic


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


def test_without_overwriting_a_file_that_came_meanwhile_stays(tmp_path, monkeypatch):
    path = tmp_path / "x.tok"
    write_atomic(path, b"one", overwrite=False)
    with pytest.raises(OutputError, match=r"x\.tok exists"):
        write_atomic(path, b"two", overwrite=False)
    monkeypatch.setattr("pathlib.Path.hardlink_to", failing(OSError(errno.EPERM, "Operation not permitted")))
    with pytest.raises(OutputError, match=r"x\.tok exists"):
        write_atomic(path, b"two", overwrite=False)
    write_atomic(tmp_path / "y.tok", b"two", overwrite=False)
    assert (path.read_bytes(), names(tmp_path)) == (b"one", ["x.tok", "y.tok"])


@pytest.mark.skipif(not os.path.exists("/dev/stdout"), reason="device files")  # noqa: PTH110
def test_standard_output_by_name_is_written_to():
    code = "import sys, titokc.files; titokc.files.write_atomic('/dev/stdout', b'new')"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True)
    assert result.stdout == b"new"


def fill(part, number):
    (part / "config.json").write_bytes(b"config %d" % number)
    (part / "model.safetensors").write_bytes(b"model %d" % number)


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


FIRST = {"config.json": b"config 1", "model.safetensors": b"model 1"}
SECOND = {"config.json": b"config 2", "model.safetensors": b"model 2"}


class TestFolders:
    def test_the_named_files_are_replaced_and_the_rest_stays(self, tmp_path):
        folder = tmp_path / "a" / "m"
        with staged(folder) as part:
            fill(part, 1)
        assert contents(folder) == FIRST
        (folder / "README.md").write_bytes(b"mine")
        (folder / ".git").mkdir()
        (tmp_path / "latest").symlink_to(folder)
        (folder / "config.json").chmod(0o640)
        with staged(tmp_path / "latest") as part:
            fill(part, 2)
        assert contents(folder) == SECOND | {"README.md": b"mine"}
        assert (tmp_path / "latest").is_symlink()
        assert names(folder) == [".git", "README.md", "config.json", "model.safetensors"]
        assert [(folder / name).stat().st_mode & 0o777 for name in SECOND] == [0o640, 0o666 & ~current_mask()]

    def test_new_files_have_the_usual_permissions(self, tmp_path):
        """Also where a library made them with its own."""
        with staged(tmp_path / "m") as part:
            fill(part, 1)
            (part / "config.json").chmod(0o600)
        assert (tmp_path / "m" / "config.json").stat().st_mode & 0o777 == 0o666 & ~current_mask()

    def test_the_working_directory(self, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        with staged(".") as part:
            fill(part, 1)
        assert contents(tmp_path) == FIRST

    @pytest.mark.parametrize("error", ERRORS, ids=lambda error: type(error).__name__)
    @pytest.mark.parametrize("old", [False, True])
    @pytest.mark.parametrize("call", ["os.fsync", "os.rename", "os.replace", "os.link", "os.chmod", "the block"])
    def test_an_error_changes_nothing(self, tmp_path, monkeypatch, error, old, call):
        folder = tmp_path / "m"
        if old:
            with staged(folder) as part:
                fill(part, 1)
        real, calls = getattr(os, call.removeprefix("os."), None), []

        def second_fails(*args, **kwargs):
            calls.append(args)
            if len(calls) == (1 if call == "os.rename" else 2):
                raise error
            return real(*args, **kwargs)

        if call != "the block":
            monkeypatch.setattr(call, second_fails)
        expected = OutputError if isinstance(error, OSError) else type(error)
        try:
            with staged(folder) as part:
                fill(part, 2)
                if call == "the block":
                    raise error
        except expected as caught:
            assert contents(folder) if old else not folder.exists()
            if isinstance(error, OSError):
                assert str(caught) == f"{folder} cannot be written: {error.strerror.lower()}"  # noqa: PT017
            assert names(tmp_path) == (["m"] if old else [])
            assert not old or (contents(folder), names(folder)) == (FIRST, sorted(FIRST))
        else:  # a way that needed this call less often
            assert contents(folder) == SECOND
            assert call in {"os.rename", "os.replace", "os.link"}

    def test_where_folders_and_read_only_files_cannot_be_synced(self, tmp_path, monkeypatch):
        """As on Windows: no handle of a folder, and fsync wants one that can write."""
        real_open, real_sync, flags = os.open, os.fsync, {}

        def windows_open(path, how, *args, **kwargs):
            if os.path.isdir(path):  # noqa: PTH112
                raise PermissionError(errno.EACCES, "Permission denied")
            handle = real_open(path, how, *args, **kwargs)
            flags[handle] = how
            return handle

        def windows_sync(handle):
            if not flags.get(handle, os.O_RDONLY) & (os.O_RDWR | os.O_WRONLY):
                raise OSError(errno.EBADF, "Bad file descriptor")
            real_sync(handle)

        monkeypatch.setattr("os.open", windows_open)
        monkeypatch.setattr("os.fsync", windows_sync)
        for number in (1, 2):
            with staged(tmp_path / "m") as part:
                fill(part, number)
        write_atomic(tmp_path / "x.tok", b"new")
        monkeypatch.undo()
        assert contents(tmp_path / "m") == SECOND


def current_mask():
    mask = os.umask(0)
    os.umask(mask)
    return mask


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
