"""Writes the conformance vectors of `.tok`, versions 1 and 2, and their manifest; `tok_reference` makes the bytes.

Vectors are frozen: a file that exists with other bytes is an error, never overwritten. New ones may be appended.
`python make_vectors.py [DIRECTORY]` (default: vectors/ beside this script).
"""

import hashlib
import json
import sys
from pathlib import Path

from tok_reference import MODELS, RefusedError, add_checksum, count_of, read, write

NANO, CUSTOM = 1, 0


def content(
    model_id=NANO, tokens=None, size=(256, 256), grid=(1, 1), bits=None, nested=None, indices=None, shares=None
):
    model = MODELS[model_id]
    bits = bits or model["bits_per_index"]
    tokens = tokens or model["max_tokens"]
    count = sum(count_of(tokens, share) for share in shares or [0] * (grid[0] * grid[1]))
    return {
        "width": size[0],
        "height": size[1],
        "rows": grid[0],
        "columns": grid[1],
        "tokens_per_tile": tokens,
        "bits_per_index": bits,
        "model_id": model_id,
        "fingerprint": f"{0xC0DE + model_id:04x}",
        "nested": model["nested"] if nested is None else nested,
        **({"shares": shares} if shares else {}),
        # An odd multiplier visits all values of so many bits before it repeats one.
        "indices": indices or [40503 * (position + 1) % 2**bits for position in range(count)],
    }


def valid() -> dict[str, dict]:
    vectors = {
        "nano-1-32-tokens": content(tokens=32),
        "nano-1-33-tokens-4-padding-bits": content(tokens=33),
        "nano-1-128-tokens": content(tokens=128),
        "nano-1-truncated-to-1-token": content(tokens=1),
        "nano-1-all-zeros": content(tokens=32, indices=[0] * 32),
        "nano-1-all-ones": content(tokens=32, indices=[4095] * 32),
        "nano-1-1x1-pixel": content(tokens=32, size=(1, 1)),
        "nano-1-256x255-8-bits-a-side": content(tokens=32, size=(256, 255)),
        "nano-1-257x256-12-bits-a-side": content(tokens=32, size=(257, 256)),
        "nano-1-4096x4096-12-bits-a-side": content(tokens=32, size=(4096, 4096)),
        "nano-1-1x4097-16-bits-a-side": content(tokens=32, size=(1, 4097)),
        "nano-1-768x512-one-tile": content(tokens=96, size=(768, 512)),
        "nano-1-768x512-2-rows-3-columns": content(tokens=32, size=(768, 512), grid=(2, 3)),
        "nano-1-256x256-2-rows-1-column": content(tokens=33, grid=(2, 1)),
        "custom-1-bit-1-token": content(CUSTOM, 1, bits=1, nested=True),
        "custom-7-bits-200-tokens": content(CUSTOM, 200, bits=7, nested=False),
        "custom-12-bits-nested-60-bytes": content(CUSTOM, 32, bits=12, nested=True),
        "custom-16-bits-256-tokens": content(CUSTOM, 256, bits=16, nested=False),
        "custom-256-rows-of-1-pixel": content(CUSTOM, 1, (1, 256), (256, 1), bits=1, nested=False),
        "custom-longest-file-with-crc-16": content(CUSTOM, 53, grid=(7, 11), bits=8, nested=True),
        "custom-shortest-file-with-crc-32": content(CUSTOM, 157, grid=(2, 13), bits=8, nested=True),
        "over-default-limits-65536x65536": content(tokens=32, size=(65536, 65536)),
        "over-default-limits-16385x1": content(tokens=32, size=(16385, 1)),
        "over-default-limits-9460x9459": content(tokens=32, size=(9460, 9459)),
    }
    released = {row["name"]: content(row["id"]) for row in MODELS.values() if row["name"].startswith("titok-")}
    shared = {
        "nano-1-2x2-tiles-of-4-shares": content(tokens=32, size=(512, 512), grid=(2, 2), shares=[0, 3, 7, 15]),
        "nano-1-3-tiles-of-2-shares": content(tokens=33, size=(300, 200), grid=(1, 3), shares=[5, 0, 0]),
        "nano-1-4x4-tiles-of-all-shares": content(size=(1024, 1024), grid=(4, 4), shares=[*range(16)]),
        "nano-1-shares-truncated-to-5-tokens": content(tokens=5, size=(512, 512), grid=(2, 2), shares=[0, 3, 7, 15]),
        "nano-1-shares-truncated-to-1-token": content(tokens=1, size=(512, 512), grid=(2, 2), shares=[0, 3, 7, 15]),
        "custom-256-tokens-of-1-bit-in-all-shares": content(
            CUSTOM, 256, grid=(16, 1), bits=1, nested=True, shares=[*range(15, -1, -1)]
        ),
        "custom-195-tiles-of-13-shares-crc-32": content(
            CUSTOM, 50, (640, 480), (13, 15), 8, True, shares=[tile * 5 % 13 for tile in range(195)]
        ),
    }
    return vectors | released | shared


