"""nano's fixed transform in NumPy: opponent colours, the DCT, and sizes changed by cutting or padding it."""

import math

import numpy as np

# Orthonormal and near the principal components of photographs: brightness, red - blue, green - magenta.
OPPONENT = np.array(
    [
        [1 / math.sqrt(3), 1 / math.sqrt(3), 1 / math.sqrt(3)],
        [1 / math.sqrt(2), 0, -1 / math.sqrt(2)],
        [1 / math.sqrt(6), -2 / math.sqrt(6), 1 / math.sqrt(6)],
    ],
    np.float32,
)
# Cosines that tell the decoders how many tokens there are.
WAVES = 8


def dct_matrix(size: int, frequencies: int) -> np.ndarray:
    """The first rows of the orthonormal DCT-II of `size` points: float32 [frequencies, size]."""
    matrix = np.cos(math.pi / size * np.arange(frequencies)[:, None] * (np.arange(size) + 0.5)) * math.sqrt(2 / size)
    matrix[0] /= math.sqrt(2)
    return matrix.astype(np.float32)


def resizing(side: int, size: int) -> np.ndarray:
    """A matrix M, float32 [size, side]: M @ images @ M.T takes [..., side, side] to [..., size, size] by cutting or
    padding the DCT; no frequency that both hold is changed."""
    shared = min(side, size)
    return (dct_matrix(size, shared).T @ dct_matrix(side, shared)) * np.float32(math.sqrt(size / side))
