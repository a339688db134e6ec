"""What the directories of a TIFF file say: which page is the picture, and what there is that Pillow does not read."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import BinaryIO

MAGICS = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
_MOST_PAGES = 10_000
_MOST_ENTRIES = 4096
_TYPES = {1: "B", 3: "H", 4: "I", 13: "I", 16: "Q", 18: "Q"}
_SUBFILE, _OLD_SUBFILE, _WIDTH, _HEIGHT, _BITS, _PHOTOMETRIC = 254, 255, 256, 257, 258, 262
_SAMPLES, _SUB_IFDS, _FORMAT, _DNG = 277, 330, 339, 50_706
_RAW_PHOTOMETRIC = {32_803, 34_892}
_SAMPLE_KINDS = {2: "signed integers", 3: "floats", 5: "complex integers", 6: "complex floats"}


@dataclass(frozen=True)
class Page:
    """The tags of a directory that hold whole numbers, as tuples."""

    tags: dict[int, tuple[int, ...]]

    def one(self, tag: int, default: int = 0) -> int:
        return (self.tags.get(tag) or (default,))[0]

    @property
    def size(self) -> tuple[int, int]:
        return self.one(_WIDTH), self.one(_HEIGHT)

    @property
    def pixels(self) -> int:
        return self.size[0] * self.size[1]

    @property
    def is_reduced(self) -> bool:
        return bool(self.one(_SUBFILE) & 1) or self.one(_OLD_SUBFILE) == 2

    @property
    def is_mask(self) -> bool:
        return bool(self.one(_SUBFILE) & 4)

    @property
    def white(self) -> int:
        """The largest sample."""
        return (1 << self.one(_BITS, 1)) - 1

    @property
    def is_negative(self) -> bool:
        return self.one(_PHOTOMETRIC, 1) == 0

    def samples(self) -> str:
        """Such as "64-bit floats", "32-bit floats in 3 channels"."""
        kind = _SAMPLE_KINDS.get(self.one(_FORMAT, 1), "integers")
        channels = self.one(_SAMPLES, 1)
        return f"{self.one(_BITS, 1)}-bit {kind}" + (f" in {channels} channels" if channels > 1 else "")


def pages(stream: BinaryIO) -> list[Page]:
    """Of a TIFF or BigTIFF file, as far as its directories can be read; none of any other file."""
    found: list[Page] = []
    try:
        stream.seek(0)
        head = stream.read(16)
        if head[:4] not in MAGICS:
            return []
        order = "<" if head[:1] == b"I" else ">"
        big = b"+" in head[:4]
        number, entry, word = ("Q", 20, 8) if big else ("H", 12, 4)
        pointer = order + ("Q" if big else "I")
        offset = struct.unpack_from(pointer, head, 8 if big else 4)[0]
        seen: set[int] = set()
        while offset and offset not in seen and len(found) < _MOST_PAGES:
            seen.add(offset)
            stream.seek(offset)
            (count,) = struct.unpack(order + number, stream.read(struct.calcsize(order + number)))
            if count > _MOST_ENTRIES:
                break
            table = stream.read(count * entry + word)
            found.append(Page(dict(_entries(stream, table, count, order, big))))
            offset = struct.unpack_from(pointer, table, count * entry)[0]
    except (OSError, struct.error, OverflowError, ValueError):
        pass
    return found


def _entries(
    stream: BinaryIO, table: bytes, count: int, order: str, big: bool
) -> Iterator[tuple[int, tuple[int, ...]]]:
    entry, word = (20, 8) if big else (12, 4)
    for at in range(count):
        tag, kind = struct.unpack_from(order + "HH", table, at * entry)
        (length,) = struct.unpack_from(order + ("Q" if big else "I"), table, at * entry + 4)
        if kind not in _TYPES or not 0 < length <= 16:
            continue
        layout = f"{order}{length}{_TYPES[kind]}"
        value = table[at * entry + entry - word : (at + 1) * entry]
        if struct.calcsize(layout) > word:
            stream.seek(struct.unpack(order + ("Q" if big else "I"), value)[0])
            value = stream.read(struct.calcsize(layout))
        yield tag, struct.unpack_from(layout, value)


def picture_of(found: list[Page]) -> int:
    """The number of the first page that is no reduced copy of another: not called so, nor much smaller."""
    largest = max((page.pixels for page in found if not page.is_mask), default=0)
    for number, page in enumerate(found):
        if not page.is_mask and not page.is_reduced and page.pixels * 4 > largest:
            return number
    return 0


def is_raw(found: list[Page], start: bytes) -> bool:
    """Whether this is a camera's file, whose pages are at most previews of what is in directories below them."""
    if not found:
        return False
    page = found[picture_of(found)]
    return (
        any(_DNG in one.tags or one.one(_PHOTOMETRIC) in _RAW_PHOTOMETRIC for one in found)
        or start[8:10] == b"CR"
        or (page.is_reduced and _SUB_IFDS in page.tags)
    )
