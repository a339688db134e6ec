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


def dct_matrix(size: int, frequencies: int, device: torch.device | None = None) -> Tensor:
    """The first rows of the orthonormal DCT-II of `size` points: float32 [frequencies, size]."""
    rows, n = (torch.arange(count, dtype=torch.float64, device=device) for count in (frequencies, size))
    k = rows[:, None]
    matrix = torch.cos(math.pi / size * k * (n + 0.5)) * math.sqrt(2 / size)
    matrix[0] /= math.sqrt(2)
    return matrix.float()


def resize(images: Tensor, size: int) -> Tensor:
    """[B, C, S, S] -> [B, C, size, size] by cutting or padding the DCT: no frequency that both hold is changed."""
    matrix = resizing(images.shape[-1], size, images.device)
    return matrix @ images @ matrix.T


def resizing(side: int, size: int, device: torch.device | None = None) -> Tensor:
    """What `resize` multiplies with on both sides: float32 [size, side]."""
    shared = min(side, size)
    return dct_matrix(size, shared, device).T @ dct_matrix(side, shared, device) * math.sqrt(size / side)
