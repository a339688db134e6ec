"""Folders of ONNX graphs for other languages: a model's decoder and its weights, as formats/onnx.md describes them."""

import os
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

from titokc.errors import OutputError, UsageError
from titokc.files import staged
from titokc.weights.arrays import SCALE
from titokc.weights.load import load_files
from titokc.weights.places import WEIGHTS_NAMES, header, locate

if TYPE_CHECKING:
    from titokc.models.interface import Tokenizer

_TYPES = {"F32": "float32", "I32": "int32", "I8": "int8"}


def export(
    name_or_path: str | os.PathLike[str],
    directory: str | os.PathLike[str],
    *,
    search: bool = False,
    overwrite: bool = False,
) -> "Tokenizer":
    """Writes a model's decoder as ONNX graphs, with a copy of its weights, into a folder.

    search: the gradient too. overwrite: write into a folder that is there. Raises ModelError, OutputError, UsageError
    for a model without such an export, and ModuleNotFoundError where a package that it needs is missing.
    """
    files = locate(name_or_path)
    if files.weights.suffix != ".safetensors":
        raise UsageError(f"{files.weights}: the export needs .safetensors, which titokc models convert writes")
    if Path(directory).exists() and not overwrite:
        raise OutputError(f"{directory} exists: --force writes into it")
    tokenizer, stored = load_files(files), _stored(files.weights)
    with staged(directory) as folder:
        weights = folder / WEIGHTS_NAMES[0]
        shutil.copyfile(files.weights, weights)
        tokenizer.export_onnx(weights, stored, search)
    return tokenizer


def _stored(path: Path) -> dict[str, dict[str, Any]]:
    """Where the tensors of a .safetensors file lie in it: type, shape, offset and length in bytes; of one in 8 bits,
    `scale` is the same of what its rows are multiplied by. UsageError for a type that titokc does not write."""
    entries, begin = header(path)
    entries.pop("__metadata__", None)
    found = {}
    for name, entry in entries.items():
        start, stop = entry["data_offsets"]
        if (kind := _TYPES.get(entry["dtype"])) is None:
            raise UsageError(f"{path}: {name} holds {entry['dtype']}, expected F32: titokc models convert writes it")
        found[name] = {"type": kind, "shape": entry["shape"], "offset": begin + start, "bytes": stop - start}
    for name in [name for name in found if name + SCALE in found]:
        found[name]["scale"] = found.pop(name + SCALE)
    return found
