"""nano's fixed transform: opponent colours, the DCT, and sizes changed by cutting or padding it."""

import functools
import math

import torch
from torch import Tensor

from titokc.models.precision import full_precision

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
    side = images.shape[-1]
    if side == size:
        return images
    matrix = _resizing(side, size, images.device)
    return matrix @ images @ matrix.T


@functools.cache
def _resizing(side: int, size: int, device: torch.device) -> Tensor:
    """[size, side], made on the CPU, whatever the device: a matrix that is the same everywhere."""
    shared, cpu = min(side, size), torch.device("cpu")
    with torch.inference_mode(False), torch.no_grad(), full_precision(cpu):
        matrix = dct_matrix(size, shared, cpu).T @ dct_matrix(side, shared, cpu) * math.sqrt(size / side)
        return matrix.to(device)
