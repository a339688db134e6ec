"""Files in and out: what folders hold, typed errors for reading, and writing that is all or nothing.

Nothing else in the package makes data reach the disk (fsync).
"""

import hashlib
import os
import shutil
from collections import Counter
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

from titokc.errors import InputError, OutputError

# What a killed process may leave behind: files of `write_atomic`, folders of `staged`.
LITTER = ".titokc.*.part"


@dataclass
class Tree:
    """What a folder and all its subfolders hold. files: those that were asked for, sorted. others: how many further
    ones there are, by suffix. unreadable: folders, and why they cannot be read."""

    files: list[Path] = field(default_factory=list)
    others: Counter[str] = field(default_factory=Counter)
    unreadable: dict[Path, str] = field(default_factory=dict)

    @property
    def left_out(self) -> str:
        """Such as "3 other files (.txt, no suffix)", or ""."""
        kinds = ", ".join(suffix or "no suffix" for suffix, _ in self.others.most_common(5))
        return f"{self.others.total()} other file{'s' * (self.others.total() > 1)} ({kinds})" if kinds else ""


def search(folder: Path, suffixes: Collection[str], skip: Callable[[Path], bool] = lambda _: False) -> Tree:
    """Looks for files that end in one of `suffixes` (in lower case), but not in folders that `skip` says.

    Hidden files and folders are left out; links are followed, and each folder is entered once, so that they cannot lead
    in circles.
    """
    tree = Tree()
    real, links, entered = [folder], list[Path](), set[tuple[int, int]]()
    while real or links:  # a folder's own place comes before links to it
        here = real.pop() if real else links.pop(0)
        try:
            status = here.stat()
            if (status.st_dev, status.st_ino) in entered:
                continue
            entered.add((status.st_dev, status.st_ino))
            entries = sorted(os.scandir(here), key=lambda entry: entry.name)
        except OSError as error:
            tree.unreadable[here] = reason(error)
            continue
        for entry in entries:
            path = here / entry.name
            if entry.name.startswith("."):
                continue
            if os.path.isdir(path):  # noqa: PTH112 - Path's own raises for long names
                if not skip(path):
                    (links if entry.is_symlink() else real).append(path)
            elif (suffix := path.suffix.lower()) not in suffixes:
                tree.others[suffix] += 1
            elif is_file(path):
                tree.files.append(path)
            else:
                tree.others["no regular file"] += 1
    tree.files.sort()
    return tree


def is_file(path: str | Path) -> bool:
    """A regular file, or a link to nothing, which is to be named; not what might block the reader, as pipes do."""
    return os.path.isfile(path) or not os.path.exists(path)  # noqa: PTH110, PTH113 - Path's own raise for long names


def read_bytes(path: str | os.PathLike[str], limit: int) -> bytes:
    """The file's bytes; of a longer file only the first `limit` + 1, which is enough to refuse it."""
    try:
        with Path(path).open("rb") as stream:
            return stream.read(limit + 1)
    except (OSError, ValueError) as error:  # ValueError: a name with a null character
        raise InputError(f"cannot be read: {reason(error)}") from error


def sha256(path: Path) -> str:
    """A file's SHA-256 in hex. Raises OSError."""
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        while block := stream.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def write_atomic(path: str | os.PathLike[str], data: bytes, *, overwrite: bool = True) -> None:
    """Writes `path` so that it holds either all of `data` or what it held before, whatever happens in between.

    The bytes go to a new file in the same folder, reach the disk, and then take the name. Missing folders are made.
    overwrite: without it a file that is there, also one that has come there meanwhile, is an OutputError and stays.
    Raises OutputError; after any exception (KeyboardInterrupt too) the new file is gone. Links are followed, and a pipe
    or a device is written to as it is.
    """
    path = Path(path)
    try:
        if path.exists() and not path.is_file() and not path.is_dir():
            path.write_bytes(data)
            return
        path = Path(os.path.realpath(path))
        path.parent.mkdir(parents=True, exist_ok=True)
        # Named before it is there, so that no Ctrl-C finds a file whose name is not known yet.
        temporary = path.with_name(_litter())
        mode = _mode_of(path)
        try:
            with open(temporary, "xb", opener=lambda name, flags: os.open(name, flags, mode)) as stream:
                stream.write(data)
                stream.flush()
                os.fsync(stream.fileno())
            if path.exists():  # the new file's own came through the mask
                temporary.chmod(mode)
            _take_name(temporary, path, overwrite)
        except BaseException:
            with suppress(OSError):
                temporary.unlink()
            raise
    except OSError as error:
        raise OutputError(f"{path} cannot be written: {reason(error)}") from error


