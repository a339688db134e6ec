"""A second reader and writer of `.tok`, from tok-v1.md and tok-v2.md alone: standard library only, titokc not imported.

It works on strings of the characters 0 and 1, bit by bit, so that it shares no method with the product. Slow and plain
on purpose. `python tok_reference.py FILE...` prints what files hold.
"""

import json
import sys
from math import isqrt
from pathlib import Path

MODELS = {row["id"]: row for row in json.loads(Path(__file__).with_name("ids.json").read_text("utf-8"))["models"]}


class RefusedError(Exception):
    """`rule` is the error's name in tok-v1.md or tok-v2.md."""

    def __init__(self, rule: str):
        super().__init__(rule)
        self.rule = rule


def crc16(data: bytes) -> str:
    """CRC-16/IBM-3740: polynomial 0x1021, start 0xFFFF, most significant bit first. 16 bits."""
    register = 0xFFFF
    for bit in to_bits(data):
        feedback = (register >> 15) ^ int(bit)
        register = (register << 1) & 0xFFFF
        if feedback:
            register ^= 0x1021
    return f"{register:016b}"


def crc32(data: bytes) -> str:
    """CRC-32/ISO-HDLC, as in PNG and zip: reflected polynomial 0xEDB88320, start and final inversion. 32 bits."""
    register = 0xFFFFFFFF
    for byte in data:
        for shift in range(8):
            feedback = (register ^ (byte >> shift)) & 1
            register >>= 1
            if feedback:
                register ^= 0xEDB88320
    return f"{register ^ 0xFFFFFFFF:032b}"


def to_bits(data: bytes) -> str:
    return "".join(f"{byte:08b}" for byte in data)


def to_bytes(bits: str) -> bytes:
    return bytes(int(bits[at : at + 8], 2) for at in range(0, len(bits), 8))


def fill_up(bits: str) -> str:
    return bits + "0" * (-len(bits) % 8)


def add_checksum(body: bytes) -> bytes:
    return body + to_bytes(crc16(body) if len(body) + 2 <= 4095 else crc32(body))


def shortest_side_bits(width: int, height: int) -> int:
    if (width, height) == (256, 256):
        return 0
    return next(bits for bits in (8, 12, 16) if max(width, height) <= 2**bits)


