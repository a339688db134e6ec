"""nano's fixed transform: opponent colours, the DCT, and sizes changed by cutting or padding it."""

import math

import torch
from torch import Tensor

# Orthonormal and near the principal components of photographs: brightness, red - blue, green - magenta.
OPPONENT = (
    (1 / math.sqrt(3), 1 / math.sqrt(3), 1 / math.sqrt(3)),
    (1 / math.sqrt(2), 0.0, -1 / math.sqrt(2)),
    (1 / math.sqrt(6), -2 / math.sqrt(6), 1 / math.sqrt(6)),
)


def dct_matrix(size: int, frequencies: int) -> Tensor:
    """The first rows of the orthonormal DCT-II of `size` points: float32 [frequencies, size]."""
    rows, n = (torch.arange(count, dtype=torch.float64) for count in (frequencies, size))
    k = rows[:, None]
    matrix = torch.cos(math.pi / size * k * (n + 0.5)) * math.sqrt(2 / size)
    matrix[0] /= math.sqrt(2)
    return matrix.float()


def resizing(side: int, size: int) -> Tensor:
    """A matrix M, float32 [size, side]: M @ images @ M.T takes [B, C, side, side] to [B, C, size, size] by cutting or
    padding the DCT; no frequency that both hold is changed."""
    shared = min(side, size)
    return dct_matrix(size, shared).T @ dct_matrix(side, shared) * math.sqrt(size / side)
