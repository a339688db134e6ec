"""Whole files in, whole files out: typed errors for reading, and writing that is all or nothing."""

import os
import secrets
from contextlib import suppress
from pathlib import Path

from titokc.errors import InputError, OutputError


def read_bytes(path: str | os.PathLike[str], limit: int) -> bytes:
    """The file's bytes; of a longer file only the first `limit` + 1, which is enough to refuse it."""
    try:
        with Path(path).open("rb") as stream:
            return stream.read(limit + 1)
    except OSError as error:
        raise InputError(f"cannot be read: {reason(error)}") from error


def write_atomic(path: str | os.PathLike[str], data: bytes) -> None:
    """Writes `path` so that it holds either all of `data` or what it held before, whatever happens in between.

    The bytes go to a new file in the same folder, reach the disk, and then take the name. Missing folders are made.
    Raises OutputError; after any exception (KeyboardInterrupt too) the new file is gone. Links are followed, and a pipe
    or a device is written to as it is.
    """
    path = Path(os.path.realpath(path))
    try:
        if path.exists() and not path.is_file() and not path.is_dir():
            path.write_bytes(data)
            return
        path.parent.mkdir(parents=True, exist_ok=True)
        # Named before it is there, so that no Ctrl-C finds a file whose name is not known yet.
        temporary = path.with_name(f".titokc.{secrets.token_hex(4)}.part")
        mode = _mode_of(path)
        try:
            with open(temporary, "xb", opener=lambda name, flags: os.open(name, flags, mode)) as stream:
                stream.write(data)
                stream.flush()
                os.fsync(stream.fileno())
            if path.exists():  # the new file's own came through the mask
                temporary.chmod(mode)
            temporary.replace(path)
        except BaseException:
            with suppress(OSError):
                temporary.unlink()
            raise
    except OSError as error:
        raise OutputError(f"{path} cannot be written: {reason(error)}") from error


def reason(error: OSError) -> str:
    """What the system said, without the path that the caller names anyway."""
    return error.strerror.lower() if error.strerror else str(error)


def _mode_of(path: Path) -> int:
    """The permissions of the file that is replaced, else those that a new file gets before the mask."""
    try:
        return path.stat().st_mode & 0o777
    except FileNotFoundError:
        return 0o666
