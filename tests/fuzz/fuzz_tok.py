"""Throws damaged files at the container and at `Image.open`: only typed errors may come out, and what the container
accepts must be canonical.

    python tests/fuzz/fuzz_tok.py container --seconds 60        # or pillow; or --runs 1000000

Coverage-guided by atheris where that is installed, starting from the conformance vectors; else (or with --random) these
are mutated at random. Each input is also tried with length, filling bits and checksum repaired, to get past them.
"""

import argparse
import binascii
import io
import random
import shutil
import sys
import tempfile
import time
import zlib
from contextlib import nullcontext, suppress
from pathlib import Path

try:
    import atheris
except ImportError:
    atheris = None

with atheris.instrument_imports(include=["titokc"]) if atheris else nullcontext():
    from titokc import container, payload, pillow_plugin
    from titokc.errors import TitokcError

from PIL import Image

VECTORS = Path(__file__).parents[2] / "formats" / "vectors"
# Long enough for a CRC-32, and never so many indices that libFuzzer spends its time on them.
LONGEST_REPAIR = 5000


def check(data: bytes) -> bool:
    """One input, as it is and repaired; True if a file was accepted. Anything but a TitokcError is a finding."""
    return any([check_one(data), check_one(repaired(data))])


def check_one(data: bytes) -> bool:
    whole = None
    try:
        whole = container.unpack(data)
        if container.pack(*whole) != data or container.file_size(whole[0]) != len(data):
            raise RuntimeError("accepted, but not the one valid encoding")
        if container.read_header(data) != whole[0]:
            raise RuntimeError("unpack and read_header differ")
    except TitokcError:
        pass
    try:
        header, indices = container.unpack(data, partial=True)
        if whole and (header, indices) != whole:
            raise RuntimeError("a whole file reads differently as a cut one")
        if header.nested and container.unpack(container.pack(header, indices)) != (header, indices):
            raise RuntimeError("a cut file of a nested model cannot be written again")
    except TitokcError:
        if whole:
            raise RuntimeError("a whole file is refused as a cut one") from None
    check_payload(data)
    return whole is not None


def check_payload(data: bytes) -> None:
    text = payload.to_text(data)
    with suppress(payload.FormError):  # of what looks like another form
        if bytes(payload.unpack_text(text, 8)) != data:
            raise RuntimeError("the text form does not come back")
    bits = len(data) % 16 + 1
    for form, unpack in ((data, payload.unpack_bare), (text, payload.unpack_text)):
        with suppress(TitokcError):
            if payload.pack_indices(unpack(form, bits), bits) != data:
                raise RuntimeError("accepted, but not the one payload of these indices")
        with suppress(TitokcError):
            unpack(form, bits, partial=True)
    for partial in (False, True):
        with suppress(TitokcError):
            payload.unpack_text(data, bits, partial=partial)


def check_pillow(data: bytes) -> bool:
    """The same for Pillow's plugin: Image.open refuses as Pillow's users expect, or knows the size and has pixels."""
    return any([check_opened(data), check_opened(repaired(data))])


def check_opened(data: bytes) -> bool:
    try:
        with Image.open(io.BytesIO(data), formats=[pillow_plugin.FORMAT]) as image:
            header = container.read_header(data)
            if image.size != (header.width, header.height):
                raise RuntimeError("Image.open and read_header differ")
            image.verify()
            return True
    except (TitokcError, OSError, Image.DecompressionBombError):
        return False


def repaired(data: bytes) -> bytes:
    """The same content with magic, version, filling bits, length and checksum made right, where that is possible."""
    body = bytearray(container.MAGIC + data[4:])
    if len(body) > 4:
        version = data[4] >> 5 if payload.is_version(data[4]) else container.VERSION
        body[4] = version << 5 | body[4] & 0x1C
    try:
        header = container.read_header(bytes(body), partial=True)
        payload_bits = header.indices * header.bits_per_index
        start = container.file_size(header) - header.payload_bytes
        start -= 2 if container.file_size(header) <= container.SHORT_FILE_SIZE else 4
        if max(header.payload_bytes, header.indices) <= LONGEST_REPAIR:
            body = body[: start + header.payload_bytes].ljust(start + header.payload_bytes, b"\0")
            body[-1] &= 0xFF << -payload_bits % 8 & 0xFF
    except TitokcError:
        pass
    if len(body) + 2 <= container.SHORT_FILE_SIZE:
        return bytes(body) + binascii.crc_hqx(body, 0xFFFF).to_bytes(2, "big")
    return bytes(body) + zlib.crc32(body).to_bytes(4, "big")


def mutated(data: bytes, other: bytes, source: random.Random) -> bytes:
    out = bytearray(data)
    for _ in range(source.randint(1, 4)):
        # Half of the changes hit the header, where the rules are.
        at = source.randrange(min(len(out), 17) + 1) if source.random() < 0.5 else source.randrange(len(out) + 1)
        kind = source.randrange(6)
        if kind == 0 and at < len(out):
            out[at] ^= 1 << source.randrange(8)
        elif kind == 1 and at < len(out):
            out[at] = source.choice((0, 1, 0x7F, 0x80, 0xFF, source.randrange(256)))
        elif kind == 2:
            out[at:at] = source.randbytes(source.randint(1, 4))
        elif kind == 3:
            del out[at : at + source.randint(1, 4)]
        elif kind == 4:
            del out[at:]
        else:
            out[at:] = other[at:]
    return bytes(out)


def run_random(check, seconds: float, seed: int, runs: int = sys.maxsize) -> None:
    source = random.Random(seed)
    seeds = [path.read_bytes() for path in sorted(VECTORS.rglob("*.tok"))]
    small = [data for data in seeds if len(data) < 600]
    tried = accepted = 0
    stop = time.monotonic() + seconds
    while tried < runs and time.monotonic() < stop:
        data = mutated(source.choice(small if tried % 50 else seeds), source.choice(small), source)
        try:
            accepted += check(data)
        except BaseException:
            sys.stderr.write(f"finding after {tried} inputs of seed {seed}: {data.hex()}\n")
            raise
        tried += 1
    sys.stdout.write(f"{tried} inputs, {accepted} accepted, no finding\n")
    if not accepted:
        raise SystemExit("no mutated input was ever accepted: the repair does not work")


def run_guided(check, seconds: float, seed: int, runs: int) -> None:
    """libFuzzer prints what it does, and ends the process: with 0 if it found nothing."""

    def target(data: bytes) -> None:
        check(data)

    with tempfile.TemporaryDirectory() as corpus:
        for path in VECTORS.rglob("*.tok"):
            if path.stat().st_size < 600:
                shutil.copy(path, corpus)
        limits = [f"-max_total_time={seconds:.0f}", f"-runs={min(runs, (1 << 31) - 1)}", f"-seed={seed + 1}"]
        atheris.Setup([sys.argv[0], *limits, "-max_len=300", "-print_final_stats=1", corpus], target)
        atheris.Fuzz()


TARGETS = {"container": check, "pillow": check_pillow}

if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("target", choices=TARGETS)
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--runs", type=int, default=sys.maxsize)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--random", action="store_true", help="without atheris, even where it is installed")
    options = parser.parse_args()
    if atheris and not options.random:
        run_guided(TARGETS[options.target], options.seconds, options.seed, options.runs)
    else:
        sys.stdout.write("mutating at random; coverage-guided where atheris is installed\n" if not atheris else "")
        run_random(TARGETS[options.target], options.seconds, options.seed, options.runs)
