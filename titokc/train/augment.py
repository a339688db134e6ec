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
from titokc.train.recipes.schema import View

GOLDEN = (5**0.5 - 1) / 2


class Batch(NamedTuple):
    """crops: RGB uint8 [B, 3, S, S]. curves: float32 [B, 3, 256] in [0, 1], what each of their values becomes. draws:
    float64 [B], evenly spread over [0, 1), for token counts."""

    crops: Tensor
    curves: Tensor
    draws: Tensor

    def images(self, device: torch.device) -> Tensor:
        """RGB float32 [B, 3, S, S] in [0, 1], made on the device: a quarter of the bytes travels."""
        pinned = self.crops.pin_memory() if device.type == "cuda" else self.crops
        crops = pinned.to(device, non_blocking=True)
        return self.curves.to(device).gather(2, crops.flatten(2).long()).view(crops.shape)

    @classmethod
    def joined(cls, parts: Sequence["Batch"]) -> "Batch":
        return cls(*(torch.cat(tensors) for tensors in zip(*parts, strict=True)))


class Sampler:
    """The samples of one view: image order, crops and colour changes.

    Each pool (large images, the others) is walked in a new random order every epoch; where there are fewer images than
    a batch takes, a batch has several crops of each. usable: images large enough. seed: the run's and the phase's.
    """

    def __init__(self, images: ImageSet, view: View, seed: tuple[int, ...]) -> None:
        short = images.sizes.min(1)
        usable = short >= view.min_source * view.side
        self.usable = int(usable.sum())
        if not self.usable:
            need = math.ceil(view.min_source * view.side)
            raise InputError(
                f"none of the {len(images)} training images has a short side of at least {need} pixels, "
                f"for crops of {view.side}"
            )
        large = np.flatnonzero(usable & (short >= 2 * view.side))
        small = np.flatnonzero(usable & (short < 2 * view.side))
        natural = len(large) / self.usable
        self._large_share = view.large_share if view.large_share >= 0 and 0 < natural < 1 else natural
        self._pools = (small, large)
        self._orders: dict[tuple[int, int], np.ndarray] = {}
        self.images, self.view, self._seed = images, view, seed

    def _pick(self, position: int) -> int:
        """The image of sample `position`: the pools alternate evenly, each in its own shuffled epochs."""
        before = int(position * self._large_share)
        from_large = int((position + 1) * self._large_share) > before
        pool = self._pools[from_large]
        epoch, at = divmod(before if from_large else position - before, len(pool))
        key = (int(from_large), epoch)
        order = self._orders.get(key)
        if order is None:
            order = np.random.default_rng([*self._seed, 1, *key]).permutation(len(pool))
            self._orders = {k: v for k, v in self._orders.items() if k[0] != key[0]} | {key: order}
        return int(pool[order[at]])

    def batch(self, position: int, count: int) -> Batch:
        """Samples position .. position + count - 1."""
        side = self.view.side
        positions = np.arange(position, position + count)
        draws = uniforms((*self._seed, 2), positions, 10)
        crops = np.empty((count, side, side, 3), np.uint8)
        for at in range(count):
            crops[at] = self._crop(self.images.load(self._pick(position + at)), *draws[at, 5:])
        parts = (
            crops.transpose(0, 3, 1, 2),
            tone_curves((2 * draws[:, :5] - 1) * self.view.jitter),
            positions * GOLDEN % 1,
        )
        return Batch(*(torch.from_numpy(part) for part in parts))

    def _crop(
        self, pixels: np.ndarray, native: float, scale: float, down: float, right: float, flip: float
    ) -> np.ndarray:
        """A square by draws in [0, 1), flipped half the time: as large as the image allows down to min_scale of that,
        resized to the side; images little larger than the side are as often cut at their own resolution, if min_scale
        allows."""
        height, width = pixels.shape[:2]
        short, side = min(height, width), self.view.side
        if self.view.min_scale * short <= side <= short <= 1.25 * side and native < 0.5:
            size = side
        else:
            least = max(self.view.min_scale * short, min(short, 0.8 * side))
            size = round(least + scale * (short - least))
        top, left = int(down * (height - size + 1)), int(right * (width - size + 1))
        square = pixels[top : top + size, left : left + size]
        if size != side:
            square = np.asarray(Image.fromarray(square).resize((side, side), Image.Resampling.BICUBIC))
        return square[:, ::-1] if flip < 0.5 else square


def uniforms(seed: tuple[int, ...], numbers: np.ndarray, count: int) -> np.ndarray:
    """`count` random numbers in [0, 1) for each of the integers [N], float64 [N, count]: SplitMix64 (Steele et al.,
    "Fast splittable pseudorandom number generators", 2014), whose n-th number needs none of those before."""
    key = np.random.SeedSequence(seed).generate_state(1, np.uint64)
    counter = numbers.astype(np.uint64)[:, None] * np.uint64(count) + np.arange(1, count + 1, dtype=np.uint64)
    mixed = key + counter * np.uint64(0x9E3779B97F4A7C15)
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
        mixed = (mixed ^ (mixed >> np.uint64(shift))) * np.uint64(factor)
    return ((mixed ^ (mixed >> np.uint64(31))) >> np.uint64(11)) * 2.0**-53


def tone_curves(changes: np.ndarray) -> np.ndarray:
    """What the values 0..255 of R, G and B become, float32 [N, 3, 256] in [0, 1], after changes [N, 5] of gamma,
    contrast, brightness, warmth and green.

    Gamma and contrast are exponents of e, brightness is in halves and the colours in quarters of the range.
    """
    gamma, contrast, brightness, warm, green = changes.T[:, :, None]
    curve = (np.arange(256) / 255) ** np.exp(gamma)
    curve = 0.5 + (curve - 0.5) * np.exp(contrast) + brightness / 2
    tint = np.stack([warm - green / 2, green, -warm - green / 2], axis=1) / 4
    return np.clip(curve[:, None] + tint, 0, 1).astype(np.float32)
