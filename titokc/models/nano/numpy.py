"""nano's transform, faithful decoder and its gradient in NumPy, one picture at a time, without torch.

The torch definition is `titokc.models.nano`, which a test holds this one against. Here scale and shift of a layer norm,
the attention's 1 / sqrt(d) and other constants are part of the matrix beside them, and a gradient goes back to the
coefficients only, as the weights need none. All products have one shape whatever is coded beside a picture.

Shapes: C coefficients that can be coded, S side of a picture, s of its thumbnail, P patches, D width, H heads.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from numpy.lib.stride_tricks import as_strided

from titokc.models.nano.config import NanoConfig
from titokc.models.nano.transform import OPPONENT, WAVES, dct_matrix, resizing

_EPSILON = np.float32(1e-5)


class _Linear(NamedTuple):
    """y [P, out] = x [P, in] @ weight.T + bias, weight [out, in]."""

    weight: np.ndarray
    bias: np.ndarray

    def __call__(self, x: np.ndarray) -> np.ndarray:
        y = x @ self.weight.T
        y += self.bias
        return y


class _Norm(NamedTuple):
    """What a layer norm gave, [P, D], and the reciprocal standard deviations, [P, 1]."""

    values: np.ndarray
    scale: np.ndarray

    def backward(self, gradient: np.ndarray) -> np.ndarray:
        """The derivative by its input from that by its output, both [P, D]."""
        along = np.einsum("pd,pd->p", gradient, self.values)[:, None] / np.float32(gradient.shape[1])
        change = gradient - gradient.mean(1, keepdims=True)
        change -= along * self.values
        change *= self.scale
        return change


class Transform:
    """Pictures <-> coefficients of the linear code: the DCT of the thumbnail in opponent colours."""

    def __init__(self, config: NanoConfig, coded: np.ndarray) -> None:
        side, thumb = config.image_size, config.thumb_size
        self.thumb_size = thumb
        self.coded = coded.astype(np.intp)
        self.dct = dct_matrix(thumb, thumb)
        self.enlarge = resizing(thumb, side)
        # A picture's DCT, cut to the thumbnail's frequencies, is the thumbnail's.
        self.reduce = dct_matrix(side, thumb) * np.float32(math.sqrt(thumb / side))

    def analyse(self, planes: np.ndarray) -> np.ndarray:
        """RGB float32 [3, S, S] in 0..1 -> coefficients float32 [C], in units of pixel values."""
        spectrum = self.reduce @ (planes - np.float32(0.5)) @ self.reduce.T
        return (_mixed(OPPONENT, spectrum).reshape(-1) / np.float32(self.thumb_size))[self.coded]

    def thumbnail(self, coefficients: np.ndarray) -> np.ndarray:
        """[C] -> RGB around zero [3, s, s]."""
        spectrum = np.zeros(3 * self.thumb_size**2, np.float32)
        spectrum[self.coded] = coefficients * np.float32(self.thumb_size)
        mixed = _mixed(OPPONENT.T, spectrum.reshape(3, self.thumb_size, self.thumb_size))
        return self.dct.T @ mixed @ self.dct

    def thumbnail_backward(self, gradient: np.ndarray) -> np.ndarray:
        """[3, s, s] -> [C]."""
        spectrum = self.dct @ _mixed(OPPONENT, gradient) @ self.dct.T
        return spectrum.reshape(-1)[self.coded] * np.float32(self.thumb_size)


class Decoded(NamedTuple):
    """picture: RGB float32 [3, S, S], nominally in 0..1. features: the ViT's normalised last ones, [P, D]. backward:
    the derivative by the picture, [3, S, S] -> that by the coefficients, [C]."""

    picture: np.ndarray
    features: np.ndarray
    backward: Callable[[np.ndarray], np.ndarray]


class Decoder:
    """Coefficients [C] of a number of tokens -> picture.

    tensor: gives its tensors in float32 by name and shape (KeyError, ValueError). Threads may share the decoder.
    """

    def __init__(self, config: NanoConfig, tensor: Callable[..., np.ndarray], transform: Transform) -> None:
        self.config = config
        self.transform = transform

        width, lapped = config.width, config.patch_size + 2 * config.lap

        def linear(name: str, inputs: int, outputs: int, norm: str = "", scale: np.ndarray | float = 1) -> _Linear:
            """With the layer norm before it folded in; scale: of its outputs."""
            weight, bias = tensor(f"{name}.weight", outputs, inputs), tensor(f"{name}.bias", outputs)
            if norm:
                bias = bias + weight @ tensor(f"{norm}.bias", inputs)
                weight = weight * tensor(f"{norm}.weight", inputs)
            if np.ndim(scale) or scale != 1:
                weight, bias = weight * np.reshape(scale, (-1, 1)), bias * scale
            return _Linear(weight.astype(np.float32, copy=False), bias.astype(np.float32, copy=False))

        shrink = np.ones(3 * width, np.float32)
        shrink[:width] = (width // config.heads) ** -0.5
        self.blocks = [
            _Block(
                config.heads,
                linear(f"blocks.{n}.qkv", width, 3 * width, f"blocks.{n}.norm1", shrink),
                linear(f"blocks.{n}.out", width, width),
                linear(f"blocks.{n}.up", width, 4 * width, f"blocks.{n}.norm2"),
                linear(f"blocks.{n}.down", 4 * width, width),
            )
            for n in range(config.layers)
        ]
        embed = linear("embed", 3 * config.patch_size**2, width)
        self.embed = _Linear(embed.weight * np.float32(4), tensor("position", config.patches, width) + embed.bias)
        self.count_embed = linear("count_embed", WAVES, width)
        self._norm_weight, self._norm_bias = tensor("norm.weight", width), tensor("norm.bias", width)
        self.to_thumb = linear("to_thumb", width, 3 * lapped**2, "norm", 0.1)
        detail = 3 * (lapped * config.image_size // config.thumb_size) ** 2
        self.to_detail = linear("to_detail", width, detail, "norm", 0.1)

    def __call__(self, coefficients: np.ndarray, tokens: int) -> Decoded:
        config, transform = self.config, self.transform
        patch, lap, detail = config.patch_size, config.lap, config.image_size // config.thumb_size
        thumb = transform.thumbnail(coefficients)
        waves = np.arange(WAVES, dtype=np.float32)
        count = self.count_embed(np.cos(np.float32(math.pi) * np.float32(tokens / config.num_tokens) * waves))
        x = self.embed(_cut(thumb, patch, 0)) + count
        backs = []
        for block in self.blocks:
            x, back = block(x)
            backs.append(back)
        norm = _normed(x)
        thumb += _joined(self.to_thumb(norm.values), patch, lap)
        picture = transform.enlarge @ thumb @ transform.enlarge.T
        picture += _joined(self.to_detail(norm.values), patch * detail, lap * detail)
        picture += np.float32(0.5)

        def backward(gradient: np.ndarray) -> np.ndarray:
            by_thumb = transform.enlarge.T @ gradient @ transform.enlarge
            by_x = _cut(gradient, patch * detail, lap * detail) @ self.to_detail.weight
            by_x += _cut(by_thumb, patch, lap) @ self.to_thumb.weight
            by_x = norm.backward(by_x)
            for back in reversed(backs):
                by_x = back(by_x)
            by_thumb += _joined(by_x @ self.embed.weight, patch, 0)
            return transform.thumbnail_backward(by_thumb)

        return Decoded(picture, norm.values * self._norm_weight + self._norm_bias, backward)


class _Block(NamedTuple):
    """A pre-norm transformer block [P, D] -> [P, D]: attention, and squared ReLU."""

    heads: int
    qkv: _Linear
    out: _Linear
    up: _Linear
    down: _Linear

    def __call__(self, x: np.ndarray) -> tuple[np.ndarray, Callable[[np.ndarray], np.ndarray]]:
        """What comes out, and what makes of the derivative by it that by x."""
        norm1 = _normed(x)
        query, key, value = self._split(self.qkv(norm1.values))
        weights = query @ key.transpose(0, 2, 1)
        weights -= weights.max(-1, keepdims=True)
        np.exp(weights, out=weights)
        weights /= weights.sum(-1, keepdims=True)
        mixed = np.empty_like(x)
        np.matmul(weights, value, out=self._split(mixed)[0])
        middle = self.out(mixed)
        middle += x
        norm2 = _normed(middle)
        hidden = self.up(norm2.values)
        np.maximum(hidden, 0, out=hidden)
        result = self.down(np.square(hidden))
        result += middle

        def backward(gradient: np.ndarray) -> np.ndarray:
            by_hidden = gradient @ self.down.weight
            by_hidden *= hidden
            by_hidden *= 2
            gradient = gradient + norm2.backward(by_hidden @ self.up.weight)
            (by_mixed,) = self._split(gradient @ self.out.weight)
            by_qkv = np.empty((len(x), 3 * x.shape[1]), np.float32)
            by_query, by_key, by_value = self._split(by_qkv)
            np.matmul(weights.transpose(0, 2, 1), by_mixed, out=by_value)
            by_scores = by_mixed @ value.transpose(0, 2, 1)
            by_scores -= np.einsum("hpq,hpq->hp", by_scores, weights)[..., None]
            by_scores *= weights
            np.matmul(by_scores, key, out=by_query)
            np.matmul(by_scores.transpose(0, 2, 1), query, out=by_key)
            gradient += norm1.backward(by_qkv @ self.qkv.weight)
            return gradient

        return result, backward

    def _split(self, joined: np.ndarray) -> np.ndarray:
        """[P, n D] -> views of its parts, [n, H, P, D / H]."""
        width = self.out.weight.shape[0]
        parts = joined.reshape(len(joined), -1, self.heads, width // self.heads)
        return parts.transpose(1, 2, 0, 3)


def planes(pixels: np.ndarray) -> np.ndarray:
    """uint8 RGB [S, S, 3] -> float32 [3, S, S] in 0..1."""
    return np.ascontiguousarray(pixels.transpose(2, 0, 1)).astype(np.float32) / np.float32(255)


def pixels(planes: np.ndarray) -> np.ndarray:
    """float32 RGB [3, S, S], clipped to 0..1 and rounded -> uint8 [S, S, 3]."""
    scaled = np.rint(planes.clip(0, 1) * np.float32(255))
    return np.ascontiguousarray(scaled.astype(np.uint8).transpose(1, 2, 0))


def _mixed(matrix: np.ndarray, planes: np.ndarray) -> np.ndarray:
    """Other colours [3, ...] from [3, ...]."""
    return (matrix @ planes.reshape(3, -1)).reshape(planes.shape)


def _normed(x: np.ndarray) -> _Norm:
    values = x - x.mean(1, keepdims=True)
    scale = 1 / np.sqrt(np.einsum("pd,pd->p", values, values)[:, None] / np.float32(x.shape[1]) + _EPSILON)
    values *= scale
    return _Norm(values, scale)


def _cut(planes: np.ndarray, patch: int, lap: int) -> np.ndarray:
    """[3, S, S] -> a row for each patch of what lies within `lap` pixels of it, [P, 3 (patch + 2 lap)^2]."""
    side = planes.shape[-1]
    if lap:
        planes = np.pad(planes, ((0, 0), (lap, lap), (lap, lap)))
    return (
        _windows(planes, patch, patch + 2 * lap, side // patch)
        .transpose(1, 2, 0, 3, 4)
        .reshape((side // patch) ** 2, -1)
    )


def _joined(rows: np.ndarray, patch: int, lap: int) -> np.ndarray:
    """The transpose of `_cut`: what overlaps adds up."""
    count, size = math.isqrt(len(rows)), patch + 2 * lap
    side = count * patch
    planes = np.zeros((3, side + 2 * lap, side + 2 * lap), np.float32)
    windows = _windows(planes, patch, size, count)
    values = rows.reshape(count, count, 3, size, size).transpose(2, 0, 1, 3, 4)
    for odd in np.ndindex(2, 2):
        # Of every second patch, none reaches into another.
        some = (slice(None), slice(odd[0], None, 2), slice(odd[1], None, 2))
        windows[some] += values[some]
    return planes[:, lap : lap + side, lap : lap + side]


def _windows(planes: np.ndarray, step: int, size: int, count: int) -> np.ndarray:
    """Views [3, count, count, size, size] of [3, S, S]."""
    plane, row, column = planes.strides
    return as_strided(planes, (3, count, count, size, size), (plane, step * row, step * column, row, column))
