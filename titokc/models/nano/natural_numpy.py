"""nano's natural look in NumPy, one picture at a time; `titokc.models.nano.natural` draws and explains it.

Maps are [H, W, C] here, so that a convolution is three products of matrices: of the columns left, here and right of a
place, for the rows above, here and below.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np

from titokc.models.nano.config import NanoConfig
from titokc.models.nano.noise import noise
from titokc.weights.arrays import expanded

BLOCKS, NOISE, FINE_NOISE, WAVES = 6, 8, 4, 8
_SLOPE, _SCALE = np.float32(0.2), np.float32(0.1)


class Generator:
    """Faithful picture -> natural picture. tensors: nano's by name, as stored (KeyError, ValueError for what does not
    fit). Threads may share it."""

    def __init__(self, config: NanoConfig, tensors: Mapping[str, np.ndarray]) -> None:
        width, inner, fine, last = config.natural, 2 * config.natural, config.natural // 2, config.natural // 4
        self._side, self._tokens = config.image_size, config.num_tokens

        def tensor(name: str, *shape: int) -> np.ndarray:
            found = expanded(tensors, f"natural.{name}")
            if found.shape != shape:
                raise ValueError(f"natural.{name} is {found.shape}, expected {shape}")
            return found

        def conv(name: str, inputs: int, outputs: int, size: int = 3) -> tuple[np.ndarray, np.ndarray]:
            """[size, size * inputs, outputs] and [outputs]."""
            weight = tensor(f"{name}.weight", outputs, inputs, size, size).transpose(2, 3, 1, 0)
            return weight.reshape(size, size * inputs, outputs), tensor(f"{name}.bias", outputs)

        def residual(name: str, channels: int) -> list[tuple[np.ndarray, np.ndarray]]:
            return [conv(f"{name}.{part}", channels, channels) for part in ("one", "two")]

        self._stem = conv("stem", 48 + NOISE, width)
        self._vit = tensor("vit.weight", width, config.width), tensor("vit.bias", width)
        self._count = tensor("count.weight", width, WAVES), tensor("count.bias", width)
        self._down, self._up = conv("down", 4 * width, inner, 1), conv("up", inner, 4 * width, 1)
        self._inner = [residual(f"inner.{at}", inner) for at in range(BLOCKS)]
        self._outer = residual("outer", width)
        self._to_fine, self._fine = conv("to_fine", width, 4 * fine, 1), conv("fine", fine + FINE_NOISE, fine)
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
        x = convolved(np.concatenate([x, coarse], 2), self._stem)
        x += self._seen(features)
        x += self._count[0] @ count + self._count[1]
        y = convolved(leaky(unshuffled(x, 2)), self._down)
        for block in self._inner:
            y += _residual(y, block)
        x += shuffled(convolved(leaky(y), self._up), 2)
        x += _residual(x, self._outer)
        x = shuffled(convolved(leaky(x), self._to_fine), 2)
        x += convolved(np.concatenate([leaky(x), fine], 2), self._fine)
        x = shuffled(convolved(leaky(x), self._to_last), 2)
        return picture + _SCALE * convolved(leaky(x), self._last).transpose(2, 0, 1)

    def _seen(self, features: np.ndarray) -> np.ndarray:
        """[P, D] -> [S/4, S/4, W]."""
        grid = math.isqrt(len(features))
        maps = (features @ self._vit[0].T + self._vit[1]).reshape(grid, grid, -1)
        rows = np.tensordot(self._spread, maps, (1, 0))
        return np.tensordot(self._spread, rows, (1, 1)).transpose(1, 0, 2)


def convolved(x: np.ndarray, layer: tuple[np.ndarray, np.ndarray]) -> np.ndarray:
    """[H, W, C] -> [H, W, out], zeros beyond the borders; layer: weight [size, size C, out] and bias, size 1 or 3."""
    weight, bias = layer
    height, width, channels = x.shape
    if len(weight) == 1:
        return (x.reshape(-1, channels) @ weight[0] + bias).reshape(height, width, -1)
    columns = np.zeros((height + 2, width, 3 * channels), np.float32)
    columns[1:-1, 1:, :channels] = x[:, :-1]
    columns[1:-1, :, channels : 2 * channels] = x
    columns[1:-1, :-1, 2 * channels :] = x[:, 1:]
    y = np.broadcast_to(bias, (height * width, len(bias))).copy()
    for row in range(3):
        y += columns[row : row + height].reshape(height * width, -1) @ weight[row]
    return y.reshape(height, width, -1)


def leaky(x: np.ndarray) -> np.ndarray:
    return np.maximum(x, _SLOPE * x)


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


def _residual(x: np.ndarray, block: list[tuple[np.ndarray, np.ndarray]]) -> np.ndarray:
    return convolved(leaky(convolved(leaky(x), block[0])), block[1])


def _bilinear(size: int, larger: int) -> np.ndarray:
    """[larger, size]: each place of the enlarged axis as a mean of two of the axis; half-pixel centres."""
    at = ((np.arange(larger) + 0.5) * size / larger - 0.5).clip(0, size - 1)
    left = np.minimum(at.astype(int), size - 2 if size > 1 else 0)
    matrix = np.zeros((larger, size), np.float32)
    matrix[np.arange(larger), left] = 1 - (at - left)
    matrix[np.arange(larger), np.minimum(left + 1, size - 1)] += at - left
    return matrix
