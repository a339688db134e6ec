"""Weights files -> tensors: safetensors, or pickles that can hold nothing but tensors.

Models that travel inside the package have weights in one byte each: a float tensor NAME of two or more dimensions is
stored as int8 NAME and float32 NAME.scale, one scale for each row of a matrix, and for each output of a convolution;
everything else is stored as it is.
"""

import pickle
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor
from torch.overrides import TorchFunctionMode

from titokc.errors import WeightsError
from titokc.files import reason
from titokc.weights.arrays import SCALE


class Uninitialised(TorchFunctionMode):
    """Inside, no random numbers are drawn for weights that are about to be replaced: seconds saved on a large model."""

    def __torch_function__(
        self, func: Callable, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if getattr(func, "__module__", "") == "torch.nn.init":
            return kwargs["tensor"] if "tensor" in kwargs else args[0]
        if func is torch.randn:
            func = torch.empty
        return func(*args, **kwargs)


def read(path: Path) -> dict[str, Tensor]:
    """The tensors in a .safetensors (8-bit ones expanded), .bin or .pth file, on the CPU.

    Raises WeightsError for any other content.
    """
    try:
        if path.suffix == ".safetensors":
            return expand(load_file(path))
        content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:  # torch's own text explains how to open it all the same
        what = "it is damaged, or holds other things than tensors, which are never loaded"
        raise WeightsError(f"{path}: not a readable weights file ({what})") from error
    except Exception as error:  # of damaged files safetensors and torch raise anything
        detail = reason(error) if isinstance(error, OSError) else " ".join(str(error).split())[:200]
        raise WeightsError(f"{path}: not a readable weights file ({detail or type(error).__name__})") from error
    if not isinstance(content, dict):
        raise WeightsError(f"{path}: expected a dictionary of tensors, found {type(content).__name__}")
    for name, tensor in content.items():
        if not isinstance(name, str) or not isinstance(tensor, Tensor):
            raise WeightsError(f"{path}: expected a dictionary of tensors, {name!r} is {type(tensor).__name__}")
    return content


def compact(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Matrices rounded to 8 bits: errors of at most 1/254 of the largest value in the row."""
    packed: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        if tensor.ndim < 2 or not tensor.is_floating_point():
            packed[name] = tensor
            continue
        scale = (tensor.float().abs().amax(tuple(range(1, tensor.ndim)), keepdim=True) / 127).clamp(min=1e-30)
        packed[name], packed[name + SCALE] = (tensor.float() / scale).round().to(torch.int8), scale
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


def check_fit(expected: Mapping[str, Tensor], found: Mapping[str, Tensor], source: Path) -> None:
    """Raises WeightsError unless both have the same names and shapes; it names what is missing, extra or misshapen."""
    misshapen = [
        f"{name} is {_shape(found[name])}, expected {_shape(tensor)}"
        for name, tensor in expected.items()
        if name in found and found[name].shape != tensor.shape
    ]
    wrong = {
        "missing": sorted(set(expected) - set(found)),
        "unexpected": sorted(set(found) - set(expected)),
        "misshapen": misshapen,
    }
    complaints = [f"{len(names)} {kind} ({_first(names)})" for kind, names in wrong.items() if names]
    if complaints:
        raise WeightsError(f"{source}: the tensors do not fit the configuration: {'; '.join(complaints)}")


def fitted(expected: Mapping[str, Tensor], found: Mapping[str, Tensor], source: Path) -> dict[str, Tensor]:
    """The tensors found, checked and of the expected types, each with its own memory: floats of any width become
    float32. Raises WeightsError for other names, shapes and types."""
    check_fit(expected, found, source)
    out: dict[str, Tensor] = {}
    storages: set[int] = set()
    for name, like in expected.items():
        tensor = found[name]
        if tensor.dtype != like.dtype and not (tensor.is_floating_point() and like.is_floating_point()):
            raise WeightsError(f"{source}: {name} holds {_type(tensor)}, expected {_type(like)}")
        tensor = tensor.to(like.dtype).contiguous()
        storage = tensor.untyped_storage()
        if storage.data_ptr() in storages or storage.nbytes() != tensor.nbytes:
            tensor = tensor.clone()
        storages.add(tensor.untyped_storage().data_ptr())
        out[name] = tensor
    return out


def raw_bytes(tensor: Tensor) -> memoryview:
    """The elements' bytes in row-major order."""
    return tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().data


def _shape(tensor: Tensor) -> str:
    return "x".join(map(str, tensor.shape)) or "a scalar"


def _type(tensor: Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")


def _first(names: list[str], most: int = 3) -> str:
    return ", ".join(names[:most]) + (", ..." if len(names) > most else "")
