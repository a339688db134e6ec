"""Pictures from outside -> upright 8-bit sRGB, and pictures -> file bytes; `titokc.tiling` cuts them for the model.

Pillow decodes and encodes, LittleCMS (inside Pillow) converts by ICC profiles; no torch here. What Pillow does not see
to: `png` leaves out what pixels do not need, `tiff` finds the page, `colour` converts, `names` knows foreign files.
"""

from __future__ import annotations

import io
import os
import struct
import zlib
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from PIL import Image, ImageCms, ImageColor, ImageFile, ImageOps, UnidentifiedImageError

from titokc.container import MAGIC
from titokc.errors import InputError, LimitExceededError, UsageError
from titokc.files import reason
from titokc.imaging.names import READABLE, name_of
from titokc.limits import DEFAULT_LIMITS, Limits

if TYPE_CHECKING:
    from titokc.imaging.colour import Colours
    from titokc.imaging.tiff import Page

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
# Of some formats it checks that itself, by a setting of the whole process.
_BEYOND_PILLOW = "more pixels than Pillow reads of this format"
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
        return to_rgb(source, background, limits)
    if isinstance(source, (bytes, bytearray, memoryview)):
        return _decode(io.BytesIO(source), background, limits, at_least, notes)
    if isinstance(source, (str, os.PathLike)):
        try:
            with Path(source).open("rb") as stream:
                return _decode(stream, background, limits, at_least, notes)
        except (OSError, ValueError) as error:  # ValueError: a name with a null character
            raise InputError(f"cannot be read: {reason(error)}") from error
    if not hasattr(source, "read") or isinstance(source, io.TextIOBase):
        kind = f"{type(source).__module__}.{type(source).__name__}".removeprefix("builtins.")
        hint = ": Image.fromarray makes one" if hasattr(source, "__array_interface__") else ""
        raise UsageError(f"expected a Pillow image, a path, bytes or a binary file; found {kind}{hint}")
    return _decode(source, background, limits, at_least, notes)


def to_rgb(
    image: Image.Image,
    background: Background = "white",
    limits: Limits = DEFAULT_LIMITS,
    notes: list[str] | None = None,
    colours: Colours | None = None,
) -> Image.Image:
    """Any Pillow image -> mode RGB, sRGB, 8 bits, upright. colours: its own, where no ICC profile says them.

    The EXIF orientation is applied, an ICC profile converted (one that does not fit its picture is ignored, as
    browsers do), 16-bit samples are rounded to 8, and transparency is laid over `background` (a Pillow colour).
    """
    notes = [] if notes is None else notes
    backdrop = _colour(background)
    limits.check(image.size)
    try:
        image = _upright(image)
        colour, alpha = _split_alpha(_to_8_bits(image))
        colour = _to_srgb(colour, image.info.get("icc_profile"), colours, notes)
    except DECODER_ERRORS as error:
        raise InputError(f"not a readable picture: {_one_line(error)}") from error
    if alpha is None:
        return colour
    if alpha.getextrema() == (0, 0):
        notes.append("transparent everywhere: nothing but background")
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
    from titokc.imaging import png, tiff

    colours, pages, number = None, [], 0
    try:
        stream, start = _start(stream)
        if start.startswith(png.MAGIC):
            found = png.read(stream, limits)
            notes += found.notes
            colours = found.colours
            image = _opened(io.BytesIO(found.data), start)
            image.info["icc_profile"] = found.profile
        else:
            pages = tiff.pages(stream)
            number = tiff.picture_of(pages)
            if tiff.is_raw(pages, start):
                width, height = pages[number].size
                raise InputError(
                    f"a camera raw picture, of which only a preview ({width}x{height}) is read: convert it first"
                )
            image = _opened(stream, start)
            if number:
                image.seek(number)
    except (UnidentifiedImageError, EOFError) as error:
        raise InputError(_unidentified(start, pages[number : number + 1])) from error
    except Image.DecompressionBombError as error:
        raise LimitExceededError(_BEYOND_PILLOW) from error
    except DECODER_ERRORS as error:
        raise InputError(f"not a readable picture: {_one_line(error)}") from error
    with image:
        limits.check(image.size)
        if at_least:
            image.draft(None, (at_least, at_least))
        try:
            picture: Image.Image = _loaded(image, stream, notes)
            if pages:
                picture = _scaled(picture, pages[number])
        except Image.DecompressionBombError as error:
            raise LimitExceededError(_BEYOND_PILLOW) from error
        except DECODER_ERRORS as error:
            raise InputError(f"not a readable picture: {_one_line(error)}") from error
        if image.format == "BMP" and image.mode == "RGBA" and image.getchannel("A").getextrema() == (0, 0):
            picture = image.convert("RGB")  # an alpha channel that nobody filled
        if image.format == "AVIF":
            colours = _colours_of_avif(stream)
        frames = len(pages) if pages else 1
        if start.startswith(png.MAGIC):
            frames = found.frames
        elif not pages and image.format != "MPO":
            with suppress(*DECODER_ERRORS):  # later frames may be damaged
                frames = getattr(image, "n_frames", 1)
        if number:
            width, height = pages[0].size
            notes.append(f"page {number + 1} of {frames}: the first is a small copy ({width}x{height})")
        elif frames > 1:
            notes.append(f"the first of {frames} {'pages' if pages else 'frames'}")
        return to_rgb(picture, background, limits, notes, colours)


