"""Weights as NumPy arrays, for the engine without torch; `titokc.weights.tensors` does the same for torch."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from safetensors.numpy import load_file

from titokc.errors import WeightsError
from titokc.files import reason

# Of a matrix NAME in 8 bits, the tensor NAME + SCALE has what its rows are multiplied by.
SCALE = ".scale"


def read(path: Path) -> dict[str, np.ndarray]:
    """The tensors of a .safetensors file, as they are stored. Raises WeightsError for any other content."""
    try:
        return load_file(path)
    except Exception as error:  # of damaged files safetensors raises anything
        detail = reason(error) if isinstance(error, OSError) else " ".join(str(error).split())[:200]
        raise WeightsError(f"{path}: not a readable weights file ({detail or type(error).__name__})") from error


def expanded(tensors: Mapping[str, np.ndarray], name: str, *shape: int) -> np.ndarray:
    """One of them in float32, whether or not it is stored in 8 bits. KeyError if it is missing, ValueError for another
    shape."""
    tensor, scale = tensors[name], tensors.get(name + SCALE)
    if tensor.shape != shape:
        raise ValueError(f"{name} is {tensor.shape}, expected {shape}")
    return tensor.astype(np.float32, copy=False) if scale is None else tensor.astype(np.float32) * scale
