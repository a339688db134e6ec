"""The `.tok` container: a header and token indices <-> bytes, as formats/tok-v1.md and tok-v2.md prescribe.

It knows bytes, not tensors: `titokc.codec` joins it with a model, `titokc.models` makes and reads the indices;
`titokc.payload` turns them into bits.
Indices are one flat sequence in file order: token 0 of every tile (tiles row by row), token 1 of every tile, and
so on, so that any prefix is a poorer picture of the whole image. `tile_order` has it where tiles have shares, and with
them unequal numbers of tokens.
"""

import binascii
import zlib
from bisect import bisect
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import compress
from typing import NamedTuple

from titokc.errors import ContainerError, UsageError
from titokc.header import (
    FACTORS,
    FINGERPRINT_SIZE,
    MAX_GRID,
    MAX_SIDE,
    MAX_TOKENS_PER_TILE,
    Header,
    check_writable,
    fewest_tokens,
    possible_counts,
)
from titokc.ids import CUSTOM_MODEL_ID, KNOWN_MODELS, MAGIC, SHARES_VERSION, VERSION
from titokc.limits import DEFAULT_LIMITS, Limits
from titokc.payload import (
    GRID_FLAG,
    MAX_BITS_PER_INDEX,
    RESERVED_FLAGS,
    TruncatedError,
    check_length,
    check_padding,
    is_tok_text,
    is_version,
    looks_like_base64,
    pack_indices,
    payload_size,
    unpack_indices,
)

SUFFIX = ".tok"
MIME_TYPE = "image/x-titokc"

