"""Weights in one byte each: rows of 8-bit integers with a float32 scale, for models that travel inside the package.

A float tensor NAME of two or more dimensions is stored as int8 NAME and float32 NAME.scale, one scale for each row
of a matrix, and for each output of a convolution; everything else is stored as it is. `titokc.weights.tensors` expands
what it reads.
"""

from collections.abc import Mapping

from torch import Tensor, int8

from titokc.weights.arrays import SCALE


def compact(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Matrices rounded to 8 bits: errors of at most 1/254 of the largest value in the row."""
    packed: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        if tensor.ndim < 2 or not tensor.is_floating_point():
            packed[name] = tensor
            continue
        scale = (tensor.float().abs().amax(tuple(range(1, tensor.ndim)), keepdim=True) / 127).clamp(min=1e-30)
        packed[name], packed[name + SCALE] = (tensor.float() / scale).round().to(int8), scale
    return packed


def expand(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Float32 tensors again; what `compact` did not touch stays as it is."""
    packed = {name for name in tensors if name + SCALE in tensors}
    scales = {name + SCALE for name in packed}
    return {
        name: tensor.float() * tensors[name + SCALE] if name in packed else tensor
        for name, tensor in tensors.items()
        if name not in scales
    }