def _start(stream: BinaryIO) -> tuple[BinaryIO, bytes]:
    """A stream that can be read anew, and its first bytes."""
    try:
        stream.seek(0)
    except (AttributeError, io.UnsupportedOperation):
        stream = io.BytesIO(stream.read())
    start = stream.read(16)
    stream.seek(0)
    return stream, start


def _opened(stream: BinaryIO, start: bytes) -> ImageFile.ImageFile:
    """What Image.open does, but for its guard against too many pixels, which is the same for a whole process:
    opening allocates nothing for pixels, and `Limits.check` comes before anything that does."""
    Image.preinit()
    for name in READABLE_FORMATS:
        if name not in Image.OPEN:
            Image.init()
        factory, accept = Image.OPEN.get(name, (None, None))
        if factory is None or (accept is not None and accept(start) is not True):
            continue
        with suppress(SyntaxError, IndexError, TypeError, struct.error):
            stream.seek(0)
            return factory(stream, "")
    raise UnidentifiedImageError


def _loaded(image: ImageFile.ImageFile, stream: BinaryIO, notes: list[str]) -> ImageFile.ImageFile:
    """The image with its pixels; also of a JPEG file that lacks nothing but the marker of its end."""
    try:
        image.load()
        return image
    except OSError:
        if image.format != "JPEG":
            raise
        scale, loaded = image.size, []
        stream.seek(0)
        data = stream.read().rstrip(b"\xff")
        # If all pixels are there, it makes no difference what follows them.
        for more in (b"", b"\x55" * 64, b"\xa9" * 64):
            again = _opened(io.BytesIO(data + more + b"\xff\xd9"), data[:16])
            again.draft(None, scale)
            again.load()
            loaded.append(again)
        if any(again.tobytes() != loaded[0].tobytes() for again in loaded):
            raise
        notes.append("a JPEG file without its end: all pixels are there")
        return loaded[0]


def _scaled(image: Image.Image, page: Page) -> Image.Image:
    """Grey of 9 to 16 bits in a TIFF file: whose largest sample, and whether that is black, only its tags say."""
    if not image.mode.startswith("I;16") or not (page.white < 65_535 or page.is_negative):
        return image
    grey = _to_8_bits(image, page.white)
    result = ImageOps.invert(grey) if page.is_negative else grey
    result.info = image.info
    return result


def _colours_of_avif(stream: BinaryIO) -> Colours | None:
    """As its nclx box says, if it has one."""
    from titokc.imaging import colour

    stream.seek(0)
    head = stream.read(1 << 16)
    at = head.find(b"colrnclx")
    return colour.from_code_points(*struct.unpack_from(">HH", head, at + 8)) if 0 <= at <= len(head) - 12 else None


def _unidentified(start: bytes, pages: list[Page]) -> str:
    if not start:
        return "the file is empty"
    if start.startswith(MAGIC):
        return "already a .tok file"
    if name := name_of(start):
        return f"{name}: convert it first"
    if pages and pages[0].pixels:
        return f"{pages[0].samples()} are not read: convert this TIFF picture to 8 or 16 bits"
    return f"not a {READABLE} picture, or too damaged to be known as one"


def _colour(background: Background) -> tuple[int, ...]:
    if (
        isinstance(background, (tuple, list))
        and len(background) == 3
        and all(part in range(256) for part in background)
    ):
        return tuple(map(int, background))
    if not isinstance(background, str):
        raise UsageError(f"background {background!r} is no colour: expected a name, #rrggbb or (r, g, b) of 0..255")
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


def _to_8_bits(image: Image.Image, white: int = 65_535) -> Image.Image:
    """Grey of up to 16 bits (modes I;16* and I) and of floats in 0..1 (mode F) -> mode L, rounded to nearest, or LA
    where one of these greys is transparent."""
    if image.mode != "F" and not image.mode.startswith("I"):
        return image
    import numpy as np

    samples = np.asarray(image)
    if image.mode == "F":
        if not (samples.min() >= 0 and samples.max() <= 1):
            raise ValueError("floating-point samples outside 0..1")
        return Image.fromarray(np.rint(samples * 255).astype(np.uint8))
    if samples.min() < 0 or samples.max() > white:
        raise ValueError(f"integer samples outside 0..{white}")
    grey = Image.fromarray(((samples.astype(np.uint32) * 255 + white // 2) // white).astype(np.uint8))
    if (key := image.info.get("transparency")) is None:
        return grey
    return Image.merge("LA", (grey, Image.fromarray(np.where(samples == key, 0, 255).astype(np.uint8))))


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


def _to_srgb(image: Image.Image, profile: bytes | None, colours: Colours | None, notes: list[str]) -> Image.Image:
    if profile:
        try:
            converted = ImageCms.profileToProfile(image, io.BytesIO(profile), _SRGB, outputMode="RGB")
        except (ImageCms.PyCMSError, OSError, TypeError, ValueError):
            converted = None
        if converted is not None:
            return converted
        notes.append("a colour profile that does not fit: ignored")
    elif colours is not None and not colours.is_srgb and image.mode in {"L", "RGB"}:
        from titokc.imaging.colour import to_srgb

        if colours.transfer in {"pq", "hlg"}:
            notes.append(f"high dynamic range ({colours.transfer}): what is brighter than paper (203 cd/m2) is white")
        return to_srgb(image, colours)
    return image if image.mode == "RGB" else image.convert("RGB")


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split()) or type(error).__name__
