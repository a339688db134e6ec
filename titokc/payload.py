"""Token indices <-> bits: the payload of a `.tok` file, and the same alone, as bytes (bare) or as base64 text.

`titokc.container` puts header and checksum around it; formats/tok-v1.md prescribes all three. A payload alone has
neither, so what can be mistaken for another form is refused by name, when it is written and when it is read.
"""

import base64
import operator
import re
import string
from collections.abc import Sequence

from bitarray import bitarray
from bitarray.util import ba2int, int2ba

from titokc.errors import ContainerError, LimitExceededError, UsageError
from titokc.ids import MAGIC, SHARES_VERSION, VERSION
from titokc.limits import DEFAULT_LIMITS, Limits

MAX_BITS_PER_INDEX = 16
# Of the header's fifth byte, below the version: bits that are 0, and the one of a file with tiles.
RESERVED_FLAGS = 0b011
GRID_FLAG = 0b100

_SPACE = " \t\r\n\f\v"
_FOREIGN = re.compile(f"[^A-Za-z0-9+/_={_SPACE}-]")
_LETTERS = frozenset(f"{string.ascii_letters}{string.digits}+/-_".encode())


class TruncatedError(ContainerError):
    """The data ends before the header says it should."""


class TrailingDataError(ContainerError):
    """The data goes on after the header says it should end."""


class PaddingError(ContainerError):
    """The bits that fill the payload's last byte are not zero."""


class IndexRangeError(ContainerError):
    """A token index is not below the size of the model's codebook."""


class TextError(ContainerError):
    """The text is not base64, or not that of whole bytes."""


class FormError(ContainerError):
    """The data are of another form than the one asked for: a `.tok` file for a bare payload, text for bytes."""


def pack_indices(indices: Sequence[int], bits_per_index: int) -> bytes:
    """Indices, most significant bit first, one after another, and zero bits up to a whole byte."""
    check_index_bits(bits_per_index)
    bits = bitarray(endian="big")
    for position, index in enumerate(indices):
        if not 0 <= index < 1 << bits_per_index:
            raise UsageError(f"index {index} at position {position} does not fit into {bits_per_index} bits")
        bits.extend(int2ba(operator.index(index), bits_per_index, endian="big"))
    return bits.tobytes()


def unpack_indices(payload: bytes, bits_per_index: int, count: int) -> list[int]:
    """The first `count` indices of a payload that holds so many; what follows them is not looked at."""
    bits = bitarray(endian="big")
    bits.frombytes(payload)
    return [ba2int(bits[at : at + bits_per_index]) for at in range(0, count * bits_per_index, bits_per_index)]


def payload_size(count: int, bits_per_index: int) -> int:
    """Bytes of `count` indices."""
    return (count * bits_per_index + 7) // 8


def is_version(flags: int) -> bool:
    """Whether a header's fifth byte is of a version that we read: 1, or with tiles 2."""
    return flags >> 5 == VERSION or (flags >> 5 == SHARES_VERSION and flags & GRID_FLAG != 0)


def is_tok(data: bytes) -> bool:
    """Whether the data starts like a `.tok` file of these versions, as 3 in 2 ** 38 random ones do."""
    return data[:4] == MAGIC and len(data) > 4 and is_version(data[4]) and not data[4] & RESERVED_FLAGS


def looks_like_base64(data: bytes) -> bool:
    """Whether these are 20 or more characters of base64, 12 of them different (1 in 2 ** 38 random ones)."""
    text = bytes(data[:4096]).translate(None, string.whitespace.encode())
    text = text.rstrip(b"=")
    letters = set(text)
    return len(text) >= 20 and len(letters) >= 12 and letters <= _LETTERS


def is_tok_text(data: bytes) -> bool:
    """Whether the data starts like a `.tok` file that was made base64 text."""
    return bytes(data[:64]).lstrip()[:5] == b"9XRva"


def check_indices(indices: Sequence[int], codebook_size: int) -> None:
    """IndexRangeError unless all indices are below the size of the codebook of the model that is to decode them."""
    highest = max(indices, default=0)
    if highest >= codebook_size:
        raise IndexRangeError(
            f"index {highest} at position {indices.index(highest)}: expected 0..{codebook_size - 1} for this model"
        )


def pack_bare(indices: Sequence[int], bits_per_index: int) -> bytes:
    """Indices -> the payload alone, as `pack_indices` makes it.

    UsageError for the one payload in 2 ** 36 that a reader would take for another form.
    """
    payload = pack_indices(indices, bits_per_index)
    try:
        _check_form(payload)
    except FormError:
        raise UsageError("this payload could be taken for a .tok file or for base64: write another form") from None
    return payload


def unpack_bare(
    data: bytes,
    bits_per_index: int,
    count: int | None = None,
    *,
    partial: bool = False,
    limits: Limits = DEFAULT_LIMITS,
) -> list[int]:
    """The payload alone -> its `count` indices; without a count, as many as the bytes hold.

    partial: data that were cut anywhere, or that something follows, give their whole indices, at most `count`; the
        bits after them are dropped unseen.

    Below 8 bits an index a length can mean several counts: then UsageError asks for the count. Otherwise raises
    FormError, TruncatedError, TrailingDataError, PaddingError, and LimitExceededError before anything is unpacked.
    """
    check_index_bits(bits_per_index)
    _check_form(data)
    if partial:
        return unpack_indices(data, bits_per_index, _whole(len(data) * 8, bits_per_index, count, limits))
    if count is None:
        count = len(data) * 8 // bits_per_index
        if count and payload_size(count - 1, bits_per_index) == len(data):
            raise UsageError(
                f"{len(data)} bytes can hold {count} or fewer indices of {bits_per_index} bits: say how many"
            )
    check_length("bare payload", data, payload_size(_limited(count, limits), bits_per_index))
    check_padding(data, len(data), count * bits_per_index)
    return unpack_indices(data, bits_per_index, count)


