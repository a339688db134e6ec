"""Standard input and output as ends of a conversion: bounded reading, and results where they are meant to go."""

import re
import sys
from pathlib import Path

from titokc.cli.report import put_bytes
from titokc.errors import InputError, OutputError
from titokc.files import reason, write_atomic
from titokc.limits import Limits

_PREFIX = 64
_MARKER = re.compile(rb"\xff[^\x00\xd0-\xd7\xff]")


def read_stdin(longest: int) -> bytes:
    """At most `longest` bytes. Raises InputError."""
    if sys.stdin is None:
        raise InputError("closed")
    try:
        return sys.stdin.buffer.read(longest)
    except OSError as error:
        raise InputError(f"cannot be read: {reason(error)}") from error


def read_picture(limits: Limits) -> bytes:
    """A picture file on standard input; of what is none, only enough to be refused. Raises InputError."""
    start = read_stdin(_PREFIX)
    if not _is_picture(start):
        return start
    longest = limits.picture_bytes
    data = start + read_stdin(longest)
    if len(data) > longest:
        raise InputError(f"more than {longest:,} bytes, which is longer than a picture of {limits.max_pixels:,} pixels")
    return data


def is_followed(data: bytes) -> bool:
    """Whether a second picture follows the first (PNG, JPEG, WebP or BMP), of which nothing will be seen."""
    end = _end_of_picture(data)
    # Cameras append further views, an index of which is in the first picture.
    views = data.startswith(b"\xff\xd8") and b"MPF\0" in data[:end]
    return end < len(data) and not views and _is_picture(data[end : end + _PREFIX])


def write_result(target: Path | None, data: bytes, *, overwrite: bool) -> None:
    """To a file, or for None to standard output, but no binary to a terminal. Raises OutputError."""
    if target:
        write_atomic(target, data, overwrite=overwrite)
        return
    if sys.stdout is not None and sys.stdout.isatty():
        if not data.isascii():
            raise OutputError("a terminal cannot show this: redirect standard output, or say where with -o")
        data += b"\n"
    put_bytes(data)


def _is_picture(start: bytes) -> bool:
    from PIL import Image

    from titokc.imaging import READABLE_FORMATS

    Image.init()
    accepts = [Image.OPEN[name][1] for name in READABLE_FORMATS if name in Image.OPEN]
    return any(accept is None or accept(start[:16]) is True for accept in accepts)


def _end_of_picture(data: bytes) -> int:
    """Where the first picture ends, all of `data` for other formats and damaged files."""
    at = 8
    if data.startswith(b"\x89PNG"):
        while at + 12 <= len(data):
            name, at = data[at + 4 : at + 8], at + 12 + int.from_bytes(data[at : at + 4], "big")
            if name == b"IEND":
                return at
    elif data.startswith(b"\xff\xd8"):
        at = 2
        while found := _MARKER.search(data, at):
            marker, at = data[found.start() + 1], found.end()
            if marker == 0xD9:
                return at
            at += int.from_bytes(data[at : at + 2], "big")
    elif data.startswith(b"RIFF"):
        return 8 + int.from_bytes(data[4:8], "little")
    elif data.startswith(b"BM"):
        return int.from_bytes(data[2:6], "little")
    return len(data)