@contextmanager
def staged(folder: str | os.PathLike[str]) -> Iterator[Path]:
    """A new, empty folder to write files into; when the `with` block ends they take their names in `folder`.

    A folder that is not there yet appears whole or not at all. In one that is there (links are followed) the files of
    these names are replaced and everything else stays; should one of them fail, those before it are put back. Only a
    process that is killed between two of these renames leaves new files beside old ones. All data reaches the disk
    first, and files get the permissions of those that they replace, or those of any new file.
    Raises OutputError; after any exception nothing has changed and the new folder is gone.
    """
    folder = Path(os.path.realpath(folder))
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        new = not folder.exists()
        part = (folder.parent if new else folder) / _litter()
        try:
            part.mkdir()
            yield part
            mode = part.stat().st_mode & 0o666
            for path in part.iterdir():
                _sync(path)
                path.chmod(_mode_of(folder / path.name, mode))
            _sync(part)
            if new:
                part.rename(folder)
                _sync(folder.parent)
            else:
                _move_into(part, folder)
                _sync(folder)
        finally:
            shutil.rmtree(part, ignore_errors=True)
    except OSError as error:
        raise OutputError(f"{folder} cannot be written: {reason(error)}") from error


def expanded(path: str) -> Path:
    """With the user's home for "~", and with "/" for that of a user who has none: no HOME, no entry in passwd."""
    path = os.path.expanduser(path)  # noqa: PTH111 - Path's own raises where there is no home
    return Path(f"/{path[1:]}" if path.startswith("~") else path)


def reason(error: OSError | ValueError) -> str:
    """What the system said, without the path that the caller names anyway."""
    said = error.strerror if isinstance(error, OSError) else None
    return said.lower() if said else str(error)


def _litter() -> str:
    return LITTER.replace("*", os.urandom(4).hex())


def _mode_of(path: Path, new: int = 0o666) -> int:
    """The permissions of the file that is replaced, else those of a `new` one."""
    try:
        return path.stat().st_mode & 0o777
    except FileNotFoundError:
        return new


def _take_name(temporary: Path, path: Path, overwrite: bool) -> None:
    if overwrite:
        temporary.replace(path)
        return
    try:
        path.hardlink_to(temporary)  # alone of all ways refuses a name that is taken on every system
    except FileExistsError:
        raise OutputError(f"{path} exists") from None
    except OSError:  # a file system without links
        if path.exists():
            raise OutputError(f"{path} exists") from None
        temporary.replace(path)
    else:
        temporary.unlink()


def _move_into(part: Path, folder: Path) -> None:
    """Moves all files of `part` into `folder`; after an error those that were there are back."""
    old = part / "old"
    old.mkdir()
    new = sorted(path for path in part.iterdir() if path != old)
    for path in new:
        with suppress(FileNotFoundError):
            _copy(folder / path.name, old / path.name)
    try:
        for path in new:
            path.replace(folder / path.name)
    except BaseException:
        for path in new:
            with suppress(OSError):
                if (old / path.name).exists():
                    (old / path.name).replace(folder / path.name)
                elif not path.exists():
                    (folder / path.name).unlink()
        raise


def _copy(path: Path, copy: Path) -> None:
    try:
        copy.hardlink_to(path)
    except FileNotFoundError:
        raise
    except OSError:
        shutil.copy2(path, copy)


def _sync(path: Path) -> None:
    """To the disk; a folder's names too, where the system can open folders (Windows cannot)."""
    folder = path.is_dir()
    try:
        # Windows syncs no handle that cannot write.
        handle = os.open(path, os.O_RDONLY if folder else os.O_RDWR)
    except PermissionError:
        if folder:
            return
        raise
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