def changed(data: bytes, at: int, value: int) -> bytes:
    """One byte of the header or payload replaced, and the checksum made right again."""
    body = bytearray(data[:-2])
    body[at] = value
    return add_checksum(bytes(body))


def inserted(data: bytes, at: int, extra: bytes, flags: int) -> bytes:
    body = data[:4] + bytes([flags]) + data[5:at] + extra + data[at:-2]
    return add_checksum(body)


def invalid() -> dict[str, bytes]:
    """File name -> bytes. The name starts with the error that tok-v1.md prescribes."""
    good = write(content(tokens=32))
    odd = write(content(tokens=33))
    custom = write(content(CUSTOM, 32, bits=12, nested=True))
    wide = write(content(tokens=32, size=(768, 512)))
    tiled = write(content(tokens=32, size=(768, 512), grid=(2, 3)))
    long = write(content(CUSTOM, 157, grid=(2, 13), bits=8, nested=True))
    shared = write(content(tokens=32, size=(512, 512), grid=(2, 2), shares=[0, 3, 7, 15]))
    third = write(content(tokens=33, size=(300, 200), grid=(1, 3), shares=[5, 0, 0]))
    nested = write(content(CUSTOM, 8, grid=(2, 1), bits=10, nested=True, shares=[0, 4]))
    vectors = {
        "MagicError-empty": b"",
        "MagicError-3-bytes": good[:3],
        "MagicError-high-bit-stripped": bytes([good[0] & 0x7F]) + good[1:],
        "MagicError-upper-case": changed(good, 1, ord("T")),
        "MagicError-png": b"\x89PNG\r\n\x1a\n\x00\x00\x00\rIHDR",
        "MagicError-as-utf-8": good.decode("latin-1").encode("utf-8"),
        "VersionError-0": changed(good, 4, 0 << 5),
        "VersionError-2": changed(good, 4, 2 << 5),
        "VersionError-7": changed(good, 4, 7 << 5),
        "ReservedBitsError-flags-bit-0": changed(good, 4, good[4] | 1),
        "ReservedBitsError-flags-bit-1": changed(good, 4, good[4] | 2),
        "ReservedBitsError-custom-bit-4": changed(custom, 9, custom[9] | 0x10),
        "ReservedBitsError-custom-bit-6": changed(custom, 9, custom[9] | 0x40),
        "UnknownModelError-8": changed(good, 5, 8),
        "UnknownModelError-255": changed(good, 5, 255),
        "TokenCountError-nano-1-129": changed(good, 6, 128),
        "TokenCountError-titok-l-32-31": changed(write(content(2)), 6, 30),
        "TokenCountError-titok-l-32-33": changed(write(content(2)), 6, 32),
        "NonCanonicalError-256x256-stored": inserted(good, 9, b"\xff\xff", 0x28),
        "NonCanonicalError-200x100-in-12-bits": inserted(good, 9, b"\x0c\x70\x63", 0x30),
        "NonCanonicalError-768x512-in-16-bits": inserted(good, 9, b"\x02\xff\x01\xff", 0x38),
        "NonCanonicalError-1x1-grid-stored": inserted(good, 9, b"\x00\x00", 0x24),
        "GridError-3-rows-of-2-pixels": inserted(good, 9, b"\xff\x01\x02\x00", 0x2C),
        "GridError-3-columns-of-2-pixels": inserted(good, 9, b"\x01\xff\x00\x02", 0x2C),
        "TruncatedError-magic-only": good[:4],
        "TruncatedError-in-the-fixed-header": good[:8],
        "TruncatedError-before-the-custom-byte": custom[:9],
        "TruncatedError-in-the-size": wide[:11],
        "TruncatedError-in-the-grid": tiled[:13],
        "TruncatedError-no-payload": good[:9],
        "TruncatedError-1-bit-short-of-a-token": good[:10],
        "TruncatedError-after-1-token": good[:11],
        "TruncatedError-after-20-tokens": good[:39],
        "TruncatedError-5-of-6-tiles-have-token-0": tiled[: 14 + 8],
        "TruncatedError-all-tiles-have-10-tokens-some-11": tiled[: 14 + 93],
        "TruncatedError-no-checksum": good[:-2],
        "TruncatedError-half-a-checksum": good[:-1],
        "TruncatedError-crc-16-on-a-long-file": long[:-4] + good[-2:],
        "TrailingDataError-newline": good + b"\n",
        "TrailingDataError-twice": good + good,
        "TrailingDataError-crc-32-on-a-short-file": good[:-2] + b"\x00\x00\x00\x00",
        "ChecksumError-payload-bit": good[:20] + bytes([good[20] ^ 1]) + good[21:],
        "ChecksumError-fingerprint-bit": good[:8] + bytes([good[8] ^ 0x80]) + good[9:],
        "ChecksumError-checksum-bit": good[:-1] + bytes([good[-1] ^ 1]),
        "ChecksumError-bytes-swapped": good[:-2] + good[:-3:-1],
        "ChecksumError-zero": good[:-2] + b"\x00\x00",
        "ChecksumError-long-file": long[:100] + bytes([long[100] ^ 1]) + long[101:],
        "PaddingError-lowest-bit": changed(odd, -1, odd[-3] | 1),
        "PaddingError-all-bits": changed(odd, -1, odd[-3] | 15),
        "VersionError-2-without-tiles": changed(shared, 4, shared[4] & ~4),
        "VersionError-3-with-tiles": changed(shared, 4, shared[4] ^ 0x20),
        "ReservedBitsError-version-2-flags-bit-0": changed(shared, 4, shared[4] | 1),
        "ReservedBitsError-half-a-byte-after-3-shares": changed(third, 15, third[15] | 8),
        "TokenCountError-version-2-of-titok-l-32": changed(shared, 5, 2),
        "TokenCountError-version-2-of-a-custom-model-that-is-not-nested": changed(nested, 9, nested[9] & 0x7F),
        "TokenCountError-version-2-nano-1-129": changed(shared, 6, 128),
        "NonCanonicalError-version-2-1x1-grid": inserted(good, 9, b"\x00\x00\x00", 0x44),
        "NonCanonicalError-all-shares-0": inserted(tiled, 14, bytes(3), tiled[4] ^ 0x60),
        "NonCanonicalError-no-share-0": changed(shared, 14, 0x13),
        "GridError-version-2-before-its-shares": inserted(good, 9, b"\xff\x01\x02\x00", 0x4C),
        "TruncatedError-before-the-shares": shared[:14],
        "TruncatedError-in-the-shares": shared[:15],
        "TruncatedError-after-the-shares": shared[:16],
        "TruncatedError-3-of-4-tiles-have-token-0": shared[:16] + shared[16 : 16 + 5],
        "TruncatedError-each-of-4-tiles-has-token-0": shared[: 16 + 6],
        "TruncatedError-all-tiles-have-31-of-32-tokens-by-share": shared[: -2 - 3],
        "TruncatedError-30-tokens-by-share-and-2-of-3-tiles-more": shared[: -2 - 4],
        "TruncatedError-version-2-no-checksum": shared[:-2],
        "TrailingDataError-as-long-as-without-shares": shared[:-2].ljust(16 + 4 * 32 * 12 // 8, b"\0") + b"\0\0",
        "TruncatedError-share-of-7-tokens-more": shared[:15] + bytes([shared[15] ^ 8]) + shared[16:],
        "ChecksumError-share-bit": shared[:15] + bytes([shared[15] ^ 1]) + shared[16:],
        "PaddingError-version-2": changed(third, -1, third[-3] | 1),
    }
    return {f"{name}.tok": data for name, data in vectors.items()}


def row(file: str, data: bytes) -> dict:
    return {"file": file, "size_bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}


def manifest() -> tuple[dict, dict[str, bytes]]:
    """The manifest, and every file's bytes by its name in the manifest."""
    files: dict[str, bytes] = {}
    good, bad = [], []
    for name, expected in valid().items():
        file = f"valid/{name}.tok"
        files[file] = write(expected)
        if read(files[file]) != expected:
            raise SystemExit(f"{file}: the reference reads it differently")
        over = {"over_default_limits": True} if name.startswith("over-default-limits") else {}
        good.append(row(file, files[file]) | over | expected)
    for name, data in invalid().items():
        file, error = f"invalid/{name}", name.split("-")[0]
        files[file] = data
        try:
            read(data)
            raise SystemExit(f"{file}: the reference accepts it")
        except RefusedError as refused:
            if refused.rule != error:
                raise SystemExit(f"{file}: the reference says {refused.rule}") from None
        bad.append(row(file, data) | {"error": error} | partial(data))
    return {"format": "tok", "version": 1, "valid": good, "invalid": bad}, files


def partial(data: bytes) -> dict:
    """What a reader that accepts cut-short data gets from an invalid file."""
    try:
        found = read(data, partial=True)
    except RefusedError as refused:
        return {"partial_error": refused.rule}
    return {"partial": {"tokens_per_tile": found["tokens_per_tile"], "indices": found["indices"]}}


def to_json(table: dict) -> str:
    """One vector a line."""
    lists = [f'"{key}": [\n' + ",\n".join(map(json.dumps, table[key])) + "\n]" for key in ("valid", "invalid")]
    return f'{{"format": "tok", "version": {table["version"]},\n' + ",\n".join(lists) + "}\n"


def main(directory: Path) -> None:
    table, files = manifest()
    for file, data in files.items():
        path = directory / file
        if path.exists() and path.read_bytes() != data:
            raise SystemExit(f"{path} exists with other bytes; vectors are frozen")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    (directory / "manifest.json").write_text(to_json(table), "utf-8", newline="\n")
    print(f"{len(table['valid'])} valid and {len(table['invalid'])} invalid vectors in {directory}")


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).with_name("vectors"))
