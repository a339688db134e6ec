"""The pictures of a suite: those of a folder or of a tar archive, cropped as the protocol says."""

from __future__ import annotations

import os
import tarfile
from collections.abc import Iterator
from hashlib import sha256
from pathlib import Path
from typing import NamedTuple

from PIL import Image

from titokc import imaging
from titokc.errors import InputError
from titokc.files import reason

CENTER_SQUARE = "center-square-256"
CROPS = (CENTER_SQUARE, "none")
SIDE = 256
OF_REPORTS = ("pictures", "plots")  # folders of pictures in the folder of a report


class Source(NamedTuple):
    """A picture's name (its path inside the folder or archive, with slashes), and where its bytes are in which file."""

    name: str
    path: Path
    offset: int = 0
    size: int | None = None

    def read(self) -> Image.Image:
        """Upright RGB. Raises InputError."""
        if self.size is None:
            return imaging.read(self.path)
        try:
            with self.path.open("rb") as stream:
                stream.seek(self.offset)
                return imaging.read(stream.read(self.size))
        except OSError as error:
            raise InputError(f"cannot be read: {reason(error)}") from error


def find(source: Path, limit: int | None = None, report: Path | None = None) -> list[Source]:
    """The pictures in a folder and its subfolders, in a .tar archive, or one file; in the order of their names.

    Hidden files and folders are left out, and what the benchmark itself has written: into `report`, or into any folder
    with a rows.jsonl. Raises InputError if there is none.
    """
    if source.is_file():
        found = list(_in_tar(source)) if source.suffix.lower() == ".tar" else [Source(_text(source.name), source)]
    elif source.is_dir():
        found = list(_in_folder(source, report))
    else:
        raise InputError(f"{source} is not there")
    if not found:
        raise InputError(f"{source}: no pictures in it")
    return sorted(found)[:limit]


def load(source: Source, crop: str) -> Image.Image:
    """An upright RGB picture, transparent ones on white; "center-square-256": its centre square, by Lanczos to 256x256.

    Smaller pictures are enlarged to that.
    """
    return cropped(source.read(), crop)


def cropped(picture: Image.Image, crop: str) -> Image.Image:
    return picture if crop == "none" else imaging.centre_square(picture, SIDE)


def digest(picture: Image.Image) -> str:
    """What identifies a picture's pixels: 16 hex digits."""
    return sha256(f"{picture.size} ".encode() + picture.tobytes()).hexdigest()[:16]


def _in_folder(root: Path, report: Path | None) -> Iterator[Source]:
    for folder, subfolders, names in os.walk(root):
        here = Path(folder)
        ours = (here / "rows.jsonl").exists() or (report is not None and here.resolve() == report.resolve())
        subfolders[:] = [name for name in subfolders if not name.startswith(".") and not (ours and name in OF_REPORTS)]
        for name in names:
            path = here / name
            if _is_picture(name) and path.is_file():
                yield Source(_text(path.relative_to(root).as_posix()), path)


def _in_tar(path: Path) -> Iterator[Source]:
    try:
        with tarfile.open(path, "r:") as archive:
            members = {member.name: member for member in archive if member.isreg()}
    except (OSError, tarfile.TarError) as error:
        raise InputError(f"{path}: not an uncompressed tar archive ({error})") from error
    for name, member in members.items():
        *folders, last = Path(name).parts or [""]
        if _is_picture(last) and not any(folder.startswith(".") for folder in folders):
            yield Source(_text(Path(name).as_posix()), path, member.offset_data, member.size)


def _is_picture(name: str) -> bool:
    return not name.startswith(".") and Path(name).suffix.lower() in imaging.READABLE_SUFFIXES


def _text(name: str) -> str:
    """A file's name as text that can be written: bytes that are no UTF-8 become \\xNN."""
    return name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
