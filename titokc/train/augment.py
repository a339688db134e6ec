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
from titokc.models.precision import full_precision
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
        crops = self.crops.to(device)
        return self.curves.to(device).gather(2, crops.flatten(2).long()).view(crops.shape)

    @classmethod
    def joined(cls, parts: Sequence["Batch"]) -> "Batch":
        return cls(*(torch.cat(tensors) for tensors in zip(*parts, strict=True)))


class Sampler:
    """The samples of one view: image order, crops and colour changes.

    Each pool (large images, the others) is walked in a new random order every epoch; where there are fewer images than
    a batch takes, a batch has several crops of each. usable: images large enough. seed: the run's and the phase's.
    device: where squares are resized and batches lie; None: by Pillow, which rounds otherwise, on the CPU.
    """

    def __init__(self, images: ImageSet, view: View, seed: tuple[int, ...], device: torch.device | None = None) -> None:
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
        self.images, self.view, self._seed, self._device = images, view, seed, device

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
        picks = [self._pick(position + at) for at in range(count)]
        squares = [self._square(*self.images.sizes[pick], *draws[at, 5:9]) for at, pick in enumerate(picks)]
        mirrored = draws[:, 9] < 0.5
        on_host = torch.from_numpy(tone_curves((2 * draws[:, :5] - 1) * self.view.jitter))
        curves = on_host if self._device is None else _sent(on_host, self._device)
        largest = side if self._device is None else max(size for _, _, size in squares)
        cut = torch.empty((count, largest, largest, 3), dtype=torch.uint8, pin_memory=_is_gpu(self._device))
        for at, (top, left, size) in enumerate(squares):
            square = self.images.load(picks[at])[top : top + size, left : left + size]
            if self._device is not None:
                cut.numpy()[at, :size, :size] = square
                continue
            if size != side:
                square = np.asarray(Image.fromarray(square).resize((side, side), Image.Resampling.BICUBIC))
            cut.numpy()[at] = square[:, ::-1] if mirrored[at] else square
        if self._device is None:
            crops = cut.permute(0, 3, 1, 2)
        else:
            sizes = torch.tensor([size for _, _, size in squares])
            squares_sent, sizes, flips = (_sent(t, self._device) for t in (cut, sizes, torch.from_numpy(mirrored)))
            crops = resized(squares_sent, sizes, flips, side)
        return Batch(crops, curves, torch.from_numpy(positions * GOLDEN % 1))

    def _square(
        self, height: int, width: int, native: float, scale: float, down: float, right: float
    ) -> tuple[int, int, int]:
        """Top, left and side of a square by draws in [0, 1): as large as the image allows down to min_scale of that;
        images little larger than the view's side are as often cut at their own resolution, if min_scale allows."""
        short, side = min(height, width), self.view.side
        if self.view.min_scale * short <= side <= short <= 1.25 * side and native < 0.5:
            size = side
        else:
            least = max(self.view.min_scale * short, min(short, side / self.view.max_zoom))
            size = round(least + scale * (short - least))
        return int(down * (height - size + 1)), int(right * (width - size + 1)), size


def resized(squares: Tensor, sizes: Tensor, mirrored: Tensor, side: int) -> Tensor:
    """Squares of `sizes` [B] in the upper left corners of uint8 [B, M, M, 3], some `mirrored` (bool [B]) -> uint8
    [B, 3, side, side], bicubically, as Pillow does it: wider where it shrinks, rows before columns, rounded between.

    Each direction is one batch of products with a matrix a picture. Pillow's integers differ by two levels at most.
    """
    scale = (sizes / side)[:, None, None]
    at, ends = (torch.arange(count, device=squares.device) for count in (squares.shape[1], side))
    away = ((at + 0.5) - (ends[:, None] + 0.5) * scale).abs() / scale.clamp(min=1)
    near, far = (1.5 * away - 2.5) * away.square() + 1, ((2.5 - 0.5 * away) * away - 4) * away + 2
    columns = torch.where(away < 1, near, torch.where(away < 2, far, 0)) * (at < sizes[:, None, None])
    columns = columns / columns.sum(2, keepdim=True)
    rows = torch.where(mirrored[:, None, None], columns.flip(1), columns)
    with full_precision(squares.device):
        pixels = (squares.permute(0, 3, 1, 2).float() @ rows.mT[:, None]).round().clamp(0, 255)
        return (columns[:, None] @ pixels).round().clamp(0, 255).to(torch.uint8)


def _is_gpu(device: torch.device | None) -> bool:
    return device is not None and device.type == "cuda"


def _sent(tensor: Tensor, device: torch.device) -> Tensor:
    """To the device; to a GPU from pinned memory, so that nothing waits."""
    return (tensor.pin_memory() if _is_gpu(device) else tensor).to(device, non_blocking=True)


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
