"""Pictures from outside -> upright 8-bit sRGB, and pictures -> file bytes; `titokc.tiling` cuts them for the model.

Pillow decodes and encodes, LittleCMS (inside Pillow) converts colours; no torch here.
"""

import io
import os
import struct
import threading
import zlib
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from PIL import Image, ImageCms, ImageColor, ImageOps, UnidentifiedImageError

from titokc.container import MAGIC
from titokc.errors import InputError, UsageError
from titokc.files import reason
from titokc.limits import DEFAULT_LIMITS, Limits

READABLE_FORMATS = ("PNG", "JPEG", "WEBP", "TIFF", "BMP", "PPM", "GIF", "AVIF")
READABLE_SUFFIXES = frozenset(
    {".png", ".apng", ".jpg", ".jpeg", ".jpe", ".jfif", ".mpo", ".webp", ".tif", ".tiff"}
    | {".bmp", ".dib", ".ppm", ".pgm", ".pbm", ".pnm", ".gif", ".avif"}
)
# Suffix of an output -> Pillow's format and its settings: what the decoder made is kept, or as good as kept.
_WRITERS: dict[str, tuple[str, dict[str, object]]] = {
    ".png": ("PNG", {}),
    ".jpg": ("JPEG", {"quality": 95, "subsampling": 0}),
    ".jpeg": ("JPEG", {"quality": 95, "subsampling": 0}),
    ".webp": ("WEBP", {"lossless": True}),
    ".tif": ("TIFF", {"compression": "tiff_adobe_deflate"}),
    ".tiff": ("TIFF", {"compression": "tiff_adobe_deflate"}),
    ".bmp": ("BMP", {}),
    ".ppm": ("PPM", {}),
    ".avif": ("AVIF", {"quality": 95, "subsampling": "4:4:4"}),
}
_LONGEST_SIDE = {"JPEG": 65_535, "WEBP": 16_383, "AVIF": 65_536}
_CAP_LOCK = threading.Lock()
# What Pillow's decoders are known to raise on damaged data, besides OSError.
DECODER_ERRORS = (
    OSError,
    SyntaxError,
    ValueError,
    TypeError,
    LookupError,
    ArithmeticError,
    AttributeError,
    EOFError,
    MemoryError,
    RuntimeError,
    struct.error,
    zlib.error,
)
_SRGB = ImageCms.createProfile("sRGB")

Background = str | tuple[int, int, int]
Picture = Image.Image | str | os.PathLike[str] | bytes | bytearray | memoryview | BinaryIO


def read(
    source: Picture,
    *,
    background: Background = "white",
    limits: Limits = DEFAULT_LIMITS,
    at_least: int | None = None,
    notes: list[str] | None = None,
) -> Image.Image:
    """A PNG, JPEG, WebP, TIFF, BMP, PPM, GIF or AVIF file (its path, its bytes, or open), or an image of Pillow's -> an
    RGB picture, as `to_rgb` gives it (of several frames the first).

    at_least: JPEGs may come at a half, a quarter or an eighth of their size, if no side gets shorter than that. notes:
    gets what one may want to know of the picture. Raises InputError for what cannot be decoded, LimitExceededError for
    more pixels than `limits` before decoding, UsageError for what is no picture file at all.
    """
    notes = [] if notes is None else notes
    if isinstance(source, Image.Image):
        return to_rgb(source, background=background, limits=limits)
    if isinstance(source, (bytes, bytearray, memoryview)):
        return _decode(io.BytesIO(source), background, limits, at_least, notes)
    if isinstance(source, (str, os.PathLike)):
        try:
            with Path(source).open("rb") as stream:
                return _decode(stream, background, limits, at_least, notes)
        except OSError as error:
            raise InputError(f"cannot be read: {reason(error)}") from error
    if not hasattr(source, "read") or isinstance(source, io.TextIOBase):
        kind = f"{type(source).__module__}.{type(source).__name__}".removeprefix("builtins.")
        hint = ": Image.fromarray makes one" if hasattr(source, "__array_interface__") else ""
        raise UsageError(f"expected a Pillow image, a path, bytes or a binary file; found {kind}{hint}")
    return _decode(source, background, limits, at_least, notes)


def to_rgb(image: Image.Image, *, background: Background = "white", limits: Limits = DEFAULT_LIMITS) -> Image.Image:
    """Any Pillow image -> mode RGB, sRGB, 8 bits, upright.

    The EXIF orientation is applied, an ICC profile converted (one that does not fit its picture is ignored, as
    browsers do), 16-bit samples are rounded to 8, and transparency is laid over `background` (a Pillow colour).
    """
    backdrop = _colour(background)
    limits.check(image.size)
    try:
        image = _upright(image)
        colour, alpha = _split_alpha(_to_8_bits(image))
        colour = _to_srgb(colour, image.info.get("icc_profile"))
    except DECODER_ERRORS as error:
        raise InputError(f"not a readable picture: {_one_line(error)}") from error
    if alpha is None:
        return colour
    canvas = Image.new("RGB", colour.size, backdrop)
    canvas.paste(colour, mask=alpha)
    return canvas


def centre_square(image: Image.Image, side: int) -> Image.Image:
    """The largest square in the middle of an RGB picture, scaled to side x side pixels (Lanczos)."""
    length = min(image.size)
    left, top = (image.width - length) // 2, (image.height - length) // 2
    return image.crop((left, top, left + length, top + length)).resize((side, side), Image.Resampling.LANCZOS)


