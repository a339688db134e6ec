"""Models by name or path: `load`, `save`, and the fingerprint that ties a `.tok` file to the weights it was made with.

`titokc.weights.places` knows the places and downloads, `titokc.weights.tensors` reads and writes the files, and
`titokc.models` has the architectures. torch is imported when a model is loaded.
"""

import hashlib
import json
import os
from typing import TYPE_CHECKING

from titokc.container import KNOWN_MODELS
from titokc.errors import ModelMismatchError, ModelNotFoundError, UsageError, WeightsError
from titokc.weights.known import MODEL_IDS, NANO
from titokc.weights.places import ModelFiles, embedded_fingerprint, fetch, find, locate, stored_fingerprint

if TYPE_CHECKING:
    from torch import Tensor

    from titokc.models.interface import Tokenizer

__all__ = ["fetch", "find", "fingerprint", "load", "locate", "save"]


def load(name_or_path: str | os.PathLike[str] = "nano", device: str = "cpu", *, download: bool = False) -> "Tokenizer":
    """The tokenizer on `device`, in evaluation mode, with its `name`, `model_id` and `fingerprint` set.

    name_or_path: "nano" (embedded), a TiTok name ("titok-l-32"), an installed model's name, a hub repository
        ("owner/name"), a model directory, or a .safetensors, .bin or .pth file (its config.json beside it; a TiTok's
        configuration is read off its weights where there is none).
    download: fetch from the hub what is not on this machine. Nothing touches the network otherwise.

    Raises ModelNotFoundError, which says where it looked and how to get the model, and WeightsError for weights that
    do not fit their configuration.
    """
    try:
        files = locate(name_or_path)
    except ModelNotFoundError:
        if not download:
            raise
        files = fetch(os.fspath(name_or_path))
    return load_files(files).to(device)


def load_files(files: ModelFiles) -> "Tokenizer":
    """`load` for files that `locate` has found, on the CPU. The embedded model is known by any path."""
    from titokc.weights.tensors import read

    tokenizer = _build(files, read(files.weights))
    tokenizer.fingerprint = fingerprint(tokenizer)
    noted, found = stored_fingerprint(files.weights), tokenizer.fingerprint.hex()
    if noted and noted != found:
        raise WeightsError(f"{files.weights}: the weights are {found}, the file was written as {noted}: damaged")
    tokenizer.name = NANO if noted and noted == embedded_fingerprint() else files.name
    tokenizer.model_id = MODEL_IDS.get(tokenizer.name, 0)
    _check_known(tokenizer)
    return tokenizer.eval()


def save(tokenizer: "Tokenizer", directory: str | os.PathLike[str], *, bits: int = 32) -> None:
    """Writes a model directory, config.json and model.safetensors, that `load` takes; all of it or nothing.

    bits: 32 as they are, or 8, which rounds the tokenizer's own matrices too (`titokc.weights.int8`).
    A model directory that is there already is replaced. Raises OutputError.
    """
    from titokc.weights.int8 import compact, expand
    from titokc.weights.tensors import write

    tensors = tokenizer.state_dict()
    if bits == 8:
        tensors = compact(tensors)
        tokenizer.load_state_dict(expand(tensors))
    write(directory, tokenizer.config.to_dict(), tensors, fingerprint(tokenizer))


def fingerprint(tokenizer: "Tokenizer") -> bytes:
    """SHA-256 (32 bytes) of what decides the tokenizer's output, the same whatever file it was loaded from.

    Hashed are the configuration as JSON (keys sorted, no spaces, ASCII) and a line feed; then for each tensor of the
    state dict, by name, "NAME DTYPE D1xD2x...", a line feed, and its elements in row-major order, little-endian.
    """
    from titokc.weights.tensors import raw_bytes

    digest = hashlib.sha256()
    digest.update(json.dumps(tokenizer.config.to_dict(), sort_keys=True, separators=(",", ":")).encode("ascii") + b"\n")
    for name, tensor in sorted(tokenizer.state_dict().items()):
        shape = "x".join(map(str, tensor.shape))
        digest.update(f"{name} {str(tensor.dtype).removeprefix('torch.')} {shape}\n".encode())
        digest.update(raw_bytes(tensor))
    return digest.digest()


def _build(files: ModelFiles, tensors: "dict[str, Tensor]") -> "Tokenizer":
    import torch

    from titokc import models
    from titokc.weights.tensors import Uninitialised, fitted

    try:
        config = models.configured(files.read_config(), {name: tuple(t.shape) for name, t in tensors.items()})
        # Before memory is taken for what a stranger's config.json asks for.
        with Uninitialised(), torch.device("meta"):
            expected = models.build(config).state_dict()
    except (WeightsError, UsageError) as error:
        raise WeightsError(f"{files.config or files.weights}: {error}") from error
    tensors = fitted(expected, tensors, files.weights)
    with Uninitialised():
        tokenizer = models.build(config)
    tokenizer.load_state_dict(tensors, assign=True)
    return tokenizer


def _check_known(tokenizer: "Tokenizer") -> None:
    """Raises ModelMismatchError for a model that goes by a known name and cannot be the known one."""
    row = KNOWN_MODELS.get(tokenizer.model_id)
    if row is None:
        return
    found = (
        tokenizer.bits_per_index,
        tokenizer.min_tokens,
        tokenizer.max_tokens,
        tokenizer.nested,
        tokenizer.side,
    )
    if found != row[2:]:
        raise ModelMismatchError(
            f"what is here as {row.name} makes {_described(*found)}, expected {_described(*row[2:])}"
        )


def _described(bits: int, fewest: int, most: int, nested: bool, side: int) -> str:
    count = f"{fewest}..{most} nested" if nested else str(most)
    return f"{count} tokens of {bits} bits from {side}x{side} pixels"
