"""What is compared: our models through the public API, and the baselines by their names."""

from __future__ import annotations

import re
from functools import cached_property
from importlib import util
from pathlib import Path
from typing import TYPE_CHECKING

from PIL import Image, features

from titokc.bench.formats import AVIF, JPEG, JPEG2000, JPEGXL, ProgressiveJPEG, WebP
from titokc.bench.interface import Codec, Point
from titokc.bench.placeholders import BlurHash, ThumbHash
from titokc.errors import UsageError

if TYPE_CHECKING:
    from titokc.codec import Codec as TitokCodec


class TitokModel(Codec):
    """One of our models, through the public API. A point is {"tokens": tokens of a tile, "tiles": "RxC"}."""

    suffix = ".tok"

    def __init__(self, name: str, codec: TitokCodec) -> None:
        self.name = name
        self.codec = codec

    @cached_property
    def version(self) -> str:
        import titokc

        return f"titokc {titokc.__version__}, weights {self.codec.tokenizer.weights_fingerprint.hex()[:12]}"

    def encode(self, image: Image.Image, point: Point) -> bytes:
        return self.codec.encode(image, **point)

    def decode(self, data: bytes) -> Image.Image:
        return self.codec.decode(data)

    def best_point(self, image: Image.Image, budget: int) -> Point:
        """The setting whose file is at most `budget` bytes and best (by `Codec.encode(target_size=...)`)."""
        from titokc.container import read_header

        header = read_header(self.codec.encode(image, target_size=budget, effort=0))  # grid and tokens are the same
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