def count_of(tokens: int, share: int) -> int:
    """The tokens of a tile with this share, where the most are `tokens`. The fourth root of 2 ** 64 is 65536."""
    return max(1, tokens * isqrt(isqrt(2 ** (64 - share))) // 65536)


def tokens_of_tiles(content: dict) -> list[list[int]]:
    """The indices of each tile, tiles row by row."""
    shares = content.get("shares", [0] * (content["rows"] * content["columns"]))
    tiles, rest = [[] for _ in shares], iter(content["indices"])
    for tokens in range(1, content["tokens_per_tile"] + 1):
        for tile, share in zip(tiles, shares, strict=True):
            if len(tile) < count_of(tokens, share):
                tile.append(next(rest))
    return tiles


def write(content: dict) -> bytes:
    """content: what `read` gives; all numbers are integers, the fingerprint is hexadecimal text."""
    side_bits = shortest_side_bits(content["width"], content["height"])
    tiled = (content["rows"], content["columns"]) != (1, 1)
    bits = to_bits(b"\xf5tok")
    bits += f"{2 if 'shares' in content else 1:03b}{(0, 8, 12, 16).index(side_bits):02b}{tiled:01b}00"
    bits += f"{content['model_id']:08b}{content['tokens_per_tile'] - 1:08b}"
    bits += to_bits(bytes.fromhex(content["fingerprint"]))
    if content["model_id"] == 0:
        bits += f"{content['nested']:01b}000{content['bits_per_index'] - 1:04b}"
    if side_bits:
        bits += f"{content['width'] - 1:0{side_bits}b}{content['height'] - 1:0{side_bits}b}"
    if tiled:
        bits += f"{content['rows'] - 1:08b}{content['columns'] - 1:08b}"
    bits += fill_up("".join(f"{share:04b}" for share in content.get("shares", [])))
    payload = "".join(f"{index:0{content['bits_per_index']}b}" for index in content["indices"])
    return add_checksum(to_bytes(bits + fill_up(payload)))


def read(data: bytes, partial: bool = False) -> dict:
    """Bytes -> content, the fields of the header ("shares" in version 2 alone) and the indices; RefusedError names the
    first broken rule."""
    if data[:4] != b"\xf5tok":
        raise RefusedError("MagicError")
    bits, at = to_bits(data), 32

    def need(count: int) -> None:
        if len(bits) < at + count:
            raise RefusedError("TruncatedError")

    def take(count: int) -> int:
        nonlocal at
        at += count
        return int(bits[at - count : at], 2)

    need(40)
    version, side_bits, tiled = take(3), (0, 8, 12, 16)[take(2)], take(1)
    if version not in (1, 2) or (version == 2 and not tiled):
        raise RefusedError("VersionError")
    if take(2):
        raise RefusedError("ReservedBitsError")
    model_id, tokens, fingerprint = take(8), take(8) + 1, f"{take(16):04x}"
    if model_id not in MODELS:
        raise RefusedError("UnknownModelError")
    if model_id == 0:
        need(8)
        nested, reserved, index_bits = bool(take(1)), take(3), take(4) + 1
        if reserved:
            raise RefusedError("ReservedBitsError")
    else:
        model = MODELS[model_id]
        nested, index_bits = model["nested"], model["bits_per_index"]
        if tokens > model["max_tokens"] or (tokens != model["max_tokens"] and not nested):
            raise RefusedError("TokenCountError")
    if version == 2 and not nested:
        raise RefusedError("TokenCountError")
    width = height = 256
    if side_bits:
        need(2 * side_bits)
        width, height = take(side_bits) + 1, take(side_bits) + 1
        if shortest_side_bits(width, height) != side_bits:
            raise RefusedError("NonCanonicalError")
    rows = columns = 1
    if tiled:
        need(16)
        rows, columns = take(8) + 1, take(8) + 1
        if rows * columns == 1:
            raise RefusedError("NonCanonicalError")
        if rows > height or columns > width:
            raise RefusedError("GridError")
    tiles = rows * columns
    shares = [0] * tiles
    if version == 2:
        need(4 * tiles + 4 * (tiles % 2))
        shares = [take(4) for _ in range(tiles)]
        if tiles % 2 and take(4):
            raise RefusedError("ReservedBitsError")
        if 0 not in shares or shares == [0] * tiles:
            raise RefusedError("NonCanonicalError")

    payload_bits = index_bits * sum(count_of(tokens, share) for share in shares)
    body_size = (at + payload_bits + 7) // 8
    size = body_size + (2 if body_size + 2 <= 4095 else 4)
    if len(data) < size and not partial:
        raise RefusedError("TruncatedError")
    if len(data) > size:
        raise RefusedError("TrailingDataError")
    if len(data) == size and add_checksum(data[:body_size]) != data:
        raise RefusedError("ChecksumError")
    if "1" in bits[at + payload_bits : body_size * 8]:
        raise RefusedError("PaddingError")
    while (total := sum(count_of(tokens, share) for share in shares)) * index_bits > len(bits) - at:
        tokens -= 1
        if not tokens:
            raise RefusedError("TruncatedError")
    return {
        "width": width,
        "height": height,
        "rows": rows,
        "columns": columns,
        "tokens_per_tile": tokens,
        "bits_per_index": index_bits,
        "model_id": model_id,
        "fingerprint": fingerprint,
        "nested": nested,
        **({"shares": shares} if version == 2 else {}),
        "indices": [take(index_bits) for _ in range(total)],
    }


if __name__ == "__main__":
    for name in sys.argv[1:]:
        try:
            print(name, json.dumps(read(Path(name).read_bytes())))
        except RefusedError as refused:
            sys.exit(f"{name}: {refused.rule}")
