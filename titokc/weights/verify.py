"""Are these the weights, and does this machine compute what the authors' did? `titokc models verify` prints it."""

from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from titokc.errors import InputError, WeightsError
from titokc.models.interface import Tokenizer
from titokc.models.quantizers import VectorQuantizer
from titokc.models.titok.tokenizer import TiTok
from titokc.weights.known import GOLDEN_TOKENS, RELEASES

# Squared distance between unit vectors, 0..4. Rounding differs between devices by some 1e-6.
NEAR_TIE = 1e-3


class Mismatch(NamedTuple):
    """One token that is not the published one. margin: by how much the published entry is farther from the latent than
    the nearest one, as a squared distance."""

    position: int
    found: int
    expected: int
    margin: float


@dataclass(frozen=True)
class Golden:
    """One picture's tokens against the published ones."""

    picture: str
    tokens: int
    mismatches: tuple[Mismatch, ...]

    @property
    def passed(self) -> bool:
        """Equal, but for near ties that another device may resolve the other way."""
        return all(mismatch.margin <= NEAR_TIE for mismatch in self.mismatches)


def self_test(tokenizer: Tokenizer) -> None:
    """Encodes and decodes a colour gradient; WeightsError if a weight or a pixel is not a finite number."""
    for name, tensor in tokenizer.state_dict().items():
        if tensor.is_floating_point() and not torch.isfinite(tensor).all():
            raise WeightsError(f"{tokenizer.name}: {name} holds numbers that are not finite")
    ramp = torch.linspace(0, 1, tokenizer.side, device=tokenizer.device)
    image = torch.stack([ramp.expand(len(ramp), -1), ramp[:, None].expand(-1, len(ramp)), ramp.flip(0) * ramp[:, None]])
    with torch.inference_mode():
        tokens = tokenizer.encode(image.unsqueeze(0))
        pixels = tokenizer.decode(tokens)
    if not torch.isfinite(pixels).all():
        raise WeightsError(f"{tokenizer.name}: a test picture is decoded to numbers that are not finite")


def golden(tokenizer: Tokenizer, pictures: Path) -> list[Golden]:
    """Encodes those of the published pictures that are in the folder `pictures`; none are published for most models."""
    published = _published(tokenizer)
    paths = {name: pictures / name for name in published if (pictures / name).is_file()}
    if published and not paths:
        raise InputError(f"none of {', '.join(published)} in {pictures}")
    return [_compare(tokenizer, path, published[name]) for name, path in paths.items()]


def _published(tokenizer: Tokenizer) -> dict[str, tuple[int, ...]]:
    """By configuration, not by name: the weights may have been given as a path."""
    release = next((name for name, release in RELEASES.items() if release.config == tokenizer.config), "")
    return GOLDEN_TOKENS.get(release, {})


def _compare(tokenizer: Tokenizer, path: Path, expected: tuple[int, ...]) -> Golden:
    assert isinstance(tokenizer, TiTok)
    assert isinstance(tokenizer.quantize, VectorQuantizer)
    with torch.inference_mode():
        latents = tokenizer.latents(_read(path, tokenizer.side).to(tokenizer.device))[0]
        distances = tokenizer.quantize.distances(latents).cpu()
    found = distances.argmin(1).tolist()
    mismatches = tuple(
        Mismatch(at, index, wanted, float(distances[at, wanted] - distances[at, index]))
        for at, (index, wanted) in enumerate(zip(found, expected, strict=True))
        if index != wanted
    )
    return Golden(path.name, len(expected), mismatches)


def _read(path: Path, side: int) -> Tensor:
    """A picture that has the model's size already -> RGB [1, 3, S, S] in [0, 1]."""
    try:
        with Image.open(path) as image:
            pixels = np.asarray(image.convert("RGB"))
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error}") from error
    if pixels.shape != (side, side, 3):
        raise InputError(f"{path} is {pixels.shape[1]}x{pixels.shape[0]}, expected {side}x{side}")
    return torch.tensor(pixels).permute(2, 0, 1).unsqueeze(0).float() / 255
