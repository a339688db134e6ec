"""What a contender is: it encodes a picture at a point, decodes the file, and finds its best file within a budget.

A point is the setting that made a file, as plain JSON values. Only whole files count: containers, headers and all.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from importlib import util
from typing import Any

import numpy as np
from PIL import Image, features

from titokc.judge.pixels import psnr

Point = dict[str, Any]

RESAMPLING = {
    "lanczos": Image.Resampling.LANCZOS,
    "bicubic": Image.Resampling.BICUBIC,
    "hamming": Image.Resampling.HAMMING,
    "bilinear": Image.Resampling.BILINEAR,
    "box": Image.Resampling.BOX,
}
ENLARGERS = ("bicubic", "lanczos")


@dataclass(frozen=True)
class Found:
    """The best file: the point that makes it, its bytes, the filter that enlarges it, and the PSNR in dB then.

    A model chooses its point itself: filter and PSNR are None, and `encode_ms` is how long choosing and encoding took.
    """

    point: Point
    data: bytes
    enlarge: str | None
    psnr: float | None
    encode_ms: float | None = None


@dataclass(frozen=True)
class Impossible:
    """Nothing that the contender can write is small enough; `smallest` is the smallest file seen, in bytes, None if it
    cannot hold such a picture. `why` says more, where there is more to say."""

    smallest: int | None
    why: str | None = None

    @property
    def reason(self) -> str:
        if self.why or self.smallest is None:
            return self.why or "the format cannot hold a picture of this size"
        return f"the smallest file seen is {self.smallest} bytes"


class Contender(ABC):
    """A codec under test.

    Attributes: `name` as on the command line, `suffix` of its files, `kind` "model" or "baseline". `searched`: whether
    `best` tries many files, on the processor alone, and always finds the same: it then runs beforehand, beside others.
    `feature` of Pillow, `package`: what it needs beyond what titokc does.
    """

    name: str
    suffix: str
    kind = "baseline"
    searched = True
    feature = package = ""

    @classmethod
    def missing(cls) -> str | None:
        """Why it cannot run here, or None if it can."""
        if cls.feature and not features.check(cls.feature):
            return f"this Pillow was built without {cls.feature}"
        if cls.package and util.find_spec(cls.package) is None:
            return f"the package {cls.package} is not installed (pip install 'titokc[bench]')"
        return None

    @property
    @abstractmethod
    def version(self) -> str:
        """Of what does the work."""

    @property
    def files(self) -> str:
        """Contenders of which this is the same make the same files, as the looks of a model do."""
        return self.name

    @abstractmethod
    def encode(self, image: Image.Image, point: Point) -> bytes:
        """An RGB picture -> a whole file."""

    @abstractmethod
    def decode(self, data: bytes) -> Image.Image:
        """A whole file -> an RGB picture, at the size that the file holds."""

    @abstractmethod
    def best(self, picture: Image.Image, *budgets: int) -> list[Found | Impossible]:
        """For each budget the best whole file of at most so many bytes; what is found depends on no other budget."""

    def floor(self, picture: Image.Image) -> Found | Impossible | None:  # noqa: ARG002 - most have none
        """The smallest file of the picture as it is, not reduced; None if it has no such thing."""
        return None


def enlarged(picture: Image.Image, size: tuple[int, int], enlarger: str) -> Image.Image:
    return picture if picture.size == size else picture.resize(size, RESAMPLING[enlarger])


def measured(contender: Contender, image: Image.Image, point: Point, data: bytes) -> Found:
    """A file, with the better way to enlarge it."""
    way, score = better_enlarged(image, contender.decode(data))
    return Found(point, data, way, score)


def better_enlarged(image: Image.Image, picture: Image.Image) -> tuple[str, float]:
    """The filter that brings `picture` nearer to `image`, and its PSNR in dB."""
    pixels = np.asarray(image)
    scores = {way: psnr(pixels, np.asarray(enlarged(picture, image.size, way))) for way in ENLARGERS}
    way = max(scores, key=lambda way: scores[way])
    return way, scores[way]
