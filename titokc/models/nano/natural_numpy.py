"""nano's natural look in NumPy, one picture at a time; `titokc.models.nano.natural` draws and explains it.

Maps are [H, W, C] here. Convolutions of 3x3 are F(4x4, 3x3) of A. Lavin and S. Gray, "Fast algorithms for convolutional
neural networks", arXiv 1509.09308: 36 products of vectors for each 16 places instead of 144, in half to three quarters
of the time that products over columns take. Float32 loses 1e-5 of the values by it.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
from numpy.lib.stride_tricks import as_strided

from titokc.models.nano.config import NanoConfig
from titokc.models.nano.noise import noise
from titokc.models.nano.transform import WAVES

BLOCKS = 6
# Channels of noise at a quarter and at a half of the picture's side.
NOISE, FINE_NOISE = 8, 4
SLOPE = 0.2
# What the last layer gives is in tenths.
SCALE = 0.1

# F(4, 3): what weights, windows and products are multiplied by along each axis.
_WEIGHTS = np.array([[6, 0, 0], [-4, -4, -4], [-4, 4, -4], [1, 2, 4], [1, -2, 4], [0, 0, 24]], np.float32) / 24
_WINDOWS = np.array(
    [
        [4, 0, -5, 0, 1, 0],
        [0, -4, -4, 1, 1, 0],
        [0, 4, -4, -1, 1, 0],
        [0, -2, -1, 2, 1, 0],
        [0, 2, -1, -2, 1, 0],
        [0, 4, 0, -5, 0, 1],
    ],
    np.float32,
)
_PRODUCTS = np.array([[1, 1, 1, 1, 1, 0], [0, 1, -1, 2, -2, 0], [0, 1, 1, 4, 4, 0], [0, 1, -1, 8, -8, 1]], np.float32)
# Rows of windows at a time: what comes between stays in the processor's cache.
_BAND = 8
_INTO, _OUT_OF = np.kron(_WINDOWS, _WINDOWS), np.kron(_PRODUCTS, _PRODUCTS)


class Generator:
    """Faithful picture -> natural picture. tensor: gives its tensors in float32 by name and shape (KeyError,
    ValueError). Threads may share the generator."""

    def __init__(self, config: NanoConfig, tensor: Callable[..., np.ndarray]) -> None:
        width, inner, fine, last = config.natural, 2 * config.natural, config.natural // 2, config.natural // 4
        self._side, self._tokens = config.image_size, config.num_tokens

        def pointwise(name: str, inputs: int, outputs: int) -> Pointwise:
            return Pointwise(tensor(f"{name}.weight", outputs, inputs, 1, 1), tensor(f"{name}.bias", outputs))

        def conv(name: str, inputs: int, outputs: int) -> Convolution:
            return Convolution(tensor(f"{name}.weight", outputs, inputs, 3, 3), tensor(f"{name}.bias", outputs))

        def residual(name: str, channels: int) -> tuple[Convolution, Convolution]:
            return conv(f"{name}.one", channels, channels), conv(f"{name}.two", channels, channels)

        self._stem = conv("stem", 48 + NOISE, width)
        self._vit = tensor("vit.weight", width, config.width), tensor("vit.bias", width)
        self._count = tensor("count.weight", width, WAVES), tensor("count.bias", width)
        self._down, self._up = pointwise("down", 4 * width, inner), pointwise("up", inner, 4 * width)
        self._inner = [residual(f"inner.{at}", inner) for at in range(BLOCKS)]
        self._outer = residual("outer", width)
        self._to_fine, self._fine = pointwise("to_fine", width, 4 * fine), conv("fine", fine + FINE_NOISE, fine)
        self._to_last, self._last = conv("to_last", fine, 4 * last), conv("last", last, 3)
        grid = config.thumb_size // config.patch_size
        self._spread = _bilinear(grid, config.image_size // 4)

    def __call__(self, picture: np.ndarray, features: np.ndarray, tokens: np.ndarray) -> np.ndarray:
        """Faithful picture float32 [3, S, S], the ViT's normalised last features [P, D] and the tokens [k] -> float32
        [3, S, S]."""
        picture = picture.clip(0, 1)
        quarter, half = self._side // 4, self._side // 2
        drawn = noise(tokens, NOISE * quarter**2 + FINE_NOISE * half**2)
        coarse = drawn[: NOISE * quarter**2].reshape(NOISE, quarter, quarter).transpose(1, 2, 0)
        fine = drawn[NOISE * quarter**2 :].reshape(FINE_NOISE, half, half).transpose(1, 2, 0)
        waves = np.arange(WAVES, dtype=np.float32)
        count = np.cos(np.float32(math.pi) * np.float32(len(tokens) / self._tokens) * waves)

        x = 2 * unshuffled(picture.transpose(1, 2, 0) - np.float32(0.5), 4)
        x = self._stem(np.concatenate([x, coarse], 2))
        x += self._seen(features)
        x += self._count[0] @ count + self._count[1]
        y = self._down(leaky(unshuffled(x, 2)))
        for block in self._inner:
            y += _residual(y, block)
        x += shuffled(self._up(leaky(y)), 2)
        x += _residual(x, self._outer)
        x = shuffled(self._to_fine(leaky(x)), 2)
        x += self._fine(np.concatenate([leaky(x), fine], 2))
        x = shuffled(self._to_last(leaky(x)), 2)
        return picture + np.float32(SCALE) * self._last(leaky(x)).transpose(2, 0, 1)

    def _seen(self, features: np.ndarray) -> np.ndarray:
        """[P, D] -> [S/4, S/4, W]."""
        grid = math.isqrt(len(features))
        maps = (features @ self._vit[0].T + self._vit[1]).reshape(grid, grid, -1)
        rows = np.tensordot(self._spread, maps, (1, 0))
        return np.tensordot(self._spread, rows, (1, 1)).transpose(1, 0, 2)


class Pointwise:
    """A convolution of 1x1: float32 [H, W, C] -> [H, W, out]. weight: [out, C, 1, 1], bias: [out]."""

    def __init__(self, weight: np.ndarray, bias: np.ndarray) -> None:
        self._weight, self._bias = np.ascontiguousarray(weight[:, :, 0, 0].T), bias

    def __call__(self, x: np.ndarray) -> np.ndarray:
        return (x.reshape(-1, x.shape[2]) @ self._weight + self._bias).reshape(*x.shape[:2], -1)


class Convolution:
    """A convolution of 3x3, zeros beyond the borders: float32 [H, W, C] -> [H, W, out].

        6x6 windows, one every 4 places [36, N, C] -> _INTO -> times weights [36, C, out] -> _OUT_OF -> [16, N, out]

    weight: [out, C, 3, 3], bias: [out].
    """

    def __init__(self, weight: np.ndarray, bias: np.ndarray) -> None:
        outputs, inputs = weight.shape[:2]
        rows = np.tensordot(weight, _WEIGHTS, (2, 1))
        both = np.tensordot(rows, _WEIGHTS, (2, 1)).reshape(outputs, inputs, 36)
        self._weight, self._bias = np.ascontiguousarray(both.transpose(2, 1, 0)), bias

    def __call__(self, x: np.ndarray) -> np.ndarray:
        height, width, channels = x.shape
        down, across, outputs = -(-height // 4), -(-width // 4), len(self._bias)
        padded = np.zeros((4 * down + 4, 4 * across + 4, channels), np.float32)
        padded[1 : height + 1, 1 : width + 1] = x
        row, column, channel = padded.strides
        windows = as_strided(padded, (6, 6, down, across, channels), (row, column, 4 * row, 4 * column, channel))
        y = np.empty((down, 4, across, 4, outputs), np.float32)
        for top in range(0, down, _BAND):
            band = slice(top, top + _BAND)
            seen = (_INTO @ windows[:, :, band].reshape(36, -1)).reshape(36, -1, channels)
            blocks = (_OUT_OF @ (seen @ self._weight).reshape(36, -1)).reshape(4, 4, -1, across, outputs)
            np.add(blocks, self._bias, out=y[band].transpose(1, 3, 0, 2, 4))
        return y.reshape(4 * down, 4 * across, outputs)[:height, :width]


def leaky(x: np.ndarray) -> np.ndarray:
    return np.maximum(x, np.float32(SLOPE) * x)


def unshuffled(x: np.ndarray, by: int) -> np.ndarray:
    """[H, W, C] -> [H / by, W / by, C by^2]: the places of a square become channels, a channel's beside each other."""
    height, width, channels = x.shape
    squares = x.reshape(height // by, by, width // by, by, channels)
    return squares.transpose(0, 2, 4, 1, 3).reshape(height // by, width // by, -1)


def shuffled(x: np.ndarray, by: int) -> np.ndarray:
    """The inverse of `unshuffled`."""
    height, width, channels = x.shape
    squares = x.reshape(height, width, channels // by**2, by, by)
    return squares.transpose(0, 3, 1, 4, 2).reshape(height * by, width * by, -1)


def _residual(x: np.ndarray, block: tuple[Convolution, Convolution]) -> np.ndarray:
    return block[1](leaky(block[0](leaky(x))))


def _bilinear(size: int, larger: int) -> np.ndarray:
    """[larger, size]: each place of the enlarged axis as a mean of two of the axis; half-pixel centres."""
    at = ((np.arange(larger) + 0.5) * size / larger - 0.5).clip(0, size - 1)
    left = np.minimum(at.astype(int), size - 2 if size > 1 else 0)
    matrix = np.zeros((larger, size), np.float32)
    matrix[np.arange(larger), left] = 1 - (at - left)
    matrix[np.arange(larger), np.minimum(left + 1, size - 1)] += at - left
    return matrix