FIXED_HEADER_SIZE = 7 + FINGERPRINT_SIZE
DEFAULT_SIDE = 256
# Up to this length the CRC-16 finds every 1-, 2- and 3-bit error; longer files carry a CRC-32.
SHORT_FILE_SIZE = 4_095
# No valid file is longer: a caller that reads untrusted files can stop here.
MAX_FILE_SIZE = FIXED_HEADER_SIZE + 7 + MAX_GRID**2 * (1 + MAX_TOKENS_PER_TILE * MAX_BITS_PER_INDEX // 4) // 2 + 4

_SIDE_BITS = (0, 8, 12, 16)
_RESERVED_CUSTOM = 0b0111_0000


class MagicError(ContainerError):
    """The data does not start with the magic number."""


class VersionError(ContainerError):
    """The format version is not one that this reader knows."""


class ReservedBitsError(ContainerError):
    """A bit that must be zero is set."""


class UnknownModelError(ContainerError):
    """The model id is not in the table of known models."""


class TokenCountError(ContainerError):
    """The model cannot have made this number of tokens per tile."""


class NonCanonicalError(ContainerError):
    """A field is stored in a longer form than its value needs; each content has one valid encoding."""


class GridError(ContainerError):
    """There are more rows or columns of tiles than pixels."""


class ChecksumError(ContainerError):
    """The checksum does not match the bytes before it."""


def tile_order(header: Header) -> Iterator[int]:
    """The tile of each index in file order: as the most grow from 1, the tiles that get another token, row by row."""
    shares = header.shares or bytes(header.tiles)
    before = [0] * len(FACTORS)
    for tokens in range(1, header.tokens_per_tile + 1):
        counts = possible_counts(tokens)
        grows = bytes(now - then for now, then in zip(counts, before, strict=True)).ljust(256, b"\0")
        yield from compress(range(header.tiles), shares.translate(grows))
        before = counts


def pack(header: Header, indices: Sequence[int]) -> bytes:
    """The one valid file of this content. `indices`: `header.indices` of them, in file order, each below
    2 ** bits_per_index. Raises UsageError for what the format cannot hold."""
    check_writable(header)
    if len(indices) != header.indices:
        most = f"{'at most ' * bool(header.shares)}{header.tokens_per_tile}"
        raise UsageError(f"{len(indices)} indices for {header.tiles} tiles of {most} tokens: expected {header.indices}")
    body = _pack_header(header) + pack_indices(indices, header.bits_per_index)
    return body + _checksum(body)


def unpack(data: bytes, *, partial: bool = False, limits: Limits = DEFAULT_LIMITS) -> tuple[Header, list[int]]:
    """A whole file -> its header and its indices in file order.

    With `partial`, data that was cut short anywhere after its header is accepted too: the largest k whose indices are
    all there is kept, and the header returned has `tokens_per_tile` = k (`examine` says how many were declared). The
    checksum of a cut file cannot be checked, so that its tokens may be wrong. A file that is whole is checked in full
    all the same.

    Raises a ContainerError of this module for the first broken rule, LimitExceededError beyond `limits`.
    """
    header, start = _parse(data, partial=partial, limits=limits)
    tokens = _whole_tokens(data, header, start)
    if not tokens:
        needed = payload_size(header.tiles, header.bits_per_index)
        raise TruncatedError(
            f"no token of every tile is left: found {len(data) - start} payload bytes, needed {needed}"
        )
    header = replace(header, tokens_per_tile=tokens)
    payload = data[start : start + header.payload_bytes]
    return header, unpack_indices(payload, header.bits_per_index, header.indices)


class Examined(NamedTuple):
    """What `examine` finds: the header as declared, the tokens_per_tile that is there (0 too), and whether the
    checksum is there and right."""

    header: Header
    tokens_found: int
    checksum_checked: bool


def examine(data: bytes, *, partial: bool = False, limits: Limits = DEFAULT_LIMITS) -> Examined:
    """What a file declares and holds, after every check that `unpack` makes, without unpacking the indices."""
    header, start = _parse(data, partial=partial, limits=limits)
    return Examined(header, _whole_tokens(data, header, start), len(data) == file_size(header))


def read_header(data: bytes, *, partial: bool = False, limits: Limits = DEFAULT_LIMITS) -> Header:
    """The header as declared, after every check that `unpack` makes, without unpacking the indices."""
    return _parse(data, partial=partial, limits=limits)[0]


def truncate(data: bytes, tokens_per_tile: int, *, limits: Limits = DEFAULT_LIMITS) -> bytes:
    """The valid smaller file that keeps the first `tokens_per_tile` tokens of every tile, or of fewer its share.

    It decodes to a poorer picture of the same photograph. Of a file whose tokens were not searched for (effort 0) it is
    the one that the encoder would have written for so many; a search for fewer tokens finds other ones.

    Of `limits` only `max_indices` counts, as no pixels are made. Raises UsageError where there are not so many tokens,
    and for models whose codes are not nested.
    """
    limits = replace(limits, max_pixels=MAX_SIDE * MAX_SIDE, max_side=MAX_SIDE)
    header, indices = unpack(data, limits=limits)
    if tokens_per_tile == header.tokens_per_tile:
        return data
    if not header.nested:
        raise UsageError(
            f"cannot truncate a file of {header.model}: its {header.tokens_per_tile} tokens are one code, "
            "the first of them alone are not a poorer picture"
        )
    if not 1 <= tokens_per_tile <= header.tokens_per_tile:
        raise UsageError(
            f"cannot truncate to {tokens_per_tile} tokens per tile: "
            f"the file has {header.tokens_per_tile}, and at least 1 must stay"
        )
    header = replace(header, tokens_per_tile=tokens_per_tile)
    return pack(header, indices[: header.indices])


def file_size(header: Header) -> int:
    """Bytes of the whole file that `pack` would make: header, payload and checksum."""
    check_writable(header)
    body = len(_pack_header(header)) + header.payload_bytes
    return body + _checksum_size(body)


def _parse(data: bytes, *, partial: bool, limits: Limits) -> tuple[Header, int]:
    """Checks everything; gives the declared header and where the payload starts."""
    header, start = _parse_header(data)
    end = start + header.payload_bytes
    size = end + _checksum_size(end)
    if not (partial and len(data) < size):
        check_length("file", data, size)
        computed = _checksum(memoryview(data)[:end])
        if data[end:] != computed:
            raise ChecksumError(f"checksum at byte {end}: found {data[end:].hex()}, expected {computed.hex()}")
    if len(data) >= end:
        check_padding(data, end, header.indices * header.bits_per_index)
    limits.check((header.width, header.height))
    limits.check_indices(header.tiles, header.tokens_per_tile, header.indices)
    return header, start


def _parse_header(data: bytes) -> tuple[Header, int]:
    if not isinstance(data, (bytes, bytearray, memoryview)):
        raise UsageError(f"expected the bytes of a file, found {type(data).__name__}")
    if data[:4] != MAGIC:
        if is_tok_text(data):
            raise MagicError("not a .tok file: it is one as base64 text, make it a file again (base64 -d)")
        if looks_like_base64(data):
            raise MagicError("not a .tok file: it looks like base64 text, which --base64 decodes")
        raise MagicError(f"not a .tok file: it starts with {data[:4].hex(' ') or 'nothing'}, expected {MAGIC.hex(' ')}")
    flags, model_id, last_token, *fingerprint = _take(data, 4, 5)
    version = flags >> 5
    if not is_version(flags):
        found = f"{version} without tiles" if version == SHARES_VERSION else version
        raise VersionError(
            f"format version at byte 4: found {found}, expected {VERSION}, or {SHARES_VERSION} with tiles"
        )
    if flags & RESERVED_FLAGS:
        raise ReservedBitsError(f"reserved bits at byte 4: found {flags & RESERVED_FLAGS:02b}, expected 00")
    tokens = last_token + 1
    at = FIXED_HEADER_SIZE

    known = KNOWN_MODELS.get(model_id)
    if known:
        bits_per_index, nested = known.bits_per_index, known.nested
    elif model_id == CUSTOM_MODEL_ID:
        (code,) = _take(data, at, 1)
        if code & _RESERVED_CUSTOM:
            raise ReservedBitsError(f"reserved bits at byte {at}: found {code >> 4 & 7:03b}, expected 000")
        bits_per_index, nested = (code & 0x0F) + 1, code >> 7 == 1
        at += 1
    else:
        raise UnknownModelError(
            f"model id at byte 5: found {model_id}, expected 0..{max(KNOWN_MODELS)}; a newer titokc may know it"
        )
    if known and not fewest_tokens(known) <= tokens <= known.max_tokens:
        raise TokenCountError(
            f"tokens per tile at byte 6: found {tokens}, "
            f"expected {fewest_tokens(known)}..{known.max_tokens} for {known.name}"
        )
    if version == SHARES_VERSION and not nested:
        raise TokenCountError(
            f"format version at byte 4: found {version}, expected {VERSION} for a model whose codes are not nested"
        )

    width = height = DEFAULT_SIDE
    size_class = flags >> 3 & 3
    if size_class:
        side_bits = _SIDE_BITS[size_class]
        sides = int.from_bytes(_take(data, at, side_bits // 4), "big")
        width, height = (sides >> side_bits) + 1, (sides & (1 << side_bits) - 1) + 1
        if _size_class(width, height) != size_class:
            raise NonCanonicalError(f"{width}x{height} at byte {at}: found {side_bits} bits a side, fewer hold it")
        at += side_bits // 4

    rows = columns = 1
    if flags & GRID_FLAG:
        rows, columns = (side + 1 for side in _take(data, at, 2))
        if rows == columns == 1:
            raise NonCanonicalError(f"grid at byte {at}: found 1x1, which is stored as no grid")
        if rows > height or columns > width:
            raise GridError(
                f"grid at byte {at}: found {rows} rows and {columns} columns, "
                f"expected at most one for each of {height} and {width} pixels"
            )
        at += 2

    shares = b""
    if version == SHARES_VERSION:
        packed = _take(data, at, (rows * columns + 1) // 2)
        shares = bytes.fromhex("0" + "0".join(packed.hex()))  # a share is a digit
        if rows * columns % 2 and shares[-1]:
            raise ReservedBitsError(
                f"reserved bits at byte {at + len(packed) - 1}: found {shares[-1]:04b}, expected 0000"
            )
        shares = shares[: rows * columns]
        if not any(shares):
            raise NonCanonicalError(f"shares at byte {at}: all are 0, which is stored as version {VERSION}")
        if 0 not in shares:
            raise NonCanonicalError(f"shares at byte {at}: the least is {min(shares)}, expected 0")
        at += len(packed)
    model = bits_per_index, model_id, bytes(fingerprint), nested
    return Header(width, height, rows, columns, tokens, *model, shares), at


def _pack_header(header: Header) -> bytes:
    size_class = _size_class(header.width, header.height)
    tiled = header.tiles > 1
    flags = header.version << 5 | size_class << 3 | (GRID_FLAG if tiled else 0)
    out = MAGIC + bytes((flags, header.model_id, header.tokens_per_tile - 1)) + header.fingerprint
    if header.model_id == CUSTOM_MODEL_ID:
        out += bytes((bool(header.nested) << 7 | header.bits_per_index - 1,))
    if size_class:
        side_bits = _SIDE_BITS[size_class]
        out += (header.width - 1 << side_bits | header.height - 1).to_bytes(side_bits // 4, "big")
    if tiled:
        out += bytes((header.rows - 1, header.columns - 1))
    if header.shares:
        out += bytes.fromhex(header.shares.hex()[1::2] + "0" * (header.tiles % 2))  # a share is a digit
    return out


def _take(data: bytes, at: int, count: int) -> bytes:
    field = bytes(data[at : at + count])
    if len(field) < count:
        raise TruncatedError(f"the header is cut short: found {len(data)} bytes, expected at least {at + count}")
    return field


def _size_class(width: int, height: int) -> int:
    """The one way to store a size: 0 not at all (256x256), else the fewest bits that hold both sides less one."""
    if width == height == DEFAULT_SIDE:
        return 0
    longest = max(width, height)
    return 1 if longest <= 1 << _SIDE_BITS[1] else 2 if longest <= 1 << _SIDE_BITS[2] else 3


def _checksum_size(body_size: int) -> int:
    return 2 if body_size + 2 <= SHORT_FILE_SIZE else 4


def _checksum(body: bytes | memoryview) -> bytes:
    if _checksum_size(len(body)) == 2:
        return binascii.crc_hqx(body, 0xFFFF).to_bytes(2, "big")
    return zlib.crc32(body).to_bytes(4, "big")


def _whole_tokens(data: bytes, header: Header, start: int) -> int:
    """The largest tokens_per_tile whose indices are all there in whole or cut data."""
    if len(data) - start >= header.payload_bytes:
        return header.tokens_per_tile
    there = (len(data) - start) * 8 // header.bits_per_index
    counts = range(1, header.tokens_per_tile + 1)
    return bisect(counts, there, key=lambda tokens: replace(header, tokens_per_tile=tokens).indices)
