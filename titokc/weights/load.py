"""From a model's files to a tokenizer that knows its name, its id and its fingerprints."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING

from titokc import models
from titokc.errors import ModelMismatchError, UsageError, WeightsError
from titokc.ids import KNOWN_MODELS
from titokc.weights.fingerprint import fingerprints
from titokc.weights.places import ModelFiles, is_fetched, locate, noted

if TYPE_CHECKING:
    from titokc.models.interface import Config, Tokenizer


def load(name_or_path: str | os.PathLike[str] = "nano", device: str = "cpu") -> "Tokenizer":
    """The tokenizer on `device`, in evaluation mode, with name, id and fingerprints in its `info`.

    name_or_path: "nano" (embedded), a TiTok name ("titok-l-32"), an installed model's name, a hub repository
        ("owner/name"), a model directory, or a .safetensors, .bin or .pth file (its config.json beside it; a TiTok's
        configuration is read off its weights where there is none).

    Nothing touches the network. What the program around has set in torch (default type and device, inference mode)
    makes no difference, and its random numbers stay as they are. Raises ModelNotFoundError, which says where it looked
    and how to get the model, and WeightsError for weights that do not fit their configuration.
    """
    from titokc.models.precision import convolution_format

    tokenizer = load_files(locate(name_or_path))
    with _by_itself():
        tokenizer = tokenizer.to(device)
        return tokenizer.to(memory_format=convolution_format(tokenizer.device))


def load_files(files: ModelFiles) -> "Tokenizer":
    """`load` for files that `locate` has found, on the CPU."""
    with _by_itself():
        tokenizer = _build(files)
        found, written = fingerprints(tokenizer), noted(files.weights)
    for name, digest in (("weights", found.weights.hex()), ("code", found.code.hex())):
        if written.get(name, digest) != digest:
            what = "the file was written as" if name == "weights" else "its decoder was made for the code"
            damage = ": damaged" if name == "weights" else ""
            raise WeightsError(f"{files.weights}: the {name} is {digest}, {what} {written[name]}{damage}")
    try:
        tokenizer.check()
    except WeightsError as error:
        raise WeightsError(f"{files.weights}: {error}") from error
    embedded = noted(models.EMBEDDED_FILE).get("weights")
    name = models.EMBEDDED if embedded == found.weights.hex() else files.name
    known = _id_of(tokenizer.config, found.code, files)
    tokenizer.info = replace(tokenizer.info, name=name, id=known, **found._asdict())
    return tokenizer.eval()


def self_test(tokenizer: "Tokenizer") -> None:
    """Encodes and decodes a colour gradient; WeightsError if a weight or a pixel is not a finite number."""
    import torch

    for name, tensor in tokenizer.state_dict().items():
        if tensor.is_floating_point() and not torch.isfinite(tensor).all():
            raise WeightsError(f"{tokenizer.info.name}: {name} holds numbers that are not finite")
    ramp = torch.linspace(0, 1, tokenizer.info.side, dtype=torch.float32, device=tokenizer.device)
    image = torch.stack([ramp.expand(len(ramp), -1), ramp[:, None].expand(-1, len(ramp)), ramp.flip(0) * ramp[:, None]])
    with torch.inference_mode():
        pixels = tokenizer.decode(tokenizer.encode(image.unsqueeze(0)))
    if not torch.isfinite(pixels).all():
        raise WeightsError(f"{tokenizer.info.name}: a test picture is decoded to numbers that are not finite")


def _build(files: ModelFiles) -> "Tokenizer":
    import torch

    from titokc.weights.tensors import Uninitialised, fitted, read

    tensors = read(files.weights)
    try:
        config = models.configured(files.read_config(), {name: tuple(t.shape) for name, t in tensors.items()})
        # Before memory is taken for what a stranger's config.json asks for.
        with Uninitialised(), torch.device("meta"):
            expected = models.build(config).float().state_dict()
    except (WeightsError, UsageError) as error:
        raise WeightsError(f"{files.config or files.weights}: {error}") from error
    tensors = fitted(expected, tensors, files.weights)
    with Uninitialised():
        tokenizer = models.build(config).float()
    tokenizer.load_state_dict(tensors, assign=True)
    return tokenizer


def _id_of(config: "Config", code: bytes, files: ModelFiles) -> int:
    """The id of the row of formats/ids.json that has this code, 0 for a custom model.

    Of a release whose code nobody has noted there yet, the origin decides: what `fetch` got from its repository is it.
    Raises ModelMismatchError for what goes by a release's name and cannot be it.
    """
    release = models.releases().get(files.name)
    if release and config != release.config:
        raise ModelMismatchError(
            f"what is here as {files.name} has another configuration ({files.config or files.weights}): "
            "install it under another name, or give its path"
        )
    for row in KNOWN_MODELS.values():
        if row.code == code.hex():
            return row.id
        if row.name == files.name and not row.code and is_fetched(files):
            return row.id
    return 0


@contextmanager
def _by_itself() -> Iterator[None]:
    """Inside, torch is as it comes: the CPU by default, no inference mode. (The default type is process-wide, so models
    name theirs; and no random numbers are drawn for weights that are read.)"""
    import torch

    with torch.inference_mode(False), torch.device("cpu"):
        yield
