"""A PNG file -> the same without what its pixels do not need, for Pillow, and what it says of its colours.

Pillow refuses files for damage or size of chunks that browsers pass over (texts, resolution); it does not convert gAMA,
cHRM and cICP.
"""

from __future__ import annotations

import struct
import zlib
from dataclasses import dataclass, field
from typing import BinaryIO

from titokc.errors import InputError
from titokc.imaging import colour
from titokc.limits import Limits

MAGIC = b"\x89PNG\r\n\x1a\n"
_KEPT = {b"IHDR", b"PLTE", b"tRNS", b"IDAT", b"eXIf", b"IEND"}
_SAID = {b"iCCP", b"sRGB", b"gAMA", b"cHRM", b"cICP", b"acTL", b"fcTL"}
_LARGEST_PROFILE = 1 << 20


@dataclass
class Png:
    """data: the file without the rest. profile: of ICC. frames: of an animation, 1 without."""

    data: bytes
    profile: bytes | None = None
    colours: colour.Colours | None = None
    frames: int = 1
    notes: list[str] = field(default_factory=list)


def read(stream: BinaryIO, limits: Limits) -> Png:
    """Raises InputError where a chunk that the pixels need is damaged, and what `limits` raise before these are read.

    What is missing at the end of a file is left for Pillow to find.
    """
    stream.seek(len(MAGIC))
    pieces, notes = [MAGIC], []
    said: dict[bytes, bytes] = {}
    frames, deep_colours = None, False
    while len(head := stream.read(8)) == 8:
        length, kind = struct.unpack(">I4s", head)
        if kind not in _KEPT and kind not in _SAID and kind[:1].islower():
            stream.seek(length + 4, 1)
            continue
        body = stream.read(length + 4)
        if len(body) == length + 4 and kind != b"IDAT":
            body, checksum = body[:-4], body[-4:]
            if struct.pack(">I", zlib.crc32(kind + body)) != checksum:
                if kind[:1].isupper():
                    raise InputError(f"damaged PNG: wrong checksum in {ascii(kind)[2:-1]}")
                notes.append(f"{kind.decode()} has a wrong checksum: ignored")
                continue
            if kind in _SAID:
                said.setdefault(kind, body)
                continue
            body += checksum
            if kind == b"IHDR" and length == 13:
                limits.check(struct.unpack(">II", body[:8]))
                deep_colours = body[8:10] == b"\x10\x02"
            if kind == b"tRNS" and length == 6 and deep_colours:
                # Pillow takes the upper 8 bits of each sample, but all 16 of the transparent colour.
                body = bytes([0, body[0], 0, body[2], 0, body[4]])
                body += struct.pack(">I", zlib.crc32(kind + body))
        pieces += [head, body]
        if kind == b"IEND":
            break
        if kind == b"IDAT" and frames is None:  # which is the first frame, or for those who show no animations
            control = said.get(b"acTL", b"")
            named = struct.unpack(">I", control[:4])[0] if len(control) == 8 else 0
            frames = named + (b"fcTL" not in said)
    png = Png(b"".join(pieces), frames=frames or 1, notes=notes)
    _colours(png, said)
    return png


def _colours(png: Png, said: dict[bytes, bytes]) -> None:
    """The first of cICP, iCCP, sRGB, gAMA with cHRM counts."""
    if len(code := said.get(b"cICP", b"")) == 4:
        primaries, transfer, matrix, full = code
        png.colours = colour.from_code_points(primaries, transfer) if (matrix, full) == (0, 1) else None
        if png.colours is None:
            png.notes.append(f"colours as cICP {primaries}/{transfer}/{matrix}/{full} are not known: taken as sRGB")
        return
    if profile := said.get(b"iCCP"):
        inflate = zlib.decompressobj()
        try:
            png.profile = inflate.decompress(profile[profile.index(b"\0") + 2 :], _LARGEST_PROFILE)
        except (ValueError, zlib.error):
            png.notes.append("a damaged colour profile: ignored")
        if png.profile and not inflate.eof:
            png.profile = None
            png.notes.append("a colour profile of more than 1 MB: ignored")
    elif b"sRGB" not in said and (b"gAMA" in said or b"cHRM" in said):
        gamma, points = said.get(b"gAMA", b""), said.get(b"cHRM", b"")
        png.colours = colour.from_gamma(
            struct.unpack(">I", gamma)[0] / 100_000 if len(gamma) == 4 else None,
            tuple(number / 100_000 for number in struct.unpack(">8I", points)) if len(points) == 32 else None,
        )