def to_text(data: bytes) -> str:
    """Bytes -> base64url text without padding, for a URL or a QR code."""
    return base64.urlsafe_b64encode(data).decode("ascii").rstrip("=")


def unpack_text(
    text: str | bytes,
    bits_per_index: int,
    count: int | None = None,
    *,
    partial: bool = False,
    limits: Limits = DEFAULT_LIMITS,
) -> list[int]:
    """A bare payload as base64 text -> its indices, as `unpack_bare` gives them; `partial` counts in characters.

    The text is of either alphabet, with or without padding; white space is left out. Raises TextError for anything
    else, with the place of what is wrong (counted from 0).
    """
    check_index_bits(bits_per_index)
    characters = _characters(text)
    if is_tok(_decode(characters[:8])):
        raise FormError("this is a .tok file in base64: make it a file again (base64 -d) and leave out --base64")
    if partial:
        found = _whole(len(characters) * 6, bits_per_index, count, limits)
        return unpack_indices(_decode(characters), bits_per_index, found)
    _limited(len(characters) * 6 // bits_per_index, limits)
    return unpack_bare(_whole_bytes(characters, text), bits_per_index, count, limits=limits)


def check_length(what: str, data: bytes, expected: int) -> None:
    """TruncatedError or TrailingDataError unless the data have the expected length; says what follows them."""
    found = len(data)
    if found < expected:
        raise TruncatedError(f"{what} is cut short: found {found} bytes, expected {expected}")
    if found > expected:
        rest = bytes(data[expected : expected + 4096])
        follows = "line ends" if not rest.strip(b"\r\n") else "zeros" if not any(rest) else "other bytes"
        raise TrailingDataError(f"{what} is too long: found {found} bytes, expected {expected}; {follows} follow it")


def check_padding(data: bytes, end: int, used_bits: int) -> None:
    """PaddingError unless the payload of `used_bits` bits that ends before byte `end` is filled up with zeros."""
    padding = -used_bits % 8
    if padding and (found := data[end - 1] & (1 << padding) - 1):
        raise PaddingError(f"padding bits at byte {end - 1}: found {found:0{padding}b}, expected {'0' * padding}")


def check_index_bits(bits_per_index: int) -> None:
    """UsageError unless the format can hold indices of so many bits."""
    if not 1 <= bits_per_index <= MAX_BITS_PER_INDEX:
        raise UsageError(f"bits_per_index is {bits_per_index}, expected 1..{MAX_BITS_PER_INDEX}")


def _check_form(data: bytes) -> None:
    if is_tok(data):
        raise FormError("this is a .tok file, not a bare payload: leave out --bare")
    if is_tok_text(data):
        raise FormError("this is a .tok file in base64: make it a file again (base64 -d) and leave out --bare")
    if looks_like_base64(data):
        raise FormError("this looks like base64 text, not a bare payload: --base64 instead of --bare")


def _limited(count: int, limits: Limits) -> int:
    if count > limits.max_indices:
        raise LimitExceededError(f"the payload holds {count} tokens; the limit is {limits.max_indices}", "max_indices")
    return count


def _whole(bits: int, bits_per_index: int, count: int | None, limits: Limits) -> int:
    """How many whole indices cut data of so many bits give, at most `count`; TruncatedError if none."""
    found = bits // bits_per_index
    if not found:
        raise TruncatedError(f"no whole token is left: found {bits} bits, a token has {bits_per_index}")
    return _limited(found if count is None else min(count, found), limits)


def _string(text: str | bytes) -> str:
    """Bytes become a character each, so that places are theirs."""
    return text if isinstance(text, str) else bytes(text).decode("latin-1")


def _characters(text: str | bytes) -> str:
    """The text in the alphabet of base64url, without white space and padding."""
    if not isinstance(text, str) and is_tok(text):
        raise FormError("this is a .tok file, not base64 text: leave out --base64")
    text = _string(text)
    if found := _FOREIGN.search(text):
        hint = "" if found[0].isprintable() and found[0].isascii() else "; --bare reads payloads that are no text"
        raise TextError(
            f"character {found.start()} of the base64 text: found {found[0]!r}, which is none of base64's{hint}"
        )
    body = text.rstrip(f"={_SPACE}")
    if "=" in body:
        raise TextError(f"character {body.index('=')} of the base64 text: found '=', which may only stand at its end")
    if (url := re.search("[-_]", body)) and (standard := re.search("[+/]", body)):
        second = max(url, standard, key=re.Match.start)
        raise TextError(
            f"character {second.start()} of the base64 text: found {second[0]!r}, "
            f"but {min(url, standard, key=re.Match.start)[0]!r} before it is of the other alphabet"
        )
    return "".join(body.split()).replace("+", "-").replace("/", "_")


def _whole_bytes(characters: str, text: str | bytes) -> bytes:
    """The bytes in these characters of the text; TextError unless they are whole."""
    size = len(characters) * 6 // 8
    if len(characters) % 4 == 1:
        raise TextError(f"base64 text of {len(characters)} characters: one is missing, or one too many")
    data = _decode(characters)
    if any(data[size:]):
        last = len(_string(text).rstrip(f"={_SPACE}")) - 1
        raise TextError(f"character {last} of the base64 text, the last: found {characters[-1]!r} with unused bits set")
    return data[:size]


def _decode(characters: str) -> bytes:
    """All bits in these characters, and zeros up to a whole number of bytes."""
    return base64.urlsafe_b64decode(characters + "A" * (-len(characters) % 4))
