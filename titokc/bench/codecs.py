"""What is compared: one small class for each codec; `titokc.bench.search` finds the best setting of each.

A point is the setting that made a file, as plain JSON values. Only whole files count: containers, headers and all.
"""

from __future__ import annotations

import io
import math
import re
import shutil
import subprocess
import tempfile
from abc import ABC, abstractmethod
from contextlib import redirect_stdout
from functools import cache, cached_property
from importlib import metadata, util
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any

from PIL import Image, features

from titokc.errors import InputError, UsageError

if TYPE_CHECKING:
    from titokc.codec import Codec as TitokCodec

Point = dict[str, Any]

RESAMPLING = {
    "lanczos": Image.Resampling.LANCZOS,
    "bicubic": Image.Resampling.BICUBIC,
    "hamming": Image.Resampling.HAMMING,
    "bilinear": Image.Resampling.BILINEAR,
    "box": Image.Resampling.BOX,
}


class Codec(ABC):
    """An image codec under test.

    Attributes: `name` as on the command line, `version` of what does the work, `suffix` of its files.
    """

    name: str
    suffix: str

    @property
    @abstractmethod
    def version(self) -> str: ...

    @abstractmethod
    def encode(self, image: Image.Image, point: Point) -> bytes:
        """An RGB picture -> a whole file."""

    @abstractmethod
    def decode(self, data: bytes) -> Image.Image:
        """A whole file -> an RGB picture, at the size that the file holds."""


class Format(Codec):
    """A general image format: a point is a picture size, the filter that reduced it to that, and a quality.

    `ladder`: values of "quality" in order of growing files. `variants`: further settings, as sets of keys of a point;
    sizes are chosen with the first one that fits. `breadth` and `around`: how many combinations the search looks at
    closely, and how many steps of the ladder below and above the expected one; less where files are slow.
    """

    ladder: tuple[float, ...]
    variants: tuple[Point, ...] = ({},)
    breadth = 24
    around = (4, 16)

    def encode(self, image: Image.Image, point: Point) -> bytes:
        size = (point["width"], point["height"])
        return self.save(image.resize(size, RESAMPLING[point["filter"]]) if size != image.size else image, point)

    @abstractmethod
    def save(self, image: Image.Image, point: Point) -> bytes:
        """The picture as it is -> a whole file, at this quality and variant."""

    def decode(self, data: bytes) -> Image.Image:
        with Image.open(io.BytesIO(data)) as picture:
            return picture.convert("RGB")


def _saved(image: Image.Image, **settings: Any) -> bytes:
    stream = io.BytesIO()
    image.save(stream, **settings)
    return stream.getvalue()


def _pillow(feature: str, library: str) -> str:
    return f"{library} {features.version(feature)}, Pillow {metadata.version('pillow')}"


class JPEG(Format):
    """Sequential JPEG, 4:2:0, optimised Huffman tables.

    Variant "tables": 2 is libjpeg's pair of quantisation tables; 1 uses its luminance table for the colours too, which
    saves 67 of the roughly 285 bytes that a JPEG has at least.
    """

    name = "jpeg"
    suffix = ".jpg"
    progressive = False
    ladder = tuple(range(1, 96))
    variants = ({"tables": 1}, {"tables": 2})

    @property
    def version(self) -> str:
        turbo = features.version("libjpeg_turbo")
        return f"libjpeg-turbo {turbo}, Pillow {metadata.version('pillow')}" if turbo else _pillow("jpg", "libjpeg")

    def save(self, image: Image.Image, point: Point) -> bytes:
        one_table = point["tables"] == 1
        quality = {"qtables": [_luminance_table(point["quality"])]} if one_table else {"quality": point["quality"]}
        return _saved(image, format="JPEG", optimize=True, subsampling="4:2:0", progressive=self.progressive, **quality)


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
    """Lossy WebP at method 6, one quality for each of the 128 quantisers."""

    name = "webp"
    suffix = ".webp"
    ladder = tuple(_webp_quality(step) for step in range(127, -1, -1))

    @property
    def version(self) -> str:
        return _pillow("webp", "libwebp")

    def save(self, image: Image.Image, point: Point) -> bytes:
        return _saved(image, format="WEBP", method=6, quality=point["quality"])


