"""The pictures of a suite: those of a folder or of a tar archive, cropped as the protocol says."""

from __future__ import annotations

from hashlib import sha256
from pathlib import Path

from PIL import Image

from titokc import imaging
from titokc.errors import InputError
from titokc.files import reason, search
from titokc.imaging.shards import Source, index

CENTER_SQUARE = "center-square-256"
CROPS = (CENTER_SQUARE, "none")
SIDE = 256
OF_REPORTS = ("pictures", "plots")  # folders of pictures in the folder of a report


def find(source: Path, limit: int | None = None, report: Path | None = None) -> list[Source]:
    """The pictures in a folder and its subfolders, in a .tar archive, or one file; in the order of their names.

    What the benchmark itself has written is left out: into `report`, or into any folder with a rows.jsonl. Raises
    InputError if there is none, or a folder that cannot be read.
    """

    def is_written(folder: Path) -> bool:
        ours = report is not None and folder.parent.resolve() == report.resolve()
        return folder.name in OF_REPORTS and (ours or (folder.parent / "rows.jsonl").exists())

    if source.is_dir():
        tree = search(source, imaging.READABLE_SUFFIXES, is_written)
        for folder, why in tree.unreadable.items():
            raise InputError(f"{folder} cannot be read: {why}")
        found = [Source(path, path.relative_to(source).as_posix()) for path in tree.files]
    elif not source.is_file():
        raise InputError(f"{source} is not there")
    elif source.suffix.lower() == ".tar":
        found = _in_tar(source)
    else:
        found = [Source(source, source.name)]
    if not found:
        raise InputError(f"{source}: no pictures in it")
    return sorted((each._replace(name=_text(each.name)) for each in found), key=lambda each: each.name)[:limit]


def read(source: Source) -> Image.Image:
    """Upright RGB. Raises InputError."""
    try:
        data = source.read()
    except OSError as error:
        raise InputError(f"cannot be read: {reason(error)}") from error
    return imaging.read(data)


def load(source: Source, crop: str) -> Image.Image:
    """An upright RGB picture, transparent ones on white; "center-square-256": its centre square, by Lanczos to 256x256.

    Smaller pictures are enlarged to that.
    """
    return cropped(read(source), crop)


def cropped(picture: Image.Image, crop: str) -> Image.Image:
    return picture if crop == "none" else imaging.centre_square(picture, SIDE)


def digest(picture: Image.Image) -> str:
    """What identifies a picture's pixels: 16 hex digits."""
    return sha256(f"{picture.size} ".encode() + picture.tobytes()).hexdigest()[:16]


def _in_tar(path: Path) -> list[Source]:
    pictures, more, problem = index(path)
    if problem:
        raise InputError(f"{path} {problem}")
    every = [*pictures.values(), *(source for _, source in more)]
    return list({source.name: source for source in every}.values())  # the last of a name is what the archive holds


def _text(name: str) -> str:
    """A file's name as text that can be written: bytes that are no UTF-8 become \\xNN."""
    return name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
