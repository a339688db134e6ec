"""The pictures of an uncompressed tar shard, as WebDataset writes them: where each lies. Nothing is unpacked."""

import tarfile
from pathlib import Path
from typing import NamedTuple

from titokc.files import reason
from titokc.imaging import READABLE_SUFFIXES


class Source(NamedTuple):
    """Where one encoded picture lies: a whole file, or `size` bytes of a tar shard. name: its path inside the folder or
    the shard."""

    path: Path
    name: str
    offset: int = 0
    size: int = -1

    def read(self) -> bytes:
        """Raises OSError."""
        with self.path.open("rb") as file:
            file.seek(self.offset)
            return file.read(self.size)


class Index(NamedTuple):
    """pictures: the first of each sample by the sample's key, its name up to the first dot (WebDataset's rule), in the
    order of the shard. more: (key, picture) of the others. problem: why not all of the shard can be read."""

    pictures: dict[str, Source]
    more: list[tuple[str, Source]]
    problem: str | None


def index(path: Path) -> Index:
    """What the shard holds, as far as it can be read; a damaged one, and one that is none, has a `problem`."""
    pictures: dict[str, Source] = {}
    more: list[tuple[str, Source]] = []
    problem = None
    try:
        length = path.stat().st_size
        with tarfile.open(path, "r:") as tar:
            for member in tar:
                name = Path(member.name)
                if not member.isfile() or name.suffix.lower() not in READABLE_SUFFIXES or name.name.startswith("."):
                    continue
                if member.offset_data + member.size > length:
                    raise tarfile.ReadError("unexpected end of data")
                key = (name.parent / name.name.partition(".")[0]).as_posix()
                source = Source(path, name.as_posix(), member.offset_data, member.size)
                if pictures.setdefault(key, source) is not source:
                    more.append((key, source))
            if tar.offset >= length:  # a whole one ends in zeros
                raise tarfile.ReadError("no end of archive")
    except (tarfile.TarError, OSError) as error:
        detail = reason(error) if isinstance(error, OSError) else str(error)
        problem = f"is {'cut short' if pictures else 'no uncompressed tar shard'} ({detail})"
    return Index(pictures, more, problem)
