"""Model directories that `titokc.weights.load` takes."""

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING

from titokc.errors import OutputError
from titokc.files import staged
from titokc.weights.fingerprint import fingerprints
from titokc.weights.places import CONFIG_NAME, WEIGHTS_NAMES

if TYPE_CHECKING:
    from titokc.models.interface import Tokenizer


def save(tokenizer: "Tokenizer", directory: str | os.PathLike[str], *, bits: int = 32, overwrite: bool = False) -> None:
    """Writes config.json and model.safetensors, which notes both fingerprints, into a folder: both or neither.

    bits: 32 as they are, or 8, which rounds the tokenizer's own matrices too (`titokc.weights.tensors`).
    overwrite: replace the two files where they are, or write into a folder of other things. Other files always stay.
    Raises OutputError.
    """
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    from titokc.weights.tensors import compact, expand

    check_free(directory, overwrite)
    tensors = tokenizer.state_dict()
    if bits == 8:
        tensors = compact(tensors)
        tokenizer.load_state_dict(expand(tensors))
    found = fingerprints(tokenizer)
    noted = {"format": "pt", "code": found.code.hex(), "weights": found.weights.hex()}
    try:
        with staged(directory) as folder:
            plain = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
            save_file(plain, folder / WEIGHTS_NAMES[0], noted)
            (folder / CONFIG_NAME).write_text(json.dumps(tokenizer.config.to_dict(), indent=2) + "\n", encoding="utf-8")
    except SafetensorError as error:
        raise OutputError(f"{directory} cannot be written: {error}") from error


def check_free(directory: str | os.PathLike[str], overwrite: bool) -> None:
    """Raises OutputError if a model there would be replaced, or files come among others, and `overwrite` is not set."""
    target = Path(directory)
    if target.exists() and not target.is_dir():
        raise OutputError(f"{target} exists and is no folder: choose another name")
    if overwrite or not target.is_dir():
        return
    if any((target / name).exists() for name in (CONFIG_NAME, WEIGHTS_NAMES[0])):
        raise OutputError(f"{target} holds a model: --force replaces its {CONFIG_NAME} and {WEIGHTS_NAMES[0]}")
    if any(target.iterdir()):
        raise OutputError(f"{target} holds other things: --force adds {CONFIG_NAME} and {WEIGHTS_NAMES[0]} to them")
