"""The general image formats, one small class each; `titokc.bench.contenders.search` finds the best setting of each."""

from __future__ import annotations

import io
import shutil
import subprocess
import tempfile
from functools import cache, cached_property
from importlib import metadata, util
from itertools import groupby
from pathlib import Path
from typing import Any

from PIL import Image, features

from titokc.bench.contenders.interface import Point
from titokc.bench.contenders.search import Format
from titokc.errors import InputError


def _saved(image: Image.Image, **settings: Any) -> bytes:
    stream = io.BytesIO()
    image.save(stream, **settings)
    return stream.getvalue()


def _pillow(feature: str, library: str) -> str:
    return f"{library} {features.version(feature)}, Pillow {metadata.version('pillow')}"


class JPEG(Format):
    """Sequential JPEG, 4:2:0 or 4:4:4 ("chroma"), optimised Huffman tables.

    Variant "tables": 2 is libjpeg's pair of quantisation tables; 1 uses its luminance table for the colours too, which
    saves 67 of the roughly 285 bytes that a JPEG has at least.
    """

    name = "jpeg"
    suffix = ".jpg"
    progressive = False
    ladder = tuple(range(1, 96))
    variants = tuple({"tables": tables, "chroma": chroma} for chroma in ("4:2:0", "4:4:4") for tables in (1, 2))
    sizes_by_variant = True  # strong colours in full: 1.8 dB, in a picture of less than half the side

    @property
    def version(self) -> str:
        turbo = features.version("libjpeg_turbo")
        return f"libjpeg-turbo {turbo}, Pillow {metadata.version('pillow')}" if turbo else _pillow("jpg", "libjpeg")

    def save(self, image: Image.Image, point: Point) -> bytes:
        one_table = point["tables"] == 1
        quality = {"qtables": [_luminance_table(point["quality"])]} if one_table else {"quality": point["quality"]}
        colours = {"subsampling": point["chroma"], "progressive": self.progressive}
        return _saved(image, format="JPEG", optimize=True, **colours, **quality)


class ProgressiveJPEG(JPEG):
    """Progressive JPEG, otherwise as `JPEG`."""

    name = "jpeg-progressive"
    progressive = True


@cache
def _luminance_table(quality: int) -> list[int]:
    """libjpeg's luminance table at a quality of 1 to 100: read back from a file that it writes."""
    with Image.open(io.BytesIO(_saved(Image.new("L", (8, 8)), format="JPEG", quality=quality))) as picture:
        return list(picture.quantization[0])


def _webp_quality(step: float) -> float:
    """The quality that makes libwebp's base quantiser `step` (0 is finest, 127 coarsest; src/enc/quant_enc.c)."""
    linear = max(0.0, 1 - (step + 0.5) / 127) ** 3
    return float(f"{100 * (linear * 1.5 if linear < 0.5 else (linear + 1) / 2):.6g}")


class WebP(Format):
    """Lossy WebP at method 6, one quality for each of the 128 quantisers.

    Through the package webp, as Pillow does not give all settings; with those of Pillow the files are the same.
    Variants: libwebp's own spatial noise shaping (50) with four segments, which looks better and costs PSNR; and
    neither. Finishes: the loop filter that the decoder applies, libwebp's own (strong, 60, 0) first.
    """

    name = "webp"
    suffix = ".webp"
    feature = package = "webp"
    ladder = tuple(_webp_quality(step) for step in range(127, -1, -1))
    longest_side = 16_383
    variants = ({"noise_shaping": 0, "segments": 1}, {"noise_shaping": 50, "segments": 4})
    finishes = tuple(
        {"loop_filter": kind, "strength": strength, "sharpness": sharpness}
        for kind in ("strong", "simple")
        for sharpness in (0, 3, 7)
        for strength in (60, 50, 40, 30, 20, 10, 0, 80, 100)
    )

    @property
    def version(self) -> str:
        return f"webp {metadata.version('webp')}, decoded by {_pillow('webp', 'libwebp')}"

    def save(self, image: Image.Image, point: Point) -> bytes:
        import webp

        config = webp.WebPConfig.new(quality=point["quality"], method=6)
        config.ptr.sns_strength, config.ptr.segments = point["noise_shaping"], point["segments"]
        config.ptr.filter_type = ("simple", "strong").index(point["loop_filter"])
        config.ptr.filter_strength, config.ptr.filter_sharpness = point["strength"], point["sharpness"]
        return bytes(webp.WebPPicture.from_pil(image).encode(config).buffer())


