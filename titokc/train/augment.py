"""Batches of augmented square crops from a `titokc.train.data.ImageSet`, as a pure function of seed and position.

Sample number p of a view always shows the same crop of the same image, whatever the batch size, the number of
processes and how often the run was resumed: the sampler's state is one integer.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from titokc.errors import InputError
from titokc.train.data import ImageSet
from titokc.train.recipes import View

GOLDEN = (5**0.5 - 1) / 2


class Batch(NamedTuple):
    """images: RGB float32 [B, 3, S, S] in [0, 1]. draws: float64 [B], evenly spread over [0, 1), for token counts.
    numbers: int64 [B], which of all crops of a view with `variants` each one is (else 0)."""

    images: Tensor
    draws: Tensor
    numbers: Tensor

    @classmethod
    def joined(cls, parts: Sequence["Batch"]) -> "Batch":
        return cls(*(torch.cat(tensors) for tensors in zip(*parts, strict=True)))


class Sampler:
    """The samples of one view: image order, crops and colour changes.

    Each pool (large images, the others) is walked in a new random order every epoch. seed: the run's and the phase's.
    """

    def __init__(self, images: ImageSet, view: View, seed: tuple[int, ...]) -> None:
        short = images.sizes.min(1)
        usable = short >= view.min_source * view.side
        if (count := int(usable.sum())) < view.batch_size:
            need = math.ceil(view.min_source * view.side)
            raise InputError(
                f"{count} training images have a short side of at least {need} pixels, for crops of {view.side}; "
                f"a batch takes {view.batch_size}: add images, or --set phases.N.views.N.batch_size"
            )
        large = np.flatnonzero(usable & (short >= 2 * view.side))
        small = np.flatnonzero(usable & (short < 2 * view.side))
        natural = len(large) / count
        self._large_share = view.large_share if view.large_share >= 0 and 0 < natural < 1 else natural
        self._pools = (small, large)
        self._orders: dict[tuple[int, int], np.ndarray] = {}
        self.images, self.view, self._seed = images, view, seed

    def _pick(self, position: int) -> tuple[int, int]:
        """Image and epoch of sample `position`: the pools alternate evenly, each in its own shuffled epochs."""
        before = int(position * self._large_share)
        from_large = int((position + 1) * self._large_share) > before
        pool = self._pools[from_large]
        epoch, at = divmod(before if from_large else position - before, len(pool))
        key = (int(from_large), epoch)
        order = self._orders.get(key)
        if order is None:
            order = np.random.default_rng([*self._seed, 1, *key]).permutation(len(pool))
            self._orders = {k: v for k, v in self._orders.items() if k[0] != key[0]} | {key: order}
        return int(pool[order[at]]), epoch

    def batch(self, position: int, count: int) -> Batch:
        """Samples position .. position + count - 1."""
        side, variants = self.view.side, self.view.variants
        images = np.empty((count, 3, side, side), np.float32)
        numbers = np.zeros(count, np.int64)
        for i in range(count):
            image, epoch = self._pick(position + i)
            if variants:
                numbers[i] = image * variants + epoch % variants
                rng = np.random.default_rng([*self._seed, 3, int(numbers[i])])
            else:
                rng = np.random.default_rng([*self._seed, 2, position + i])
            crop = self._crop(self.images.load(image), rng)
            curves = tone_curves(rng.uniform(-1, 1, 5) * self.view.jitter)
            for channel in range(3):
                np.take(curves[channel], crop[:, :, channel], out=images[i, channel], mode="clip")
        draws = np.arange(position, position + count) * GOLDEN % 1
        return Batch(torch.from_numpy(images), torch.from_numpy(draws), torch.from_numpy(numbers))

    def _crop(self, pixels: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """A random square, flipped half the time: as large as the image allows down to min_scale of that, resized to
        the side; images little larger than the side are as often cut at their own resolution, if min_scale allows."""
        height, width = pixels.shape[:2]
        short, side = min(height, width), self.view.side
        if self.view.min_scale * short <= side <= short <= 1.25 * side and rng.random() < 0.5:
            size = side
        else:
            size = round(rng.uniform(max(self.view.min_scale * short, min(short, 0.8 * side)), short))
        top, left = int(rng.integers(height - size + 1)), int(rng.integers(width - size + 1))
        square = pixels[top : top + size, left : left + size]
        if size != side:
            square = np.asarray(Image.fromarray(square).resize((side, side), Image.Resampling.BICUBIC))
        return square[:, ::-1] if rng.random() < 0.5 else square


def tone_curves(changes: np.ndarray) -> np.ndarray:
    """The values 0..255 of R, G and B after a change of gamma, contrast, brightness, warmth and green: [3, 256].

    changes [5]: gamma and contrast as exponents of e, brightness in halves and the colours in quarters of the range.
    """
    gamma, contrast, brightness, warm, green = changes
    curve = (np.arange(256) / 255) ** np.exp(gamma)
    curve = 0.5 + (curve - 0.5) * np.exp(contrast) + brightness / 2
    tint = np.array([warm - green / 2, green, -warm - green / 2]) / 4
    return np.clip(curve + tint[:, None], 0, 1).astype(np.float32)


def centre_square(pixels: np.ndarray, side: int) -> np.ndarray:
    """uint8 [H, W, 3] -> [side, side, 3]: the centre square, resized with Lanczos; what validation looks at."""
    height, width = pixels.shape[:2]
    size = min(height, width)
    top, left = (height - size) // 2, (width - size) // 2
    square = pixels[top : top + size, left : left + size]
    if size == side:
        return square
    image = Image.fromarray(np.ascontiguousarray(square))
    return np.asarray(image.resize((side, side), Image.Resampling.LANCZOS))