def picture_bytes(image: Image.Image, suffix: str) -> bytes:
    """An RGB picture -> the bytes of a file with this suffix (".png", ".jpg", ...), compared without case.

    JPEG and AVIF are written at quality 95 without chroma subsampling, the others without loss.
    """
    name, settings = writer(suffix)
    out = io.BytesIO()
    try:
        image.save(out, name, **settings)
    except (OSError, ValueError, RuntimeError, struct.error) as error:
        longest = _LONGEST_SIDE.get(name, max(image.size))
        cause = f"its sides are at most {longest:,} pixels" if max(image.size) > longest else _one_line(error)
        raise UsageError(f"a {image.width}x{image.height} picture cannot be written as {name}: {cause}") from error
    return out.getvalue()


def writer(suffix: str) -> tuple[str, dict[str, object]]:
    """Pillow's format name and settings for an output suffix; UsageError for one that is not written."""
    try:
        return _WRITERS[suffix.lower()]
    except KeyError:
        raise UsageError(
            f"cannot write pictures as {suffix or 'a file without a suffix'!r}: expected {', '.join(_WRITERS)}"
        ) from None


def _decode(
    stream: BinaryIO, background: Background, limits: Limits, at_least: int | None, notes: list[str]
) -> Image.Image:
    try:
        with _pillows_cap_off():
            image = Image.open(stream, formats=READABLE_FORMATS)
    except UnidentifiedImageError as error:
        raise InputError(_unidentified(stream)) from error
    except DECODER_ERRORS as error:
        raise InputError(f"not a readable picture: {_one_line(error)}") from error
    with image:
        if at_least:
            limits.check(image.size)
            image.draft(None, (at_least, at_least))
        picture = to_rgb(image, background=background, limits=limits)
        with suppress(*DECODER_ERRORS):  # later frames may be damaged
            if (frames := getattr(image, "n_frames", 1)) > 1 and image.format != "MPO":
                notes.append(f"the first of {frames} {'pages' if image.format == 'TIFF' else 'frames'}")
        return picture


@contextmanager
def _pillows_cap_off() -> Iterator[None]:
    """Opening a picture allocates nothing for its pixels; `check_limits` comes before anything that does."""
    with _CAP_LOCK:
        cap, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None
        try:
            yield
        finally:
            Image.MAX_IMAGE_PIXELS = cap


def _unidentified(stream: BinaryIO) -> str:
    try:
        stream.seek(0)
        start = stream.read(len(MAGIC))
    except OSError:
        start = b"?"
    if not start:
        return "the file is empty"
    if start == MAGIC:
        return "already a .tok file"
    return "not a PNG, JPEG, WebP, TIFF, BMP, PPM, GIF or AVIF picture, or too damaged to be known as one"


def _colour(background: Background) -> tuple[int, ...]:
    if isinstance(background, (tuple, list)) and len(background) == 3:
        return tuple(background)
    if not isinstance(background, str):
        raise UsageError(f"background {background!r} is no colour: expected a name, #rrggbb or (r, g, b)")
    try:
        return ImageColor.getrgb(background)[:3]
    except ValueError:
        raise UsageError(f"background {background!r} is no colour: expected a name, #rrggbb or rgb(r, g, b)") from None


def _upright(image: Image.Image) -> Image.Image:
    """Applies the EXIF orientation; damaged EXIF does not make a picture unreadable."""
    image.load()
    try:
        return ImageOps.exif_transpose(image)
    except DECODER_ERRORS:
        return image


def _to_8_bits(image: Image.Image) -> Image.Image:
    """Grey of 16 bits (modes I;16* and I) and of floats in 0..1 (mode F) -> mode L, rounded to nearest."""
    if image.mode != "F" and not image.mode.startswith("I"):
        return image
    import numpy as np

    samples = np.asarray(image)
    if image.mode == "F":
        if not (samples.min() >= 0 and samples.max() <= 1):
            raise ValueError("floating-point samples outside 0..1")
        return Image.fromarray(np.rint(samples * 255).astype(np.uint8))
    if samples.min() < 0 or samples.max() > 65_535:
        raise ValueError("integer samples outside 0..65535")
    return Image.fromarray(((samples.astype(np.uint32) * 255 + 32_767) // 65_535).astype(np.uint8))


def _split_alpha(image: Image.Image) -> tuple[Image.Image, Image.Image | None]:
    """Any 8-bit mode -> colours as L, RGB, CMYK or LAB (what ICC profiles describe), and the alpha channel if any."""
    if image.mode == "La":
        image = image.convert("LA")
    if image.mode == "LA":
        return image.getchannel("L"), image.getchannel("A")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        return image.convert("RGB"), image.getchannel("A")
    if image.mode == "1":
        return image.convert("L"), None
    return (image if image.mode in {"L", "RGB", "CMYK", "LAB"} else image.convert("RGB")), None


def _to_srgb(image: Image.Image, profile: bytes | None) -> Image.Image:
    if profile:
        try:
            converted = ImageCms.profileToProfile(image, io.BytesIO(profile), _SRGB, outputMode="RGB")
        except (ImageCms.PyCMSError, OSError, TypeError, ValueError):
            converted = None
        if converted is not None:
            return converted
    return image if image.mode == "RGB" else image.convert("RGB")


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split()) or type(error).__name__