class AVIF(Format):
    """AVIF, 4:2:0, one quality for each of libavif's 64 quantisers."""

    name = "avif"
    suffix = ".avif"
    breadth = 6
    around = (1, 4)
    ladder = tuple(next(group) for _, group in groupby(range(100), lambda quality: ((100 - quality) * 63 + 50) // 100))
    variants = tuple({"speed": speed, "tune": tune} for speed in (6, 2) for tune in ("psnr", "iq"))

    @property
    def version(self) -> str:
        return _pillow("avif", "libavif")

    def save(self, image: Image.Image, point: Point) -> bytes:
        return _saved(
            image,
            format="AVIF",
            subsampling="4:2:0",
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
    ladder = tuple(round(0.02 * 1.03**step, 5) for step in range(210))
    variants = ({"more": 0}, {"more": 1})
    breadth = 8
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
    breadth = 4
    around = (1, 3)
    ladder = (*(step / 2 for step in range(61)), *range(32, 97, 2))
    variants = ({"effort": 7}, {"effort": 9})

    @staticmethod
    def present() -> bool:
        return util.find_spec("pillow_jxl") is not None or bool(shutil.which("cjxl") and shutil.which("djxl"))

    @cached_property
    def _plugin(self) -> bool:
        if util.find_spec("pillow_jxl") is None:
            return False
        __import__("pillow_jxl")
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


class Placeholder(Codec):
    """A string that stands for a picture while it loads: a handful of settings, all of which are tried."""

    points: tuple[Point, ...]


class ThumbHash(Placeholder):
    """ThumbHash of the picture reduced to 100 pixels, as its documentation asks; about 25 bytes, no settings."""

    name = "thumbhash"
    suffix = ".thumbhash"
    points = ({},)

    @property
    def version(self) -> str:
        return f"thumbhash {metadata.version('thumbhash')}"

    def encode(self, image: Image.Image, point: Point) -> bytes:  # noqa: ARG002 - there is nothing to set
        from thumbhash import rgba_to_thumb_hash

        small = image.convert("RGBA")
        small.thumbnail((100, 100), Image.Resampling.LANCZOS)
        return bytes(rgba_to_thumb_hash(*small.size, list(small.tobytes())))

    def decode(self, data: bytes) -> Image.Image:
        from thumbhash import thumb_hash_to_rgba

        with redirect_stdout(io.StringIO()):  # it prints the aspect ratio
            width, height, pixels = thumb_hash_to_rgba(list(data))
        return Image.frombytes("RGBA", (width, height), bytes(pixels)).convert("RGB")


class BlurHash(Placeholder):
    """BlurHash, with every number of components from 1x1 to 9x9, as the ASCII text that it is defined as.

    Encoded from 64 pixels, far beyond its nine cosines, and decoded at 64 pixels.
    """

    name = "blurhash"
    suffix = ".blurhash"
    points = tuple({"x": x, "y": y} for x in range(1, 10) for y in range(1, 10))

    @property
    def version(self) -> str:
        return f"blurhash-python {metadata.version('blurhash-python')}"

    def encode(self, image: Image.Image, point: Point) -> bytes:
        import blurhash

        small = image.copy()  # blurhash closes what it is given
        small.thumbnail((64, 64), Image.Resampling.BOX)
        return blurhash.encode(small, point["x"], point["y"]).encode("ascii")

    def decode(self, data: bytes) -> Image.Image:
        import blurhash

        return blurhash.decode(data.decode("ascii"), 64, 64)


class TitokModel(Codec):
    """One of our models, through the public API. A point is {"tokens": tokens of a tile, "tiles": "RxC"}."""

    suffix = ".tok"

    def __init__(self, name: str, codec: TitokCodec) -> None:
        self.name = name
        self.codec = codec

    @cached_property
    def version(self) -> str:
        import titokc

        return f"titokc {titokc.__version__}, weights {self.codec.tokenizer.fingerprint.hex()[:12]}"

    def encode(self, image: Image.Image, point: Point) -> bytes:
        return self.codec.encode(image, **point)

    def decode(self, data: bytes) -> Image.Image:
        return self.codec.decode(data)

    def best_point(self, image: Image.Image, budget: int) -> Point:
        """The setting whose file is at most `budget` bytes and best (by `Codec.encode(target_size=...)`)."""
        from titokc.container import read_header

        header = read_header(self.codec.encode(image, target_size=budget))
        return {"tokens": header.tokens_per_tile, "tiles": f"{header.rows}x{header.columns}"}


BASELINES: dict[str, type[Codec]] = {
    kind.name: kind for kind in (JPEG, ProgressiveJPEG, WebP, AVIF, JPEG2000, JPEGXL, ThumbHash, BlurHash)
}
_PACKAGES = {"thumbhash": "thumbhash", "blurhash": "blurhash"}


def missing(name: str) -> str | None:
    """Why a baseline cannot run here, or None if it can."""
    features_of = {"webp": "webp", "avif": "avif", "jpeg2000": "jpg_2000"}
    if name in features_of and not features.check(features_of[name]):
        return f"this Pillow was built without {features_of[name]}"
    if name == "jpegxl" and not JPEGXL.present():
        return "neither pillow-jxl-plugin nor cjxl and djxl are installed"
    if name in _PACKAGES and util.find_spec(_PACKAGES[name]) is None:
        return f"the package {name} is not installed (pip install 'titokc[bench]')"
    return None


def open_codec(spec: str, device: str = "auto") -> Codec:
    """A baseline by its name, else one of our models: a name, a path, or LABEL=NAME or LABEL=PATH.

    UsageError if a baseline cannot run here.
    """
    if spec in BASELINES:
        if why := missing(spec):
            raise UsageError(f"{spec}: {why}")
        return BASELINES[spec]()
    from titokc.codec import Codec as TitokCodec

    label, _, model = spec.rpartition("=")
    name = label or Path(model).name
    if name in BASELINES or name == "original" or not re.fullmatch(r"\w[\w.+-]*", name):
        raise UsageError(f"{spec}: {name!r} cannot be the name of a model here; give it one (LABEL={model})")
    return TitokModel(name, TitokCodec(model, device=device))


def reduced(size: tuple[int, int], long_side: int) -> tuple[int, int]:
    """The size with this long side and the same aspect ratio, at least one pixel each way."""
    scale = long_side / max(size)
    return max(1, math.floor(size[0] * scale + 0.5)), max(1, math.floor(size[1] * scale + 0.5))
