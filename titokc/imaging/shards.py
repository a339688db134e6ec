"""The pictures of an uncompressed tar shard, as WebDataset writes them: where each lies. Nothing is unpacked."""

import tarfile
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from titokc.files import reason
from titokc.imaging import READABLE_SUFFIXES


@dataclass(frozen=True)
class Source:
    """Where one encoded picture lies: a whole file (offset 0), or `size` bytes of a tar shard."""

    path: Path
    name: str
    offset: int
    size: int

    def read(self) -> bytes:
        """Raises OSError."""
        with self.path.open("rb") as file:
            file.seek(self.offset)
            return file.read(self.size)


class Index(NamedTuple):
    """pictures: the first of each sample by the sample's key, its name up to the first dot (WebDataset's rule), in the
    order of the shard. more: (key, member's name) of the others. problem: why not all of the shard can be read."""

    pictures: dict[str, Source]
    more: list[tuple[str, str]]
    problem: str | None


def index(path: Path) -> Index:
    """What the shard holds, as far as it can be read; a damaged one, and one that is none, has a `problem`."""
    pictures: dict[str, Source] = {}
    more: list[tuple[str, str]] = []
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
                if key in pictures:
                    more.append((key, name.as_posix()))
                else:
                    pictures[key] = Source(path, f"{path.name}/{name}", member.offset_data, member.size)
            if tar.offset >= length:  # a whole one ends in zeros
                raise tarfile.ReadError("no end of archive")
    except (tarfile.TarError, OSError) as error:
        detail = reason(error) if isinstance(error, OSError) else str(error)
        whole = (
            f"is cut short: its {len(pictures)} whole images are used" if pictures else "is no uncompressed tar shard"
        )
        return Index(pictures, more, f"{whole} ({detail})")
    return Index(pictures, more, None)