class AVIF(Format):
    """AVIF, one quality for each of libavif's 64 quantisers; 4:4:4 often wins where pictures are small."""

    name = "avif"
    suffix = ".avif"
    feature = "avif"
    breadth = 6
    around = (1, 4)
    ladder = tuple(next(group) for _, group in groupby(range(100), lambda quality: ((100 - quality) * 63 + 50) // 100))
    variants = (
        *({"speed": speed, "tune": tune, "chroma": "4:2:0"} for speed in (6, 2) for tune in ("psnr", "iq")),
        *({"speed": 2, "tune": tune, "chroma": "4:4:4"} for tune in ("psnr", "ssim")),
    )

    @property
    def version(self) -> str:
        return _pillow("avif", "libavif")

    def save(self, image: Image.Image, point: Point) -> bytes:
        return _saved(
            image,
            format="AVIF",
            subsampling=point["chroma"],
            quality=point["quality"],
            speed=point["speed"],
            advanced={"tune": point["tune"]},
            max_threads=1,
            autotiling=False,
        )


class JPEG2000(Format):
    """A bare JPEG 2000 codestream: 9/7 wavelet, colour transform, one layer, a comment of one byte.

    "quality" is the size aimed at, in bits a pixel (the codestream's rate control takes a ratio). The number of
    resolutions follows from the size (2 from 32 pixels, 3 from 64, ...); "more" adds one.
    """

    name = "jpeg2000"
    suffix = ".j2k"
    feature = "jpg_2000"
    ladder = tuple(float(f"{0.002 * 1.03**step:.4g}") for step in range(290))
    variants = ({"more": 0}, {"more": 1})
    sizes_by_variant = True  # another resolution is worth 6 dB at one size and nothing at the next
    around = (2, 6)

    @property
    def version(self) -> str:
        return _pillow("jpg_2000", "OpenJPEG")

    def save(self, image: Image.Image, point: Point) -> bytes:
        resolutions = max(1, min(image.size).bit_length() - 4) + point["more"]
        return _saved(
            image,
            format="JPEG2000",
            no_jp2=True,
            irreversible=True,
            mct=1,
            num_resolutions=min(resolutions, min(image.size).bit_length()),  # OpenJPEG cannot halve a single pixel
            quality_mode="rates",
            quality_layers=[24 / point["quality"]],
            comment="-",  # without one, OpenJPEG writes 33 bytes of its own name and version
        )


class JPEGXL(Format):
    """A bare JPEG XL codestream through pillow-jxl-plugin, else through the programs cjxl and djxl."""

    name = "jpegxl"
    suffix = ".jxl"
    breadth = 8
    around = (2, 4)
    ladder = (*(step / 2 for step in range(61)), *range(31, 97))
    variants = ({"effort": 7}, {"effort": 9})

    def __init__(self) -> None:
        super().__init__()
        if not self._plugin:  # a process for each file
            self.breadth, self.around = 3, (1, 2)

    @classmethod
    def missing(cls) -> str | None:
        there = util.find_spec("pillow_jxl") or (shutil.which("cjxl") and shutil.which("djxl"))
        return None if there else "neither pillow-jxl-plugin nor cjxl and djxl are installed"

    @cached_property
    def _plugin(self) -> bool:
        if util.find_spec("pillow_jxl") is None:
            return False
        from pillow_jxl import JpegXLImagePlugin

        JpegXLImagePlugin.DECODE_THREADS = 0  # it would start a thread on every core for each picture
        return True

    @cached_property
    def version(self) -> str:
        if self._plugin:
            return f"pillow-jxl-plugin {metadata.version('pillow-jxl-plugin')}"
        shown = subprocess.run(["cjxl", "--version"], capture_output=True, text=True, check=True).stdout
        return " ".join(shown.split()[:2])

    def save(self, image: Image.Image, point: Point) -> bytes:
        if self._plugin:
            return _saved(image, format="JXL", quality=point["quality"], effort=point["effort"], num_threads=0)
        distance = f"{_jxl_distance(point['quality']):.4f}"
        options = ["-d", distance, "-e", str(point["effort"]), "--num_threads=0", "--quiet"]
        return self._converted("cjxl", ".png", _saved(image, format="PNG"), ".jxl", *options)

    def decode(self, data: bytes) -> Image.Image:
        if self._plugin:
            return super().decode(data)
        return super().decode(self._converted("djxl", ".jxl", data, ".png", "--quiet"))

    @staticmethod
    def _converted(program: str, suffix: str, data: bytes, to: str, *options: str) -> bytes:
        with tempfile.TemporaryDirectory(prefix="titokc-") as folder:
            source, target = Path(folder, f"in{suffix}"), Path(folder, f"out{to}")
            source.write_bytes(data)
            command = [program, str(source), str(target), *options]
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            if done.returncode:
                why = done.stderr.strip().splitlines() or [f"exit code {done.returncode}"]
                raise InputError(f"{program} failed: {why[-1]}")
            return target.read_bytes()


def _jxl_distance(quality: float) -> float:
    """JxlEncoderDistanceFromQuality of libjxl, so that both ways to JPEG XL share a ladder."""
    if quality >= 30:
        return 0.1 + (100 - quality) * 0.09
    return min(25.0, 53 / 3000 * quality * quality - 23 / 20 * quality + 25)
