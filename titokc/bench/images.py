"""The pictures of a suite: those of a folder, cropped as the protocol says."""

from hashlib import sha256
from pathlib import Path

from PIL import Image

from titokc.errors import InputError
from titokc.imaging import READABLE_SUFFIXES, centre_square, read

CENTER_SQUARE = "center-square-256"
CROPS = (CENTER_SQUARE, "none")
SIDE = 256


def find(source: Path, limit: int | None = None) -> list[tuple[str, Path]]:
    """(name, path) of the pictures in a folder and its subfolders, or of one file, in the order of their names.

    A name is the path inside the folder, with slashes. Raises InputError if there is none.
    """
    if source.is_file():
        return [(source.name, source)]
    if not source.is_dir():
        raise InputError(f"{source} is not there")
    paths = [path for path in source.rglob("*") if path.suffix.lower() in READABLE_SUFFIXES and path.is_file()]
    named = sorted((path.relative_to(source).as_posix(), path) for path in paths)
    if not named:
        raise InputError(f"{source}: no pictures in it")
    return named[:limit]


def load(path: Path, crop: str) -> Image.Image:
    """A file -> an upright RGB picture; "center-square-256": its centre square, by Lanczos to 256x256."""
    picture = read(path)
    return picture if crop == "none" else centre_square(picture, SIDE)


def digest(picture: Image.Image) -> str:
    """What identifies a picture's pixels: 16 hex digits."""
    return sha256(f"{picture.size} ".encode() + picture.tobytes()).hexdigest()[:16]
