"""What a codec under test is: encode a picture at a point, decode the file; and the two kinds of baselines.

A point is the setting that made a file, as plain JSON values. Only whole files count: containers, headers and all.
"""

from __future__ import annotations

import io
import math
from abc import ABC, abstractmethod
from typing import Any

from PIL import Image

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
    sizes are chosen with the first one that fits, or with each (`sizes_by_variant`). `breadth` and `around`: how many
    combinations the search looks at closely, and how many steps of the ladder below and above the expected one; less
    where files are slow.
    `longest_side`: of a picture that it can hold, in pixels.
    """

    ladder: tuple[float, ...]
    variants: tuple[Point, ...] = ({},)
    breadth = 24
    around = (4, 16)
    longest_side = 65_535
    sizes_by_variant = False

    def encode(self, image: Image.Image, point: Point) -> bytes:
        size = (point["width"], point["height"])
        return self.save(image.resize(size, RESAMPLING[point["filter"]]) if size != image.size else image, point)

    @abstractmethod
    def save(self, image: Image.Image, point: Point) -> bytes:
        """The picture as it is -> a whole file, at this quality and variant."""

    def decode(self, data: bytes) -> Image.Image:
        with Image.open(io.BytesIO(data)) as picture:
            return picture.convert("RGB")


class Placeholder(Codec):
    """A string that stands for a picture while it loads: a handful of settings, all of which are tried."""

    points: tuple[Point, ...]


def reduced(size: tuple[int, int], long_side: int) -> tuple[int, int]:
    """The size with this long side and the same aspect ratio, at least one pixel each way."""
    scale = long_side / max(size)
    return max(1, math.floor(size[0] * scale + 0.5)), max(1, math.floor(size[1] * scale + 0.5))
