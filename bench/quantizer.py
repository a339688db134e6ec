"""What nano's quantiser gains by other sizes or other data, before any decoder is trained for it.

python bench/quantizer.py DATA [--token-size 8] [--tokens 64] [--small .25] ...
python bench/quantizer.py DATA --embedded

Fits a quantiser to crops of the photographs in DATA's train-hr*.tar and to the pictures in its train-64*.tar, or takes
the embedded one, and prints the PSNR of the linear code alone (nearest tokens, no ViT) on DATA's kodak/, val/ and
val-1k.tar at 256x256.
"""

import argparse
import random
import tarfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from titokc import imaging, weights
from titokc.models.nano.code import AdaptiveResidualVQ
from titokc.models.nano.fit import fit_quantizer
from titokc.models.nano.tokenizer import NanoTokenizer
from titokc.models.nano.transform import OPPONENT, dct_matrix

THUMB, COUNTS = 64, (8, 16, 32, 64, 96, 128)
_OPPONENT = torch.from_numpy(OPPONENT)


def spectrum(pixels: NDArray[np.uint8]) -> Tensor:
    """uint8 [S, S, 3] -> float32 [3, 64, 64]: what nano's analysis makes of it."""
    side = len(pixels)
    matrix = torch.from_numpy(dct_matrix(side, min(THUMB, side)))
    centred = torch.from_numpy(pixels).float().permute(2, 0, 1) / 255 - 0.5
    return matrix @ torch.einsum("dc,chw->dhw", _OPPONENT, centred) @ matrix.T / side


def pictures(pattern: Path) -> Iterator[NDArray[np.uint8]]:
    """Of tar shards, or of a folder."""
    for path in sorted(pattern.parent.glob(pattern.name)):
        if path.is_dir():
            for file in sorted(path.iterdir()):
                yield np.array(imaging.read(file))
        else:
            with tarfile.open(path) as shard:
                for member in shard:
                    if (data := shard.extractfile(member)) is not None:
                        yield np.array(imaging.read(data.read()))


def crops(pattern: Path, wanted: int, least: float) -> Tensor:
    """Random squares of at least `least` of the short side, half of them mirrored: float16 [wanted, 3 * 64 * 64]."""
    draw, mirror = random.Random(0), (-1.0) ** torch.arange(THUMB)
    made = torch.empty(wanted, 3 * THUMB**2, dtype=torch.float16)
    sources = [pixels for pixels in pictures(pattern) if min(pixels.shape[:2]) >= THUMB] if wanted else []
    for at in range(wanted):
        pixels = sources[at % len(sources)]
        height, width = pixels.shape[:2]
        side = max(THUMB, int(min(height, width) * draw.uniform(least, 1)))
        top, left = draw.randint(0, height - side), draw.randint(0, width - side)
        crop = spectrum(pixels[top : top + side, left : left + side])
        made[at] = (crop * mirror if at % 2 else crop).flatten()
    return made


def psnr(quantizer: AdaptiveResidualVQ, coded: Tensor, squares: list[NDArray[np.uint8]]) -> dict[int, float]:
    """Mean PSNR of the linear code at each number of tokens: what no token codes counts as well."""
    spectra = torch.stack([spectrum(pixels).flatten() for pixels in squares])
    energy = torch.tensor([float(np.square(pixels / 255 - 0.5).sum() / len(pixels) ** 2) for pixels in squares])
    wanted, found = spectra[:, coded], {}
    for count in (count for count in COUNTS if count <= len(quantizer.codebooks)):
        quantised = quantizer.assign(wanted, torch.full((len(wanted),), count))[1]
        errors = energy - wanted.square().sum(1) + (wanted - quantised).square().sum(1)
        found[count] = round(float((-10 * torch.log10(errors / 3)).mean()), 3)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--embedded", action="store_true")
    for name, value in (("tokens", 128), ("token-size", 10), ("hidden", 128), ("refresh", 4), ("coefficients", 2048)):
        parser.add_argument(f"--{name}", type=int, default=value)
    parser.add_argument("--samples", type=int, default=98304)
    parser.add_argument("--small", type=float, default=0.25, help="the part of samples that comes from small pictures")
    given = parser.parse_args()
    if given.embedded:
        nano = weights.load("nano")
        assert isinstance(nano, NanoTokenizer)
        quantizer, coded = nano.quantizer, nano.coded.long()
    else:
        small = round(given.small * given.samples)
        photos = crops(given.data / "train-hr*.tar", given.samples - small, 0.7)
        samples = torch.cat([photos, crops(given.data / "train-64*.tar", small, 1.0)])
        samples = samples[torch.randperm(len(samples), generator=torch.Generator().manual_seed(0))]
        variances = torch.stack([part.float().square().sum(0) for part in samples.split(4096)]).sum(0)
        coded = variances.argsort(descending=True)[: given.coefficients]
        quantizer = AdaptiveResidualVQ(
            given.coefficients, given.tokens, given.token_size, 4096, given.hidden, given.refresh
        )
        with torch.no_grad():
            for _ in fit_quantizer(quantizer, torch.cat([part[:, coded].float() for part in samples.split(4096)])):
                pass
    for name in ("kodak", "val", "val-1k.tar"):
        images = map(Image.fromarray, pictures(given.data / name))
        squares = [np.array(imaging.centre_square(image, 256)) for image in images]
        print(name, psnr(quantizer, coded, squares), flush=True)


if __name__ == "__main__":
    main()
