"""AV1 without AVIF's container, whose boxes take 275 bytes: a stream of AV1's low-overhead format alone."""

from __future__ import annotations

import io
import struct
from functools import cache

from PIL import Image

from titokc.bench.contenders.formats import AVIF
from titokc.bench.contenders.interface import Point
from titokc.errors import InputError

# How a temporal unit with a sequence header of less than 128 bytes begins (AV1 specification, 5.3): a delimiter, then
# that header's type; its length follows.
_BEGINNING = b"\x12\x00\x0a"
_CHROMA = {0: "4:2:0", 1: "4:4:4"}  # by profile


class AV1(AVIF):
    """What an AVIF file holds in its boxes, a whole AV1 stream; otherwise as `AVIF`. To be decoded it gets again the
    boxes that libavif makes for a picture of its size."""

    name = "av1"
    suffix = ".obu"

    def save(self, image: Image.Image, point: Point) -> bytes:
        file = super().save(image, point)
        return file[_stream_at(file) :]

    def decode(self, data: bytes) -> Image.Image:
        other = _file(*_shape(data))
        at = _stream_at(other)
        told, true = (struct.pack(">II", at, len(file)) for file in (other[at:], data))
        return super().decode(other[: at - 8].replace(told, true) + struct.pack(">I4s", 8 + len(data), b"mdat") + data)


def _stream_at(file: bytes) -> int:
    """Where the stream begins in an AVIF file: in its last box, mdat."""
    at = 0
    while True:
        size, kind = struct.unpack_from(">I4s", file, at)
        if kind == b"mdat" and at + size == len(file):
            return at + 8
        at += size


def _shape(stream: bytes) -> tuple[int, int, str]:
    """Width, height and chroma of a still picture, as its sequence header says (5.5, reduced_still_picture_header)."""
    bits = "".join(f"{byte:08b}" for byte in stream[4:16])

    def number(at: int, length: int) -> int:
        return int(bits[at : at + length], 2)

    if not stream.startswith(_BEGINNING) or number(3, 2) != 3 or number(0, 3) not in _CHROMA:
        raise InputError("no AV1 stream of a still picture as libavif makes them")
    wide, high = 1 + number(10, 4), 1 + number(14, 4)
    return 1 + number(18, wide), 1 + number(18 + wide, high), _CHROMA[number(0, 3)]


@cache
def _file(width: int, height: int, chroma: str) -> bytes:
    """An AVIF file of this shape."""
    stream = io.BytesIO()
    Image.new("RGB", (width, height)).save(stream, "AVIF", subsampling=chroma, quality=0, max_threads=1)
    return stream.getvalue()
